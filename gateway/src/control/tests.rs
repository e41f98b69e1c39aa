//! The control socket, with shards that answer from memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::ConnectInfo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::api::{
    BarReport, DeviceInForce, ExplainRequest, Explanation, FlowList, KillReport, KillRequest, ReloadReport, Status,
};
use super::peer::{MaybePeer, Peer};
use super::plan::{PlanReport, PlanRequest};
use super::server::{Context, router};
use super::shards::Shards;
use super::shards::tests::FakeShard;
use crate::cli::client::{self, ClientError};
use crate::config::Config;
use crate::flow_record::tests::record;
use crate::metrics::server::Phase;
use crate::rulesets::Rulesets;
use crate::state::{Kept, ReportStore, Revisions};

pub(crate) const DIRECTORY: &str = r#"{
  "users": { "ann@example.com": { "groups": ["eng"] }, "bob@example.com": { "groups": [], "disabled": true } },
  "devices": {
    "ann-laptop": { "user": "ann@example.com", "networks": ["192.168.7.0/24"] },
    "bob-phone": { "user": "bob@example.com", "networks": ["192.168.8.0/24"] }
  }
}"#;

pub(crate) const POLICY: &str = r#"{
  "version": 1,
  "rules": [
    { "id": "no-ssh", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/22"] },
    { "id": "eng", "action": "allow", "from": ["group:eng"], "to": ["0.0.0.0/0"] }
  ]
}"#;

/// The files of a gateway without on-ramps, which needs no privilege.
pub(crate) struct Files {
    dir: TempDir,
    pub(crate) config: Config,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// With these tables behind the usual ones of `gateway.toml`.
    pub(crate) fn with(tables: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        let text = "control = \"run/control.sock\"\nstate_dir = \"state\"\nlocal_services = [\"192.0.2.9:22\"]\n\
                    [tun]\naddresses = [\"100.97.0.1/32\"]\n[log]\nflows = \"log/flows.jsonl\"\n\
                    [runtime]\nshards = 2\n[metrics]\nlisten = \"127.0.0.1:9464\"\n";
        let text = format!("{text}{tables}");
        fs::write(&path, &text).unwrap();
        let mut config = Config::resolve(&text, &path, 2).unwrap();
        config.tun = None;
        config.metrics = None;
        let files = Self { dir, config };
        files.write_directory(DIRECTORY);
        files.write_policy(POLICY);
        files
    }

    pub(crate) fn write_policy(&self, text: &str) {
        fs::write(&self.config.policy, text).unwrap();
    }

    pub(crate) fn write_directory(&self, text: &str) {
        fs::write(&self.config.directory, text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn rulesets(&self) -> Arc<Rulesets> {
        let own = ["192.0.2.9".parse().unwrap()];
        Arc::new(Rulesets::load(Arc::new(self.config.clone()), None, own.into(), Kept::default()).unwrap())
    }
}

impl Files {
    /// As the process does it, with the history in the state directory.
    pub(crate) fn rulesets_with_history(&self) -> Arc<Rulesets> {
        fs::create_dir_all(&self.config.state_dir).unwrap();
        let path = self.config.state_dir.join(crate::state::FILE);
        let history = Some(Arc::new(Revisions::open(&path).unwrap()));
        let kept = Kept { history, reports: Some(Arc::new(ReportStore::open(&path).unwrap())) };
        let own = ["192.0.2.9".parse().unwrap()];
        Arc::new(Rulesets::load(Arc::new(self.config.clone()), None, own.into(), kept).unwrap())
    }
}

struct Server {
    files: Files,
    socket: PathBuf,
    told: Arc<std::sync::Mutex<Vec<&'static str>>>,
    _phase: watch::Sender<Phase>,
}

impl Server {
    /// Serves as if every request came from `uid`; the gateway's own user is 990.
    fn start(uid: Option<u32>) -> Self {
        let files = Files::new();
        let mut other = record(8);
        other.user = "bob@example.com".into();
        other.destination = "10.0.9.9:53".parse().unwrap();
        let shard = FakeShard { flows: vec![record(7), other], ..FakeShard::default() };
        let told = Arc::clone(&shard.told);
        let shards = Shards::from_parts([shard.start()]);
        let rulesets = files.rulesets();
        rulesets.attach(shards.clone());
        let (phase, phases) = watch::channel(Phase::Serving);
        let context = Context {
            config: Arc::new(files.config.clone()),
            rulesets,
            shards,
            offramps: Arc::default(),
            denied: Arc::default(),
            phase: phases,
            since: (Timestamp::now(), Instant::now()),
            own_uid: 990,
        };
        let peer = uid.map(|uid| Peer { uid, gid: uid, pid: Some(1) });
        let router = router(context).layer(Extension(ConnectInfo(MaybePeer(peer))));
        let socket = files.path("test.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { files, socket, told, _phase: phase }
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&Path) -> T + Send + 'static) -> T {
        let socket = self.socket.clone();
        tokio::task::spawn_blocking(move || ask(&socket)).await.unwrap()
    }

    async fn get<T: serde::de::DeserializeOwned + Send + 'static>(&self, path: &'static str) -> Result<T, ClientError> {
        self.ask(move |socket| client::get(socket, path).map(|answer| answer.value)).await
    }

    async fn post<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        path: &'static str,
        body: Value,
    ) -> Result<T, ClientError> {
        self.ask(move |socket| client::post(socket, path, &body).map(|answer| answer.value)).await
    }
}

