//! `portcullis check`: everything `run` would refuse, without running.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ipnet::IpNet;
use jiff::Timestamp;
use portcullis_policy::{DEFAULT_NETWORK, Revision, Ruleset, json};
use serde::Serialize;

use super::output::print;
use super::{CheckArgs, ExitStatus};
use crate::config::resolved::{Limits, OfframpKind, RouteConfig};
use crate::config::{Config, ConfigProblem};
use crate::directory::names::Names;
use crate::directory::{Directory, DirectoryContext, DirectoryError};
use crate::files;
use crate::keys::PrivateKey;
use crate::offramp::Offramps;
use crate::rulesets::policy_context;
use crate::shard::OWN_KEY_AT_SITE;

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    ok: bool,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
}

/// What sound files hold.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Counts {
    users: usize,
    devices: usize,
    rules: usize,
    tests: usize,
}

/// One problem; `line` is the whole of it as text.
#[derive(Debug, Serialize)]
struct Problem {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    message: String,
    #[serde(skip)]
    text: String,
    #[serde(skip)]
    denied: bool,
}

/// Runs the verb.
pub fn run(args: CheckArgs) -> ExitStatus {
    if args.defaults {
        return print(&defaults(args.json));
    }
    let mut report = check(&args.config.path);
    report.ok = report.problems.is_empty();
    let status = if report.ok {
        ExitStatus::Done
    } else {
        ExitStatus::of_files(report.problems.iter().map(|problem| problem.denied))
    };
    if args.json {
        let printed = print(&serde_json::to_string_pretty(&report).expect("a report is plain data"));
        return if printed == ExitStatus::Done { status } else { printed };
    }
    let mut err = io::stderr().lock();
    for problem in &report.problems {
        // Nobody reads standard error: the exit status still tells.
        let _ = writeln!(err, "{}", problem.text);
    }
    for warning in &report.warnings {
        let _ = writeln!(err, "warning: {warning}");
    }
    match &report.counts {
        Some(Counts { users, devices, rules, tests }) => {
            print(&format!("ok: {users} users, {devices} devices, {rules} rules, {tests} policy tests passed"))
        }
        None => status,
    }
}

fn defaults(json: bool) -> String {
    let defaults = Limits::defaults();
    if json {
        let values = defaults.iter().map(|limit| {
            let value = limit
                .value
                .parse::<u64>()
                .map_or_else(|_| limit.value.trim_matches('"').into(), serde_json::Value::from);
            (limit.name.to_owned(), value)
        });
        return serde_json::Value::Object(values.collect()).to_string();
    }
    let lines =
        defaults.iter().map(|limit| format!("{:<37} # {}\n", format!("{} = {}", limit.name, limit.value), limit.about));
    std::iter::once("[limits]\n".to_owned()).chain(lines).collect()
}

fn check(path: &Path) -> Report {
    let mut report = Report::default();
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            report.problems = problems.iter().map(of_config).collect();
            report.warnings.push("directory and policy are not checked before the configuration is sound".to_owned());
            return report;
        }
    };
    warn_about_config(&config, &mut report.warnings);
    for offramp in &config.offramps {
        if let Err(error) = Offramps::check_files(offramp) {
            let text = format!("{}: off-ramp {}: {error}", config.source.display(), offramp.name);
            report.problems.push(whole_file(&config.source, text, error.is_denied()));
        }
    }
    let own_key = config.wireguard.as_ref().and_then(|wireguard| match PrivateKey::read_file(&wireguard.key_file) {
        Ok(key) => Some(key.public()),
        Err(error) => {
            report.problems.push(whole_file(&wireguard.key_file, error.to_string(), error.is_denied()));
            None
        }
    });
    if let Some(name) = own_key.as_ref().and_then(|key| config.site_with_key(key)) {
        let text = format!("{}: off-ramp {name}: {OWN_KEY_AT_SITE}", config.source.display());
        report.problems.push(whole_file(&config.source, text, false));
    }
    let directory = match Directory::load(&config.directory, &DirectoryContext::new(&config, own_key)) {
        Ok(directory) => directory,
        Err(DirectoryError::Read { path, source }) => {
            report.problems.push(unread(&path, &source));
            report.warnings.push("the policy is not checked before there is a directory".to_owned());
            return report;
        }
        Err(DirectoryError::Problems { path, problems }) => {
            report.problems.extend(problems.into_iter().map(|problem| of_json(&path, problem)));
            check_policy_alone(&config, &mut report);
            return report;
        }
    };
    warn_about_directory(&config, &directory, &mut report.warnings);
    let text = match files::read_text(&config.policy) {
        Ok(text) => text,
        Err(error) => {
            report.problems.push(unread(&config.policy, &error));
            return report;
        }
    };
    let context = policy_context(&config, &directory);
    match Ruleset::compile(text.as_bytes(), &context, Revision(1), Timestamp::now()) {
        Ok(ruleset) => {
            let warnings = ruleset.warnings().iter();
            report.warnings.extend(warnings.map(|warning| warning.in_file(config.policy.display()).to_string()));
            if ruleset.is_empty() {
                report.warnings.push(format!("{} has no rules, so everything is denied", config.policy.display()));
            }
            if report.problems.is_empty() {
                report.counts = Some(Counts {
                    users: directory.users().count(),
                    devices: directory.devices().count(),
                    rules: ruleset.len(),
                    tests: count_tests(&text),
                });
            }
        }
        Err(problems) => {
            report.problems.extend(problems.into_iter().map(|problem| of_json(&config.policy, problem)));
        }
    }
    report
}

