//! A block's proof: read back as it was written, and never believed.
#![no_main]

use dragonfly_proto::id::ContentKey;
use dragonfly_proto::trust::{Leaf, MAX_PROOF, Proof, Verifier};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(proof) = Proof::decode(bytes) {
        assert!(bytes.len() <= MAX_PROOF);
        let mut out = Vec::new();
        proof.encode(&mut out);
        assert_eq!(out, bytes);
        let leaf = Leaf { index: 0, len: 1, hash: [0; 32] };
        assert!(Verifier::new(ContentKey([0; 32]), vec![[0; 32]]).check(&leaf, &proof).is_err());
    }
});
