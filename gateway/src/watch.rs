//! Loads policy and directory when their files change.
//!
//! What is watched is not the files but the folders they are in, and those their links lead to: an editor replaces a file
//! by another of its name, and a mounted configuration turns a link of a folder around. What an event says is not looked
//! at; it only has the files looked at, and they are loaded once they stay the same for [`QUIET`] and say something else
//! than what is in force.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::config::Config;
use crate::rulesets::Rulesets;

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
                rulesets.reload_edited().await;
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

/// What tells a folder from another that took its name, and its inode when it was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    /// Where the file system knows.
    born: Option<SystemTime>,
}

impl Identity {
    fn of(folder: &Path) -> Option<Self> {
        let folder = fs::metadata(folder).ok()?;
        Some(Self { device: folder.dev(), inode: folder.ino(), born: folder.created().ok() })
    }
}

/// The folders that are watched.
struct Folders {
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, Identity>,
    new: bool,
    shortage: Shortage,
}

impl Folders {
    fn new(files: &[PathBuf], stirred: Arc<Notify>) -> Self {
        let watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            // Reading changes nothing. An error may be one of events that were lost.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                stirred.notify_one();
            }
        });
        let mut shortage = Shortage::default();
        let watcher = watcher.map_err(|error| shortage.tell(&error, "max_user_instances")).ok();
        let mut folders = Self { watcher, watched: BTreeMap::new(), new: false, shortage };
        folders.follow(files);
        folders
    }

    /// Watches the folders that the files are in now, and no others.
    fn follow(&mut self, files: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        // Identified before they are watched: one that is replaced in between is another at the next look.
        let identified = |folder: PathBuf| Identity::of(&folder).map(|identity| (folder, identity));
        let wanted: BTreeMap<_, _> = files.iter().flat_map(|file| folders_of(file)).filter_map(identified).collect();
        let before = std::mem::take(&mut self.watched);
        for (gone, _) in before.iter().filter(|(folder, identity)| wanted.get(*folder) != Some(*identity)) {
            // It mostly ended with the folder.
            let _ = watcher.unwatch(gone);
        }
        for (folder, identity) in wanted {
            if before.get(&folder) == Some(&identity) {
                self.watched.insert(folder, identity);
                continue;
            }
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.new = true;
                    self.watched.insert(folder, identity);
                }
                // It is tried again with the next look; the files are looked at then in any case.
                Err(error) if matches!(error.kind, ErrorKind::MaxFilesWatch) => {
                    self.shortage.tell(&error, "max_user_watches");
                }
                Err(error) => tracing::debug!(folder = %folder.display(), %error, "not watched"),
            }
        }
    }

    /// Whether something is watched that was not, so that events may have been missed.
    fn is_new(&mut self) -> bool {
        std::mem::take(&mut self.new)
    }
}

/// Whether it was said that inotify has no more to give. It is found out at every look, and said once.
#[derive(Debug, Default)]
struct Shortage {
    said: bool,
}

