//! How long a verdict takes, by the size and the shape of the policy, how long a policy takes to compile, and how long the
//! comparison of two takes for a thousand users.
#![expect(clippy::indexing_slicing, reason = "the documents are made here")]

mod shapes;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use portcullis_policy::Ruleset;
use portcullis_policy::plan::Subject;
use serde_json::{Value, json};
use shapes::{NOW, Question, Shape, compile, devices};

const SIZES: [usize; 3] = [10, 1_000, 10_000];
/// A prime, so that questions walk over rules and users without a pattern.
const QUESTIONS: usize = 1_009;

fn evaluate(criterion: &mut Criterion) {
    for (name, shape) in Shape::ALL {
        let mut group = criterion.benchmark_group(format!("evaluate/{name}"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
        for rules in SIZES {
            let ruleset = compile(&shape.policy(rules));
            let questions: Vec<Question> =
                (0..QUESTIONS).map(|number| shape.question(number * 7_919 % rules, rules)).collect();
            let mut asked = questions.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
                bencher.iter(|| {
                    let question = asked.next().map(Question::request);
                    question.map(|request| ruleset.evaluate(black_box(&request), NOW))
                });
            });
        }
        group.finish();
    }
}

fn compiling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(10);
    for rules in SIZES {
        let policy = Shape::Prefixes.policy(rules);
        group.bench_function(BenchmarkId::from_parameter(rules), |bencher| bencher.iter(|| compile(&policy)));
    }
    group.finish();
}

/// Another policy of the same size.
fn edited(policy: &[u8], edit: &str) -> Ruleset {
    let mut policy: Value = serde_json::from_slice(policy).expect("a policy is JSON");
    let rules = policy["rules"].as_array_mut().expect("rules are a list");
    let last = rules.len() - 1;
    match edit {
        // One rule denies what it allowed.
        "one" => rules[last]["action"] = "deny".into(),
        // A rule in front that denies everybody a service.
        "front" => {
            rules[0] = json!({ "id": "first", "action": "deny", "from": ["*"], "to": ["*"], "services": ["tcp/443"] })
        }
        // Every rule has another service.
        _ => rules.iter_mut().for_each(|rule| rule["services"] = json!(["tcp/8443"])),
    }
    compile(policy.to_string().as_bytes())
}

fn comparing(criterion: &mut Criterion) {
    let devices: Vec<_> = devices().into_iter().map(|(device, address)| (device, [IpNet::from(address)])).collect();
    let subjects: Vec<Subject<'_>> =
        devices.iter().map(|(device, sources)| Subject { now: device, then: device, sources }).collect();
    for (name, shape) in [("prefixes", Shape::Prefixes), ("grid", Shape::Grid), ("any_source", Shape::AnySource)] {
        let mut group = criterion.benchmark_group(format!("difference/{name}"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(10);
        for rules in SIZES {
            let policy = shape.policy(rules);
            let now = compile(&policy);
            for edit in ["one", "front", "all"] {
                let then = edited(&policy, edit);
                let said = now.difference(&then, &subjects, NOW);
                let complete = if said.complete { "complete" } else { "stopped" };
                eprintln!("difference/{name}/{edit}/{rules}: {} changes, {complete}", said.changes.len());
                group.bench_function(BenchmarkId::new(edit, rules), |bencher| {
                    bencher.iter(|| now.difference(black_box(&then), &subjects, NOW));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, evaluate, compiling, comparing);
criterion_main!(benches);