#[tokio::test]
async fn who_may_do_what() {
    for (uid, may_change) in [(Some(0), true), (Some(990), true), (Some(1000), false), (None, false)] {
        let server = Server::start(uid);
        assert!(server.get::<Status>("/v1/status").await.is_ok());
        assert!(server.get::<FlowList>("/v1/flows").await.is_ok());
        let question = json!({ "device": "ann-laptop", "to": "10.0.0.1:22/tcp" });
        assert!(server.post::<Explanation>("/v1/explain", question).await.is_ok());

        let killed = server.post::<KillReport>("/v1/kill", json!({ "flow": 7 })).await;
        let barred = server.post::<BarReport>("/v1/bar", json!({ "device": "ann-laptop" })).await;
        let reloaded = server.post::<ReloadReport>("/v1/reload", Value::Null).await;
        if may_change {
            assert_eq!(barred.unwrap(), BarReport { device: "ann-laptop".to_owned(), known: true, judged: true });
            assert_eq!(killed.unwrap(), KillReport { killed: 1 });
            assert!(reloaded.is_ok());
            assert_eq!(*server.told.lock().unwrap(), ["kill", "rejudge", "rejudge"]);
        } else {
            assert!(matches!(killed, Err(ClientError::Forbidden(_))), "uid {uid:?}");
            assert!(matches!(reloaded, Err(ClientError::Forbidden(_))), "uid {uid:?}");
            assert!(matches!(barred, Err(ClientError::Forbidden(_))), "uid {uid:?}");
            assert!(server.told.lock().unwrap().is_empty());
            assert_eq!(server.get::<Status>("/v1/status").await.unwrap().revision, 1);
        }
    }
}

#[tokio::test]
async fn status_says_what_is_in_force() {
    let server = Server::start(Some(0));
    let status: Status = server.get("/v1/status").await.unwrap();
    assert_eq!((status.phase.as_str(), status.revision, status.users, status.devices), ("serving", 1, 2, 2));
    assert!(status.last_reload.ok);
    // The file has tables that this gateway is without.
    let warning = status.config_warning.unwrap();
    assert!(warning.ends_with("all but [tun] routes and exclude needs a restart"), "{warning}");

    server.files.write_policy("{");
    server.post::<ReloadReport>("/v1/reload", Value::Null).await.unwrap_err();
    let status: Status = server.get("/v1/status").await.unwrap();
    assert_eq!(status.revision, 1);
    assert!(!status.last_reload.ok && !status.last_reload.problems.is_empty());
}

#[tokio::test]
async fn devices_are_those_in_force() {
    let server = Server::start(Some(0));
    let devices = async || -> Vec<(String, bool)> {
        let devices: Vec<DeviceInForce> = server.get("/v1/devices").await.unwrap();
        devices.into_iter().map(|device| (device.device, device.admitted)).collect()
    };
    let expected = |ann| vec![("ann-laptop".to_owned(), ann), ("bob-phone".to_owned(), false)];
    assert_eq!(devices().await, expected(true));
    server.post::<BarReport>("/v1/bar", json!({ "device": "ann-laptop" })).await.unwrap();
    assert_eq!(devices().await, expected(false));
}

