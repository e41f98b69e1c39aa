//! Start, serve and stop, in one process, without on-ramps.

use std::fs;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::cli::client;
use crate::control::api::{ReloadReport, Status};
use crate::control::shards::tests::FakeShard;
use crate::control::tests::{Files, POLICY};

struct Served {
    signals: mpsc::Sender<SignalEvent>,
    outcome: tokio::task::JoinHandle<Result<Outcome, StartError>>,
}

async fn serve(config: &Config) -> Served {
    let gateway = Gateway::bind(config.clone()).await.unwrap();
    let (signals, receiver) = mpsc::channel(4);
    Served { signals, outcome: tokio::spawn(gateway.serve(receiver)) }
}

async fn status(config: &Config) -> Result<Status, client::ClientError> {
    let socket = config.control.clone();
    tokio::task::spawn_blocking(move || client::get(&socket, "/v1/status").map(|a| a.value)).await.unwrap()
}

async fn page(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A port nobody uses.
fn free_port() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_life() {
    let mut files = Files::new();
    let metrics = free_port();
    files.config.metrics = Some(metrics);
    let served = serve(&files.config).await;
    let first = status(&files.config).await.unwrap();
    assert_eq!((first.phase.as_str(), first.revision, first.shards.len()), ("serving", 1, 2));

    assert!(page(metrics, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(page(metrics, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(page(metrics, "/metrics").await.contains("\nportcullis_policy_revision 1\n"));

    files.write_policy(&POLICY.replace("tcp/22", "tcp/23"));
    let socket = files.config.control.clone();
    let report = tokio::task::spawn_blocking(move || client::post::<ReloadReport>(&socket, "/v1/reload", &()));
    let report = report.await.unwrap().unwrap().value;
    assert_eq!((report.revision, report.judged), (2, true));
    assert!(page(metrics, "/metrics").await.contains("\nportcullis_policy_revision 2\n"));

    files.write_policy("{");
    served.signals.send(SignalEvent::Reload).await.unwrap();
    while status(&files.config).await.unwrap().last_reload.ok {
        tokio::task::yield_now().await;
    }
    assert!(page(metrics, "/metrics").await.contains("\nportcullis_reload_failures_total 1\n"));

    served.signals.send(SignalEvent::Stop).await.unwrap();
    assert_eq!(served.outcome.await.unwrap().unwrap(), Outcome::Stopped);
    assert!(!files.config.control.exists(), "the socket is gone");
    assert!(files.config.flow_log.exists());
}

#[tokio::test]
async fn a_second_gateway_is_refused_and_the_first_unharmed() {
    let files = Files::new();
    let served = serve(&files.config).await;
    let error = Gateway::bind(files.config.clone()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert_eq!(status(&files.config).await.unwrap().phase, "serving");
    served.signals.send(SignalEvent::Stop).await.unwrap();
    assert_eq!(served.outcome.await.unwrap().unwrap(), Outcome::Stopped);
    drop(Gateway::bind(files.config.clone()).await.unwrap());
}

#[tokio::test]
async fn there_is_no_gateway_without_a_good_policy() {
    let files = Files::new();
    files.write_policy("{}");
    assert!(
        matches!(Gateway::bind(files.config.clone()).await, Err(StartError::Files(problems)) if !problems.is_empty())
    );
    fs::remove_file(&files.config.policy).unwrap();
    assert!(matches!(Gateway::bind(files.config.clone()).await, Err(StartError::Files(_))));
    assert!(!files.config.control.exists(), "nothing was bound");
}

#[tokio::test]
async fn nothing_is_served_when_something_cannot_be_bound() {
    let mut files = Files::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    files.config.metrics = Some(taken.local_addr().unwrap());
    assert!(matches!(Gateway::bind(files.config.clone()).await, Err(StartError::Metrics { .. })));
    assert!(!files.config.control.exists(), "what was bound before is let go");
    files.config.metrics = None;
    fs::create_dir_all(&files.config.flow_log).unwrap();
    assert!(matches!(Gateway::bind(files.config.clone()).await, Err(StartError::FlowLog { .. })));
}

/// A gateway with these shards and no thread of its own.
fn running(files: &Files, shard: FakeShard) -> (Running, mpsc::Sender<SignalEvent>, watch::Receiver<Phase>) {
    let (commands, counters) = shard.start();
    counters.flows_open.set(1);
    let (phase, phases) = watch::channel(Phase::Starting);
    let (signals, receiver) = mpsc::channel(4);
    let (_, records) = mpsc::channel(1);
    let running = Running {
        config: Arc::new(files.config.clone()),
        rulesets: files.rulesets(),
        shards: Shards::from_parts([(commands, counters)]),
        handles: Vec::new(),
        flow_log: FlowLog::open(&files.config.flow_log).unwrap().start(records).unwrap(),
        phase,
        signals: receiver,
        socket: ControlSocket::bind(&files.config.control).unwrap().into_parts().1,
        routes: None,
        keeper: None,
        _claims: Claims::default(),
    };
    (running, signals, phases)
}

#[tokio::test]
async fn not_ready_while_draining_and_a_second_stop_ends_at_once() {
    let mut files = Files::new();
    files.config.drain = Duration::from_secs(3600);
    let shard = FakeShard { busy: true, ..FakeShard::default() };
    let told = Arc::clone(&shard.told);
    let (running, signals, mut phase) = running(&files, shard);
    let outcome = tokio::spawn(running.run());
    phase.wait_for(|phase| *phase == Phase::Serving).await.unwrap();
    signals.send(SignalEvent::Stop).await.unwrap();
    phase.wait_for(|phase| *phase == Phase::Draining).await.unwrap();
    signals.send(SignalEvent::Reload).await.unwrap();
    assert!(!outcome.is_finished(), "a reload is no second stop");
    signals.send(SignalEvent::Stop).await.unwrap();
    assert_eq!(outcome.await.unwrap(), Outcome::Cut);
    let told: Vec<_> = told.lock().unwrap().iter().copied().filter(|told| *told != "rejudge").collect();
    assert_eq!(told, ["drain", "stop"], "what is open is reset and written down even then");
    assert!(!files.config.control.exists());
}

#[tokio::test]
async fn what_does_not_drain_in_time_is_stopped() {
    let mut files = Files::new();
    files.config.drain = Duration::from_millis(1);
    let shard = FakeShard { busy: true, ..FakeShard::default() };
    let told = Arc::clone(&shard.told);
    let (running, signals, _phase) = running(&files, shard);
    signals.send(SignalEvent::Stop).await.unwrap();
    assert_eq!(running.run().await, Outcome::Stopped);
    assert_eq!(told.lock().unwrap().iter().filter(|t| **t != "rejudge").collect::<Vec<_>>(), [&"drain", &"stop"]);
}
