//! Any bytes as settings of containerd: no panic, and what gets an entry is as before without it.
#![no_main]

use std::path::Path;

use dragonfly_mirror::install::{containerd, hosts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = containerd::findings(text, Path::new("/etc/containerd/certs.d"));
    if let Ok(made) = hosts::with_entry(text, "http://127.0.0.1:4002", Some("https://a.test"))
        && !hosts::has_entry(text)
    {
        assert_eq!(hosts::without_entry(&made).as_deref(), Ok(text));
    }
});
