//! Any bytes as settings of containerd: no panic, and what gets an entry is as before without it.
#![no_main]

use std::path::Path;

use dragonfly_mirror::install::{containerd, hosts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = containerd::findings(text, Path::new("/etc/containerd/certs.d"));
    let url = "http://127.0.0.1:4002";
    let beside = hosts::Certificates::among(vec![text.to_owned(), format!("{text}.crt")]);
    if let Ok(made) = hosts::with_entry(text, url, Some("https://a.test"), &beside)
        && !hosts::has_entry(text)
    {
        assert_eq!(hosts::without_entry(&made).as_deref(), Ok(text));
    }
});
