//! What is written is read again, and nothing that happens to the file stops anybody.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn peer(number: u8, endpoint: &str) -> Remembered {
    Remembered {
        key: [number; 32],
        endpoint: endpoint.parse().unwrap(),
        local: Some("192.0.2.1".parse().unwrap()),
        shard: usize::from(number),
        shards: 4,
        heard: Timestamp::from_second(1_800_000_000).unwrap(),
    }
}

fn known(memory: &Memory) -> Vec<Remembered> {
    let mut peers: Vec<_> = memory.peers().copied().collect();
    peers.sort_by_key(|peer| peer.key);
    peers
}

fn written(path: &Path, peers: &[Remembered]) {
    let mut memory = Memory::open(path);
    peers.iter().for_each(|peer| memory.note(*peer));
    memory.save();
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let (one, two) = (peer(1, "198.51.100.1:1"), peer(2, "[2001:db8::2]:2"));
    let near = peer(3, "[fe80::3%7]:3");
    let moved = Remembered { endpoint: "203.0.113.9:9".parse().unwrap(), local: None, ..two };
    written(&path, &[one, two, near]);
    for file in fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    written(&path, &[moved]);
    let mut memory = Memory::open(&path);
    assert_eq!(known(&memory), [one, moved, near], "with the interface of a link-local address");
    memory.retain(|peer| *peer != one);
    memory.save();
    assert_eq!(known(&Memory::open(&path)), [moved, near]);
}

#[test]
fn a_file_others_may_read_is_closed_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    written(&path, &[peer(1, "198.51.100.1:1")]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

/// Overwrites the middle of the file, which holds the table.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let from = bytes.len().min(100);
    bytes[from..].fill(0xa5);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_database_is_put_aside_for_a_fresh_one() {
    for garbage in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        written(&path, &[peer(1, "198.51.100.1:1")]);
        if garbage {
            fs::write(
                &path,
                "this was never a database, and is long enough not to be taken for an empty one".repeat(20),
            )
            .unwrap();
        } else {
            damage(&path);
        }
        let was = fs::read(&path).unwrap();
        assert_eq!(known(&Memory::open(&path)), [], "nothing is made of garbage");
        assert_eq!(fs::read(dir.path().join("state.db.damaged")).unwrap(), was, "somebody may want to look into it");
        let two = peer(2, "198.51.100.2:2");
        written(&path, &[two]);
        assert_eq!(known(&Memory::open(&path)), [two]);
    }
}

#[test]
fn damage_while_it_runs_costs_nothing_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let peers = [peer(1, "198.51.100.1:1"), peer(2, "198.51.100.2:2")];
    let mut memory = Memory::open(&path);
    memory.note(peers[0]);
    memory.save();
    drop(fs::remove_file(dir.path().join("state.db-wal")));
    damage(&path);
    memory.note(peers[1]);
    memory.save();
    drop(memory);
    assert_eq!(known(&Memory::open(&path)), peers);
}

#[test]
fn a_database_of_a_later_release_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let later = rusqlite::Connection::open(&path).unwrap();
    later.execute_batch("CREATE TABLE other (x); PRAGMA user_version = 9;").unwrap();
    drop(later);
    let was = fs::read(&path).unwrap();
    written(&path, &[peer(1, "198.51.100.1:1")]);
    assert_eq!(fs::read(&path).unwrap(), was);
}

#[test]
fn without_a_place_for_it_everything_is_only_known() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing").join(FILE);
    let a_directory = dir.path().join("directory");
    fs::create_dir(&a_directory).unwrap();
    for path in [missing, a_directory] {
        let mut memory = Memory::open(&path);
        memory.note(peer(1, "198.51.100.1:1"));
        memory.save();
        assert_eq!(known(&memory), [peer(1, "198.51.100.1:1")]);
    }
}

#[test]
fn the_owner_is_the_same_while_the_number_of_shards_is() {
    let peer = peer(3, "198.51.100.1:1");
    assert_eq!(peer.owner(4), 3);
    for shards in 1..4 {
        assert!(peer.owner(shards) < shards);
    }
}
