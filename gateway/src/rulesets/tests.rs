//! Loads and swaps of policy and directory.

use std::sync::atomic::Ordering;

use super::*;
use crate::control::shards::tests::FakeShard;
use crate::control::tests::{DIRECTORY, Files, POLICY};

fn lines(report: &ReloadReport) -> Vec<String> {
    report.changes.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_swap_publishes_both_files_at_once_and_judges_again() {
    let mut files = Files::new();
    files.config = Config::load(&files.config.source).unwrap();
    let rulesets = files.rulesets();
    let shard = FakeShard::default();
    let told = Arc::clone(&shard.told);
    rulesets.attach(Shards::from_parts([shard.start()]));
    let mut watch = rulesets.subscribe();
    watch.mark_unchanged();

    files.write_policy(&POLICY.replace("tcp/22", "tcp/23").replace("\"eng\", \"action\"", "\"staff\", \"action\""));
    files.write_directory(
        &DIRECTORY.replace("\"networks\": [\"192.168.8.0/24\"]", "\"networks\": [\"192.168.9.0/24\"]"),
    );
    let report = rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
    assert_eq!((report.revision, report.judged), (2, true));
    assert_eq!(
        lines(&report),
        ["device bob-phone changed", "rule no-ssh changed", "rule staff added", "rule eng removed"]
    );
    assert_eq!(*told.lock().unwrap(), ["rejudge"]);
    assert!(watch.has_changed().unwrap());
    let seen = Arc::clone(&watch.borrow_and_update());
    assert_eq!(seen.ruleset.revision(), Revision(2));
    assert!(seen.directory.device_by_network("192.168.9.1".parse().unwrap()).is_some());

    let report = rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
    assert_eq!((report.revision, lines(&report).len()), (3, 0), "the same bytes are judged by again");
    assert_eq!(told.lock().unwrap().len(), 2);

    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    std::fs::write(&files.config.source, format!("drain = \"7s\"\n{}", files.config.text)).unwrap();
    let warnings = rulesets.reload(Cause::of(Source::Reload)).await.unwrap().warnings;
    assert!(matches!(&warnings[..], [one] if one.ends_with("needs a restart")), "{warnings:?}");
    std::fs::remove_file(&files.config.source).unwrap();
    assert_eq!(rulesets.reload(Cause::of(Source::Reload)).await.unwrap().warnings.len(), 1);
}

/// Ann reaches something only while her disk is encrypted, and the policy's own test says that nothing is known of it.
const ENCRYPTED: &str = r#"{ "version": 1, "postures": { "encrypted": { "disk": true } },
    "rules": [{ "id": "disk", "action": "allow", "from": ["*"], "to": ["10.0.0.1"], "when": { "posture": ["encrypted"] } }],
    "tests": [{ "from": "device:ann-laptop", "to": "10.0.0.1:80/tcp", "expect": "deny" }] }"#;

