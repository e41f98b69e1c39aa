//! Policies that are planned, applied, confirmed or not, and rolled back, across the lives of a gateway.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_e2e::lab::{Family, Host};
use portcullis_e2e::setup::{OnRamp, Setup, policy_without, usual_policy};
use portcullis_e2e::target::TcpTarget;
use portcullis_e2e::tools::said;
use portcullis_e2e::wait;
use portcullis_e2e::world::{World, scenario};
use serde_json::Value;

fn history(world: &World<'_>) -> Value {
    serde_json::from_str(&world.gateway.verb(&["policy", "history", "--json"])).expect("JSON")
}

/// Number, source and where it goes back to, newest first.
fn revisions(world: &World<'_>) -> Vec<(u64, String, Option<u64>)> {
    let history = history(world);
    let number = |entry: &Value, key| entry.get(key).and_then(Value::as_u64);
    let one = |entry: &Value| {
        let source = entry.get("source").and_then(Value::as_str).expect("a source").to_owned();
        (number(entry, "revision").expect("a number"), source, number(entry, "back_to"))
    };
    history.get("revisions").and_then(Value::as_array).expect("a list").iter().map(one).collect()
}

/// A file with the usual policy, but that nobody reaches the open host.
fn next(world: &World<'_>) -> String {
    let path = world.gateway.dir().join("next.json");
    std::fs::write(&path, policy_without(Host::Open).to_string()).expect("a file");
    path.display().to_string()
}

fn in_file(world: &World<'_>) -> Value {
    let text = std::fs::read_to_string(world.gateway.policy_path()).expect("the policy");
    serde_json::from_str(&text).expect("JSON")
}

fn reaches(world: &World<'_>, to: SocketAddr) -> bool {
    world.client().connect(to).is_ok()
}

#[test]
fn a_policy_is_applied_kept_through_a_crash_and_rolled_back() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), |_| {});
        let to = target.address();
        assert!(reaches(world, to));
        let next = next(world);
        let said = world.gateway.verb(&["policy", "apply", &next, "--message", "close it"]);
        assert!(said.starts_with("revision 2 in force\n"), "{said}");
        assert!(!reaches(world, to));
        assert_eq!(in_file(world), policy_without(Host::Open));
        let denied = world.gateway.wait_for_flow("the denied one", |line| line.ended == "denied");
        assert_eq!(denied.revision, 2);

        world.gateway.kill9();
        world.gateway.start();
        assert_eq!(history(world)["in_force"], 2, "the same policy and directory are the same revision");
        assert!(!reaches(world, to));

        let said = world.gateway.verb(&["policy", "rollback", "1", "--reason", "they need it"]);
        assert!(said.starts_with("revision 3 in force\n"), "{said}");
        assert!(reaches(world, to));
        assert_eq!(in_file(world), usual_policy());
        let expected = [(3, "rollback", Some(1)), (2, "apply", None), (1, "start", None)];
        assert_eq!(revisions(world), expected.map(|(number, source, back)| (number, source.to_owned(), back)));
        let page = world.gateway.verb(&["policy", "history"]);
        assert!(page.contains("apply: close it") && page.contains("rollback to 1: they need it"), "{page}");
        assert_eq!(world.gateway.verb(&["policy", "show", "2"]), policy_without(Host::Open).to_string());
        let diff = world.gateway.verb(&["policy", "diff", "1", "2"]);
        assert!(diff.contains("--- revision 1\n+++ revision 2\n"), "{diff}");
        let none = world.gateway.try_verb(&["policy", "show", "77"]);
        assert_eq!(none.status.code(), Some(1));
    });
}

#[test]
fn what_is_not_confirmed_goes_back_and_what_is_stays() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), |_| {});
        let to = target.address();
        let next = next(world);
        world.gateway.verb(&["policy", "apply", &next, "--confirm-within", "2s"]);
        assert!(!reaches(world, to));
        let refused = world.gateway.try_verb(&["policy", "apply", &next]);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        assert!(said(&refused).contains("revision 2, applied by root, is to be confirmed first"), "{}", said(&refused));
        assert!(world.gateway.verb(&["status"]).contains("CONFIRM    revision 2 by "));
        wait::until("the policy to go back", || reaches(world, to).then_some(()));
        assert_eq!((revisions(world)[0].clone(), in_file(world)), ((3, "revert".to_owned(), Some(1)), usual_policy()));

        world.gateway.verb(&["policy", "apply", &next, "--confirm-within", "1s"]);
        assert_eq!(world.gateway.verb(&["policy", "confirm"]), "revision 4 stays\n");
        let nothing = world.gateway.try_verb(&["policy", "confirm"]);
        assert_eq!(nothing.status.code(), Some(1), "{}", said(&nothing));
        std::thread::sleep(Duration::from_millis(1_500));
        assert!(!reaches(world, to) && history(world)["in_force"] == 4);
    });
}

