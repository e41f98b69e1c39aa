//! The real binary inside a namespace.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::child::Process;
use crate::flow_log::{self, FlowLine};
use crate::lab::Lab;
use crate::metrics::{self, Metrics};
use crate::netns::Netns;
use crate::setup::{write_json, write_whole};
use crate::{tools, wait};

/// Where the binary under test is.
///
/// # Panics
///
/// When it has not been built.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("PORTCULLIS_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "PORTCULLIS_BIN={} is not a file", path.display());
        return path;
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let path = target.join(profile).join("portcullis");
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build{} -p portcullis`, or set PORTCULLIS_BIN",
        path.display(),
        if cfg!(debug_assertions) { "" } else { " --release" },
    );
    path
}

/// A gateway: its files, and its process while it runs.
#[derive(Debug)]
pub struct Gateway<'a> {
    netns: &'a Netns,
    dir: PathBuf,
    process: Option<Process>,
    /// What it logs, when the environment of the tests does not say.
    log_filter: &'static str,
}

impl<'a> Gateway<'a> {
    /// A gateway in `lab` with its files in `dir`, not started yet.
    pub fn new(lab: &'a Lab, dir: &Path) -> Self {
        Self { netns: &lab.gateway, dir: dir.to_owned(), process: None, log_filter: "info" }
    }

    /// Has it log by this filter from its next start on.
    pub fn log(&mut self, filter: &'static str) {
        self.log_filter = filter;
    }

    /// Everything it logged.
    pub fn log_text(&self) -> String {
        let log = std::fs::read(self.dir.join("gateway.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The directory with its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command line of the binary with this gateway's configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).arg("--config").arg(self.dir.join("gateway.toml"));
        command
    }

    /// Runs a verb to its end, in the gateway's namespace, whatever comes of it.
    pub fn try_verb(&self, args: &[&str]) -> Output {
        self.netns.run(|| tools::run(&mut self.command(args)))
    }

    /// Runs a verb that must succeed and gives what it printed.
    ///
    /// # Panics
    ///
    /// When it fails.
    pub fn verb(&self, args: &[&str]) -> String {
        self.netns.run(|| tools::output(&mut self.command(args)))
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When it ends or is not ready in time.
    pub fn start(&mut self) {
        let mut command = self.command(&["run"]);
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| self.log_filter.to_owned()));
        // The directory the process runs in is where a test looks for a core file.
        command.current_dir(&self.dir);
        let mut process = Process::start(self.netns, &mut command, &self.dir.join("gateway.log"));
        wait::until("the gateway to be ready", || {
            if let Some(status) = process.ended() {
                panic!("the gateway ended at start: {status}\n{}", process.log());
            }
            UnixStream::connect(self.control()).ok()?;
            metrics::get(self.netns, "/readyz").filter(|(status, _)| *status == 200)
        });
        self.process = Some(process);
    }

    /// The running process.
    ///
    /// # Panics
    ///
    /// When it was not started or has been stopped.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the gateway is running")
    }

    /// Ends the process as a crash would; its files stay.
    pub fn kill9(&mut self) {
        self.process().kill9();
        self.process = None;
    }

    /// Asks the process to end and gives how it did, waiting `patience` at most.
    pub fn stop(&mut self, patience: Duration) -> ExitStatus {
        self.process().signal(Signal::SIGTERM);
        self.wait(patience)
    }

    /// Waits for the process to end.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let status = self.process().wait(patience);
        self.process = None;
        status
    }

    /// Path of the control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Writes a new policy, in force after [`Self::reload`].
    pub fn write_policy(&self, policy: &Value) {
        write_json(&self.policy_path(), policy);
    }

    /// Writes any text where the policy is.
    pub fn write_policy_text(&self, text: &str) {
        write_whole(&self.policy_path(), text);
    }

    /// Path of the policy.
    pub fn policy_path(&self) -> PathBuf {
        self.dir.join("policy.json")
    }

    /// Changes the directory and has it loaded.
    ///
    /// # Panics
    ///
    /// When the file is no JSON, or the gateway refuses it.
    pub fn edit_directory(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.directory_path();
        let text = std::fs::read_to_string(&path).expect("a directory");
        let mut directory = serde_json::from_str(&text).expect("it is JSON");
        edit(&mut directory);
        write_json(&path, &directory);
        self.reload();
    }

    /// Path of the directory file.
    pub fn directory_path(&self) -> PathBuf {
        self.dir.join("directory.json")
    }

    /// `portcullis reload`, which must succeed.
    pub fn reload(&self) -> String {
        self.verb(&["reload"])
    }

    /// Puts a policy in force.
    pub fn set_policy(&self, policy: &Value) {
        self.write_policy(policy);
        self.reload();
    }

    /// Every line of the flow log.
    pub fn flow_log(&self) -> Vec<FlowLine> {
        flow_log::parse(&self.flow_log_text())
    }

    fn flow_log_text(&self) -> String {
        std::fs::read_to_string(self.dir.join("flows.jsonl")).unwrap_or_default()
    }

    /// Waits for a record that fits.
    ///
    /// # Panics
    ///
    /// When none comes, naming `what` and showing the flow log.
    pub fn wait_for_flow(&self, what: &str, fits: impl Fn(&FlowLine) -> bool) -> FlowLine {
        wait::until(&format!("a flow record: {what}"), || self.flow_log().into_iter().find(|line| fits(line)))
    }

    /// Waits for `count` records that fit.
    ///
    /// # Panics
    ///
    /// When fewer come.
    pub fn wait_for_flows(&self, what: &str, count: usize, fits: impl Fn(&FlowLine) -> bool) -> Vec<FlowLine> {
        wait::until(&format!("{count} flow records: {what}"), || {
            let found: Vec<_> = self.flow_log().into_iter().filter(|line| fits(line)).collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// A scrape of its metrics.
    pub fn metrics(&self) -> Metrics {
        Metrics::scrape(self.netns)
    }

    /// Waits until the sum of a metric is `value`.
    ///
    /// # Panics
    ///
    /// When it does not become that in time.
    pub fn wait_for_metric(&self, name: &str, label: Option<(&str, &str)>, value: f64) {
        let mut last = f64::NAN;
        let reached = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait::until("a metric", || {
                last = self.metrics().sum(name, label);
                (last == value).then_some(())
            });
        }));
        assert!(reached.is_ok(), "{name} {label:?} is {last}, not {value}");
    }

    /// Everything there is to know when a test has failed.
    pub fn report(&self) -> String {
        let log = std::fs::read(self.dir.join("gateway.log")).unwrap_or_default();
        let metrics = std::panic::catch_unwind(|| metrics::get(self.netns, "/metrics")).ok().flatten();
        let metrics: String = metrics
            .map(|(_, text)| text)
            .unwrap_or_else(|| "(does not answer)\n".to_owned())
            .lines()
            // What is still zero tells nothing.
            .filter(|line| !line.starts_with('#') && !line.ends_with(" 0") && !line.ends_with(" 0.0"))
            .map(|line| format!("{line}\n"))
            .collect();
        format!(
            "--- gateway log\n{}--- flow log (last lines)\n{}--- metrics that moved\n{metrics}",
            last_lines(&String::from_utf8_lossy(&log)),
            last_lines(&self.flow_log_text()),
        )
    }
}

/// The last lines of a text, enough to see what happened.
fn last_lines(text: &str) -> String {
    const LINES: usize = 60;
    let skip = text.lines().count().saturating_sub(LINES);
    text.lines().skip(skip).map(|line| format!("{line}\n")).collect()
}