#[tokio::test]
async fn reports_count_at_once_and_in_every_later_load() {
    let files = Files::new();
    files.write_policy(ENCRYPTED);
    let rulesets = files.rulesets_with_history();
    let shard = FakeShard::default();
    let told = Arc::clone(&shard.told);
    rulesets.attach(Shards::from_parts([shard.start()]));
    let reaches = |rulesets: &Rulesets| {
        let snapshot = rulesets.current();
        let device = snapshot.directory.device("ann-laptop").unwrap();
        let request = portcullis_policy::Request {
            identity: &device.identity,
            source: device.sources().next().unwrap(),
            destination: "10.0.0.1".parse().unwrap(),
            service: portcullis_policy::Service::Tcp(80),
        };
        snapshot.ruleset.evaluate(&request, Timestamp::now()).is_allowed()
    };
    let report = |name: &str, value: bool| {
        let facts = [("disk".to_owned(), (value.into(), None))].into();
        [(name.to_owned(), crate::posture::Statement { facts, ..Default::default() })].into()
    };
    assert!(!reaches(&rulesets));
    let taken = rulesets.report(report("ann-laptop", true)).await.unwrap();
    assert!(taken.judged && taken.kept && reaches(&rulesets), "{taken:?}");
    assert_eq!(*told.lock().unwrap(), ["rejudge"]);
    let mut both: std::collections::BTreeMap<_, _> = report("ann-laptop", false);
    both.extend(report("eve-laptop", true));
    assert!(
        matches!(rulesets.report(both).await, Err(reporting::StatementError::UnknownDevice(name)) if name == "eve-laptop")
    );
    assert!(reaches(&rulesets), "nothing has changed");

    rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
    assert!(reaches(&rulesets), "in a later load, whose test does not see it");
    rulesets.bar("bob-phone".to_owned()).await.unwrap();
    assert!(reaches(&rulesets));
    drop(rulesets);
    let rulesets = files.rulesets_with_history();
    assert!(reaches(&rulesets), "in the next life");
    drop(rulesets);
    // A device that was gone meanwhile has nothing reported of it when it is back.
    let without = DIRECTORY.replace("ann-laptop", "ann-phone");
    files.write_directory(&without);
    files.write_policy(POLICY);
    drop(files.rulesets_with_history());
    files.write_directory(DIRECTORY);
    files.write_policy(ENCRYPTED);
    let rulesets = files.rulesets_with_history();
    assert!(!reaches(&rulesets), "forgotten in the state database too");
    rulesets.report(report("ann-laptop", true)).await.unwrap();
    rulesets.report(report("ann-laptop", false)).await.unwrap();
    assert!(!reaches(&rulesets));
}