/// The policy beside a directory that is not sound: what it says by itself, but not its tests, which would prove nothing.
fn check_policy_alone(config: &Config, report: &mut Report) {
    report.warnings.push("the policy's tests are not run before the directory is sound".to_owned());
    let names = files::read_text(&config.directory).ok().and_then(|text| Names::of(&text));
    let text = match files::read_text(&config.policy) {
        Ok(text) => text,
        Err(error) => {
            report.problems.push(unread(&config.policy, &error));
            return;
        }
    };
    let Some(names) = names else { return };
    let problems = Ruleset::compile(text.as_bytes(), &names.context(config), Revision(1), Timestamp::now()).err();
    let problems = problems.into_iter().flatten().filter(|problem| !problem.place.path.starts_with("tests["));
    report.problems.extend(problems.map(|problem| of_json(&config.policy, problem)));
}

fn warn_about_config(config: &Config, warnings: &mut Vec<String>) {
    if let Some(listen) = config.metrics.filter(|listen| !listen.ip().is_loopback()) {
        warnings
            .push(format!("metrics.listen: {listen} is not on loopback, and whoever reaches it can read the metrics"));
    }
    if let Some(wireguard) = &config.wireguard {
        if wireguard.endpoint.is_none() {
            warnings.push("wireguard.endpoint is not set, so `device add` cannot write a client file".to_owned());
        }
        if wireguard.client_routes.is_empty() {
            warnings.push(
                "wireguard.client_routes is empty, so clients send nothing to the networks behind the gateway"
                    .to_owned(),
            );
        }
    }
    if config.tun.as_ref().is_some_and(|tun| tun.routes.is_empty()) {
        warnings.push("tun.routes is empty, so nothing is steered into the device".to_owned());
    }
    warn_about_routes(config, warnings);
}

/// With a first route everything else loses the way it had.
fn warn_about_routes(config: &Config, warnings: &mut Vec<String>) {
    let own = || config.routes.iter().filter(|route| *route.network == *DEFAULT_NETWORK);
    let covered = |v4: bool| own().any(|route| route.to.prefix_len() == 0 && route.to.addr().is_ipv4() == v4);
    let left: Vec<&str> = [(true, "0.0.0.0/0"), (false, "::/0")]
        .into_iter()
        .filter(|(v4, _)| own().any(|route| route.to.addr().is_ipv4() == *v4) && !covered(*v4))
        .map(|(_, everything)| everything)
        .collect();
    if !left.is_empty() {
        warnings.push(format!(
            "what no [[route]] leads to is unreachable, whatever the policy allows; if the rest is to leave by this host, add one with to = \"{}\" and offramp = [\"direct\"]",
            left.join("\" and one with \"")
        ));
    }
}

