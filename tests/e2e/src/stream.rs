//! Reproducible bytes of any length, and their digest on both ends.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// A SHA-256 digest.
pub type Sum = [u8; 32];

/// Bytes written or read at once.
const CHUNK: usize = 64 * 1024;

/// One MiB.
pub const MIB: u64 = 1 << 20;

/// An endless stream of pseudo-random bytes that depends on nothing but its seed.
#[derive(Debug)]
pub struct Noise {
    state: u64,
}

impl Noise {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    /// The next bytes (xorshift64).
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            chunk.copy_from_slice(&self.state.to_le_bytes()[..chunk.len()]);
        }
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// Writes `len` bytes of the stream of `seed` and gives their digest.
///
/// # Errors
///
/// The first error of the writer.
pub fn send(mut to: impl Write, seed: u64, len: u64) -> io::Result<Sum> {
    let mut left = len;
    send_while(&mut to, seed, |chunk| {
        let now = left.min(chunk);
        left -= now;
        now
    })
    .map(|(_, sum)| sum)
}

/// Writes the stream of `seed` as long as `more`, given the largest possible chunk, asks for bytes.
/// Gives how many were written and their digest.
///
/// # Errors
///
/// The first error of the writer.
pub fn send_while(mut to: impl Write, seed: u64, mut more: impl FnMut(u64) -> u64) -> io::Result<(u64, Sum)> {
    let mut noise = Noise::new(seed);
    let mut sum = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    loop {
        let now = more(CHUNK as u64);
        if now == 0 {
            return Ok((sent, sum.finalize().into()));
        }
        let part = &mut buffer[..usize::try_from(now).expect("at most a chunk")];
        noise.fill(part);
        sum.update(&*part);
        to.write_all(part)?;
        sent += now;
    }
}

/// Reads to the end and gives the length and the digest.
///
/// # Errors
///
/// The first error of the reader.
pub fn receive(from: impl Read) -> io::Result<(u64, Sum)> {
    receive_with(from, |_| ())
}

/// As [`receive`], telling `progress` the running length after every read.
///
/// # Errors
///
/// The first error of the reader.
pub fn receive_with(mut from: impl Read, mut progress: impl FnMut(u64)) -> io::Result<(u64, Sum)> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut got = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok((got, sum.finalize().into())),
            Ok(len) => {
                sum.update(&buffer[..len]);
                got += len as u64;
                progress(got);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_agree_and_a_flipped_bit_shows() {
        let mut bytes = Vec::new();
        let sent = send(&mut bytes, 7, 200_001).expect("a vector takes everything");
        assert_eq!(receive(&*bytes).expect("a slice reads"), (200_001, sent));
        bytes[100_000] ^= 1;
        assert_ne!(receive(&*bytes).expect("a slice reads").1, sent);
    }
}
