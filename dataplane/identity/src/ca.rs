//! A mesh's CA: ECDSA P-256, signs certificates of parts and nothing else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dragonfly_transport::{OpeningKey, Who};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::IdentityError;

/// Certificates hold from a little before now, for clocks differ.
pub(crate) const SKEW: Duration = Duration::from_secs(300);

/// A certificate that signs, and its key.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    opening: OpeningKey,
    holds: Holds,
}

/// For how long a certificate is good, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    /// From when on.
    pub from: u64,
    /// Until when.
    pub until: u64,
}

impl Holds {
    /// What a certificate (PEM) says.
    ///
    /// # Errors
    /// It is none.
    pub fn of(cert: &str) -> Result<Self, IdentityError> {
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).map_err(IdentityError::Ca)?;
        Self::read(&der)
    }

    fn read(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let read = x509_parser::parse_x509_certificate(der);
        let (_, read) = read.map_err(|e| IdentityError::Mismatch(format!("unreadable ({e})")))?;
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp());
        Ok(Self {
            from: seconds(read.validity().not_before).unwrap_or_default(),
            until: seconds(read.validity().not_after).unwrap_or_default(),
        })
    }

    /// How much of it is left at a time; none when it is over.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Duration> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_secs(self.until).checked_sub(now)?;
        (!left.is_zero()).then_some(left)
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ca(..)")
    }
}

impl Ca {
    /// Certificate and key, PEM, of a new CA that is good for this long.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate(mesh: &str, lifetime: Duration) -> Result<(String, String), IdentityError> {
        Self::generate_at(SystemTime::now(), mesh, lifetime)
    }

    fn generate_at(
        now: SystemTime,
        mesh: &str,
        lifetime: Duration,
    ) -> Result<(String, String), IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = named(mesh)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - SKEW).into();
        params.not_after = (now + lifetime).into();
        let cert = params.self_signed(&key)?;
        Ok((cert.pem(), key.serialize_pem()))
    }

    /// Reads what [`Self::generate`] made, or [`signed_ca`](crate::signed_ca) found good.
    ///
    /// # Errors
    /// They are no certificate, no key, or do not belong together.
    pub fn read(cert: &str, key: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::from_pem(key)?;
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).map_err(IdentityError::Ca)?;
        let parsed = webpki::anchor_from_trusted_cert(&der)
            .map_err(|e| IdentityError::Mismatch(format!("it cannot be read ({e})")))?;
        // The bits of a key stand at the end of its encoding.
        if !parsed
            .subject_public_key_info
            .ends_with(key.public_key_raw())
        {
            return Err(IdentityError::Mismatch("the key is another's".to_owned()));
        }
        let opening = OpeningKey::derived(&key.serialize_der())?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        let holds = Holds::read(&der)?;
        Ok(Self {
            issuer,
            der,
            opening,
            holds,
        })
    }

    /// What seeds open by what is sealed while this CA gives certificates: derived from its key, so that
    /// it is kept, replaced and lost with it.
    #[must_use]
    pub const fn opening(&self) -> &OpeningKey {
        &self.opening
    }

    /// Its certificate.
    #[must_use]
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// For how long it is good.
    #[must_use]
    pub const fn holds(&self) -> Holds {
        self.holds
    }

    /// For how long what it signs now is good: as long as wanted, and no longer than itself.
    #[must_use]
    pub fn lifetime(&self, wanted: Duration) -> Duration {
        let left = self.holds.left(SystemTime::now()).unwrap_or_default();
        wanted.min(left)
    }

    /// A certificate for the holder of a public key, good since the CA is, and no longer than it:
    /// who checks a chain does not look at how old its root is. `names`: the DNS names that it may
    /// serve under; without any it is good for asking only, and nobody takes it for a server or a node.
    ///
    /// # Errors
    /// A name that no certificate can hold; the CA is over.
    pub fn issue(
        &self,
        key: &impl PublicKeyData,
        names: Vec<String>,
        who: &Who,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let mut purposes = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !names.is_empty() {
            purposes.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        let uri = who.uri();
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        let lifetime = self.lifetime(lifetime);
        if lifetime.is_zero() {
            return Err(IdentityError::Over);
        }
        let now = SystemTime::now();
        // By a clock that is ahead for a moment nobody would take it before that time comes.
        let as_old_as_the_ca = UNIX_EPOCH + Duration::from_secs(self.holds.from);
        params.not_before = as_old_as_the_ca.min(now - SKEW).into();
        params.not_after = (now + lifetime).into();
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// The same for who made a signing request (PKCS#10, DER). Its signature shows that he holds the
    /// key; the names in it are not looked at.
    ///
    /// # Errors
    /// It is none, or its signature is another key's.
    pub fn issue_to(
        &self,
        request: &[u8],
        names: Vec<String>,
        who: &Who,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|e| IdentityError::Request(e.to_string()))?;
        self.issue(&request.public_key, names, who, lifetime)
    }
}

