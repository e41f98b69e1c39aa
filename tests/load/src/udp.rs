//! The greatest rate of datagrams with at most 1 % loss.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use quinn_udp::{Transmit, UdpSocketState};
use serde_json::{Value, json};

use crate::error::LoadError;
use crate::search::{Search, Verdict};
use crate::serve::Query;

/// Of so many that were sent, one may be lost.
const ONE_MAY_BE_LOST: u64 = 100;
/// Part of a rate the sender must come to for the rate to have been tried.
const MIN_RATE: f64 = 0.95;
/// Trials in the time given: the search makes no more than 13.
const TRIALS: u32 = 14;
/// Datagrams due in this time go out in one call: the burst a path has to take.
const BATCH: Duration = Duration::from_millis(1);
/// Batches that were due longer ago are not made up for.
const MAX_BEHIND: Duration = Duration::from_millis(20);
/// Most datagrams of one call, and most bytes.
const MAX_SEGMENTS: usize = 64;
const MAX_BYTES: usize = 65_000;
/// Time for what is on its way when a trial ends.
const SETTLE: Duration = Duration::from_millis(15);
/// Wait for an answer of the sink, and questions asked in vain before giving up.
const ANSWER: Duration = Duration::from_millis(100);
const QUESTIONS: usize = 20;

/// Where, and what.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A udp-sink.
    address: SocketAddr,
    /// Bytes of each datagram's payload.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=65_000))]
    size: usize,
    /// About how long the whole search may take.
    #[arg(long, default_value = "6", value_parser = crate::seconds)]
    seconds: Duration,
}

/// What one rate came to.
#[derive(Debug, Clone, Copy)]
struct Trial {
    sent: u64,
    received: u64,
    elapsed: Duration,
}

impl Trial {
    fn loss(&self) -> f64 {
        1.0 - self.received.min(self.sent) as f64 / self.sent.max(1) as f64
    }

