//! Keeping credentials out of logs, errors and keys.
//!
//! Invariant: whatever this module shows of a URL is safe to print: no userinfo, no value of a query
//! parameter that signs or authorises. A list of bad names is never complete, so *long opaque values*
//! are hidden as well, whatever they are called.

use reqwest::Url;
use std::fmt;

/// Exact names (lower case) of query parameters whose value must not be shown, beside the marks and
/// prefixes of [`SIGNATURES`] and those that contain a word of [`SECRET_WORDS`].
const SECRET_NAMES: &[&str] = &[
    "auth",
    "authorization",
    "apikey",
    "api_key",
    "api-key",
    "key",
    "sas",
    "jwt",
    "session",
];

/// A name that contains one of these (lower case) is taken for a secret.
const SECRET_WORDS: &[&str] = &[
    "token",
    "secret",
    "passw",
    "signature",
    "credential",
    "sessionid",
    "access_key",
    "accesskey",
];

/// One way of signing URLs: when a query holds `mark`, the parameters of the family differ from
/// request to request for the same content and say nothing about which content it is. Without the
/// mark, `se` or `expires` are ordinary names that may well select content.
struct Signature {
    mark: &'static str,
    names: &'static [&'static str],
    prefixes: &'static [&'static str],
}

/// The well-known ways of signing URLs, names in lower case.
const SIGNATURES: &[Signature] = &[
    Signature {
        mark: "x-amz-signature",
        names: &[],
        prefixes: &["x-amz-"],
    },
    Signature {
        mark: "x-amz-security-token",
        names: &[],
        prefixes: &["x-amz-"],
    },
    Signature {
        mark: "x-goog-signature",
        names: &[],
        prefixes: &["x-goog-"],
    },
    Signature {
        mark: "x-oss-signature",
        names: &[],
        prefixes: &["x-oss-"],
    },
    Signature {
        mark: "x-tos-signature",
        names: &[],
        prefixes: &["x-tos-"],
    },
    // Azure: shared access signatures of a service, an account or a user delegation.
    Signature {
        mark: "sig",
        names: &[
            "sig", "se", "sp", "sv", "sr", "st", "spr", "sip", "si", "ss", "srt", "sdd", "skoid",
            "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid", "ses", "sduoid",
        ],
        prefixes: &[],
    },
    // CloudFront, S3 before version 4, GCS version 2, Alibaba OSS version 1.
    Signature {
        mark: "signature",
        names: &[
            "signature",
            "expires",
            "key-pair-id",
            "policy",
            "hash-algorithm",
            "awsaccesskeyid",
            "googleaccessid",
            "ossaccesskeyid",
            "security-token",
            "x-amz-security-token",
        ],
        prefixes: &[],
    },
    // Tencent COS.
    Signature {
        mark: "q-signature",
        names: &["x-cos-security-token"],
        prefixes: &["q-"],
    },
    // Akamai.
    Signature {
        mark: "hdnts",
        names: &["hdnts"],
        prefixes: &[],
    },
    Signature {
        mark: "hdnea",
        names: &["hdnea"],
        prefixes: &[],
    },
];

impl Signature {
    fn covers(&self, name: &str) -> bool {
        self.mark == name
            || self.names.contains(&name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// Values longer than this are hidden whatever their name.
const OPAQUE_LEN: usize = 48;

/// True when the value of this query parameter must not be shown.
pub fn is_secret_param(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.contains(&name.as_str())
        || SIGNATURES.iter().any(|family| {
            // The other names of a family (`se`, `expires`) are common words and prove nothing
            // without the mark.
            family.mark == name
                || family
                    .prefixes
                    .iter()
                    .any(|prefix| name.starts_with(prefix))
        })
        || SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// For a query with these (decoded) names: which of them belong to its signature.
pub(crate) fn signature_params(names: &[String]) -> Vec<bool> {
    let names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let families: Vec<&Signature> = SIGNATURES
        .iter()
        .filter(|family| names.iter().any(|name| name == family.mark))
        .collect();
    names
        .iter()
        .map(|name| families.iter().any(|family| family.covers(name)))
        .collect()
}

/// The URL as it may be shown: no userinfo, secret query values as `***`, no fragment.
pub fn redact(url: &Url) -> String {
    let mut shown = String::new();
    shown.push_str(url.scheme());
    shown.push_str("://");
    shown.push_str(url.host_str().unwrap_or(""));
    if let Some(port) = url.port() {
        shown.push_str(&format!(":{port}"));
    }
    shown.push_str(url.path());
    if let Some(query) = url.query() {
        let mut mark = '?';
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            shown.push(mark);
            mark = '&';
            if value.is_empty() && name.len() > OPAQUE_LEN {
                // A lone long word is a token by position.
                shown.push_str("***");
                continue;
            }
            shown.push_str(name);
            if pair.contains('=') {
                shown.push('=');
                let hide = is_secret_param(&decode(name)) || value.len() > OPAQUE_LEN;
                shown.push_str(if hide { "***" } else { value });
            }
        }
    }
    shown
}

/// Percent-decodes a query name for comparison; what is not UTF-8 becomes the replacement character.
pub(crate) fn decode(text: &str) -> String {
    decode_strict(&text.replace('+', " "))
}

/// Percent-decodes; a plus sign stays one.
pub(crate) fn decode_strict(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], hex_pair(bytes, at + 1)) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The byte that two hex digits at `at` stand for.
pub(crate) fn hex_pair(bytes: &[u8], at: usize) -> Option<u8> {
    let high = char::from(*bytes.get(at)?).to_digit(16)?;
    let low = char::from(*bytes.get(at + 1)?).to_digit(16)?;
    u8::try_from(high * 16 + low).ok()
}

/// A URL that may hold a signature: prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// Wraps it.
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// The real URL, for the request itself only.
    pub fn reveal(&self) -> &Url {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretUrl({})", redact(&self.0))
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_shown_of_a_url_holds_no_secret() {
        let long = "x".repeat(OPAQUE_LEN + 1);
        let rows = [
            (
                "https://u:p@h.example/a#f".to_owned(),
                "https://h.example/a".to_owned(),
            ),
            (
                "https://h.example:8443/a?b=1".into(),
                "https://h.example:8443/a?b=1".into(),
            ),
            (
                "https://h.example/?sig=s&sv=1".into(),
                "https://h.example/?sig=***&sv=1".into(),
            ),
            (
                "https://h.example/?X-Amz-Credential=k&a=1".into(),
                "https://h.example/?X-Amz-Credential=***&a=1".into(),
            ),
            (
                "https://h.example/?to%6Ben=s".into(),
                "https://h.example/?to%6Ben=***".into(),
            ),
            (
                format!("https://h.example/?opaque={long}"),
                "https://h.example/?opaque=***".into(),
            ),
            (
                format!("https://h.example/?{long}"),
                "https://h.example/?***".into(),
            ),
        ];
        for (url, wanted) in rows {
            assert_eq!(redact(&Url::parse(&url).unwrap()), wanted);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_decoded(text in ".{0,40}") {
            let _ = (decode(&text), decode_strict(&text));
        }
    }
}
