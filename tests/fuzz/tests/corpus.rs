//! Replays the corpora, and tries mutations of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use portcullis_fuzz::mutate::{Random, mutate};
use portcullis_fuzz::{TARGETS, Target};

/// Mutations of each target.
const MUTATIONS: usize = 10_000;
/// Mutations where each takes some handshakes.
const HANDSHAKES: usize = 1_000;

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", folder.display());
    files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

#[test]
fn every_corpus_replays() {
    for (name, target) in TARGETS {
        for (file, data) in corpus(name) {
            let result = catch_unwind(AssertUnwindSafe(|| target(&data)));
            assert!(result.is_ok(), "{}", file.display());
        }
    }
}

/// Runs mutations of a corpus. A failing input is kept, to be put into the corpus.
fn try_mutations(name: &str, target: Target, rounds: usize) {
    let corpus = corpus(name);
    let mut random = Random::new(name.len() as u64);
    for round in 0..rounds {
        let mut data = corpus[random.below(corpus.len())].1.clone();
        let other = &corpus[random.below(corpus.len())].1;
        for _ in 0..=round % 3 {
            mutate(&mut data, other, &mut random);
        }
        if catch_unwind(AssertUnwindSafe(|| target(&data))).is_err() {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{round}"));
            fs::write(&kept, &data).unwrap();
            panic!("{name}: round {round}: input kept as {}", kept.display());
        }
    }
}

#[test]
fn mutations_of_packets() {
    try_mutations(TARGETS[0].0, TARGETS[0].1, MUTATIONS);
}

/// A quarter as many: each is a policy of up to two dozen rules and as many questions.
#[test]
fn mutations_of_evaluations() {
    try_mutations(TARGETS[6].0, TARGETS[6].1, MUTATIONS / 4);
}

/// Few: each asks two policies some thousand questions.
#[test]
fn mutations_of_plans() {
    try_mutations(TARGETS[7].0, TARGETS[7].1, MUTATIONS / 20);
}

#[test]
fn mutations_of_policies() {
    try_mutations(TARGETS[1].0, TARGETS[1].1, MUTATIONS);
}

#[test]
fn mutations_of_directories() {
    try_mutations(TARGETS[2].0, TARGETS[2].1, MUTATIONS);
}

#[test]
fn mutations_of_configurations() {
    try_mutations(TARGETS[3].0, TARGETS[3].1, MUTATIONS);
}

#[test]
fn mutations_of_stack_operations() {
    try_mutations(TARGETS[4].0, TARGETS[4].1, MUTATIONS);
}

#[test]
fn mutations_of_datagrams() {
    try_mutations(TARGETS[5].0, TARGETS[5].1, HANDSHAKES);
}