impl Shortage {
    /// Says what is to be done, unless it was said. `limit`: the kernel's, of which this mostly is one.
    fn tell(&mut self, error: &notify::Error, limit: &str) -> bool {
        let first = !std::mem::replace(&mut self.said, true);
        if first {
            tracing::warn!(
                %error,
                "files cannot be watched, so they are looked at every two seconds: where all of inotify is in use, raise \
                 it with `sysctl fs.inotify.{limit}=NUMBER`; `portcullis reload` loads at once"
            );
        }
        first
    }
}

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
    use std::collections::BTreeSet;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::Ordering;

    use portcullis_policy::Revision;
    use tokio::time::timeout;

    use super::*;
    use crate::control::tests::{DIRECTORY, Files, POLICY};

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_folder_that_took_the_place_of_another_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap().join("etc");
        let files = [folder.join("policy.json")];
        fs::create_dir(&folder).unwrap();
        fs::write(&files[0], "{}").unwrap();
        let stirred = Arc::new(Notify::new());
        let mut folders = Folders::new(&files, Arc::clone(&stirred));
        assert!(folders.is_new());
        folders.follow(&files);
        assert!(!folders.is_new());

        for removed in [false, true] {
            if removed {
                fs::remove_dir_all(&folder).unwrap();
            } else {
                fs::rename(&folder, dir.path().join("old")).unwrap();
            }
            fs::create_dir(&folder).unwrap();
            fs::write(&files[0], "{}").unwrap();
            folders.follow(&files);
            assert!(folders.is_new(), "removed: {removed}");
            // Events of the old folder may still be on their way; what is written until one comes is one of the new.
            let seen = async {
                while timeout(QUIET, stirred.notified()).await.is_ok() {}
                fs::write(&files[0], "{ }").unwrap();
                stirred.notified().await;
            };
            timeout(PATIENCE, seen).await.unwrap();
        }
    }

    #[test]
    fn a_shortage_is_told_once() {
        let mut shortage = Shortage::default();
        let error = notify::Error::new(ErrorKind::MaxFilesWatch);
        assert!(shortage.tell(&error, "max_user_watches"));
        assert!(!shortage.tell(&error, "max_user_watches"));
    }

    /// A gateway that watches the files it has, and how often it has loaded them.
    struct Watched {
        rulesets: Arc<Rulesets>,
        loads: u64,
    }

    impl Watched {
        fn start(config: &Config) -> Self {
            let config = Arc::new(config.clone());
            let rulesets = Rulesets::load(Arc::clone(&config), None, [].into(), crate::state::Kept::default()).unwrap();
            let watched = Self { rulesets: Arc::new(rulesets), loads: 1 };
            start(&config, Arc::clone(&watched.rulesets));
            watched
        }

        /// `change` is loaded, once: another load would be in the count of the next change.
        async fn loads_once(&mut self, how: &str, change: impl FnOnce()) {
            let mut snapshots = self.rulesets.subscribe();
            snapshots.mark_unchanged();
            change();
            timeout(PATIENCE, snapshots.changed()).await.expect(how).unwrap();
            self.loads += 1;
            assert_eq!(self.rulesets.current().ruleset.revision(), Revision(self.loads), "{how}");
            assert_eq!(self.rulesets.failures().load(Ordering::Relaxed), 0, "{how}");
        }
    }

    /// `POLICY`, and another for each number.
    fn policy(number: u16) -> String {
        POLICY.replace("tcp/22", &format!("tcp/{number}"))
    }

    #[tokio::test]
    async fn the_saves_of_editors_load_once() {
        use std::io::Write as _;
        let files = Files::new();
        let mut watched = Watched::start(&files.config);
        let path = files.config.policy.clone();
        let beside = |name: &str| path.with_file_name(name);
        let in_pieces = |text: &str| {
            let mut file = fs::File::create(&path).unwrap();
            let (first, second) = text.split_at(text.len() / 2);
            file.write_all(first.as_bytes()).unwrap();
            file.write_all(second.as_bytes()).unwrap();
            file.sync_all().unwrap();
        };
        watched
            .loads_once("vim", || {
                fs::write(beside(".policy.json.swp"), "b0VIM").unwrap();
                fs::write(beside("4913"), "").unwrap();
                fs::remove_file(beside("4913")).unwrap();
                fs::rename(&path, beside("policy.json~")).unwrap();
                in_pieces(&policy(1));
                fs::remove_file(beside("policy.json~")).unwrap();
                fs::remove_file(beside(".policy.json.swp")).unwrap();
            })
            .await;
        watched
            .loads_once("vim with backupcopy=yes", || {
                fs::copy(&path, beside("policy.json~")).unwrap();
                in_pieces(&policy(2));
                fs::remove_file(beside("policy.json~")).unwrap();
            })
            .await;
        watched.loads_once("nano", || in_pieces(&policy(3))).await;
        watched
            .loads_once("emacs", || {
                symlink("ann@host.1:2", beside(".#policy.json")).unwrap();
                fs::write(beside("#policy.json#"), "{").unwrap();
                fs::rename(&path, beside("policy.json~")).unwrap();
                in_pieces(&policy(4));
                fs::remove_file(beside("#policy.json#")).unwrap();
                fs::remove_file(beside(".#policy.json")).unwrap();
            })
            .await;
        watched
            .loads_once("renaming another file", || {
                fs::write(beside("policy.json.new"), policy(5)).unwrap();
                fs::rename(beside("policy.json.new"), &path).unwrap();
            })
            .await;
        watched.loads_once("a line of the shell", || fs::write(&path, policy(6)).unwrap()).await;
    }

    #[tokio::test]
    async fn links_that_are_turned_around_load_once() {
        let mut files = Files::new();
        let mount = files.path("mount");
        let version = |name: &str, policy: &str, directory: &str| {
            fs::create_dir_all(mount.join(name)).unwrap();
            fs::write(mount.join(name).join("policy.json"), policy).unwrap();
            fs::write(mount.join(name).join("directory.json"), directory).unwrap();
        };
        let turn = |to: &str| {
            symlink(to, mount.join("..tmp")).unwrap();
            fs::rename(mount.join("..tmp"), mount.join("..data")).unwrap();
        };
        version("..1", POLICY, DIRECTORY);
        version("..2", &policy(1), DIRECTORY);
        version("..3", &policy(1), &DIRECTORY.replace("\"disabled\": true", "\"disabled\": false"));
        version("..4", POLICY, DIRECTORY);
        turn("..1");
        for file in [&mut files.config.policy, &mut files.config.directory] {
            let link = mount.join(file.file_name().unwrap());
            symlink(Path::new("..data").join(file.file_name().unwrap()), &link).unwrap();
            *file = link;
        }
        let mut watched = Watched::start(&files.config);
        watched.loads_once("policy.json turned around", || turn("..2")).await;
        watched.loads_once("directory.json turned around", || turn("..3")).await;
        let disabled = |name: &str| watched.rulesets.current().directory.device(name).unwrap().disabled;
        assert!(!disabled("bob-phone"));
        watched
            .loads_once("both turned around, and the old ones removed", || {
                turn("..4");
                fs::remove_dir_all(mount.join("..3")).unwrap();
            })
            .await;
    }

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
