//! Files that change are loaded: once for each change, and never half.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use portcullis_e2e::lab::Host;
use portcullis_e2e::setup::{OnRamp, Setup, policy_without, usual_policy};
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};
use serde_json::{Value, json};

/// More than the files have to be quiet before they are loaded.
const LONG: Duration = Duration::from_millis(600);

fn status(world: &World<'_>) -> Value {
    serde_json::from_str(&world.gateway.verb(&["status", "--json"])).expect("JSON")
}

fn revision(world: &World<'_>) -> u64 {
    status(world).get("revision").and_then(Value::as_u64).expect("a number")
}

/// Makes a change and sees that it is loaded, exactly once.
fn loads_once(world: &World<'_>, how: &str, change: impl FnOnce(&Path)) {
    let before = revision(world);
    change(&world.gateway.policy_path());
    wait::until(&format!("the change by {how} to be loaded"), || (revision(world) > before).then_some(()));
    std::thread::sleep(LONG);
    assert_eq!(revision(world), before + 1, "by {how}");
    let history: Value = serde_json::from_str(&world.gateway.verb(&["policy", "history", "--json"])).expect("JSON");
    assert_eq!(history.pointer("/revisions/0/source"), Some(&json!("watch")));
}

#[test]
fn each_kind_of_edit_is_loaded_once() {
    scenario(Setup::new(OnRamp::Tun).watched(), |world| {
        let texts = [usual_policy().to_string(), policy_without(Host::Open).to_string()];
        let (usual, without) = (&texts[0], &texts[1]);
        loads_once(world, "writing in its place, in two pieces", |path| {
            use std::io::Write as _;
            let mut file = fs::File::create(path).expect("the policy");
            let (first, second) = without.split_at(without.len() / 2);
            file.write_all(first.as_bytes()).expect("room");
            file.sync_all().expect("a disk");
            std::thread::sleep(Duration::from_millis(50));
            file.write_all(second.as_bytes()).expect("room");
        });
        loads_once(world, "renaming another file", |path| {
            let next = path.with_extension("next");
            fs::write(&next, usual).expect("a file");
            fs::rename(next, path).expect("renamed");
        });
        loads_once(world, "an editor with a swap file and a backup", |path| {
            let (swap, backup) = (path.with_file_name(".policy.json.swp"), path.with_file_name("policy.json~"));
            fs::write(&swap, "b0VIM").expect("a swap file");
            fs::rename(path, &backup).expect("a backup");
            fs::write(path, without).expect("the policy");
            fs::remove_file(backup).expect("gone");
            fs::remove_file(swap).expect("gone");
        });
        loads_once(world, "the directory", |_| {
            let path = world.gateway.directory_path();
            let mut directory: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
            directory["users"]["new@example.com"] = json!({});
            fs::write(path, directory.to_string()).expect("the directory");
        });

        // As a mounted configuration has it: what is turned around is a link to a folder.
        let folder = world.gateway.dir().join("mounted");
        for (name, text) in [("..1", usual), ("..2", without)] {
            fs::create_dir_all(folder.join(name)).expect("a folder");
            fs::write(folder.join(name).join("policy.json"), text).expect("a file");
        }
        symlink("..1", folder.join("..data")).expect("a link");
        symlink("..data/policy.json", folder.join("policy.json")).expect("a link");
        loads_once(world, "a link in the place of the file", |path| {
            fs::remove_file(path).expect("gone");
            symlink(folder.join("policy.json"), path).expect("a link");
        });
        loads_once(world, "turning a folder around", |_| {
            symlink("..2", folder.join("..tmp")).expect("a link");
            fs::rename(folder.join("..tmp"), folder.join("..data")).expect("renamed");
        });

        // Touching it, and what a command wrote and had loaded itself, is no change.
        let before = revision(world);
        fs::write(world.gateway.policy_path(), without).expect("the policy");
        std::thread::sleep(LONG);
        assert_eq!(revision(world), before);
        world.gateway.verb(&["device", "add", "later", "--user", "new@example.com", "--networks", "192.168.9.0/24"]);
        world.gateway.verb(&["reload"]);
        std::thread::sleep(LONG);
        assert!(revision(world) <= before + 2, "{} after {before}", revision(world));
    });
}

#[test]
fn half_a_file_is_refused_and_the_whole_one_taken() {
    scenario(Setup::new(OnRamp::Tun).watched(), |world| {
        let whole = policy_without(Host::Open).to_string();
        let path = world.gateway.policy_path();
        fs::write(&path, &whole[..whole.len() / 2]).expect("half a policy");
        world.gateway.wait_for_metric("portcullis_reload_failures_total", None, 1.0);
        assert_eq!((revision(world), status(world)["last_reload"]["ok"].clone()), (1, json!(false)));
        std::thread::sleep(3 * LONG);
        world.gateway.wait_for_metric("portcullis_reload_failures_total", None, 1.0);
        fs::write(&path, &whole).expect("the policy");
        wait::until("the whole file to be loaded", || (revision(world) == 2).then_some(()));
        assert_eq!(status(world)["last_reload"]["ok"], json!(true));
    });
}

#[test]
fn nothing_is_loaded_where_nobody_watches() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        world.gateway.write_policy(&policy_without(Host::Open));
        std::thread::sleep(3 * LONG);
        assert_eq!(revision(world), 1);
        assert!(world.gateway.reload().contains("rule no-more added"));
        assert_eq!(revision(world), 2);
    });
}
