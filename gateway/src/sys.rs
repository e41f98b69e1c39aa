//! The only module with unsafe code: kernel interfaces that no safe wrapper we depend on covers.
#![expect(
    unsafe_code,
    reason = "an ioctl, a few socket options, two calls about memory and the adoption of descriptors have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::{Arc, OnceLock};

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::host::TunDevice;

/// `IP_LOCAL_PORT_RANGE` of `linux/in.h` (Linux 6.3).
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// A value that owns one open descriptor, keeps it for as long as it lives, and always answers with the same number.
pub(crate) trait OwnsDescriptor: AsRawFd {}

impl OwnsDescriptor for Socket {}
impl OwnsDescriptor for TunDevice {}
impl OwnsDescriptor for Arc<TunDevice> {}

/// Registers a descriptor with the tokio runtime of the calling thread.
pub(crate) fn register<T: OwnsDescriptor>(owner: T) -> io::Result<AsyncFd<T>> {
    register_with(owner, Interest::READABLE | Interest::WRITABLE)
}

/// Registers a descriptor with the tokio runtime of the calling thread, to be read only. Urgent conditions count as
/// readable.
pub(crate) fn register_for_reading<T: OwnsDescriptor>(owner: T) -> io::Result<AsyncFd<T>> {
    register_with(owner, Interest::READABLE | Interest::PRIORITY)
}

fn register_with<T: OwnsDescriptor>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: `OwnsDescriptor` says what is asked for, this module alone implements it, and the `AsyncFd` owns `owner`;
    // neither type lets go of its descriptor through a shared or mutable reference.
    unsafe { AsyncFd::register_with_interest(owner, interest) }.map_err(io::Error::from)
}

/// Takes the descriptor out of a TUN device of the `tun` crate.
pub(crate) fn into_file(device: tun::Device) -> File {
    let descriptor = device.into_raw_fd();
    // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, and nobody else has it.
    unsafe { File::from_raw_fd(descriptor) }
}

/// `TUNSETIFF`: attaches an open `/dev/net/tun` to the device with this name, which is made where there is none.
pub(crate) fn attach_tun(tun: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: every byte pattern is a value of this C struct, all zeros too.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = std::ffi::CString::new(name)?;
    let name = name.as_bytes_with_nul();
    if name.len() > request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    // The field is 16 bits wide, and the flags use the highest as well.
    request.ifr_ifru.ifru_flags = (flags & 0xffff) as libc::c_short;
    // SAFETY: `request` outlives the call, and is of the type that this request reads and writes.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `TUNSETOFFLOAD`: which offloads the reader of a TUN device can take (`TUN_F_*`).
pub(crate) fn set_tun_offload(tun: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the request takes its argument by value and touches no memory of ours; `tun` is open for the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `IP_LOCAL_PORT_RANGE`: the ports the kernel may choose a local port from, for IPv4 and IPv6 sockets.
///
/// The kernel ignores a bound that lies outside `net.ipv4.ip_local_port_range`.
pub(crate) fn set_local_port_range(socket: BorrowedFd<'_>, ports: &RangeInclusive<u16>) -> io::Result<()> {
    let value = u32::from(*ports.end()) << 16 | u32::from(*ports.start());
    set_option(socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, value)
}

/// `SO_SELECT_ERR_QUEUE`: an error of the socket is an urgent condition, which wakes a reader as data does.
pub(crate) fn set_errors_wake_reader(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE, 1)
}

/// `IP_PMTUDISC_DONT` of both families: what does not fit the path is fragmented, by us or by routers.
pub(crate) fn allow_fragments(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let dont = libc::IP_PMTUDISC_DONT.cast_unsigned();
    if ipv6 {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, dont)?;
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    }
    // An IPv6 socket also carries IPv4.
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, dont)
}

/// `IP_MTU` or `IPV6_MTU` of a connected socket.
pub(crate) fn path_mtu(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<u32> {
    let (level, name) = if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_MTU) } else { (libc::IPPROTO_IP, libc::IP_MTU) };
    let mut value: u32 = 0;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the option is an int; pointer and length describe `value`, to which alone the kernel writes.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// `SO_ATTACH_REUSEPORT_CBPF`: the program says which socket of a group that shares a port gets a datagram. It sees what
/// the datagram carries, from its first byte on.
pub(crate) fn attach_reuseport_program(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the option is a `sock_fprog`, and pointer and length describe `program`. Its own name a slice that is borrowed
    // for as long as the call, of which the kernel makes a copy and to which it does not write.
    unsafe { set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program) }
}

/// Sets an option of 32 bits.
fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: u32) -> io::Result<()> {
    // SAFETY: an option of this size points to nothing.
    unsafe { set(socket, level, name, &value) }
}

/// Sets an option.
///
/// # Safety
/// `T` is what the option is in C, and what it points to is valid for the call.
unsafe fn set<T>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which is only read; the rest is the caller's word.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes from which on an allocation is a mapping of its own.
const MAPPING_THRESHOLD: libc::c_int = 128 * 1024;

/// `M_MMAP_THRESHOLD`: keeps large buffers mappings of their own for the life of the process.
///
/// The C library raises the threshold by itself once a mapping is freed. From then on the rings of a flow come from its
/// heap, where a buffer that is to be zero must be written over whole, while fresh pages are zero and cost nothing until
/// they are touched (mallopt(3)).
pub(crate) fn keep_large_buffers_mapped() {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPING_THRESHOLD) };
    if taken == 0 {
        tracing::debug!("the C library has no M_MMAP_THRESHOLD");
    }
}

/// Bytes of a page at most: 64 KiB on some arm64 and powerpc kernels. A multiple of the page size is as good.
fn page_size() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    *PAGE.get_or_init(|| {
        // SAFETY: the call takes an integer and touches no memory of ours.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(1 << 16)
    })
}

/// `MADV_DONTNEED` on the whole pages in `bytes`, which must be memory of the allocator (private and anonymous): they read
/// as zero afterwards, and cost nothing until they are written to.
pub(crate) fn discard(bytes: &mut [u8]) {
    let page = page_size();
    let before = bytes.as_ptr().addr().wrapping_neg() % page;
    let Some(inside) = bytes.get_mut(before..) else { return };
    let len = inside.len() - inside.len() % page;
    if len == 0 {
        return;
    }
    // SAFETY: the pages lie within `bytes`, which is borrowed for writing: nobody else reads or writes them meanwhile, and
    // every value the kernel leaves in them is one of a `u8`.
    let result = unsafe { libc::madvise(inside.as_mut_ptr().cast(), len, libc::MADV_DONTNEED) };
    if result < 0 {
        // Locked memory, for one. The bytes stay, and so does what they cost.
        tracing::debug!(error = %io::Error::last_os_error(), "madvise");
    }
}

/// Whether the kernel answered with this error number.
pub(crate) fn is_errno(error: &io::Error, errno: nix::errno::Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_within_are_given_back() {
        let page = page_size();
        let mut memory = vec![7; 16 * page];
        let offset = memory.as_ptr().addr().wrapping_neg() % page;
        discard(&mut memory[offset + 1..offset + 4 * page + 5]);
        // The page of the first byte and that of the last are not whole.
        assert!(memory[..offset + page].iter().all(|byte| *byte == 7));
        assert!(memory[offset + page..offset + 4 * page].iter().all(|byte| *byte == 0));
        assert!(memory[offset + 4 * page..].iter().all(|byte| *byte == 7));
        discard(&mut memory[offset + 5 * page + 1..offset + 6 * page]);
        discard(&mut []);
        assert!(memory[offset + 4 * page..].iter().all(|byte| *byte == 7));
    }
}
