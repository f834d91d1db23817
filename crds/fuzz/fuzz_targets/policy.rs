//! Any bytes as a policy: no panic, and what is taken encodes to what decodes to the same.
#![no_main]

use dragonfly_crds::Policy;
use dragonfly_crds::policy::content_hash;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Policy::decode(bytes);
    // The hash keeps a fuzzer out of what lies behind it: give it the right one.
    if let Ok(policy) = with_its_hash(bytes) {
        let again = policy.encode().map(|bytes| Policy::decode(&bytes));
        if let Ok(Ok(again)) = again {
            assert_eq!(again.node, policy.node);
        }
    }
});

fn with_its_hash(bytes: &[u8]) -> Result<Policy, ()> {
    let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| ())?;
    let hash = content_hash(&value);
    value.as_object_mut().ok_or(())?.insert("hash".to_owned(), hash.into());
    Policy::from_value(value).map_err(|_| ())
}
