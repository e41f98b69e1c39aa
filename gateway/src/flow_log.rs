//! The flow log: one JSON object a line for each flow that ended.
//!
//! A thread of its own writes it, so that a slow disk costs neither a shard nor the control side anything. Shards
//! `try_send`; what a full channel or a full disk loses is counted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::denied::Denied;
use crate::flow_record::{FlowLine, FlowRecord};

/// Records on their way from the shards to the writer.
pub const CHANNEL: usize = 65_536;
/// Records written in one go.
const BATCH: usize = 1_024;
/// Bytes kept while the disk takes none; what comes on top is lost, and counted.
const MAX_PENDING: usize = 8 << 20;
/// How often a disk that took nothing is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A disk error is logged at most this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What the writer counts.
#[derive(Debug, Default)]
pub struct FlowLogCounters {
    lost: AtomicU64,
}

impl FlowLogCounters {
    /// Records that did not get into the file.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The flow log, opened but not yet served.
#[derive(Debug)]
pub struct FlowLog {
    path: PathBuf,
    file: File,
}

/// The writer thread. It ends when every sender of its records is gone and the last one is on disk.
#[derive(Debug)]
pub struct FlowLogWriter {
    reopen: mpsc::Sender<()>,
    counters: Arc<FlowLogCounters>,
    denied: Arc<Denied>,
    thread: JoinHandle<()>,
}

impl FlowLog {
    /// Opens `path` for appending; creates it 0640 and its directory 0750 when missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)? })
    }

    /// Starts the thread that writes what comes out of `records`.
    pub fn start(self, records: mpsc::Receiver<FlowRecord>) -> io::Result<FlowLogWriter> {
        let (reopen, reopened) = mpsc::channel(1);
        let counters = Arc::new(FlowLogCounters::default());
        let denied = Arc::new(Denied::default());
        let writer = Writer::new(self.path, self.file, Arc::clone(&counters));
        let noted = Arc::clone(&denied);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new()
            .name("flow-log".to_owned())
            .spawn(move || runtime.block_on(writer.run(records, reopened, &noted)))?;
        Ok(FlowLogWriter { reopen, counters, denied, thread })
    }
}

impl FlowLogWriter {
    /// Opens the file by its name again, as logrotate asks for.
    pub fn reopen(&self) {
        // Full: it is about to, which will do for this request too.
        let _ = self.reopen.try_send(());
    }

    /// What it counts.
    pub fn counters(&self) -> &Arc<FlowLogCounters> {
        &self.counters
    }

    /// The last refusals among the records.
    pub fn denied(&self) -> &Arc<Denied> {
        &self.denied
    }