    fn sent_per_second(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn received_per_second(&self) -> f64 {
        self.received.min(self.sent) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn verdict(&self, rate: f64) -> Verdict {
        let lost = self.sent.saturating_sub(self.received);
        match (lost * ONE_MAY_BE_LOST <= self.sent, self.sent_per_second() >= rate * MIN_RATE) {
            (false, _) => Verdict::Failed,
            (true, true) => Verdict::Passed,
            (true, false) => Verdict::Limited,
        }
    }
}

/// Searches for the rate.
pub(crate) fn run(arguments: &Arguments) -> Result<Value, LoadError> {
    let address = arguments.address;
    let mut sender = Sender::connect(address, arguments.size).map_err(LoadError::at("send to", address))?;
    sender.received()?;

    let length = (arguments.seconds / TRIALS).saturating_sub(SETTLE).max(BATCH);
    let mut search = Search::new();
    let mut best: Option<Trial> = None;
    let mut lowest = f64::MAX;
    while let Some(rate) = search.next() {
        lowest = lowest.min(rate);
        let trial = sender.trial(rate, length)?;
        let verdict = trial.verdict(rate);
        if verdict != Verdict::Failed
            && best.is_none_or(|best| best.received_per_second() < trial.received_per_second())
        {
            best = Some(trial);
        }
        search.judge(rate, verdict);
    }
    let Some(best) = best else { return Err(LoadError::Lossy { address, rate: lowest }) };
    let rate = best.received_per_second();
    let gbits = rate * arguments.size as f64 * 8.0 / 1e9;
    Ok(json!({
        "packets_per_second": rate.round(),
        "loss": (best.loss() * 1e5).round() / 1e5,
        "gbits": (gbits * 1e4).round() / 1e4,
    }))
}

struct Sender {
    address: SocketAddr,
    socket: UdpSocket,
    state: UdpSocketState,
    size: usize,
    payload: Vec<u8>,
    queries: u64,
}

impl Sender {
    fn connect(address: SocketAddr, size: usize) -> io::Result<Self> {
        let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        let state = UdpSocketState::new((&socket).into())?;
        // It waits where there is no room, which slows it to the pace of the path.
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(ANSWER))?;
        let payload = vec![b'x'; size * (MAX_BYTES / size).clamp(1, MAX_SEGMENTS)];
        Ok(Self { address, socket, state, size, payload, queries: 0 })
    }

    /// Sends at `rate` a second for a time, and asks how many came.
    fn trial(&mut self, rate: f64, length: Duration) -> Result<Trial, LoadError> {
        let before = self.received()?;
        let began = Instant::now();
        let (sent, elapsed) = self.send_paced(rate, length, began).map_err(LoadError::at("send to", self.address))?;
        thread::sleep(SETTLE);
        let mut received = self.received()? - before;
        // Questions may overtake what waits in a queue of another core.
        while received < sent {
            thread::sleep(SETTLE);
            let now = self.received()? - before;
            if now == received {
                break;
            }
            received = now;
        }
        Ok(Trial { sent, received, elapsed })
    }

    /// Sends a batch each tick. Ticks that came late are made up for, no closer than half a tick together; what is later
    /// than that is left out, and the rate falls.
    fn send_paced(&self, rate: f64, length: Duration, began: Instant) -> io::Result<(u64, Duration)> {
        let tick = BATCH.max(Duration::from_secs_f64(1.0 / rate));
        let batch = rate * tick.as_secs_f64();
        let (mut sent, mut owed, mut due) = (0, 0.0, began);
        loop {
            let now = Instant::now();
            let elapsed = now - began;
            if elapsed >= length {
                return Ok((sent, elapsed));
            }
            owed += batch;
            while owed >= 1.0 {
                let count = self.send(owed as u64)?;
                owed -= count as f64;
                sent += count;
            }
            due = (due + tick).max(now.checked_sub(MAX_BEHIND).unwrap_or(now));
            let next = due.max(now + tick / 2);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    /// Sends up to `count` datagrams in one call.
    fn send(&self, count: u64) -> io::Result<u64> {
        let most = (self.payload.len() / self.size).min(self.state.max_gso_segments()).max(1);
        let count = usize::try_from(count).map_or(most, |count| count.min(most));
        let contents = self.payload.get(..count * self.size).unwrap_or_default();
        let segment_size = (count > 1).then_some(self.size);
        let transmit = Transmit { destination: self.address, ecn: None, contents, segment_size, src_ip: None };
        match self.state.try_send((&self.socket).into(), &transmit) {
            Ok(()) => {}
            // A full queue on the way: they count as sent and lost.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {}
            // No GSO on this path. The state knows by now, and goes on one by one.
            Err(error) if count > 1 && self.state.max_gso_segments() == 1 => drop(error),
            Err(error) => return Err(error),
        }
        Ok(count as u64)
    }

    /// How many datagrams the sink has received since it started.
    fn received(&mut self) -> Result<u64, LoadError> {
        let mut answer = [0; Query::ANSWER + 1];
        for _ in 0..QUESTIONS {
            self.queries += 1;
            let query = Query(self.queries);
            let sent = self.socket.send(&query.question());
            if sent.is_err() {
                // The port is closed, said an ICMP error: it may open.
                thread::sleep(SETTLE);
                continue;
            }
            while let Ok(length) = self.socket.recv(&mut answer) {
                if let Some(count) = query.count(answer.get(..length).unwrap_or_default()) {
                    return Ok(count);
                }
            }
        }
        Err(LoadError::NoSink { address: self.address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::testing::served;

    async fn load(address: SocketAddr) -> Result<Value, LoadError> {
        let load = move || run(&Arguments { address, size: 100, seconds: Duration::from_millis(700) });
        tokio::task::spawn_blocking(load).await.unwrap()
    }

    #[test]
    fn finds_a_rate() {
        let result = served("--udp-sink", load).unwrap();
        assert!(result["packets_per_second"].as_f64().unwrap() > 0.0, "{result}");
        assert!(result["loss"].as_f64().unwrap() <= 0.01, "{result}");
    }

    #[test]
    fn what_is_no_sink_is_no_figure() {
        assert!(matches!(served("--udp-echo", load), Err(LoadError::NoSink { .. })));
    }

    #[test]
    fn a_slow_sender_is_no_loss() {
        let trial = |sent, received| Trial { sent, received, elapsed: Duration::from_secs(1) };
        assert_eq!(trial(1000, 990).verdict(1000.0), Verdict::Passed);
        assert_eq!(trial(1000, 989).verdict(1000.0), Verdict::Failed);
        assert_eq!(trial(900, 900).verdict(1000.0), Verdict::Limited);
    }
}
