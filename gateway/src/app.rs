//! The life of a gateway process: everything is bound, then it serves, then it drains.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use futures_util::future::select_all;
use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::control::api::Problem;
use crate::control::listener::Bounded;
use crate::control::peer::MaybePeer;
use crate::control::server::{self as control_server, Context};
use crate::control::shards::{Shards, Unanswered};
use crate::control::socket::{ControlSocket, SocketError, SocketFile};
use crate::destination;
use crate::drain::{Drained, drain, stop};
use crate::flow_log::{self, FlowLog, FlowLogWriter};
use crate::flow_record::FlowRecord;
use crate::host::checks::{self, HostFacts};
use crate::host::routes::RouteError;
use crate::host::tun::TunError;
use crate::host::{SteeredRoutes, TableClaim, TunDevice, WatchedRoutes};
use crate::keys::{KeyFileError, PrivateKey};
use crate::metrics::exporter::Exporter;
use crate::metrics::server::{self as metrics_server, Phase};
use crate::offramp::health;
use crate::rulesets::{Cause, Rulesets};
use crate::shard::{self, BindError, BoundShards, ShardHandle};
use crate::signals::SignalEvent;
use crate::sites;
use crate::state::revisions::Source;
use crate::state::{self, DatabaseError, Keeper, Kept, Memory, ReportStore, Revisions, StateInUse, StateLock};

