//! Any bytes as a file of manifests: no panic, and what is taken either resolves or says why not.
#![no_main]

use dragonfly_crds::manifest::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifests) = parse("fuzz.yaml", bytes) {
        for distribution in &manifests.distributions {
            let _ = manifests.resolve(distribution, None);
        }
    }
});