#[tokio::test]
async fn a_bad_file_changes_nothing() {
    let files = Files::new();
    let rulesets = files.rulesets();
    let shard = FakeShard::default();
    let told = Arc::clone(&shard.told);
    rulesets.attach(Shards::from_parts([shard.start()]));
    let before = rulesets.current();
    let mut refused = 0;
    for (policy, directory) in [
        (Some("{"), None),
        (Some(""), None),
        (Some(r#"{"version":1,"rules":[],"rules":[]}"#), None),
        (Some(r#"{"version":1,"rules":[{"id":"x","action":"allow","from":[],"to":["*"]}]}"#), None),
        (None, Some("[]")),
        (None, Some(r#"{"users":{},"devices":{"a":{"user":"nobody","networks":["10.0.0.0/8"]}}}"#)),
        (Some(POLICY), Some(r#"{"users":{},"devices":{}} x"#)),
    ] {
        files.write_policy(policy.unwrap_or(POLICY));
        files.write_directory(directory.unwrap_or(DIRECTORY));
        let error = rulesets.reload(Cause::of(Source::Reload)).await.unwrap_err();
        refused += 1;
        assert_eq!(error.revision, 1);
        let bad = if directory.is_some() { &files.config.directory } else { &files.config.policy };
        assert!(!error.problems.is_empty());
        assert!(error.problems.iter().all(|p| p.file == bad.display().to_string() && p.line.is_some()), "{error:?}");
        assert!(Arc::ptr_eq(&before, &rulesets.current()));
        assert_eq!(rulesets.failures().load(Ordering::Relaxed), refused);
        assert_eq!(rulesets.last_reload().problems, error.problems);
    }
    std::fs::remove_file(&files.config.policy).unwrap();
    let error = rulesets.reload(Cause::of(Source::Reload)).await.unwrap_err();
    assert!(error.problems[0].to_string().starts_with(&files.config.policy.display().to_string()));
    assert!(told.lock().unwrap().is_empty());

    files.write_policy(POLICY);
    files.write_directory(DIRECTORY);
    assert_eq!(rulesets.reload(Cause::of(Source::Reload)).await.unwrap().revision, 2);
    assert!(rulesets.last_reload().ok);
}

#[tokio::test]
async fn a_barred_device_stays_so_until_a_load_is_taken() {
    let files = Files::new();
    let rulesets = files.rulesets();
    let shard = FakeShard::default();
    let told = Arc::clone(&shard.told);
    rulesets.attach(Shards::from_parts([shard.start()]));
    let before = rulesets.current();
    let disabled = |name: &str| rulesets.current().directory.device(name).unwrap().disabled;
    let behind = |address: &str| {
        let snapshot = rulesets.current();
        snapshot.directory.device_by_network(address.parse().unwrap()).unwrap().disabled
    };
    assert!(!disabled("ann-laptop"));

    files.write_policy("{");
    let report = rulesets.bar("ann-laptop".to_owned()).await.unwrap();
    assert_eq!(report, BarReport { device: "ann-laptop".to_owned(), known: true, judged: true });
    assert!(disabled("ann-laptop") && behind("192.168.7.1"));
    assert_eq!(*told.lock().unwrap(), ["rejudge"]);
    assert!(Arc::ptr_eq(&before.ruleset, &rulesets.current().ruleset), "the policy is the same");
    assert!(rulesets.bar("ann-laptop".to_owned()).await.unwrap().judged);
    assert_eq!(told.lock().unwrap().len(), 2, "asked twice, judged twice");
    assert!(!rulesets.bar("nobody".to_owned()).await.unwrap().known);

    rulesets.set_own_addresses(["198.51.100.1".parse().unwrap()].into()).await;
    rulesets.reload(Cause::of(Source::Reload)).await.unwrap_err();
    assert!(disabled("ann-laptop"), "neither new addresses nor a refused load lift it");

    files.write_policy(POLICY);
    rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
    assert!(!disabled("ann-laptop") && !behind("192.168.7.1"));
}

#[tokio::test]
async fn a_refused_load_takes_access_away_all_the_same() {
    let user_disabled = DIRECTORY.replace("\"groups\": [\"eng\"] }", "\"groups\": [\"eng\"], \"disabled\": true }");
    let revoked = DIRECTORY.replace("[\"192.168.7.0/24\"] }", "[\"192.168.7.0/24\"], \"revoked\": true }");
    let removed = r#"{ "users": {}, "devices": {} }"#.to_owned();
    for directory in [user_disabled, revoked, removed] {
        let files = Files::new();
        let rulesets = files.rulesets();
        let shard = FakeShard::default();
        let told = Arc::clone(&shard.told);
        rulesets.attach(Shards::from_parts([shard.start()]));
        files.write_policy("{");
        files.write_directory(&directory);
        let error = rulesets.reload(Cause::of(Source::Reload)).await.unwrap_err();
        assert_eq!((error.revision, error.barred), (1, vec!["ann-laptop".to_owned()]), "{directory}");
        assert!(rulesets.current().directory.device("ann-laptop").unwrap().disabled);
        assert_eq!(*told.lock().unwrap(), ["rejudge"]);
        assert!(
            rulesets.reload(Cause::of(Source::Reload)).await.unwrap_err().barred.is_empty(),
            "nothing is left to take away"
        );
    }
}

#[tokio::test]
async fn a_refused_load_gives_nobody_access() {
    let files = Files::new();
    let rulesets = files.rulesets();
    files.write_policy("{");
    files.write_directory(&DIRECTORY.replace("\"disabled\": true", "\"disabled\": false"));
    assert!(rulesets.reload(Cause::of(Source::Reload)).await.unwrap_err().barred.is_empty());
    assert!(rulesets.current().directory.device("bob-phone").unwrap().disabled);
}

#[tokio::test]
async fn an_edit_is_loaded_once_and_refused_once() {
    let files = Files::new();
    let rulesets = files.rulesets();
    let refused = || rulesets.failures().load(Ordering::Relaxed);
    assert!(!rulesets.reload_edited().await, "nothing is edited");
    let without = r#"{ "version": 1, "rules": [] }"#;

    // However many see it, and after an administrator who was faster.
    files.write_policy(without);
    let seen = tokio::join!(rulesets.reload_edited(), rulesets.reload_edited(), rulesets.reload_edited());
    assert_eq!((seen, rulesets.current().ruleset.revision().0), ((true, false, false), 2));
    files.write_policy(POLICY);
    rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
    assert!(!rulesets.reload_edited().await);
    files.write_policy(without);
    assert!(rulesets.reload_edited().await);

    files.write_policy("{");
    assert!(rulesets.reload_edited().await && !rulesets.reload_edited().await);
    assert_eq!(refused(), 1);
    rulesets.reload(Cause::of(Source::Reload)).await.unwrap_err();
    assert_eq!(refused(), 2, "who asks is answered");
    files.write_policy("[");
    assert!(rulesets.reload_edited().await, "another mistake");
    std::fs::remove_file(&files.config.policy).unwrap();
    assert!(rulesets.reload_edited().await && !rulesets.reload_edited().await);
    assert_eq!(refused(), 4);

    // What was refused is said again when something else was taken in between, and so is what fits a new directory.
    files.write_policy(without);
    assert!(rulesets.reload_edited().await && !rulesets.reload_edited().await, "the mistake was taken back");
    assert!(rulesets.last_reload().ok);
    files.write_policy(POLICY);
    assert!(rulesets.reload_edited().await);
    files.write_policy("[");
    assert!(rulesets.reload_edited().await);
    files.write_policy(&POLICY.replace("group:eng", "group:new"));
    assert!(rulesets.reload_edited().await);
    assert_eq!((refused(), rulesets.current().ruleset.revision().0), (6, 6));
    files.write_directory(&DIRECTORY.replace("\"eng\"", "\"new\""));
    assert!(rulesets.reload_edited().await);
    assert_eq!((refused(), rulesets.current().ruleset.revision().0), (6, 7));
}

#[tokio::test]
async fn reloads_come_one_after_another() {
    let files = Files::new();
    let rulesets = files.rulesets();
    let reloads = (0..8).map(|_| rulesets.reload(Cause::of(Source::Reload)));
    let mut revisions: Vec<_> =
        futures_util::future::join_all(reloads).await.into_iter().map(|report| report.unwrap().revision).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [2, 3, 4, 5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn own_addresses_are_published_when_they_change() {
    let files = Files::new();
    let rulesets = files.rulesets();
    let before = rulesets.current();
    rulesets.set_own_addresses(Arc::clone(&before.own_addresses)).await;
    assert!(Arc::ptr_eq(&before, &rulesets.current()));
    rulesets.set_own_addresses(["198.51.100.1".parse().unwrap()].into()).await;
    let now = rulesets.current();
    assert_eq!(now.own_addresses[..], ["198.51.100.1".parse::<IpAddr>().unwrap()]);
    assert!(Arc::ptr_eq(&before.ruleset, &now.ruleset), "the revision is the same");
}

mod applied {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::rulesets::apply::{Apply, ApplyError};
    use crate::state::revisions::Pending;

    const NOBODY: &str = r#"{ "version": 1, "rules": [] }"#;

    fn applying(policy: &str, confirm_within: Option<Duration>) -> Apply {
        Apply {
            file: "next.json".to_owned(),
            policy: policy.to_owned(),
            cause: Cause::by(Source::Apply, 1000),
            confirm_within,
        }
    }

    fn in_file(files: &Files) -> String {
        std::fs::read_to_string(&files.config.policy).unwrap()
    }

    fn sources(rulesets: &Rulesets) -> Vec<(u64, Source, Option<u64>)> {
        let revisions = rulesets.history().unwrap().list().unwrap();
        revisions.iter().map(|entry| (entry.revision, entry.source, entry.back_to)).collect()
    }

    #[tokio::test]
    async fn a_policy_is_put_in_force_into_the_file_and_into_the_history() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        let applied = rulesets.apply(applying(NOBODY, None)).await.unwrap();
        assert_eq!((applied.report.revision, applied.confirm_until), (2, None));
        assert!(applied.report.changes.iter().any(|change| change.to_string() == "rule eng removed"));
        assert_eq!((in_file(&files).as_str(), rulesets.current().ruleset.revision().0), (NOBODY, 2));
        assert_eq!(sources(&rulesets), [(2, Source::Apply, None), (1, Source::Start, None)]);

        let applied = rulesets.roll_back(1, Cause::by(Source::Rollback, 0)).await.unwrap();
        assert_eq!((applied.report.revision, in_file(&files).as_str()), (3, POLICY));
        assert_eq!(sources(&rulesets)[0], (3, Source::Rollback, Some(1)));
        assert!(matches!(
            rulesets.roll_back(9, Cause::by(Source::Rollback, 0)).await.unwrap_err(),
            ApplyError::NoRevision(9)
        ));

        // The next life has the same revision, until something is different.
        drop(rulesets);
        assert_eq!(files.rulesets_with_history().current().ruleset.revision().0, 3);
        files.write_policy(NOBODY);
        assert_eq!(files.rulesets_with_history().current().ruleset.revision().0, 4);
    }

    #[tokio::test]
    async fn what_is_refused_changes_nothing() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        let error = rulesets.apply(applying("{", None)).await.unwrap_err();
        assert!(matches!(&error, ApplyError::Bad(1, problems) if problems[0].file == "next.json"), "{error:?}");
        files.write_policy("{ edited");
        let error = rulesets.apply(applying(NOBODY, None)).await.unwrap_err();
        assert!(matches!(error, ApplyError::Edited(_)), "{error:?}");
        assert_eq!((in_file(&files).as_str(), sources(&rulesets).len()), ("{ edited", 1));
        // Somebody who edits the file in its place and applies that loses nothing.
        files.write_policy(NOBODY);
        rulesets.apply(applying(NOBODY, None)).await.unwrap();

        std::fs::remove_file(&files.config.policy).unwrap();
        assert!(rulesets.apply(applying(POLICY, None)).await.is_err());
        assert_eq!((sources(&rulesets).len(), rulesets.current().ruleset.revision().0), (2, 2));

        let without = Files::new();
        let error = without.rulesets().apply(applying(NOBODY, None)).await.unwrap_err();
        assert!(matches!(error, ApplyError::NoHistory(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_rollback_to_what_is_gone_is_refused_by_name() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        files.write_policy(NOBODY);
        files.write_directory(r#"{ "users": {}, "devices": {} }"#);
        rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
        let error = rulesets.roll_back(1, Cause::by(Source::Rollback, 0)).await.unwrap_err();
        let ApplyError::Bad(2, problems) = error else { panic!("{error:?}") };
        assert!(problems.iter().any(|problem| problem.message.contains("eng")), "{problems:?}");
        assert_eq!((problems[0].file.as_str(), in_file(&files).as_str()), ("revision 1", NOBODY));
    }

    #[tokio::test]
    async fn what_is_not_confirmed_goes_back() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        let applied = rulesets.apply(applying(NOBODY, Some(Duration::from_millis(300)))).await.unwrap();
        let pending = rulesets.pending().unwrap();
        assert_eq!((Some(pending.until), pending.back_to), (applied.confirm_until, 1));
        let error = rulesets.apply(applying(POLICY, None)).await.unwrap_err();
        assert!(matches!(&error, ApplyError::Pending { pending: other, .. } if *other == pending), "{error:?}");
        rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
        assert_eq!(rulesets.pending(), Some(pending), "a reload of the same confirms nothing");

        let mut changed = rulesets.subscribe();
        changed.wait_for(|snapshot| snapshot.ruleset.revision().0 == 4).await.unwrap();
        assert_eq!((in_file(&files).as_str(), rulesets.pending()), (POLICY, None));
        assert_eq!(sources(&rulesets)[0], (4, Source::Revert, Some(1)));
    }

    #[tokio::test]
    async fn what_is_confirmed_or_overtaken_stays() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        rulesets.apply(applying(NOBODY, Some(Duration::from_millis(50)))).await.unwrap();
        assert_eq!(rulesets.confirm().await.unwrap(), 2);
        assert!(matches!(rulesets.confirm().await.unwrap_err(), ApplyError::NothingPending));
        let pending = Pending { revision: 2, back_to: 1, until: Timestamp::now() };
        rulesets.go_back(pending).await;
        assert_eq!((in_file(&files).as_str(), sources(&rulesets).len()), (NOBODY, 2));

        rulesets.apply(applying(POLICY, Some(Duration::from_secs(60)))).await.unwrap();
        files.write_policy(&format!("{NOBODY} "));
        rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
        assert_eq!(rulesets.pending(), None, "whoever edits the file decides");
    }

    #[tokio::test]
    async fn who_is_killed_on_the_way_back_is_not_kept_from_it() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        rulesets.apply(applying(NOBODY, Some(Duration::from_secs(60)))).await.unwrap();
        let history = rulesets.history().unwrap();
        // Going back was written down, and then the file was not replaced any more.
        let (entry, policy) = history.find(1).unwrap().unwrap();
        let policy = policy.unwrap();
        let back = crate::state::revisions::Entry { revision: 3, source: Source::Revert, back_to: Some(1), ..entry };
        let due = Pending { until: Timestamp::UNIX_EPOCH, ..rulesets.pending().unwrap() };
        history.record(&back, &policy, Some(due)).unwrap();
        drop((rulesets, history));
        assert_eq!(in_file(&files), NOBODY);

        let rulesets = files.rulesets_with_history();
        assert_eq!((in_file(&files).as_str(), rulesets.pending()), (POLICY, None));
        assert_eq!(rulesets.current().ruleset.revision().0, 4);
        // Where the row is taken back instead, what is to be confirmed is not.
        rulesets.apply(applying(NOBODY, Some(Duration::from_secs(60)))).await.unwrap();
        let history = rulesets.history().unwrap();
        history.record(&crate::state::revisions::Entry { revision: 6, ..back }, &policy, None).unwrap();
        history.unrecord(6).unwrap();
        assert_eq!(rulesets.pending().map(|pending| pending.revision), Some(5));
    }

    #[tokio::test]
    async fn the_next_life_goes_back_for_the_one_that_was_killed() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        rulesets.apply(applying(NOBODY, Some(Duration::from_secs(60)))).await.unwrap();
        let pending = rulesets.pending().unwrap();
        drop(rulesets);
        // Not yet due.
        let rulesets = files.rulesets_with_history();
        assert_eq!((rulesets.pending(), rulesets.current().ruleset.revision().0), (Some(pending), 2));
        let history = rulesets.history().unwrap();
        let (entry, policy) = history.find(2).unwrap().unwrap();
        let policy = policy.unwrap();
        history.unrecord(2).unwrap();
        let due = Pending { until: Timestamp::UNIX_EPOCH, ..pending };
        history.record(&entry, &policy, Some(due)).unwrap();
        drop((rulesets, history));

        let rulesets = files.rulesets_with_history();
        assert_eq!((in_file(&files).as_str(), rulesets.pending()), (POLICY, None));
        assert_eq!(sources(&rulesets)[0], (3, Source::Revert, Some(1)));
        assert_eq!(rulesets.current().ruleset.revision().0, 3);
    }

    #[tokio::test]
    async fn what_is_to_be_confirmed_can_be_undone_but_by_nothing_else() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        rulesets.apply(applying(NOBODY, None)).await.unwrap();
        let apply = Apply { cause: Cause::by(Source::Apply, 4_000_000_000), ..applying(POLICY, None) };
        rulesets.apply(Apply { confirm_within: Some(Duration::from_secs(60)), ..apply }).await.unwrap();
        let pending = rulesets.pending().unwrap();
        let error = rulesets.roll_back(1, Cause::by(Source::Rollback, 0)).await.unwrap_err();
        let why = "revision 3, applied by uid 4000000000, is to be confirmed first (`policy confirm`), or undone \
                   (`policy rollback 2`); it goes back at ";
        assert!(error.to_string().starts_with(why), "{error}");
        assert_eq!((in_file(&files).as_str(), rulesets.pending()), (POLICY, Some(pending)));

        rulesets.roll_back(2, Cause::by(Source::Rollback, 0)).await.unwrap();
        assert_eq!((in_file(&files).as_str(), rulesets.pending()), (NOBODY, None));
        assert_eq!(sources(&rulesets)[0], (4, Source::Rollback, Some(2)));
        assert!(rulesets.go_back(pending).await, "the deadline finds nothing to do");
        drop(rulesets);
        let rulesets = files.rulesets_with_history();
        assert_eq!((rulesets.pending(), rulesets.current().ruleset.revision().0), (None, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_on_the_wall_does_not_move_the_deadline() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        rulesets.apply(applying(NOBODY, Some(Duration::from_secs(3600)))).await.unwrap();
        let until = rulesets.pending().unwrap().until;
        // An hour passes at once, and on the wall nothing does: as if that clock had been set back by an hour.
        let mut changed = rulesets.subscribe();
        changed.wait_for(|snapshot| snapshot.ruleset.revision().0 == 3).await.unwrap();
        assert!(Timestamp::now() < until);
        assert_eq!((in_file(&files).as_str(), rulesets.pending()), (POLICY, None));
    }

    #[tokio::test]
    async fn a_start_that_is_refused_confirms_nothing() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        rulesets.apply(applying(NOBODY, Some(Duration::from_secs(60)))).await.unwrap();
        let pending = rulesets.pending();
        let history = rulesets.history().unwrap();
        drop(rulesets);
        files.write_policy(&NOBODY[..NOBODY.len() / 2]);
        let kept = || Kept { history: Some(Arc::clone(&history)), reports: None };
        let start = || Rulesets::load(Arc::new(files.config.clone()), None, [].into(), kept());
        start().unwrap_err();
        assert!(pending.is_some() && history.pending() == pending);
        files.write_policy(NOBODY);
        assert_eq!(start().unwrap().pending(), pending);
        files.write_policy(POLICY);
        assert_eq!(start().unwrap().pending(), None, "a policy overtakes it");
    }

    #[tokio::test]
    async fn no_number_is_used_twice() {
        let files = Files::new();
        let rulesets = files.rulesets_with_history();
        rulesets.apply(applying(NOBODY, None)).await.unwrap();
        drop(rulesets);
        let database = files.config.state_dir.join(crate::state::FILE);
        let sql = |text: &str| rusqlite::Connection::open(&database).unwrap().execute_batch(text).unwrap();

        sql("ALTER TABLE revisions RENAME TO elsewhere");
        let rulesets = files.rulesets_with_history();
        assert!(matches!(rulesets.apply(applying(POLICY, None)).await.unwrap_err(), ApplyError::NoHistory(_)));
        rulesets.reload(Cause::of(Source::Reload)).await.unwrap();
        drop(rulesets);
        sql("ALTER TABLE elsewhere RENAME TO revisions");
        let rulesets = files.rulesets_with_history();
        assert_eq!((rulesets.current().ruleset.revision().0, sources(&rulesets).len()), (2, 2));
        drop(rulesets);

        // A row of a later release makes no sense to this one, and has its number all the same.
        sql("INSERT INTO revisions SELECT 7, at, 'moon', uid, policy, directory, message, reason, back_to
             FROM revisions WHERE revision = 2");
        let rulesets = files.rulesets_with_history();
        assert_eq!(rulesets.current().ruleset.revision().0, 8);
        assert_eq!(sources(&rulesets)[0], (8, Source::Start, None));
    }
}