/// How often the host's own addresses are looked at.
const OWN_ADDRESSES_EVERY: Duration = Duration::from_secs(5);

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Policy or directory is bad. There is no gateway without a policy.
    #[error("policy or directory is bad")]
    Files(Vec<Problem>),
    /// The WireGuard key is bad.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The control socket cannot be had.
    #[error(transparent)]
    Control(#[from] SocketError),
    /// Another gateway has the state directory.
    #[error(transparent)]
    State(#[from] StateInUse),
    /// The metrics address cannot be had.
    #[error("cannot listen for metrics on {address}")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The flow log cannot be opened.
    #[error("cannot open the flow log {}", .path.display())]
    FlowLog {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The host's addresses cannot be listed, so that they could not be protected.
    #[error("cannot list this host's addresses")]
    OwnAddresses(#[source] io::Error),
    /// The TUN device cannot be made.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Traffic cannot be steered into the TUN device.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// The data plane cannot be bound.
    #[error(transparent)]
    Shards(#[from] BindError),
    /// The kernel gives no thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// How a gateway that served came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Asked to stop, and everything is written down.
    Stopped,
    /// Asked twice: it ended at once.
    Cut,
    /// A data-plane thread ended by itself or hangs, which must not happen.
    Broken(Unanswered),
}

/// A gateway with everything bound and nothing served.
#[derive(Debug)]
pub struct Gateway {
    config: Arc<Config>,
    rulesets: Arc<Rulesets>,
    control: ControlSocket,
    metrics: Option<TcpListener>,
    flow_log: FlowLog,
    records: mpsc::Receiver<FlowRecord>,
    shards: BoundShards,
    routes: Option<SteeredRoutes>,
    memory: Option<Memory>,
    claims: Claims,
}

/// What no other gateway may have while this one lives.
#[derive(Debug, Default)]
struct Claims {
    _state: Option<StateLock>,
    _table: Option<TableClaim>,
}

impl Gateway {
    /// Loads every file and binds every socket. Needs a running tokio runtime.
    ///
    /// # Errors
    ///
    /// The first stage that fails; what was bound before is let go.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let key = config.wireguard.as_ref().map(|w| PrivateKey::read_file(&w.key_file)).transpose()?;
        let own = destination::own_addresses(&config).map_err(StartError::OwnAddresses)?;
        let public_key = key.as_ref().map(PrivateKey::public);
        // First of all: a second gateway must find out before it touches anything of the first one's.
        let control = ControlSocket::bind(&config.control)?;
        let keeps_state = config.wireguard.is_some() || config.state_dir.is_dir();
        let claims = Claims {
            _state: keeps_state.then(|| StateLock::take(&config.state_dir)).transpose()?,
            _table: match &config.tun {
                Some(tun) => Some(TableClaim::take(tun.table).await?),
                None => None,
            },
        };
        let memory = config.wireguard.as_ref().map(|_| Memory::open(&config.state_dir.join(state::FILE)));
        let kept = if keeps_state { open_kept(&config) } else { Kept::default() };
        let rulesets = Rulesets::load(Arc::clone(&config), public_key, own, kept).map_err(StartError::Files)?;
        let metrics = match config.metrics {
            Some(address) => {
                let listener = TcpListener::bind(address).await;
                Some(listener.map_err(|source| StartError::Metrics { address, source })?)
            }
            None => None,
        };
        let flow_log = FlowLog::open(&config.flow_log)
            .map_err(|source| StartError::FlowLog { path: config.flow_log.clone(), source })?;
        look_at_host(&config);
        let (tun, index) = match &config.tun {
            Some(tun) => {
                let device = TunDevice::create(tun, config.shards).await?;
                let index = device.index();
                (Some(device), Some((tun, index)))
            }
            None => (None, None),
        };
        let (sender, records) = mpsc::channel(flow_log::CHANNEL);
        let key = key.map(|key| key.to_bytes());
        let shards = shard::bind(Arc::clone(&config), key, tun, rulesets.subscribe(), sender)?;
        // Last, because from here on traffic comes: what cannot be served must not be steered.
        let routes = match index {
            Some((tun, index)) => Some(SteeredRoutes::install(tun, index).await?),
            None => None,
        };
        Ok(Self {
            config,
            rulesets: Arc::new(rulesets),
            control,
            metrics,
            flow_log,
            records,
            shards,
            routes,
            memory,
            claims,
        })
    }

    /// Serves until `signals` says stop, or a shard is gone.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub async fn serve(self, signals: mpsc::Receiver<SignalEvent>) -> Result<Outcome, StartError> {
        let Self { config, rulesets, control, metrics, flow_log, records, shards, routes, memory, claims } = self;
        let flow_log = flow_log.start(records).map_err(StartError::Thread)?;
        let offramps = Arc::clone(shards.offramps());
        let handles = shards.start().map_err(StartError::Thread)?;
        let shards = Shards::new(&handles);
        rulesets.attach(shards.clone());
        rulesets.watch_pending();
        if config.watch {
            crate::watch::start(&config, Arc::clone(&rulesets));
        }
        health::watch_all(&offramps, &shards);
        sites::start(&offramps, &shards);
        let keeper = memory.map(|memory| Keeper::start(memory, shards.clone(), rulesets.subscribe()));
        let (phase, phases) = watch::channel(Phase::Starting);
        let (listener, socket) = control.into_parts();
        let context = Context {
            config: Arc::clone(&config),
            rulesets: Arc::clone(&rulesets),
            shards: shards.clone(),
            offramps: Arc::clone(&offramps),
            denied: Arc::clone(flow_log.denied()),
            phase: phases.clone(),
            since: (Timestamp::now(), Instant::now()),
            own_uid: nix::unistd::geteuid().as_raw(),
        };
        serve_control(listener, control_server::router(context));
        if let Some(listener) = metrics {
            let exporter = Exporter::new(
                shards.clone(),
                Arc::clone(flow_log.counters()),
                Arc::clone(rulesets.failures()),
                Arc::clone(&offramps),
            );
            serve_metrics(listener, metrics_server::router(exporter, shards.clone(), phases));
        }
        let routes = routes.map(WatchedRoutes::start);
        if let Some(routes) = &routes {
            rulesets.attach_steering(routes.steering());
        }
        let running = Running {
            config,
            rulesets,
            shards,
            handles,
            flow_log,
            phase,
            signals,
            socket,
            routes,
            keeper,
            _claims: claims,
        };
        Ok(running.run().await)
    }
}

/// A gateway that serves.
struct Running {
    config: Arc<Config>,
    rulesets: Arc<Rulesets>,
    shards: Shards,
    handles: Vec<ShardHandle>,
    flow_log: FlowLogWriter,
    phase: watch::Sender<Phase>,
    signals: mpsc::Receiver<SignalEvent>,
    socket: SocketFile,
    routes: Option<WatchedRoutes>,
    keeper: Option<Keeper>,
    _claims: Claims,
}

impl Running {
    async fn run(mut self) -> Outcome {
        self.phase.send_replace(Phase::Serving);
        notify(&[NotifyState::Ready]);
        let revision = self.rulesets.current().ruleset.revision().0;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            shards = self.handles.len(),
            revision,
            control = %self.config.control.display(),
            "serving"
        );
        let gone = first_gone(&self.handles);
        tokio::pin!(gone);
        let mut addresses = tokio::time::interval(OWN_ADDRESSES_EVERY);
        addresses.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = self.signals.recv() => match signal {
                    Some(SignalEvent::Reload) => {
                        tracing::info!("SIGHUP: loading policy and directory, reopening the flow log");
                        self.flow_log.reopen();
                        tokio::spawn(reload(Arc::clone(&self.rulesets)));
                    }
                    Some(SignalEvent::Stop) | None => break,
                },
                shard = &mut gone => {
                    tracing::error!(shard, "a data-plane thread ended by itself");
                    return Outcome::Broken(Unanswered(vec![shard]));
                }
                _ = addresses.tick() => {
                    tokio::spawn(refresh_addresses(Arc::clone(&self.config), Arc::clone(&self.rulesets)));
                }
            }
        }
        self.stop().await
    }

    async fn stop(mut self) -> Outcome {
        self.phase.send_replace(Phase::Draining);
        notify(&[NotifyState::Stopping]);
        let open: u64 = self.shards.counters().map(|c| c.flows_open.value()).sum();
        tracing::info!(flows = open, limit = ?self.config.drain, "stopping: no new flows");
        let cut = tokio::select! {
            drained = drain(&self.shards, self.config.drain) => {
                if let Drained::Cut(flows) = drained {
                    tracing::info!(flows, "time is up, the rest is reset");
                }
                false
            }
            () = second_stop(&mut self.signals) => true,
        };
        // The device must still exist, and nothing new must come in while the rest is reset.
        if let (Some(routes), Some(tun)) = (self.routes.take(), &self.config.tun)
            && let Err(error) = routes.remove(tun.on_stop).await
        {
            tracing::error!(%error, "routes of this gateway stay; the next start takes them over");
        }
        if cut {
            tracing::warn!("asked to stop twice: ending at once");
        } else if let Some(keeper) = self.keeper.take() {
            // The shards must still answer.
            keeper.stop().await;
        }
        // Resets and records of what is open take no longer than a turn of each shard: even a hurried end has them.
        let stopped = tokio::select! {
            stopped = stop(&self.shards) => stopped,
            () = second_stop(&mut self.signals) => return Outcome::Cut,
        };
        if let Err(error) = stopped {
            tracing::error!(%error, "not stopped in order");
            return Outcome::Broken(error);
        }
        // Blocking is right here: the threads are leaving, and nothing else is left to do.
        for (shard, handle) in self.handles.into_iter().enumerate() {
            if handle.thread.join().is_err() {
                tracing::error!(shard, "a data-plane thread panicked");
            }
        }
        drop(self.socket);
        self.flow_log.join();
        tracing::info!("stopped");
        if cut { Outcome::Cut } else { Outcome::Stopped }
    }
}

