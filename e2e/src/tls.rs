//! An authority of an origin's own, as companies have, and a server's certificate from it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use crate::{Failed, Result};

/// A server for `name` (or address), and its authority's certificate in PEM.
pub(crate) fn acceptor(name: &str) -> Result<(TlsAcceptor, String)> {
    let made = |e: rcgen::Error| Failed::at("a certificate", e);
    let wrong = |e: rustls::Error| Failed::at("TLS", e);
    let mut params = CertificateParams::new(vec![]).map_err(made)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = KeyPair::generate().map_err(made)?;
    let authority = CertifiedIssuer::self_signed(params, own).map_err(made)?;
    let key = KeyPair::generate().map_err(made)?;
    let server = CertificateParams::new(vec![name.to_owned()])
        .and_then(|params| params.signed_by(&key, &authority))
        .map_err(made)?;
    let secret =
        PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| Failed::at("a private key", e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], secret)
        .map_err(wrong)?;
    Ok((TlsAcceptor::from(Arc::new(config)), authority.pem()))
}
