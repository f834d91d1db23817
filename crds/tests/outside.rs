//! Manifests and policies changed at will: no panic, memory within a bound, and what is taken is what
//! would be written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

// One copy of the changes and of the counting allocator.
#[path = "../../dataplane/proto/tests/kit/mod.rs"]
mod kit;

use dragonfly_crds::Policy;
use dragonfly_crds::manifest::parse;
use dragonfly_crds::policy::content_hash;
use kit::{allocated, edited, edits};
use proptest::prelude::*;

const STANDARD: &str = include_str!("../../config/samples/profiles/standard.yaml");
const HEAVY: &str = include_str!("../../config/samples/profiles/heavy.yaml");

/// What one reading may cost. Every level of a document is kept as a tree with the places of its
/// parts, and the kind's schema is made anew for each object; the bound only has to stand far below
/// what a document that unfolds itself would take.
fn most(input: usize) -> usize {
    (64 << 20) + 10_000 * input
}

fn read(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (parsed, cost) = allocated(|| parse("a.yaml", bytes));
    prop_assert!(
        cost <= most(bytes.len()),
        "{} bytes for {}",
        cost,
        bytes.len()
    );
    let Ok(manifests) = parsed else {
        return Ok(());
    };
    for distribution in &manifests.distributions {
        let (resolved, cost) = allocated(|| manifests.resolve(distribution, None));
        prop_assert!(cost <= most(bytes.len()), "{} bytes to resolve", cost);
        if let Ok(resolved) = resolved {
            let policy = resolved.policy;
            let encoded = policy.encode().unwrap();
            prop_assert_eq!(Policy::decode(&encoded).unwrap(), policy);
        }
    }
    Ok(())
}

fn standard() -> Policy {
    let manifests = parse("a.yaml", STANDARD.as_bytes()).unwrap();
    let chosen = manifests.choose(None).unwrap();
    manifests.resolve(chosen, None).unwrap().policy
}

/// The hash keeps changed bytes from what lies behind it: they are given the right one.
fn with_its_hash(bytes: &[u8]) -> Option<Policy> {
    let mut value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let hash = content_hash(&value);
    value
        .as_object_mut()?
        .insert("hash".to_owned(), hash.into());
    Policy::from_value(value).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_are_manifests_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read(&bytes)?;
    }

    #[test]
    fn changed_manifests_are_read_or_refused(heavy in any::<bool>(), edits in edits()) {
        let whole = if heavy { HEAVY } else { STANDARD };
        read(&edited(whole.as_bytes().to_vec(), &edits))?;
    }

    #[test]
    fn a_changed_policy_is_refused_or_comes_back(edits in edits()) {
        let encoded = standard().encode().unwrap();
        let changed = edited(encoded.clone(), &edits);
        let (decoded, cost) = allocated(|| Policy::decode(&changed));
        prop_assert!(cost <= 64 * changed.len() + (64 << 10), "{} bytes for {}", cost, changed.len());
        if let Ok(policy) = decoded {
            // The hash is over what a policy says; whose it is and its number stand beside it.
            let whole = Policy { uid: policy.uid.clone(), revision: policy.revision, ..standard() };
            prop_assert_eq!(policy, whole, "another policy under the same hash");
        }
        if let Some(policy) = with_its_hash(&changed)
            && let Ok(again) = policy.encode()
        {
            // What this release does not know is gone, so the hash is another.
            prop_assert_eq!(with_its_hash(&again).map(|p| p.node), Some(policy.node));
        }
    }
}
