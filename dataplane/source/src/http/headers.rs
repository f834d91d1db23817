//! Parsers of the answer headers that matter, and what they say together.
//!
//! Invariant: any input is answered; what is malformed counts as absent, never as something else.

use crate::metadata::{Freshness, Validator};
use crate::range::number;
use base64::Engine as _;
use http::HeaderMap;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, DATE, ETAG, EXPIRES, LAST_MODIFIED, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use std::time::{Duration, SystemTime};

/// A date this much older than its answer is a strong validator (RFC 9110 section 8.8.2.2).
const STRONG_DATE_AGE: Duration = Duration::from_secs(60);
/// Nobody means longer; keeps arithmetic on times far from its limits.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86400);
/// Longest text of an origin that is repeated in an error.
const LONGEST_TEXT: usize = 1024;

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    headers
        .get(name)?
        .to_str()
        .ok()
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds or a date. A date is taken relative to `now`.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if value.is_empty() {
        return None;
    }
    if value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit mean "very long".
        let seconds = value.parse().unwrap_or(LONGEST.as_secs());
        return Some(Duration::from_secs(seconds).min(LONGEST));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(LONGEST))
}

/// The pause that the answer asks for. A date is compared with the origin's own clock where it
/// sends one, so that a wrong clock here does not matter.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let now = date(headers, &DATE).unwrap_or(now);
    parse_retry_after(text(headers, &RETRY_AFTER)?, now)
}

fn date(headers: &HeaderMap, name: &http::HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, name)?).ok()
}

/// What the answer's `ETag` and `Last-Modified` amount to.
pub(crate) fn validator(headers: &HeaderMap) -> Validator {
    let etag = text(headers, &ETAG).filter(|tag| tag.trim_start_matches("W/") != "\"\"");
    if let Some(tag) = etag
        && tag.len() > 2
        && tag.starts_with('"')
        && tag.ends_with('"')
        && !tag[1..tag.len() - 1].contains('"')
    {
        return Validator::Strong(tag.to_owned());
    }
    // Tags without quotes occur; they break the grammar, so nothing is proven by them.
    let modified = date(headers, &LAST_MODIFIED);
    let last_modified = modified
        .and_then(|_| text(headers, &LAST_MODIFIED))
        .map(str::to_owned);
    let date_is_strong = match (modified, date(headers, &DATE)) {
        (Some(modified), Some(date)) => date
            .duration_since(modified)
            .is_ok_and(|age| age >= STRONG_DATE_AGE),
        _ => false,
    };
    if etag.is_none() && last_modified.is_none() {
        return Validator::None;
    }
    Validator::Weak {
        etag: etag.map(str::to_owned),
        last_modified,
        date_is_strong,
    }
}

/// `Content-Encoding` other than `identity`, lower case.
pub(crate) fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let all: Vec<String> = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|coding| coding.trim().to_ascii_lowercase())
        .filter(|coding| !coding.is_empty() && coding != "identity")
        .collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// `sha256:<hex>` from `Repr-Digest` (RFC 9530 section 3) or `Docker-Content-Digest`. `Digest`,
/// `Content-MD5`, `x-goog-hash` and ETags that look like MD5 are of other functions or of parts.
pub(crate) fn digest(headers: &HeaderMap) -> Option<String> {
    let from_repr = headers
        .get_all("repr-digest")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|member| {
            let (name, value) = member.split_once('=')?;
            if !name.trim().eq_ignore_ascii_case("sha-256") {
                return None;
            }
            let encoded = value.trim().strip_prefix(':')?.split(':').next()?;
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(encoded)
                .ok()?;
            (bytes.len() == 32).then(|| {
                bytes
                    .iter()
                    .fold("sha256:".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
            })
        });
    from_repr.or_else(|| {
        let value = text(
            headers,
            &http::HeaderName::from_static("docker-content-digest"),
        )?;
        let hex = value.strip_prefix("sha256:")?;
        (hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
            .then(|| value.to_owned())
    })
}

/// How long the answer is current for a shared cache.
pub(crate) fn freshness(headers: &HeaderMap, now: SystemTime) -> Freshness {
    let mut freshness = Freshness::default();
    let (mut shared, mut any, mut ask_always) = (None, None, false);
    for directive in headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
    {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        let seconds = || number(value.trim().trim_matches('"')).map(Duration::from_secs);
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" => freshness.no_store = true,
            "private" => freshness.private = true,
            "no-cache" => ask_always = true,
            "max-age" => any = seconds(),
            "s-maxage" => shared = seconds(),
            _ => {}
        }
    }
    let age = text(headers, &AGE)
        .and_then(number)
        .map(Duration::from_secs)
        .unwrap_or_default();
    let expires = || {
        let date_sent = date(headers, &DATE).unwrap_or(now);
        // An unreadable `Expires` (often `0`) means "already expired".
        text(headers, &EXPIRES).map(|_| {
            date(headers, &EXPIRES)
                .and_then(|at| at.duration_since(date_sent).ok())
                .unwrap_or_default()
        })
    };
    freshness.max_age = if ask_always || freshness.no_store {
        Some(Duration::ZERO)
    } else {
        shared
            .or(any)
            .or_else(expires)
            .map(|life| life.min(LONGEST).saturating_sub(age))
    };
    freshness
}

