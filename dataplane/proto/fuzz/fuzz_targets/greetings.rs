//! The first bytes of a connection.
#![no_main]

use dragonfly_proto::frame::Greeting;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((greeting, _)) = bytes.split_first_chunk::<{ Greeting::LEN }>() else { return };
    if let Ok(g) = Greeting::decode(greeting) {
        // Four bytes are reserved: they are not kept.
        let mut expected = *greeting;
        expected[12..16].fill(0);
        assert_eq!(g.encode(), expected);
    }
});
