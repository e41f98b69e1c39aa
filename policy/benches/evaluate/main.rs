//! How long a verdict takes, by the size and the shape of the policy, and how long a policy takes to compile.
#![expect(clippy::indexing_slicing, reason = "the documents are made here")]

mod shapes;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use shapes::{NOW, Question, Shape, compile};

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

criterion_group!(benches, evaluate, compiling);
criterion_main!(benches);
