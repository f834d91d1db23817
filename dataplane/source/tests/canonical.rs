//! One spelling for each source, and no secret in it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

use dragonfly_source::{QueryFilter, Url, canonical, canonical_whole};
use proptest::prelude::*;

fn key(url: &str) -> String {
    canonical(&Url::parse(url).unwrap(), &QueryFilter::default())
        .unwrap()
        .key()
        .to_owned()
}

#[test]
fn spellings_of_one_source_are_one_key() {
    let rows = [
        (
            "scheme and host",
            "HTTP://Example.COM/a",
            "http://example.com/a",
        ),
        (
            "default port",
            "https://example.com:443/a",
            "https://example.com/a",
        ),
        (
            "other port stays",
            "https://example.com:8443/a",
            "https://example.com:8443/a",
        ),
        ("no path", "https://example.com", "https://example.com/"),
        (
            "dot segments",
            "https://example.com/a/./b/../c",
            "https://example.com/a/c",
        ),
        (
            "encoded dots",
            "https://example.com/a/%2e%2E/c",
            "https://example.com/c",
        ),
        (
            "hex case",
            "https://example.com/%c3%a9",
            "https://example.com/%C3%A9",
        ),
        (
            "unreserved",
            "https://example.com/%7euser/%41",
            "https://example.com/~user/A",
        ),
        (
            "reserved stays",
            "https://example.com/a%2Fb",
            "https://example.com/a%2Fb",
        ),
        (
            "double slash stays",
            "https://example.com/a//b/",
            "https://example.com/a//b/",
        ),
        (
            "fragment",
            "https://example.com/a#frag",
            "https://example.com/a",
        ),
        (
            "userinfo",
            "https://u:pw@example.com/a",
            "https://example.com/a",
        ),
        (
            "root dot",
            "https://example.com./a",
            "https://example.com/a",
        ),
        (
            "sorted",
            "https://example.com/?b=2&a=1",
            "https://example.com/?a=1&b=2",
        ),
        (
            "order of one name stays",
            "https://example.com/?a=2&a=1",
            "https://example.com/?a=2&a=1",
        ),
        (
            "empty query",
            "https://example.com/?",
            "https://example.com/",
        ),
        (
            "S3",
            "https://s3.example/b/k?X-Amz-Signature=ff&X-Amz-Date=1&x-amz-Expires=60&versionId=3",
            "https://s3.example/b/k?versionId=3",
        ),
        (
            "GCS",
            "https://g.example/b?X-Goog-Signature=ff&X-Goog-Date=1",
            "https://g.example/b",
        ),
        (
            "Azure",
            "https://a.example/c/b?sv=1&se=2&sp=r&sig=abc&comp=x",
            "https://a.example/c/b?comp=x",
        ),
        (
            "CloudFront",
            "https://c.example/f?Expires=1&Signature=x&Key-Pair-Id=K&v=2",
            "https://c.example/f?v=2",
        ),
        (
            "common words without a signature",
            "https://e.example/?se=2&sp=1&expires=3",
            "https://e.example/?expires=3&se=2&sp=1",
        ),
    ];
    for (name, given, wanted) in rows {
        assert_eq!(key(given), wanted, "{name}");
    }
}

#[test]
fn a_kept_secret_is_hashed_and_still_tells_two_apart() {
    let (a, b) = (
        key("https://e.example/?token=hunter2"),
        key("https://e.example/?token=hunter3"),
    );
    assert_ne!(a, b);
    assert!(!a.contains("hunter2") && a.contains("token="), "{a}");
}

