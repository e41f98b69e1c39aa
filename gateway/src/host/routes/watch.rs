//! Routes and rules that somebody else takes away are put back.

use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::kernel::{Kernel, table_of_route};
use super::{RouteError, SteeredRoutes, SteeringChange, Target};
use crate::config::resolved::{OnStop, TunConfig};
use crate::host::netlink::{Netlink, Unsolicited};

/// What the kernel tells of as it happens.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Link,
];
/// How often everything is looked at all the same: a full buffer loses what the kernel tells.
const EVERY: Duration = Duration::from_secs(10);
/// How long after a look the next one waits, so that whoever takes them away in a loop does not keep us busy.
const REST: Duration = Duration::from_millis(100);

/// Routes in force that are looked after.
#[derive(Debug)]
pub struct WatchedRoutes {
    routes: SteeredRoutes,
    steering: Steering,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Where to ask for other routes.
#[derive(Debug, Clone)]
pub struct Steering(mpsc::Sender<Request>);

#[derive(Debug)]
struct Request {
    config: TunConfig,
    answer: oneshot::Sender<Result<Vec<SteeringChange>, RouteError>>,
}

impl Steering {
    /// Steers what `config` says from now on, in the table and towards the device of the start. Returns the difference;
    /// none when the routes are not looked after any more.
    ///
    /// # Errors
    ///
    /// What the kernel refused; then everything is steered as before.
    pub async fn change(&self, config: TunConfig) -> Result<Vec<SteeringChange>, RouteError> {
        let (answer, answered) = oneshot::channel();
        // A gateway that stops steers nothing new.
        let _ = self.0.send(Request { config, answer }).await;
        answered.await.unwrap_or(Ok(Vec::new()))
    }
}

impl WatchedRoutes {
    /// Looks after `routes` from now on. Call on a tokio runtime.
    pub fn start(routes: SteeredRoutes) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (requests, asked) = mpsc::channel(1);
        let task = tokio::spawn(watch(routes.clone(), asked, stopped));
        Self { routes, steering: Steering(requests), stop, task }
    }

    /// Where to ask for other routes.
    pub fn steering(&self) -> Steering {
        self.steering.clone()
    }

    /// Looks after them no longer, and [removes](SteeredRoutes::remove) them.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub async fn remove(self, on_stop: OnStop) -> Result<(), RouteError> {
        let _ = self.stop.send(());
        // Nothing may be put back any more. A panic of the task is no reason to leave them.
        let _ = self.task.await;
        self.routes.remove(on_stop).await
    }
}

async fn watch(mut routes: SteeredRoutes, mut requests: mpsc::Receiver<Request>, mut stop: oneshot::Receiver<()>) {
    let told = Netlink::listen(&GROUPS);
    let (_connection, mut news) = match told {
        Ok((connection, news)) => (Some(connection), Some(news)),
        Err(error) => {
            tracing::warn!(%error, "routes are only looked at every {} s", EVERY.as_secs());
            (None, None)
        }
    };
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            _ = &mut stop => return,
            Some(Request { config, answer }) = requests.recv() => {
                // Who asked may have gone.
                let _ = answer.send(routes.change_to(&config).await);
                continue;
            }
            () = lost(&mut news, &routes) => {}
            _ = every.tick() => {}
        }
        let Restored { put_back, failed } = routes.restore().await;
        if !put_back.is_empty() {
            tracing::warn!(
                missing = put_back.join(", "),
                "somebody took away routes or rules of this gateway, and what they steer may have got around it meanwhile: put back"
            );
        }
        if let Some(error) = failed.first()
            && !failing
        {
            tracing::warn!(%error, more = failed.len() - 1, "routes or rules of this gateway are missing and cannot be put back now; it is tried again. Is the TUN device up?");
        }
        failing = !failed.is_empty();
        tokio::select! {
            _ = &mut stop => return,
            () = tokio::time::sleep(REST) => {}
        }
    }
}

/// Waits until the kernel tells that something of ours may be gone.
async fn lost(news: &mut Option<Unsolicited>, routes: &SteeredRoutes) {
    while let Some(messages) = news {
        match messages.next().await {
            Some((message, _)) if routes.are_concerned(&message) => return,
            Some(_) => {}
            None => *news = None,
        }
    }
    std::future::pending().await
}

impl SteeredRoutes {
    /// Whether something of ours may be missing after what the kernel tells.
    fn are_concerned(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let NetlinkPayload::InnerMessage(message) = &message.payload else {
            return matches!(message.payload, NetlinkPayload::Overrun(_));
        };
        if let RouteNetlinkMessage::DelRoute(route) = message {
            return table_of_route(route) == self.table;
        }
        // A device that goes down takes its routes with it, often without a word about them.
        if let RouteNetlinkMessage::NewLink(link) = message {
            return self.wanted.iter().any(|route| route.target == Target::Device(link.header.index));
        }
        matches!(message, RouteNetlinkMessage::DelRule(_))
    }

    /// Puts back what is missing, backstops first. What cannot be put back is no reason not to try the rest: without the
    /// device, the refusals must still be there.
    async fn restore(&self) -> Restored {
        let mut restored = Restored::default();
        if let Err(error) = self.restore_into(&mut restored).await {
            restored.failed.push(error);
        }
        restored
    }

    async fn restore_into(&self, restored: &mut Restored) -> Result<(), RouteError> {
        let kernel = Kernel::connect()?;
        let there = kernel.routes(self.table).await?;
        for route in self.wanted.iter().filter(|wanted| !there.iter().any(|found| wanted.is(found))) {
            let put = kernel.put_route(self.table, route).await;
            restored.note(format!("the route {} of table {}", route.net, self.table), put);
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for rule in self.rules(family) {
                if !kernel.rules(family, rule.priority).await?.iter().any(|found| rule.is(found)) {
                    let put = kernel.add_rule(rule.message(family)).await;
                    restored.note(format!("the {family:?} rule with preference {}", rule.priority), put);
                }
            }
        }
        Ok(())
    }
}

/// What came of one look.
#[derive(Debug, Default)]
struct Restored {
    /// What was missing and is there again.
    put_back: Vec<String>,
    /// Why other things are not.
    failed: Vec<RouteError>,
}

impl Restored {
    fn note(&mut self, what: String, put: Result<(), RouteError>) {
        match put {
            Ok(()) => self.put_back.push(what),
            Err(error) => self.failed.push(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::TunDevice;
    use crate::host::testing::{in_namespace, ip, tun_config};

    #[test]
    fn what_is_put_back_is_named_although_something_is_not() {
        in_namespace(async || {
            let config = tun_config(&["10.0.0.0/8", "fd10::/16"], &[]);
            let tun = TunDevice::create(&config, 1).await.unwrap();
            let routes = SteeredRoutes::install(&config, tun.index()).await.unwrap();
            // The device takes its routes with it; somebody takes a backstop and a rule.
            ip("link set pcl0 down");
            ip("route del unreachable 10.0.0.0/8 table 51880");
            ip("-6 rule del not iif lo lookup 51880");
            let Restored { put_back, failed } = routes.restore().await;
            assert_eq!(put_back, ["the route 10.0.0.0/8 of table 51880", "the Inet6 rule with preference 5188"]);
            assert!(!failed.is_empty());
            ip("link set pcl0 up");
            let Restored { put_back, failed } = routes.restore().await;
            assert!(!put_back.is_empty() && failed.is_empty(), "{put_back:?}, {failed:?}");
            let Restored { put_back, failed } = routes.restore().await;
            assert!(put_back.is_empty() && failed.is_empty());
            routes.remove(OnStop::Remove).await.unwrap();
        });
    }
}
