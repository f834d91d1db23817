//! Any path, query and headers of a client or a registry: read or refused, no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, Option<&str>, &str, &str)| {
    let (path, query, range, link) = input;
    dragonfly_mirror::outside::read(path, query, range, link);
    dragonfly_mirror::outside::read(&format!("/v2/{path}"), query, range, link);
});
