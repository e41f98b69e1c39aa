//! The orderly end: no new flows, open ones for a while, then the rest is reset.

use std::time::Duration;

use crate::control::shards::{ANSWER_TIMEOUT, Shards, Unanswered};
use crate::shard::link::Command;

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every flow ended by itself.
    Empty,
    /// Time was up; this many flows were ended as `drained`.
    Cut(u64),
}

/// Has every shard take no new flow, and waits until none is open or `limit` is over.
pub async fn drain(shards: &Shards, limit: Duration) -> Drained {
    match shards.ask(limit, Command::Drain).await.1 {
        Ok(()) => Drained::Empty,
        Err(_) => Drained::Cut(shards.counters().map(|c| c.flows_open.value()).sum()),
    }
}

/// Ends what is still open. When it returns without an error, every flow has its record and the shards leave their loops.
pub async fn stop(shards: &Shards) -> Result<(), Unanswered> {
    shards.ask(ANSWER_TIMEOUT, Command::Stop).await.1
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;
    use crate::control::shards::tests::FakeShard;

    #[tokio::test(start_paused = true)]
    async fn an_idle_gateway_stops_at_once() {
        let shard = FakeShard::default();
        let told = Arc::clone(&shard.told);
        let shards = Shards::from_parts([shard.start()]);
        let start = Instant::now();
        assert_eq!(drain(&shards, Duration::from_secs(10)).await, Drained::Empty);
        assert_eq!(stop(&shards).await, Ok(()));
        assert_eq!(*told.lock().unwrap(), ["drain", "stop"]);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_shard_is_stopped_when_time_is_up() {
        let busy = FakeShard { busy: true, ..FakeShard::default() };
        let told = Arc::clone(&busy.told);
        let (commands, counters) = busy.start();
        counters.flows_open.set(3);
        let shards = Shards::from_parts([(commands, counters), FakeShard::default().start()]);
        let start = Instant::now();
        assert_eq!(drain(&shards, Duration::from_secs(10)).await, Drained::Cut(3));
        assert_eq!(stop(&shards).await, Ok(()));
        assert_eq!(*told.lock().unwrap(), ["drain", "stop"]);
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_shard_does_not_hold_the_end_up() {
        let stuck = FakeShard { stuck: true, ..FakeShard::default() };
        let shards = Shards::from_parts([stuck.start()]);
        assert_eq!(drain(&shards, Duration::from_secs(1)).await, Drained::Cut(0));
        assert_eq!(stop(&shards).await, Err(Unanswered(vec![0])));
    }
}
