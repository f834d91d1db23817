//! A ticket: read back as it was written, and never believed.
#![no_main]

use dragonfly_proto::ticket::Ticket;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(ticket) = Ticket::decode(bytes) {
        assert_eq!(ticket.encode().as_slice(), bytes);
        assert!(ticket.check(&[[1; 32]], &ticket.content, &ticket.bearer, 0).is_err());
    }
});
