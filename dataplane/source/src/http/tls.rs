//! TLS towards origins: always verified, one provider (aws-lc-rs), the system's authorities.
//!
//! Invariant: there is no way to switch verification off. Plain http works whatever the state of the
//! machine's certificate store.

use crate::error::{Error, Fault, Kind, Result};
use crate::http::options::HttpOptions;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// The TLS side of a client.
pub(crate) fn config(options: &HttpOptions) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if !options.ca_bundle_only {
        add_system(&mut roots);
    }
    if let Some(bundle) = &options.ca_bundle {
        add_bundle(&mut roots, bundle)?;
    } else if options.ca_bundle_only {
        return Err(invalid(
            "only the CA bundle is to be trusted and there is none: set the bundle or allow the \
             system's authorities",
        ));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(&format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = if options.http2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    Ok(config)
}

/// The machine's authorities, or those built in where it has none (a container from scratch).
fn add_system(roots: &mut RootCertStore) {
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!(
            errors = ?found.errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "no certificate authority found on this machine: using the built-in list; install \
             ca-certificates or set SSL_CERT_FILE"
        );
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
}

fn add_bundle(roots: &mut RootCertStore, bundle: &str) -> Result<()> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        count += 1;
        let certificate = certificate.map_err(|error| {
            invalid(&format!(
                "certificate {count} of the CA bundle is not PEM: {error}"
            ))
        })?;
        roots.add(certificate).map_err(|error| {
            invalid(&format!(
                "certificate {count} of the CA bundle cannot be used: {error}"
            ))
        })?;
    }
    if count == 0 {
        return Err(invalid(
            "the CA bundle holds no certificate: it must be PEM with BEGIN CERTIFICATE",
        ));
    }
    Ok(())
}

fn invalid(text: &str) -> Error {
    Error::permanent(Kind::InvalidOptions, Fault::Policy, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_bundle(bundle: &str) -> HttpOptions {
        HttpOptions {
            ca_bundle: Some(bundle.to_owned()),
            ..HttpOptions::default()
        }
    }

    #[test]
    fn the_default_works_on_any_machine() {
        assert!(config(&HttpOptions::default()).is_ok());
    }

    #[test]
    fn a_bad_bundle_is_refused_with_the_reason() {
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (bundle, text) in [
            ("", "no certificate"),
            ("not pem", "no certificate"),
            (garbage, "certificate 1"),
        ] {
            let error = config(&with_bundle(bundle)).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidOptions);
            assert!(error.to_string().contains(text), "{error}");
        }
        let alone = HttpOptions {
            ca_bundle_only: true,
            ..HttpOptions::default()
        };
        assert!(config(&alone).is_err());
    }
}