    /// Waits until everything is written. Every sender of records must be gone, or this waits for them.
    pub fn join(self) {
        drop(self.reopen);
        if self.thread.join().is_err() {
            tracing::error!("the flow log writer panicked");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

struct Writer<F = File> {
    path: PathBuf,
    file: F,
    /// Lines not yet taken by the file.
    pending: Vec<u8>,
    /// The file holds the first part of the line `pending` begins with.
    mid_line: bool,
    complained: Option<Instant>,
    counters: Arc<FlowLogCounters>,
}

impl<F: Write> Writer<F> {
    fn new(path: PathBuf, file: F, counters: Arc<FlowLogCounters>) -> Self {
        Self { path, file, pending: Vec::new(), mid_line: false, complained: None, counters }
    }

    fn add(&mut self, record: &FlowRecord) {
        if self.pending.len() >= MAX_PENDING || serde_json::to_writer(&mut self.pending, &FlowLine(record)).is_err() {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        } else {
            self.pending.push(b'\n');
        }
    }

    /// Hands `pending` to the file, as much as it takes.
    fn write(&mut self) {
        let mut taken = 0;
        let result = loop {
            let Some(rest @ [_, ..]) = self.pending.get(taken..) else { break Ok(()) };
            match self.file.write(rest) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => taken += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        if let Some(last) = taken.checked_sub(1).and_then(|i| self.pending.get(i)) {
            self.mid_line = *last != b'\n';
        }
        self.pending.drain(..taken);
        if let Err(error) = result {
            self.complain(&error);
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            tracing::error!(path = %self.path.display(), %error, lost = self.counters.lost(), "cannot write the flow log");
        }
    }

    /// Goes on in `file`. The rest of a line whose beginning is in the old file is given up.
    fn replace(&mut self, file: F) {
        if std::mem::take(&mut self.mid_line) {
            let rest = self.pending.iter().position(|b| *b == b'\n').map_or(self.pending.len(), |i| i + 1);
            self.pending.drain(..rest);
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.file = file;
    }

    fn give_up(&mut self) {
        let lines = self.pending.iter().filter(|b| **b == b'\n').count();
        if lines > 0 {
            self.counters.lost.fetch_add(lines as u64, Ordering::Relaxed);
            tracing::error!(path = %self.path.display(), lines, "flow records lost at the end");
        }
    }
}

impl Writer<File> {
    async fn run(mut self, mut records: mpsc::Receiver<FlowRecord>, mut reopen: mpsc::Receiver<()>, denied: &Denied) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                Some(()) = reopen.recv() => match open(&self.path) {
                    Ok(file) => self.replace(file),
                    Err(error) => self.complain(&error),
                },
                n = records.recv_many(&mut batch, BATCH) => {
                    for record in batch.drain(..) {
                        self.add(&record);
                        denied.note(&record);
                    }
                    self.write();
                    if n == 0 {
                        self.give_up();
                        return;
                    }
                }
                () = tokio::time::sleep(RETRY), if !self.pending.is_empty() => self.write(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::flow_record::tests::record;

    #[test]
    fn lines_arrive_and_the_file_can_be_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/flows.jsonl");
        let (sender, records) = mpsc::channel(8);
        let writer = FlowLog::open(&path).unwrap().start(records).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);

        sender.blocking_send(record(1)).unwrap();
        wait_for(|| fs::read_to_string(&path).unwrap().ends_with('\n'));
        let rotated = dir.path().join("log/flows.jsonl.1");
        fs::rename(&path, &rotated).unwrap();
        writer.reopen();
        wait_for(|| path.exists());
        sender.blocking_send(record(2)).unwrap();
        sender.blocking_send(record(3)).unwrap();
        drop(sender);
        let counters = Arc::clone(writer.counters());
        writer.join();

        assert!(fs::read_to_string(rotated).unwrap().starts_with("{\"id\":1,"));
        let lines = fs::read_to_string(path).unwrap();
        let ids: Vec<_> =
            lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["id"].clone()).collect();
        assert_eq!(ids, [2, 3]);
        assert_eq!(counters.lost(), 0);
    }

    fn wait_for(mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "it never happened");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A disk that takes `room` bytes.
    struct Disk {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= n;
            self.written.extend(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn writer(room: usize) -> Writer<Disk> {
        Writer::new(PathBuf::from("/flows"), Disk { room, written: Vec::new() }, Arc::default())
    }

    #[test]
    fn a_full_disk_tears_no_line() {
        let mut writer = writer(100);
        writer.add(&record(1));
        writer.add(&record(2));
        writer.write();
        assert!(writer.mid_line);
        writer.file.room = usize::MAX;
        writer.write();
        let text = String::from_utf8(writer.file.written).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()));
        assert_eq!(writer.counters.lost(), 0);
    }

    #[test]
    fn what_a_full_disk_loses_is_counted() {
        let mut writer = writer(100);
        writer.add(&record(1));
        writer.add(&record(2));
        writer.write();
        writer.replace(Disk { room: usize::MAX, written: Vec::new() });
        writer.write();
        assert!(writer.file.written.starts_with(b"{\"id\":2,"), "the torn line is given up");
        assert_eq!(writer.counters.lost(), 1);

        writer.file.room = 0;
        writer.add(&record(3));
        writer.write();
        writer.pending.resize(MAX_PENDING, b' ');
        writer.add(&record(4));
        assert_eq!(writer.counters.lost(), 2, "more than the bound is lost");
        writer.give_up();
        assert_eq!(writer.counters.lost(), 3);
    }
}
