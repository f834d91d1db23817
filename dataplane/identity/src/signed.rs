//! A mesh's CA whose certificate somebody else signs: another CA, a company's say.
//!
//! The key is made here and never leaves; what goes out is a request (PKCS#10). What comes back is not
//! believed: it is tried with the very code that parts of the mesh check each other by.
//!
//! The mesh trusts that certificate alone, as a root of its own, and not who signed it: what else the
//! same CA signed stays a stranger. The other way round, whoever trusts the signer would believe what the
//! mesh's CA signs, so the request asks for a CA of the mesh's own names and of nothing else.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dragonfly_proto::id::NodeId;
use dragonfly_transport::{Role, SCHEDULER_NAME, Who, issuer_name, node_name};
use rcgen::{BasicConstraints, CustomExtension, IsCa, KeyPair, KeyUsagePurpose};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;

use crate::IdentityError;
use crate::ca::{Ca, SKEW, named};
use crate::enroll::pem;

/// `id-ce-nameConstraints`.
const NAME_CONSTRAINTS: [u64; 4] = [2, 5, 29, 30];
/// All names that certificates of meshes say are below this.
const NAMES: &str = "d7y.internal";

/// A new key of a CA, PEM.
///
/// # Errors
/// No randomness.
pub fn ca_key() -> Result<String, IdentityError> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// What another CA is asked for by the holder of a key (PEM): a request for a CA of this mesh, PEM.
///
/// # Errors
/// It is no key.
pub fn ca_request(mesh: &str, key: &str) -> Result<String, IdentityError> {
    let key = KeyPair::from_pem(key)?;
    let mut params = named(mesh)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let mut constraints = CustomExtension::from_oid_content(&NAME_CONSTRAINTS, own_names_alone());
    constraints.set_criticality(true);
    params.custom_extensions.push(constraints);
    Ok(params.serialize_request(&key)?.pem()?)
}

/// NameConstraints (RFC 5280, 4.2.1.10), DER: DNS names below [`NAMES`], and no address at all.
fn own_names_alone() -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    // Subtrees that are permitted, and that are excluded.
    const PERMITTED: u8 = 0xa0;
    const EXCLUDED: u8 = 0xa1;
    // Names of these kinds; an address is followed by its mask.
    const DNS: u8 = 0x82;
    const ADDRESS: u8 = 0x87;
    /// A tag, the length (short, as all here are) and what it is of.
    fn of(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
        let content = parts.concat();
        let length = content.len().to_le_bytes()[0];
        [vec![tag, length], content].concat()
    }
    let subtree = |kind: u8, base: Vec<u8>| of(SEQUENCE, &[of(kind, &[base])]);
    let permitted = subtree(DNS, NAMES.as_bytes().to_vec());
    let excluded = [subtree(ADDRESS, vec![0; 8]), subtree(ADDRESS, vec![0; 32])];
    of(
        SEQUENCE,
        &[of(PERMITTED, &[permitted]), of(EXCLUDED, &excluded)],
    )
}

/// The certificate (PEM) of a chain that is this key's, if it makes a CA for the mesh. Of what follows it
/// in the chain nothing is kept.
///
/// # Errors
/// Why it does not.
pub fn signed_ca(mesh: &str, key: &str, chain: &str) -> Result<String, IdentityError> {
    let wrong = |why: String| IdentityError::Signed(why);
    let der = CertificateDer::from_pem_slice(chain.as_bytes());
    let der = der.map_err(|e| wrong(format!("is none ({e})")))?;
    let (_, read) = x509_parser::parse_x509_certificate(&der)
        .map_err(|e| wrong(format!("cannot be read ({e})")))?;
    let constraints = read.basic_constraints();
    let constraints = constraints.map_err(|e| wrong(format!("has wrong constraints ({e})")))?;
    if !constraints.is_some_and(|found| found.value.ca) {
        return Err(wrong("is no CA's: it may sign nothing".to_owned()));
    }
    let usage = read.key_usage();
    let usage = usage.map_err(|e| wrong(format!("has wrong usages ({e})")))?;
    if usage.is_some_and(|found| !found.value.key_cert_sign()) {
        return Err(wrong("may sign no certificates (key usages)".to_owned()));
    }
    let cert = pem("CERTIFICATE", &der);
    let ca = Ca::read(&cert, key).map_err(|e| wrong(format!("is of no use ({e})")))?;
    let now = SystemTime::now();
    if ca.holds().left(now).is_none() {
        return Err(wrong("is over already".to_owned()));
    }
    let unix = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH);
    let soon = unix(now + SKEW).unwrap_or_default();
    if ca.holds().from > soon.as_secs() {
        let text = "is not good yet (or the operator's clock is behind)";
        return Err(wrong(text.to_owned()));
    }
    tried(&ca, mesh).map_err(|e| wrong(format!("gives none that parts would take ({e})")))?;
    Ok(cert)
}