#[test]
fn a_gateway_that_is_killed_goes_back_in_its_next_life() {
    scenario(Setup::new(OnRamp::Tun), |world| {
        let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), |_| {});
        let to = target.address();
        let next = next(world);
        // Time is up while it is dead: nothing is served by the policy that was not confirmed.
        world.gateway.verb(&["policy", "apply", &next, "--confirm-within", "1s"]);
        world.gateway.kill9();
        std::thread::sleep(Duration::from_millis(1_200));
        world.gateway.start();
        assert!(reaches(world, to));
        assert_eq!((revisions(world)[0].clone(), in_file(world)), ((3, "revert".to_owned(), Some(1)), usual_policy()));

        // Time is not up yet: it goes on.
        world.gateway.verb(&["policy", "apply", &next, "--confirm-within", "5s"]);
        world.gateway.kill9();
        world.gateway.start();
        assert!(!reaches(world, to), "there is time left to confirm it");
        wait::until("the policy to go back", || reaches(world, to).then_some(()));
        assert_eq!(
            (revisions(world)[0].clone(), in_file(world)),
            ((5, "revert".to_owned(), Some(1 + 2)), usual_policy())
        );
    });
}

#[test]
fn a_plan_names_what_would_end_open_and_close_and_changes_nothing() {
    scenario(Setup::new(OnRamp::Wireguard), |world| {
        let target = TcpTarget::serve(world.private(), Host::Open.address(Family::V4), |mut stream| {
            std::io::copy(&mut stream, &mut std::io::sink()).is_ok()
        });
        let to = target.address();
        let live = world.client().connect(to).expect("the target accepts");
        let plan = |policy: &Value, json: bool| {
            let path = world.gateway.dir().join("planned.json");
            std::fs::write(&path, policy.to_string()).expect("a file");
            let path = path.display().to_string();
            let out = world
                .gateway
                .try_verb(&[&["policy", "plan", &path][..], if json { &["--json"] } else { &[] }].concat());
            (out.status.code(), said(&out))
        };
        assert_eq!(plan(&usual_policy(), false), (Some(0), "nothing changes\n".to_owned()));

        let mut other = policy_without(Host::Open);
        let shut = Host::Shut.address(Family::V4);
        let opened = serde_json::json!({ "id": "web", "action": "allow", "from": ["user:user-0@example.com"],
            "to": [shut], "services": ["tcp/80"] });
        other.pointer_mut("/rules").and_then(Value::as_array_mut).expect("rules").insert(0, opened);
        let (code, page) = plan(&other, false);
        assert_eq!(code, Some(2), "{page}");
        let host = Host::Open.address(Family::V4);
        let lines: Vec<&str> = page.lines().collect();
        let flow = lines.first().expect("the flow that ends");
        assert!(flow.starts_with("ends    flow ") && flow.contains("user-0@example.com (laptop-0)"), "{page}");
        assert!(flow.ends_with(&format!("{host}  tcp/{}   by no-more (now: by open)", to.port())), "{page}");
        let line = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(line(&["+ allow", "laptop-0", &format!("{shut}/32"), "tcp/80", "by web (now: by shut)"]), "{page}");
        assert!(line(&["- allow", "laptop-0", &format!("{host}/32"), "by no-more (now: by open)"]), "{page}");
        let (code, text) = plan(&other, true);
        let report: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((code, &report["complete"], &report["revision"]), (Some(2), &true.into(), &1.into()));
        assert_eq!(report.pointer("/flows/0/destination").and_then(Value::as_str), Some(to.to_string().as_str()));

        let (code, text) = plan(&serde_json::json!({ "version": 1, "rules": [{ "id": "x" }] }), false);
        assert_eq!(code, Some(78), "{text}");
        assert!(text.contains("planned.json:1:") && text.contains("rules[0]: the key \"action\" is missing"), "{text}");

        // Nothing of it is in force: the flow lives, and what would open is shut.
        assert_eq!((history(world)["in_force"].as_u64(), in_file(world)), (Some(1), usual_policy()));
        assert!(!reaches(world, SocketAddr::new(shut, 80)));
        drop(live);
        let line = world.gateway.wait_for_flow("the live one", |line| line.destination == to);
        assert_eq!((line.ended.as_str(), line.revision), ("client_closed", 1));
    });
}