fn warn_about_directory(config: &Config, directory: &Directory, warnings: &mut Vec<String>) {
    let path = &config.directory;
    let names = |is_meant: &dyn Fn(&IpNet) -> bool| -> Option<String> {
        // What stands behind a key comes by its tunnel.
        let behind = directory.devices().filter(|device| device.public_key.is_none());
        let meant = behind.filter(|device| device.networks.iter().any(is_meant));
        let mut names: Vec<&str> = meant.map(|device| &*device.identity.device).collect();
        names.sort_unstable();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let source = config.source.display();
    match &config.tun {
        None => {
            if let Some(names) = names(&|_| true) {
                warnings.push(format!("{source} has no [tun] table, so nothing can come from the networks of {names}"));
            }
        }
        Some(tun) if config.offramps.iter().any(|offramp| offramp.kind == OfframpKind::Kernel) => {
            let is_past_us = |network: &IpNet| !tun.routes.iter().any(|route| route.contains(network));
            if let Some(names) = names(&is_past_us) {
                warnings.push(format!(
                    "tun.routes has not the networks of {names}: what comes back to them over an off-ramp of kind \"kernel\" goes past the gateway, and connections time out"
                ));
            }
        }
        Some(_) => {}
    }
    for (device, route) in taken_over(config, directory) {
        warnings.push(format!(
            "the networks of {device} are reached by its own tunnel, with the clients' addresses: [[route]] to = \"{route}\" and its offramp do not count there"
        ));
    }
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o007 != 0 && directory.devices().any(|device| device.preshared_key.is_some()) {
        let path = path.display();
        warnings.push(format!("{path} holds preshared keys and everybody can read it; `chmod o= {path}`"));
    }
}

/// Devices with a tunnel and networks behind it, and routes that were made for these.
fn taken_over<'a>(config: &'a Config, directory: &'a Directory) -> Vec<(&'a str, IpNet)> {
    let mut found = Vec::new();
    for device in directory.devices().filter(|device| device.public_key.is_some()) {
        let is_for = |route: &&RouteConfig| {
            let overlaps = |net: &IpNet| net.contains(&route.to) || route.to.contains(net);
            *route.network == *device.identity.network
                && route.to.prefix_len() > 0
                && device.networks.iter().any(overlaps)
        };
        found.extend(config.routes.iter().filter(is_for).map(|route| (&*device.identity.device, route.to)));
    }
    found.sort_unstable();
    found
}

