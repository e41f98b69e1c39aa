//! One target under libFuzzer, whose options it takes. `PORTCULLIS_FUZZ_TARGET` names the target; `scripts/fuzz` runs
//! this.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use portcullis_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let wanted = std::env::var("PORTCULLIS_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("PORTCULLIS_FUZZ_TARGET names no target: {wanted:?}")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
