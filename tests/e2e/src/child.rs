//! A process of a test, ended with it.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::{Netns, keep};
use crate::wait;

/// A running program inside a namespace; both its outputs go to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` inside `netns`.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(netns: &Netns, command: &mut Command, log: &Path) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let errors = file.try_clone().expect("a second handle of a log file");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = netns.run(|| command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}")));
        Self { child, log: log.to_owned() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("process ids are small"));
        kill(pid, signal).unwrap_or_else(|error| panic!("{signal} to {pid}: {error}"));
    }

    /// Its end, if it has ended.
    ///
    /// # Panics
    ///
    /// When the system cannot say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of our own child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it still runs after `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        wait::until_within(patience, "a process to end", || self.ended())
    }

    /// Ends it at once, as a crash would.
    ///
    /// # Panics
    ///
    /// When it had ended before.
    pub fn kill9(&mut self) {
        assert!(self.ended().is_none(), "ended by itself before:\n{}", self.log());
        self.signal(Signal::SIGKILL);
        let status = self.wait(wait::PATIENCE);
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    }

    /// A field of `/proc/PID/status` in KiB, 0 when the process is gone.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    /// How many descriptors it has open.
    pub fn open_fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if keep() {
            return;
        }
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
