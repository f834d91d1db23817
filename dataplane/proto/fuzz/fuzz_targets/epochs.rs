//! A lease's certificate: read back as it was written, and never believed.
#![no_main]

use dragonfly_proto::trust::{EpochCert, Verifier};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(cert) = EpochCert::decode(bytes) {
        assert_eq!(cert.encode().as_slice(), bytes);
        assert!(Verifier::new(cert.content, vec![[1; 32]]).add_epoch(&cert).is_err());
    }
});