fn count_tests(policy: &str) -> usize {
    #[derive(serde::Deserialize)]
    struct Tests {
        #[serde(default)]
        tests: Vec<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Tests>(policy).map_or(0, |policy| policy.tests.len())
}

fn of_config(problem: &ConfigProblem) -> Problem {
    Problem {
        file: problem.file.display().to_string(),
        line: problem.place.map(|place| place.line),
        column: problem.place.map(|place| place.column),
        path: problem.key.clone(),
        message: problem.error.to_string(),
        text: problem.to_string(),
        denied: problem.is_denied(),
    }
}

fn of_json(file: &Path, problem: json::Problem) -> Problem {
    let text = problem.in_file(file.display()).to_string();
    Problem {
        text,
        file: file.display().to_string(),
        line: Some(problem.place.line),
        column: Some(problem.place.column),
        path: problem.place.path,
        message: problem.message,
        denied: false,
    }
}

fn unread(file: &Path, error: &files::ReadError) -> Problem {
    whole_file(file, format!("{} {error}", file.display()), error.is_denied())
}

fn whole_file(file: &Path, message: String, denied: bool) -> Problem {
    Problem {
        file: file.display().to_string(),
        line: None,
        column: None,
        path: String::new(),
        text: message.clone(),
        message,
        denied,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::init::create;
    use super::*;

    fn files() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        create(Some(dir.path()), Some("vpn.example.com:51820")).unwrap();
        let path = dir.path().join("gateway.toml");
        (dir, path)
    }

    fn problems(path: &Path) -> Vec<String> {
        check(path).problems.into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn fresh_files_are_sound() {
        let (_dir, path) = files();
        let report = check(&path);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert_eq!(report.counts, Some(Counts { users: 0, devices: 0, rules: 0, tests: 0 }));
        assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
        assert!(report.warnings[0].ends_with("policy.json has no rules, so everything is denied"));
    }

    #[test]
    fn each_file_is_named_with_the_place() {
        let (dir, path) = files();
        let directory = dir.path().join("directory.json");
        fs::write(&directory, "{ \"users\": {},\n\"devices\": { \"a\": {} } }").unwrap();
        let key = dir.path().join("state/wireguard.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let found = problems(&path);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("wireguard.key has mode 0644"), "{found:?}");
        assert!(found[1].starts_with(&format!("{}:2:19: devices.a: ", directory.display())), "{found:?}");

        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&directory, "{ \"users\": { \"ann\": {} }, \"devices\": {} }").unwrap();
        let policy = dir.path().join("policy.json");
        fs::write(&policy, "{ \"version\": 1,\n\"rules\": [ { \"id\": \"a\", \"action\": \"allow\", \"from\": [\"user:bob\"], \"to\": [\"*\"] } ] }").unwrap();
        let found = problems(&path);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("{}:2:53: rules[0].from[0]: ", policy.display())), "{found:?}");
    }

    #[test]
    fn a_policy_is_checked_beside_a_bad_directory() {
        let (dir, path) = files();
        let directory = "{ \"users\": { \"ann\": { \"groups\": [\"eng\"], \"x\": 1 } }, \"devices\": {} }";
        fs::write(dir.path().join("directory.json"), directory).unwrap();
        let rule = |from: &str| {
            format!("{{ \"id\": \"{from}\", \"action\": \"allow\", \"from\": [\"{from}\"], \"to\": [\"*\"] }}")
        };
        let tests = "{ \"from\": \"ann\", \"to\": \"10.0.0.1:22/tcp\", \"expect\": \"deny\" }";
        let policy = |rules: &str| format!("{{ \"version\": 1, \"rules\": [ {rules} ], \"tests\": [ {tests} ] }}");
        fs::write(dir.path().join("policy.json"), policy(&rule("group:eng"))).unwrap();
        assert_eq!(problems(&path).len(), 1, "only the directory's: {:?}", problems(&path));
        fs::write(dir.path().join("policy.json"), policy(&rule("group:ops"))).unwrap();
        let found = problems(&path);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("policy.json:1:"), "{found:?}");
    }

    #[test]
    fn networks_without_a_tun_are_warned_about() {
        let (dir, path) = files();
        let text =
            r#"{ "users": { "ann": {} }, "devices": { "site": { "user": "ann", "networks": ["192.168.7.0/24"] } } }"#;
        fs::write(dir.path().join("directory.json"), text).unwrap();
        let warned = || check(&path).warnings.iter().any(|warning| warning.ends_with("from the networks of site"));
        assert!(warned());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}\n[tun]\naddresses = [\"100.97.0.1/32\"]\n")).unwrap();
        assert!(check(&path).problems.is_empty() && !warned());
    }

    #[test]
    fn networks_that_answers_go_past_us_to_are_warned_about() {
        let (dir, path) = files();
        let key = crate::keys::encode_key(&[1; 32]);
        let text = format!(
            r#"{{ "users": {{ "ann": {{}} }}, "devices": {{
                "site": {{ "user": "ann", "networks": ["192.168.7.0/24"] }},
                "keyed": {{ "user": "ann", "networks": ["192.168.8.0/24"], "public_key": "{key}" }} }} }}"#
        );
        fs::write(dir.path().join("directory.json"), text).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let warned = |tun: &str, kind: &str| {
            let text = format!(
                "{text}\n[tun]\naddresses = [\"100.97.0.1/32\"]\n{tun}\n[[offramp]]\nname = \"way\"\nkind = \"{kind}\"\n"
            );
            fs::write(&path, text).unwrap();
            let report = check(&path);
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            report.warnings.iter().any(|warning| warning.starts_with("tun.routes has not the networks of site:"))
        };
        let private = "routes = [\"10.20.0.0/16\"]";
        assert!(warned(private, "kernel") && !warned(private, "direct"));
        assert!(!warned("routes = [\"10.20.0.0/16\", \"192.168.0.0/16\"]", "kernel"));
    }

    #[test]
    fn routes_that_a_device_takes_over_are_warned_about() {
        let (dir, path) = files();
        let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        let directory = |network: &str, key: &str| {
            format!(
                r#"{{ "users": {{ "ann": {{}} }}, "devices": {{ "berlin": {{ "user": "ann", {key}"networks": ["{network}"] }} }} }}"#
            )
        };
        let gateway = fs::read_to_string(&path).unwrap();
        let route = |to: &str| format!("{gateway}\n[[route]]\nto = \"{to}\"\nofframp = [\"direct\"]\n");
        let keyed = format!("\"public_key\": \"{key}\", ");
        for (network, key, to, expected) in [
            ("10.60.0.0/16", &*keyed, "10.60.0.0/16", true),
            ("10.60.7.0/24", &keyed, "10.60.0.0/16", true),
            ("10.60.0.0/16", &keyed, "10.60.7.0/24", true),
            ("10.61.0.0/16", &keyed, "10.60.0.0/16", false),
            ("10.60.0.0/16", &keyed, "0.0.0.0/0", false),
            ("10.60.0.0/16", "", "10.60.0.0/16", false),
        ] {
            fs::write(dir.path().join("directory.json"), directory(network, key)).unwrap();
            fs::write(&path, route(to)).unwrap();
            let report = check(&path);
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            let said = report
                .warnings
                .iter()
                .any(|warning| warning.starts_with("the networks of berlin are reached by its own"));
            assert_eq!(said, expected, "{network} {to}: {:?}", report.warnings);
        }
    }

    #[test]
    fn destinations_without_a_way_are_warned_about() {
        let (_dir, path) = files();
        let text = fs::read_to_string(&path).unwrap();
        let warned = |routes: &[&str]| {
            let tables: String =
                routes.iter().map(|to| format!("[[route]]\nto = \"{to}\"\nofframp = [\"direct\"]\n")).collect();
            fs::write(&path, format!("{text}\n{tables}")).unwrap();
            let warnings = check(&path).warnings.into_iter();
            warnings.filter_map(|warning| warning.split_once("to = ").map(|(_, rest)| rest.to_owned())).next()
        };
        assert_eq!(warned(&[]), None, "everything by direct");
        assert_eq!(warned(&["10.0.0.0/8"]).unwrap(), "\"0.0.0.0/0\" and offramp = [\"direct\"]");
        assert_eq!(warned(&["10.0.0.0/8", "0.0.0.0/0"]), None);
        let both = warned(&["10.0.0.0/8", "fd00::/8"]).unwrap();
        assert!(both.starts_with("\"0.0.0.0/0\" and one with \"::/0\""), "{both}");
    }

    #[test]
    fn a_failing_policy_test_is_a_problem() {
        let (dir, path) = files();
        fs::write(dir.path().join("directory.json"), "{ \"users\": { \"ann\": {} }, \"devices\": {} }").unwrap();
        let policy = |expect: &str| {
            let test = format!("{{ \"from\": \"ann\", \"to\": \"10.0.0.1:22/tcp\", \"expect\": \"{expect}\" }}");
            fs::write(
                dir.path().join("policy.json"),
                format!("{{ \"version\": 1, \"rules\": [], \"tests\": [ {test} ] }}"),
            )
            .unwrap();
        };
        policy("allow");
        assert_eq!(problems(&path).len(), 1);
        policy("deny");
        assert_eq!(check(&path).counts, Some(Counts { users: 1, devices: 0, rules: 0, tests: 1 }));
    }

    #[test]
    fn what_a_policy_does_not_mean_is_warned_about() {
        let (dir, path) = files();
        fs::write(dir.path().join("directory.json"), "{ \"users\": { \"ann\": {} }, \"devices\": {} }").unwrap();
        let rule = |id: &str| {
            format!(
                "\n{{ \"id\": \"{id}\", \"action\": \"deny\", \"from\": [\"user:ann\"], \"to\": [\"10.0.0.0/8\"] }}"
            )
        };
        let policy = dir.path().join("policy.json");
        let text = format!("{{ \"version\": 1, \"rules\": [ {}, {} ] }}", rule("a"), rule("b"));
        fs::write(&policy, text).unwrap();
        let report = check(&path);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        let expected = "rule \"b\" never decides: \"a\" matches first everything it could";
        assert_eq!(report.warnings, [format!("{}:3:1: rules[1]: {expected}", policy.display())]);
    }

    #[test]
    fn exposed_metrics_and_readable_keys_are_warned_about() {
        let (dir, path) = files();
        let text = fs::read_to_string(&path).unwrap().replace("127.0.0.1:9464", "0.0.0.0:9464");
        fs::write(&path, text).unwrap();
        let key = crate::keys::encode_key(&[1; 32]);
        let directory = dir.path().join("directory.json");
        fs::write(&directory, format!("{{ \"users\": {{ \"ann\": {{}} }}, \"devices\": {{ \"a\": {{ \"user\": \"ann\", \"public_key\": \"{key}\", \"preshared_key\": \"{key}\", \"addresses\": [\"100.96.0.2\"] }} }} }}")).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o644)).unwrap();
        let report = check(&path);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert_eq!(report.warnings.len(), 3, "{:?}", report.warnings);
    }

    #[test]
    fn defaults_are_a_limits_table() {
        let text = format!("[tun]\n{}", defaults(false));
        assert!(Config::resolve(&text, Path::new("/x/gateway.toml"), 1).is_ok(), "{text}");
        let json: serde_json::Value = serde_json::from_str(&defaults(true)).unwrap();
        assert_eq!(json["flows"], 131_072);
        assert_eq!(json["half_open_per_device"], 64);
        assert_eq!(json["dial_timeout"], "10s");
    }
}