/// All `WWW-Authenticate` challenges, bounded.
pub(crate) fn challenge(headers: &HeaderMap) -> Option<String> {
    let all: Vec<&str> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    // `to_str` lets only visible ASCII through, so any cut is at a character.
    (!all.is_empty()).then(|| all.join(", ").chars().take(LONGEST_TEXT).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(rows: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in rows {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let rows = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("99999999999999999999999", Some(LONGEST.as_secs())),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ];
        for (value, wanted) in rows {
            assert_eq!(
                parse_retry_after(value, now),
                wanted.map(Duration::from_secs),
                "{value}"
            );
        }
    }

    #[test]
    fn validators_are_as_strong_as_rfc_9110_says() {
        let modified = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(
            validator(&headers(&[("etag", "\"a\"")])),
            Validator::Strong("\"a\"".into())
        );
        let rows = [
            ("weak tag", vec![("etag", "W/\"a\"")], Some(false)),
            ("tag without quotes", vec![("etag", "abc")], Some(false)),
            ("date alone", vec![("last-modified", modified)], Some(false)),
            (
                "date just now",
                vec![
                    ("last-modified", modified),
                    ("date", "Sun, 06 Nov 1994 08:49:40 GMT"),
                ],
                Some(false),
            ),
            (
                "old date",
                vec![
                    ("last-modified", modified),
                    ("date", "Mon, 07 Nov 1994 08:49:40 GMT"),
                ],
                Some(true),
            ),
            ("empty tag", vec![("etag", "\"\"")], None),
            ("garbage date", vec![("last-modified", "yesterday")], None),
            ("nothing", vec![], None),
        ];
        for (name, given, wanted) in rows {
            match (validator(&headers(&given)), wanted) {
                (Validator::Weak { date_is_strong, .. }, Some(strong)) => {
                    assert_eq!(date_is_strong, strong, "{name}");
                }
                (Validator::None, None) => {}
                (other, _) => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn digests_are_taken_only_from_where_they_are_reliable() {
        let hex = "a".repeat(64);
        let docker = format!("sha256:{hex}");
        let encoded = base64::engine::general_purpose::STANDARD.encode([0xab; 32]);
        let repr = format!("sha-512=:AAAA:, sha-256=:{encoded}:");
        assert_eq!(
            digest(&headers(&[("docker-content-digest", &docker)])),
            Some(docker.clone())
        );
        assert_eq!(
            digest(&headers(&[
                ("repr-digest", &repr),
                ("docker-content-digest", &docker)
            ])),
            Some(format!("sha256:{}", "ab".repeat(32)))
        );
        for bad in ["sha256:", "sha256:XYZ", "md5:abc", &format!("sha512:{hex}")] {
            assert_eq!(
                digest(&headers(&[("docker-content-digest", bad)])),
                None,
                "{bad}"
            );
        }
        assert_eq!(digest(&headers(&[("repr-digest", "sha-256=:AAAA:")])), None);
    }

    #[test]
    fn freshness_prefers_the_shared_age_and_subtracts_what_has_passed() {
        let now = SystemTime::now();
        type Row<'a> = (&'a [(&'a str, &'a str)], Option<u64>);
        let rows: [Row<'_>; 7] = [
            (
                &[("cache-control", "public, max-age=60, s-maxage=100")],
                Some(100),
            ),
            (&[("cache-control", "max-age=60"), ("age", "50")], Some(10)),
            (&[("cache-control", "max-age=60"), ("age", "70")], Some(0)),
            (&[("cache-control", "no-cache, max-age=60")], Some(0)),
            (&[("expires", "0")], Some(0)),
            (
                &[
                    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                    ("expires", "Sun, 06 Nov 1994 08:50:37 GMT"),
                ],
                Some(60),
            ),
            (&[], None),
        ];
        for (given, wanted) in rows {
            let given: Vec<_> = given
                .iter()
                .map(|(n, v)| (http::HeaderName::try_from(*n).unwrap(), v.parse().unwrap()))
                .collect();
            let map: HeaderMap = given.into_iter().collect();
            assert_eq!(
                freshness(&map, now).max_age,
                wanted.map(Duration::from_secs),
                "{map:?}"
            );
        }
        assert!(freshness(&headers(&[("cache-control", "no-store")]), now).no_store);
        assert!(freshness(&headers(&[("cache-control", "Private")]), now).private);
    }

    #[test]
    fn identity_is_no_encoding() {
        assert_eq!(
            content_encoding(&headers(&[("content-encoding", "identity")])),
            None
        );
        assert_eq!(
            content_encoding(&headers(&[("content-encoding", " GZIP ")])).unwrap(),
            "gzip"
        );
    }

    proptest! {
        #[test]
        fn any_retry_after_is_answered(value in ".{0,60}") {
            let _ = parse_retry_after(&value, SystemTime::now());
        }

        #[test]
        fn any_headers_are_answered(value in "[ -~]{0,60}") {
            let Ok(parsed) = http::HeaderValue::try_from(value.as_str()) else { return Ok(()); };
            let mut map = HeaderMap::new();
            for name in ["etag", "last-modified", "date", "cache-control", "age", "expires",
                         "repr-digest", "docker-content-digest", "content-encoding",
                         "www-authenticate", "retry-after"] {
                map.insert(name, parsed.clone());
            }
            let now = SystemTime::now();
            let _ = (validator(&map), freshness(&map, now), digest(&map));
            let _ = (content_encoding(&map), challenge(&map), retry_after(&map, now));
        }
    }
}