#[test]
fn the_filter_selects() {
    let url = Url::parse("https://e.example/?a=1&b=2&b_x=3&sig=4").unwrap();
    let rows: [(&[&str], &[&str], bool, &str); 4] = [
        (&[], &["b*"], true, "?a=1"),
        (&["b"], &[], true, "?b=2"),
        (&["*"], &["a", "sig"], true, "?b=2&b_x=3"),
        (&["a"], &["a"], true, ""),
    ];
    for (include, exclude, drop_signatures, wanted) in rows {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let filter = QueryFilter {
            include: own(include),
            exclude: own(exclude),
            drop_signatures,
        };
        let key = canonical(&url, &filter).unwrap();
        assert_eq!(key.key(), format!("https://e.example/{wanted}"));
    }
}

#[test]
fn a_url_without_a_host_is_refused() {
    assert!(canonical(&Url::parse("mailto:x@y").unwrap(), &QueryFilter::default()).is_err());
    assert!(canonical(&Url::parse("file:///a/b").unwrap(), &QueryFilter::default()).is_ok());
}

proptest! {
    #[test]
    fn canonicalising_twice_changes_nothing(
        path in "(/[a-zA-Z0-9.%~é ]{0,8}){0,4}",
        query in "([a-z]{1,6}|sig|signature|token|X-Amz-Signature)(=[a-zA-Z0-9%+~ ]{0,12})?(&[a-z]{1,3}=[0-9%]{0,3}){0,4}",
    ) {
        let Ok(url) = Url::parse(&format!("https://Example.com{path}?{query}")) else { return Ok(()); };
        let once = canonical(&url, &QueryFilter::default()).unwrap();
        let again = canonical(&Url::parse(once.key()).unwrap(), &QueryFilter::default()).unwrap();
        prop_assert_eq!(once, again);
    }

    #[test]
    fn the_order_of_names_does_not_matter(mut names in prop::collection::btree_set("[a-z]{1,5}", 1..6)) {
        let forward: Vec<String> = names.iter().map(|name| format!("{name}=1")).collect();
        let mut backward = forward.clone();
        backward.reverse();
        names.clear();
        prop_assert_eq!(
            key(&format!("https://e.example/?{}", forward.join("&"))),
            key(&format!("https://e.example/?{}", backward.join("&")))
        );
    }

    #[test]
    fn percent_encoding_makes_no_difference(path in "[a-zA-Z0-9._~-]{3,20}") {
        prop_assume!(path.bytes().any(|b| b != b'.'));
        let encoded: String = path.bytes().map(|b| format!("%{b:02x}")).collect();
        prop_assert_eq!(
            key(&format!("https://e.example/x{path}")),
            key(&format!("https://e.example/x{encoded}"))
        );
    }

    #[test]
    fn no_secret_gets_into_the_key(secret in "[g-zG-Z]{12,40}", other in "[a-f0-9]{1,5}") {
        for url in [
            format!("https://{secret}:{secret}@e.example/{other}"),
            format!("https://e.example/{other}?X-Amz-Signature={secret}&a={other}"),
            format!("https://e.example/{other}?sig={secret}&sv=1"),
            format!("https://e.example/{other}?Signature={secret}&Expires=1"),
            format!("https://e.example/{other}?access_token={secret}"),
            format!("https://e.example/{other}?my_secret={secret}#{secret}"),
        ] {
            let key = key(&url);
            prop_assert!(!key.contains(&secret), "{} in {}", secret, key);
        }
    }
}

#[test]
fn the_whole_of_a_url_drops_and_hides_nothing_and_has_one_spelling() {
    let whole = |url: &str| {
        let whole = canonical_whole(&Url::parse(url).unwrap()).unwrap();
        whole.to_string()
    };
    let signed = "https://s3.example/b/k?X-Amz-Signature=ff&token=t&versionId=3";
    assert_eq!(whole(signed), signed);
    assert_eq!(
        whole("HTTPS://s3.example:443/%62/k?versionId=3&token=t&X-Amz-Signature=ff"),
        signed
    );
    // What hides a secret is not taken for it.
    let hidden = key(signed);
    assert_eq!(whole(&hidden), hidden);
    assert_ne!(whole(&hidden), whole(signed));
}