async fn second_stop(signals: &mut mpsc::Receiver<SignalEvent>) {
    loop {
        match signals.recv().await {
            Some(SignalEvent::Stop) => return,
            Some(SignalEvent::Reload) => tracing::info!("no reload while stopping"),
            None => std::future::pending().await,
        }
    }
}

/// The number of the first shard that takes no more commands.
fn first_gone(handles: &[ShardHandle]) -> impl Future<Output = usize> + use<> {
    let closed: Vec<_> = handles
        .iter()
        .map(|handle| handle.commands.clone())
        .enumerate()
        .map(|(shard, commands)| {
            Box::pin(async move {
                commands.closed().await;
                shard
            })
        })
        .collect();
    async move {
        if closed.is_empty() {
            return std::future::pending().await;
        }
        select_all(closed).await.0
    }
}

async fn reload(rulesets: Arc<Rulesets>) {
    // systemd wants the time with it, to tell this reload from one before.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    // What it found is in the log; a process that got SIGHUP has nobody else to tell.
    let _ = rulesets.reload(Cause::of(Source::Reload)).await;
    notify(&[NotifyState::Ready]);
}

async fn refresh_addresses(config: Arc<Config>, rulesets: Arc<Rulesets>) {
    match destination::own_addresses(&config) {
        Ok(own) => rulesets.set_own_addresses(own).await,
        Err(error) => tracing::warn!(%error, "cannot list this host's addresses; those known stay forbidden"),
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

fn serve_control(listener: UnixListener, router: Router) {
    let service = router.into_make_service_with_connect_info::<MaybePeer>();
    tokio::spawn(async move { axum::serve(Bounded::new(listener), service).await });
}

fn serve_metrics(listener: TcpListener, router: Router) {
    tokio::spawn(async move { axum::serve(Bounded::new(listener), router).await });
}

/// What the control side keeps. Without it the gateway serves all the same.
fn open_kept(config: &Config) -> Kept {
    let path = config.state_dir.join(state::FILE);
    let without = |what: &'static str| {
        let path = path.display();
        move |error: DatabaseError| tracing::warn!(%path, %error, "{what}")
    };
    let history = Revisions::open(&path).map_err(without("no history of policies is kept"));
    let reports = ReportStore::open(&path).map_err(without("posture facts are not kept over a restart"));
    Kept { history: history.ok().map(Arc::new), reports: reports.ok().map(Arc::new) }
}

/// Uses as many descriptors as we may, and says what of the host would stop or slow the gateway.
fn look_at_host(config: &Config) {
    if let Err(error) = checks::raise_nofile() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    match HostFacts::read() {
        Ok(facts) => {
            for warning in checks::check(&facts, config) {
                tracing::warn!(mend = warning.mend(), "{warning}");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot look at this host's settings"),
    }
}

#[cfg(test)]
mod tests;
