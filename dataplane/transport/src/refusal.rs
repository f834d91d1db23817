//! What a failed TLS handshake means, for people: whose certificate, what is wrong with it, and what to
//! look at first.

use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

/// Says why two ends did not come to terms.
#[must_use]
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(wrong) => {
            format!("the other side's certificate {}", wrongly(wrong))
        }
        Error::AlertReceived(alert) => match said(*alert) {
            Some(why) => format!("the other side refuses this one's certificate: {why}"),
            None => format!("the other side ended the handshake: {alert:?}"),
        },
        Error::NoCertificatesPresented => "the other side showed no certificate".to_owned(),
        Error::InvalidMessage(_) => "the other side does not speak TLS".to_owned(),
        other => other.to_string(),
    }
}

/// TLS' own reason in an error of a connection or call, where it has one.
#[must_use]
pub fn tls_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Error> {
    let mut next = Some(error);
    while let Some(e) = next {
        let inner = e
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let tls = e
            .downcast_ref::<Error>()
            .or_else(|| inner.and_then(|i| i.downcast_ref()));
        if tls.is_some() {
            return tls;
        }
        next = e.source();
    }
    None
}

/// Why a connection or call failed: TLS' own reason, where it has one, for it says what to do; else all
/// that caused it.
#[must_use]
pub fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(tls) = tls_error(error) {
        return explain(tls);
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}

fn wrongly(wrong: &CertificateError) -> String {
    match wrong {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "expired at {}, and this machine's clock says {}: it was not renewed, or the clock is wrong",
            date(*not_after),
            date(*time)
        ),
        CertificateError::Expired => {
            "expired: it was not renewed, or this machine's clock is wrong".to_owned()
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "is not valid before {}, and this machine's clock says {}: set the clock",
            date(*not_before),
            date(*time)
        ),
        CertificateError::NotValidYet => "is not valid yet: set this machine's clock".to_owned(),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is of no CA that this mesh trusts: it is another mesh's".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is another's than was called".to_owned()
        }
        CertificateError::Other(wrong) => format!("is refused: {}", wrong.0),
        other => format!("is refused: {other}"),
    }
}

const fn said(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateExpired => {
            "it is expired, or not valid yet, by the other side's clock"
        }
        AlertDescription::UnknownCA => "it is of no CA that the other side trusts: another mesh's",
        AlertDescription::DecryptError => "its key is not the certificate's",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => "it is no good",
        AlertDescription::CertificateRequired => "it wants one and was shown none",
        AlertDescription::AccessDenied => "it may not come in",
        _ => return None,
    })
}

/// `Thu, 26 Nov 2026 14:00:00 GMT`.
fn date(time: UnixTime) -> String {
    // The end of what dates of HTTP can say: a certificate may say later.
    let seconds = time.as_secs().min(253_402_300_799);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_whose_certificate_and_why() {
        let at = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
        let expired = CertificateError::ExpiredContext {
            time: at(86_400),
            not_after: at(0),
        };
        let early = CertificateError::NotValidYetContext {
            time: at(0),
            not_before: at(u64::MAX),
        };
        for (error, words) in [
            (
                Error::InvalidCertificate(expired),
                ["expired at Thu, 01 Jan 1970", "Fri, 02 Jan 1970"],
            ),
            (
                Error::InvalidCertificate(early),
                ["not valid before", "set the clock"],
            ),
            (
                Error::InvalidCertificate(CertificateError::UnknownIssuer),
                ["the other side's", "another mesh's"],
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateExpired),
                ["refuses this one's", "expired"],
            ),
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                ["refuses this one's", "another mesh's"],
            ),
            (
                Error::AlertReceived(AlertDescription::DecryptError),
                ["refuses this one's", "key"],
            ),
            (
                Error::NoCertificatesPresented,
                ["other side", "no certificate"],
            ),
        ] {
            let text = explain(&error);
            assert!(words.iter().all(|w| text.contains(w)), "{text}");
        }
    }
}