/// What CAs of a mesh are called.
pub(crate) fn named(mesh: &str) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Dragonfly mesh {mesh}"));
    Ok(params)
}

/// All certificates of a bundle, PEM.
///
/// # Errors
/// One of them is none, or there is none at all.
pub fn bundle(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(IdentityError::Ca)?;
    if all.is_empty() {
        return Err(IdentityError::Mismatch("the CA bundle is empty".to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dragonfly_transport::Role;

    fn who() -> Who {
        Who {
            mesh: "m".to_owned(),
            role: Role::Peer,
            node: "n".to_owned(),
        }
    }

    #[test]
    fn a_ca_comes_back_from_its_text_and_not_with_the_key_of_another() {
        let day = Duration::from_secs(86_400);
        let (cert, key) = Ca::generate("m", day).unwrap();
        let (_, other) = Ca::generate("m", day).unwrap();
        Ca::read(&cert, &key).unwrap();
        let wrong = Ca::read(&cert, &other).unwrap_err().to_string();
        assert!(wrong.contains("another's"), "{wrong}");
        assert!(Ca::read("x", &key).is_err() && Ca::read(&cert, "x").is_err());
    }

    #[test]
    fn a_request_whose_signature_is_another_keys_gets_nothing() {
        let (cert, key) = Ca::generate("m", Duration::from_secs(60)).unwrap();
        let ca = Ca::read(&cert, &key).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(Vec::<String>::new()).unwrap();
        let good = params.serialize_request(&key).unwrap().der().to_vec();
        let hour = Duration::from_secs(3600);
        ca.issue_to(&good, vec![], &who(), hour).unwrap();
        let mut forged = good;
        // Within the signature, which is last.
        let last = forged.len() - 2;
        forged[last] ^= 1;
        let error = ca.issue_to(&forged, vec![], &who(), hour).unwrap_err();
        assert!(matches!(error, IdentityError::Request(_)), "{error}");
        assert!(ca.issue_to(b"", vec![], &who(), hour).is_err());
    }

    #[test]
    fn a_certificate_is_as_old_as_its_ca_and_does_not_outlive_it() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let a_while_ago = SystemTime::now() - hour;
        let (cert, key) = Ca::generate_at(a_while_ago, "m", hour + minute).unwrap();
        let ca = Ca::read(&cert, &key).unwrap();
        assert!(ca.lifetime(hour) <= minute && ca.lifetime(Duration::from_secs(1)) < minute);
        let part = KeyPair::generate().unwrap();
        let given = ca.issue(&part, vec![], &who(), hour).unwrap();
        assert!(Holds::read(&given).unwrap().until <= ca.holds().until);
        assert_eq!(Holds::read(&given).unwrap().from, ca.holds().from);

        let (cert, key) = Ca::generate("m", Duration::ZERO).unwrap();
        let over = Ca::read(&cert, &key).unwrap();
        assert_eq!(over.holds(), Holds::of(&cert).unwrap());
        let error = over.issue(&part, vec![], &who(), hour).unwrap_err();
        assert!(matches!(error, IdentityError::Over), "{error}");
    }

    #[test]
    fn a_bundle_is_read_whole_or_not_at_all() {
        let day = Duration::from_secs(86_400);
        let (a, _) = Ca::generate("m", day).unwrap();
        let (b, _) = Ca::generate("m", day).unwrap();
        assert_eq!(bundle(&format!("{a}{b}")).unwrap().len(), 2);
        let broken = b.replace("MII", "!!!");
        assert!(bundle(&format!("{a}{broken}")).is_err());
        assert!(bundle("").is_err());
    }
}