/// Whether parts would take what this CA signs.
fn tried(ca: &Ca, mesh: &str) -> Result<(), IdentityError> {
    let key = KeyPair::generate()?;
    let node = NodeId([0; 16]);
    let who = Who {
        mesh: mesh.to_owned(),
        role: Role::Peer,
        node: node.to_string(),
    };
    let names = vec![
        node_name(&node),
        SCHEDULER_NAME.to_owned(),
        issuer_name(mesh),
    ];
    let server =
        ServerName::try_from(SCHEDULER_NAME).map_err(|e| IdentityError::Mismatch(e.to_string()))?;
    let given = ca.issue(&key, names, &who, Duration::from_secs(3600))?;
    taken(ca.der(), &given, &[], &server).map_err(|e| IdentityError::Mismatch(e.to_string()))
}

/// Whether a certificate is taken, from a server and from a client, by who trusts this root alone.
fn taken(
    root: &CertificateDer<'static>,
    given: &CertificateDer<'static>,
    between: &[CertificateDer<'static>],
    server: &ServerName<'_>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let now = UnixTime::now();
    WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()?
        .verify_server_cert(given, between, server, &[], now)?;
    WebPkiClientVerifier::builder_with_provider(roots, provider)
        .build()?
        .verify_client_cert(given, between, now)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CertifiedIssuer, DnType, SubjectPublicKeyInfo};
    use rustls::pki_types::CertificateSigningRequestDer;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::cri_attributes::ParsedCriAttribute;
    use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
    use x509_parser::prelude::FromDer;

    const DAY: Duration = Duration::from_secs(86_400);

    /// A company's CA.
    fn company() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "the company");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        CertifiedIssuer::self_signed(params, key).unwrap()
    }

    /// What a request asks for.
    fn extensions<'a>(read: &'a X509CertificationRequest<'_>) -> Vec<X509Extension<'a>> {
        let attributes = read.certification_request_info.iter_attributes();
        let wanted = attributes.filter_map(|a| match a.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(wanted) => Some(wanted.extensions.clone()),
            _ => None,
        });
        wanted.flatten().collect()
    }

    /// A key, and what the company makes of its request for a mesh: a CA for a day, but for a change.
    fn asked(
        company: &CertifiedIssuer<'static, KeyPair>,
        mesh: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let key = ca_key().unwrap();
        let pem = ca_request(mesh, &key).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, read) = X509CertificationRequest::from_der(&der).unwrap();
        let mut params = named(mesh).unwrap();
        let now = SystemTime::now();
        params.not_before = now.into();
        params.not_after = (now + DAY).into();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        for extension in extensions(&read) {
            if let ParsedExtension::NameConstraints(_) = extension.parsed_extension() {
                let value = extension.value.to_vec();
                let mut same = CustomExtension::from_oid_content(&NAME_CONSTRAINTS, value);
                same.set_criticality(extension.critical);
                params.custom_extensions.push(same);
            }
        }
        change(&mut params);
        let public = read.certification_request_info.subject_pki.raw;
        let public = SubjectPublicKeyInfo::from_der(public).unwrap();
        let cert = params.signed_by(&public, company).unwrap();
        // As issuers answer: with their own certificate behind it.
        (key, cert.pem() + &company.pem())
    }

    #[test]
    fn what_a_company_signed_is_the_meshs_ca_and_parts_take_what_it_gives() {
        let company = company();
        let (key, chain) = asked(&company, "m", |_| ());
        let cert = signed_ca("m", &key, &chain).unwrap();
        assert_eq!(cert.matches("BEGIN").count(), 1);
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let (_, read) = x509_parser::parse_x509_certificate(&der).unwrap();
        let (_, signer) = x509_parser::parse_x509_certificate(company.der()).unwrap();
        assert_eq!(read.issuer(), signer.subject());
        assert!(read.subject().to_string().contains("Dragonfly mesh m"));
    }

    #[test]
    fn what_is_wrong_with_what_was_signed_is_said() {
        type Change = fn(&mut CertificateParams);
        let rows: [(Change, &str); 5] = [
            (|params| params.is_ca = IsCa::ExplicitNoCa, "is no CA's"),
            (
                |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature],
                "may sign no certificates",
            ),
            (
                |params| params.not_after = SystemTime::now().into(),
                "is over already",
            ),
            (
                |params| params.not_before = (SystemTime::now() + DAY / 2).into(),
                "is not good yet",
            ),
            (
                |params| {
                    let subtree = rcgen::GeneralSubtree::DnsName("company.example".to_owned());
                    params.custom_extensions.clear();
                    params.name_constraints = Some(rcgen::NameConstraints {
                        permitted_subtrees: vec![subtree],
                        excluded_subtrees: vec![],
                    });
                },
                "parts would take",
            ),
        ];
        let company = company();
        for (change, says) in rows {
            let (key, chain) = asked(&company, "m", change);
            let said = signed_ca("m", &key, &chain).unwrap_err().to_string();
            assert!(said.contains(says), "{says}: {said}");
        }
        let (_, chain) = asked(&company, "m", |_| ());
        let said = signed_ca("m", &ca_key().unwrap(), &chain).unwrap_err();
        assert!(said.to_string().contains("another's"), "{said}");
        for none in [
            "",
            "x",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(signed_ca("m", &ca_key().unwrap(), none).is_err(), "{none}");
        }
    }

    #[test]
    fn another_mesh_of_the_same_company_stays_a_stranger() {
        let company = company();
        let ca = |mesh: &str| {
            let (key, chain) = asked(&company, mesh, |_| ());
            Ca::read(&signed_ca(mesh, &key, &chain).unwrap(), &key).unwrap()
        };
        let (own, other) = (ca("m"), ca("n"));
        let server = ServerName::try_from(SCHEDULER_NAME).unwrap();
        let given = |ca: &Ca| {
            let who = Who {
                mesh: "m".to_owned(),
                role: Role::Scheduler,
                node: "s".to_owned(),
            };
            let key = KeyPair::generate().unwrap();
            let names = vec![SCHEDULER_NAME.to_owned()];
            ca.issue(&key, names, &who, Duration::from_secs(60))
                .unwrap()
        };
        let trusts = own.der();
        taken(trusts, &given(&own), &[], &server).unwrap();
        // Whatever he shows with it.
        let shown = [
            other.der().clone(),
            company.der().clone(),
            own.der().clone(),
        ];
        for between in [&[][..], &shown[..]] {
            let refused = taken(trusts, &given(&other), between, &server).unwrap_err();
            assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
        }
        // And who trusts the company believes it of no name but meshes'.
        let root = company.der().clone();
        let ends = [own.der().clone()];
        taken(&root, &given(&own), &ends, &server).unwrap();
        let key = KeyPair::generate().unwrap();
        let who = Who {
            mesh: "m".to_owned(),
            role: Role::Peer,
            node: "n".to_owned(),
        };
        let name = "intranet.company.example";
        let faked = own.issue(&key, vec![name.to_owned()], &who, DAY).unwrap();
        let server = ServerName::try_from(name).unwrap();
        let refused = taken(&root, &faked, &ends, &server).unwrap_err();
        assert!(refused.to_string().contains("NameConstraint"), "{refused}");
    }

    #[test]
    fn the_request_is_for_a_ca_of_the_meshs_own_names_and_no_others() {
        let pem = ca_request("m", &ca_key().unwrap()).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, read) = X509CertificationRequest::from_der(&der).unwrap();
        let subject = read.certification_request_info.subject.to_string();
        assert_eq!(subject, "CN=Dragonfly mesh m");
        let all = extensions(&read);
        let mut found = 0;
        for extension in &all {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(wanted) => {
                    assert!(wanted.ca && wanted.path_len_constraint == Some(0));
                }
                ParsedExtension::KeyUsage(wanted) => {
                    assert!(wanted.key_cert_sign() && wanted.crl_sign());
                    assert!(wanted.digital_signature() && !wanted.key_encipherment());
                }
                ParsedExtension::NameConstraints(wanted) => {
                    let permitted = wanted.permitted_subtrees.as_ref().unwrap();
                    assert_eq!(permitted.len(), 1);
                    assert_eq!(permitted[0].base, GeneralName::DNSName(NAMES));
                    let excluded = wanted.excluded_subtrees.as_ref().unwrap();
                    let none = |base: &GeneralName<'_>| matches!(base, GeneralName::IPAddress(all) if all.iter().all(|b| *b == 0));
                    assert!(excluded.len() == 2 && excluded.iter().all(|one| none(&one.base)));
                    assert!(extension.critical);
                }
                other => panic!("{other:?}"),
            }
            found += 1;
        }
        assert_eq!(found, 3);
    }
}