#[tokio::test]
async fn flows_are_filtered_and_bounded() {
    let server = Server::start(Some(0));
    let ids = async |path| {
        let list: FlowList = server.get(path).await.unwrap();
        (list.total, list.flows.iter().map(|f| f.id).collect::<Vec<_>>())
    };
    assert_eq!(ids("/v1/flows").await, (2, vec![7, 8]));
    assert_eq!(ids("/v1/flows?limit=1").await, (2, vec![7]));
    assert_eq!(ids("/v1/flows?user=bob%40example.com").await, (1, vec![8]));
    assert_eq!(ids("/v1/flows?to=10.0.9.0%2F24").await, (1, vec![8]));
    assert_eq!(ids("/v1/flows?to=10.0.5.12").await, (1, vec![7]));
    for path in ["/v1/flows?to=nowhere", "/v1/flows?usr=x", "/v1/flows?limit=-1", "/v1/nothing", "/v1/reload"] {
        let error = server.get::<Value>(path).await.unwrap_err();
        assert!(matches!(error, ClientError::Failed(_)), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_kill_of_nothing_is_no_kill_of_everything() {
    let server = Server::start(Some(0));
    for body in
        [json!({}), json!({ "flow": null }), json!({ "device": "a", "user": "b" }), json!({ "flw": 7 }), json!([])]
    {
        let error = server.post::<KillReport>("/v1/kill", body.clone()).await.unwrap_err();
        assert!(matches!(error, ClientError::Failed(_)), "{body}: {error}");
    }
    assert!(server.told.lock().unwrap().is_empty());
    let body = serde_json::to_value(KillRequest { user: Some("bob@example.com".to_owned()), ..KillRequest::default() });
    assert_eq!(server.post::<KillReport>("/v1/kill", body.unwrap()).await.unwrap().killed, 1);
    let error = server.post::<KillReport>("/v1/kill", json!({ "flow": 9 })).await.unwrap_err();
    assert!(matches!(&error, ClientError::Failed(why) if why == "there is no live flow 9"), "{error}");
}

#[tokio::test]
async fn a_body_has_a_bound() {
    let server = Server::start(Some(0));
    let error = server.post::<KillReport>("/v1/kill", json!({ "device": "x".repeat(2 << 20) })).await.unwrap_err();
    assert!(matches!(error, ClientError::Failed(_) | ClientError::Broken { .. }), "{error}");
    assert!(server.get::<Status>("/v1/status").await.is_ok());
}

#[tokio::test]
async fn explanations() {
    let server = Server::start(Some(1000));
    let ask = async |request: ExplainRequest| {
        let body = serde_json::to_value(request).unwrap();
        server
            .post::<Explanation>("/v1/explain", body)
            .await
            .map(|e| e.answers.into_iter().map(|a| (a.verdict, a.rule, a.barred.is_some(), a.text)).collect::<Vec<_>>())
    };
    let device = |device: &str, to: &str| ExplainRequest {
        device: Some(device.to_owned()),
        to: to.to_owned(),
        ..ExplainRequest::default()
    };
    for (name, to, verdict, rule, barred) in [
        ("ann-laptop", "10.0.0.1:80/tcp", "allow", Some("eng"), false),
        ("ann-laptop", "10.0.0.1:22/tcp", "deny", Some("no-ssh"), false),
        ("ann-laptop", "10.0.0.1/icmp", "allow", Some("eng"), false),
        ("ann-laptop", "127.0.0.1:80/tcp", "deny", None, true),
        ("ann-laptop", "169.254.169.254:80/tcp", "deny", None, true),
        ("ann-laptop", "192.0.2.9:80/tcp", "deny", None, true),
        ("ann-laptop", "192.0.2.9:22/tcp", "deny", Some("no-ssh"), false),
        ("ann-laptop", "[2001:db8::1]:80/tcp", "deny", None, true),
        ("bob-phone", "10.0.0.1:80/tcp", "deny", None, true),
    ] {
        let answers = ask(device(name, to)).await.unwrap();
        let [(got_verdict, got_rule, got_barred, text)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((got_verdict.as_str(), got_rule.as_deref(), *got_barred), (verdict, rule, barred), "{to}: {text}");
        assert!(text.starts_with(&format!("{verdict}: {name} to ")), "{text}");
    }
    let user = ExplainRequest {
        user: Some("ann@example.com".to_owned()),
        to: "10.0.0.1:22/tcp".to_owned(),
        ..ExplainRequest::default()
    };
    assert_eq!(ask(user.clone()).await.unwrap().len(), 1);
    let nobody = ExplainRequest { user: Some("eve".to_owned()), ..user.clone() };
    let both = ExplainRequest { device: Some("ann-laptop".to_owned()), ..user };
    for bad in [device("x", "10.0.0.1:22/tcp"), device("ann-laptop", "10.0.0.1"), nobody, both] {
        assert!(matches!(ask(bad.clone()).await, Err(ClientError::Failed(_))), "{bad:?}");
    }
}

#[tokio::test]
async fn a_plan_names_the_flows_that_end_and_changes_nothing() {
    let server = Server::start(Some(1000));
    let (socket, told) = (server.socket.clone(), Arc::clone(&server.told));
    let plan = move |policy: String| {
        let socket = socket.clone();
        let request = PlanRequest { file: "next.json".to_owned(), policy, at: None };
        tokio::task::spawn_blocking(move || client::post::<PlanReport>(&socket, "/v1/plan", &request))
    };
    // Larger than what other routes take.
    let padding = " ".repeat(2 << 20);
    let report = plan(format!("{padding}{POLICY}")).await.unwrap().unwrap().value;
    assert!(report.is_nothing(), "{report:?}");

    let shut = POLICY.replace("\"tcp/22\"", "\"tcp/22\", \"tcp/5432\"");
    let report = plan(shut).await.unwrap().unwrap().value;
    assert_eq!(report.revision, Some(1));
    let ending: Vec<_> = report.flows.iter().flatten().map(|f| (f.id, f.rule_then.as_deref())).collect();
    assert!(ending.contains(&(7, Some("no-ssh"))), "{report:?}");
    assert!(report.changes.iter().any(|c| c.kind == "closes" && c.services == ["tcp/5432"]), "{report:?}");

    let error = plan("{".to_owned()).await.unwrap().unwrap_err();
    assert!(matches!(&error, ClientError::Refused { problems, .. } if problems[0].file == "next.json"), "{error}");
    assert!(told.lock().unwrap().is_empty(), "a plan only asks");
}
