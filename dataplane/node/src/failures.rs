//! Which downloads failed, counted by kind: what schedulers tell people of.
//!
//! Invariants: a bounded number of kinds, whatever clients ask for; no path, query or credential of
//! a URL is kept.

use std::collections::BTreeMap;
use std::sync::Mutex;

use dragonfly_proto::rpc::{self, failure::Code};

use crate::task::lock;

/// Kinds kept apart between two reports; of further ones the origin is left out.
const KINDS: usize = 16;
/// Longest origin kept, bytes: a host's name has 253 at most.
const MAX_ORIGIN: usize = 272;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    code: i32,
    http_status: u32,
    origin: String,
    finding: i32,
}

/// Failed downloads that no scheduler has heard of yet.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<BTreeMap<Kind, u64>>);

impl Failures {
    pub(crate) fn add(&self, failure: &rpc::Failure, url: &str) {
        let about_origin = matches!(
            failure.code(),
            Code::Origin
                | Code::OriginUnavailable
                | Code::Changed
                | Code::Digest
                | Code::NotFound
                | Code::Denied
        );
        let mut kind = Kind {
            code: failure.code,
            http_status: failure.http_status,
            origin: if about_origin {
                origin_of(url)
            } else {
                String::new()
            },
            finding: 0,
        };
        let mut kinds = lock(&self.0);
        if kinds.len() >= KINDS && !kinds.contains_key(&kind) {
            // By code alone: there are few of them.
            kind.origin.clear();
            kind.http_status = 0;
        }
        *kinds.entry(kind).or_default() += 1;
    }

    /// A setting of this machine keeps the mesh from being used.
    pub(crate) fn found(&self, finding: rpc::Finding) {
        let kind = Kind {
            code: Code::Settings.into(),
            http_status: 0,
            origin: String::new(),
            finding: finding.into(),
        };
        // There are few of them: beside all kinds of downloads.
        *lock(&self.0).entry(kind).or_default() += 1;
    }

    /// What is to be told.
    pub(crate) fn counted(&self) -> Vec<rpc::FailureCount> {
        let kinds = lock(&self.0);
        let told = kinds.iter().map(|(kind, count)| rpc::FailureCount {
            code: kind.code,
            http_status: kind.http_status,
            origin: kind.origin.clone(),
            count: *count,
            finding: kind.finding,
        });
        told.collect()
    }

    /// This was told.
    pub(crate) fn take(&self, told: &[rpc::FailureCount]) {
        let mut kinds = lock(&self.0);
        for t in told {
            let kind = Kind {
                code: t.code,
                http_status: t.http_status,
                origin: t.origin.clone(),
                finding: t.finding,
            };
            if let Some(count) = kinds.get_mut(&kind) {
                *count = count.saturating_sub(t.count);
            }
        }
        kinds.retain(|_, count| *count > 0);
    }
}

/// Scheme, host and port of a URL; empty where it has none.
fn origin_of(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return String::new();
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let origin = format!("{scheme}://{host}");
    if host.is_empty() || origin.len() > MAX_ORIGIN || origin.contains(char::is_control) {
        return String::new();
    }
    origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u32) -> rpc::Failure {
        rpc::Failure {
            http_status: status,
            ..rpc::Failure::new(Code::Origin, "no")
        }
    }

    #[test]
    fn failures_are_counted_by_kind_until_they_were_told() {
        let failures = Failures::default();
        for _ in 0..2 {
            failures.add(
                &refused(403),
                "https://user:secret@a.example:8443/x?token=secret",
            );
        }
        failures.add(&refused(401), "https://a.example");
        let told = failures.counted();
        let shown: Vec<_> = told
            .iter()
            .map(|t| (t.http_status, t.origin.as_str(), t.count))
            .collect();
        assert_eq!(
            shown,
            [
                (401, "https://a.example", 1),
                (403, "https://a.example:8443", 2)
            ]
        );
        failures.add(&refused(403), "https://a.example:8443/y");
        failures.take(&told);
        let left = failures.counted();
        assert_eq!(
            (left.len(), left[0].http_status, left[0].count),
            (1, 403, 1)
        );
    }

    #[test]
    fn however_many_origins_fail_a_report_stays_small_and_loses_no_count() {
        let failures = Failures::default();
        for n in 0..1000 {
            failures.add(&refused(403), &format!("https://host-{n}.example/"));
        }
        let told = failures.counted();
        assert!(told.len() <= KINDS + 1);
        assert_eq!(told.iter().map(|t| t.count).sum::<u64>(), 1000);
        failures.take(&told);
        assert!(failures.counted().is_empty());
    }

    #[test]
    fn what_is_no_url_has_no_origin() {
        for (url, origin) in [
            ("nonsense", ""),
            ("https://", ""),
            ("https://\n/", ""),
            ("http://[::1]:80/x", "http://[::1]:80"),
            ("http://h?q=@x", "http://h"),
        ] {
            assert_eq!(origin_of(url), origin, "{url}");
        }
        assert_eq!(origin_of(&format!("https://{}/", "a".repeat(400))), "");
    }
}
