//! Loads policy and directory when their files change.
//!
//! What is watched is not the files but the folders they are in, and those their links lead to: an editor replaces a file
//! by another of its name, and a mounted configuration turns a link of a folder around. What an event says is not looked
//! at; it only has the files looked at, and they are loaded once they stay the same for [`QUIET`] and say something else
//! than what is in force.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::config::Config;
use crate::rulesets::{Cause, Rulesets};
use crate::state::revisions::Source;

/// How long the files must have stayed the same before they are loaded.
pub const QUIET: Duration = Duration::from_millis(200);
/// How often a folder that is not there, or went away, is looked for. The files are looked at then too.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What tells one version of a file from another without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        let changed = (file.ctime(), file.ctime_nsec());
        Some(Self { device: file.dev(), inode: file.ino(), size: file.size(), changed })
    }
}

/// Watches for as long as the process lives. Call on a tokio runtime.
pub fn start(config: &Config, rulesets: Arc<Rulesets>) {
    let files = [config.policy.clone(), config.directory.clone()];
    tokio::spawn(async move {
        let stirred = Arc::new(Notify::new());
        let mut folders = Folders::new(&files, Arc::clone(&stirred));
        let mut seen = stamps(&files);
        // Whatever was written between the load at the start and the first watch.
        stirred.notify_one();
        loop {
            // A folder that is missing makes no event when it comes.
            let _ = tokio::time::timeout(LOOK_AGAIN, stirred.notified()).await;
            folders.follow(&files);
            let missed = folders.is_new();
            let now = quiet(&files, &stirred).await;
            if now != seen || missed {
                seen = now;
                if rulesets.is_edited().await {
                    tracing::info!("policy or directory changed: loading both");
                    // What it found is in the log; nobody waits for it.
                    let _ = rulesets.reload(Cause::of(Source::Watch)).await;
                }
            }
        }
    });
}

/// Waits until the files stay the same, and says what they are then.
async fn quiet(files: &[PathBuf], stirred: &Notify) -> Vec<Option<Stamp>> {
    let mut before = stamps(files);
    loop {
        tokio::time::sleep(QUIET).await;
        let now = stamps(files);
        if now == before {
            return now;
        }
        before = now;
        // It was looked at.
        let _ = tokio::time::timeout(Duration::ZERO, stirred.notified()).await;
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

/// The folders that are watched.
struct Folders {
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    new: bool,
}

impl Folders {
    fn new(files: &[PathBuf], stirred: Arc<Notify>) -> Self {
        let watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            // Reading changes nothing. An error may be one of events that were lost.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                stirred.notify_one();
            }
        });
        let watcher = watcher.map_err(|error| tracing::warn!(%error, "{}", INSTEAD)).ok();
        let mut folders = Self { watcher, watched: BTreeSet::new(), new: false };
        folders.follow(files);
        folders
    }

    /// Watches the folders that the files are in now, and no others.
    fn follow(&mut self, files: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted: BTreeSet<PathBuf> = files.iter().flat_map(|file| folders_of(file)).collect();
        for gone in self.watched.difference(&wanted) {
            // It mostly ended with the folder.
            let _ = watcher.unwatch(gone);
        }
        let before = std::mem::take(&mut self.watched);
        for folder in wanted {
            if before.contains(&folder) {
                self.watched.insert(folder);
                continue;
            }
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.new = true;
                    self.watched.insert(folder);
                }
                // It is tried again with the next look; the files are looked at then in any case.
                Err(error) => tracing::debug!(folder = %folder.display(), %error, "not watched"),
            }
        }
    }

    /// Whether something is watched that was not, so that events may have been missed.
    fn is_new(&mut self) -> bool {
        std::mem::take(&mut self.new)
    }
}

/// Said where there is no inotify.
const INSTEAD: &str = "files cannot be watched, so they are looked at every two seconds; where watches are all in use, \
                       `sysctl fs.inotify.max_user_instances` and `max_user_watches` say how many there may be";

/// The folders in which something can change what `file` is: its own, and those its links lead through.
fn folders_of(file: &Path) -> Vec<PathBuf> {
    /// Links that are followed, as the kernel does (`path_resolution(7)`).
    const MAX_LINKS: usize = 40;
    let mut folders = Vec::new();
    let mut path = file.to_owned();
    for _ in 0..MAX_LINKS {
        let Some(folder) = path.parent() else { break };
        // The folder as it is named: `..data` of a mounted configuration is a link next to the file's.
        folders
            .extend(folder.ancestors().find(|folder| folder.is_symlink()).and_then(Path::parent).map(Path::to_owned));
        folders.extend(fs::canonicalize(folder).ok());
        match fs::read_link(&path) {
            Ok(to) => path = folder.join(to),
            Err(_) => break,
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_folder_on_the_way_to_a_file_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mount = root.join("mount");
        fs::create_dir_all(mount.join("..1")).unwrap();
        fs::write(mount.join("..1/policy.json"), "{}").unwrap();
        symlink("..1", mount.join("..data")).unwrap();
        symlink("..data/policy.json", mount.join("policy.json")).unwrap();
        symlink("mount/policy.json", root.join("policy.json")).unwrap();
        let folders: BTreeSet<PathBuf> = folders_of(&root.join("policy.json")).into_iter().collect();
        assert_eq!(folders, BTreeSet::from([root.clone(), mount.clone(), mount.join("..1")]));
        assert_eq!(folders_of(&root.join("none/policy.json")), Vec::<PathBuf>::new());

        symlink("loop", root.join("loop")).unwrap();
        assert!(folders_of(&root.join("loop")).iter().all(|folder| *folder == root));
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_waited_for_until_they_are_quiet() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("policy.json")];
        let stirred = Notify::new();
        let began = tokio::time::Instant::now();
        let written = async {
            for size in 1..=3 {
                fs::write(&files[0], vec![b' '; size]).unwrap();
                tokio::time::sleep(QUIET - Duration::from_millis(20)).await;
            }
        };
        let (stamps, ()) = tokio::join!(quiet(&files, &stirred), written);
        assert_eq!(stamps[0].as_ref().map(|stamp| stamp.size), Some(3));
        assert!(began.elapsed() >= 3 * QUIET, "{:?}", began.elapsed());
    }
}
