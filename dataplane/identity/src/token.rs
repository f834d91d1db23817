//! The join token: what a node needs to become a member.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::IdentityError;

const PREFIX: &str = "dfj1.";
/// Longest token read, bytes.
const MAX: usize = 64 << 10;

/// The CA to trust and the secret to show. Whoever has it can join: it belongs in a file that only
/// its owner reads.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The mesh's CA certificate, PEM.
    pub ca: String,
    /// Hexadecimal.
    pub secret: String,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

impl JoinToken {
    /// The token as text, secret included: for its file, not for a log.
    #[must_use]
    pub fn reveal(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for JoinToken {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).filter(|e| e.len() <= MAX);
        let json = encoded.and_then(|e| URL_SAFE_NO_PAD.decode(e).ok());
        json.and_then(|j| serde_json::from_slice(&j).ok())
            .ok_or(IdentityError::Token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_text_and_nothing_else_does() {
        let token = JoinToken {
            ca: "-----BEGIN".to_owned(),
            secret: "00ff".to_owned(),
        };
        assert_eq!(token.reveal().parse::<JoinToken>().unwrap(), token);
        for bad in ["", "dfj1.", "dfj1.!!", "dfj1.e30", "x"] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
        assert!(!format!("{token:?}").contains("00ff"));
    }
}
