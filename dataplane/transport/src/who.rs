//! Who a certificate says that its holder is: `spiffe://MESH/ROLE/NODE` in its one URI.
//!
//! The chain is rustls' business; what is read here is believed only of a certificate that chains to
//! the mesh's CA.

use std::fmt;

use rustls::pki_types::CertificateDer;

use crate::security::SecurityError;

/// What a part of a mesh may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Tells nodes of each other.
    Scheduler,
    /// Goes to origins for others.
    Seed,
    /// One a machine.
    Peer,
    /// Looks at the mesh, and is no node of it.
    Viewer,
    /// Gives certificates.
    Issuer,
}

impl Role {
    const ALL: [Self; 5] = [
        Self::Scheduler,
        Self::Seed,
        Self::Peer,
        Self::Viewer,
        Self::Issuer,
    ];

    /// As certificates say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Seed => "seed",
            Self::Peer => "peer",
            Self::Viewer => "viewer",
            Self::Issuer => "issuer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The mesh: its UID, or the name of one without Kubernetes.
    pub mesh: String,
    /// What it is there.
    pub role: Role,
    /// The machine: Kubernetes' name of it; where there is no Kubernetes the node's identity, and of a
    /// scheduler its name.
    pub node: String,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri())
    }
}

impl Who {
    /// As a certificate says it.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("spiffe://{}/{}/{}", self.mesh, self.role, self.node)
    }

    /// Reads a certificate, whose chain somebody else checks.
    ///
    /// # Errors
    /// It says nothing of the kind, or it says it twice.
    pub fn of(cert: &CertificateDer<'_>) -> Result<Self, SecurityError> {
        let parsed = webpki::EndEntityCert::try_from(cert).map_err(|_| SecurityError::NoNode)?;
        let mut uris = parsed.valid_uri_names();
        let (first, second) = (uris.next(), uris.next());
        match (first.and_then(Self::parse), second) {
            (Some(who), None) => Ok(who),
            _ => Err(SecurityError::NoNode),
        }
    }

    fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("spiffe://")?;
        // From the end: the name of a mesh without Kubernetes may be anything.
        let (rest, node) = rest.rsplit_once('/')?;
        let (mesh, role) = rest.rsplit_once('/')?;
        let role = Role::ALL.into_iter().find(|r| r.as_str() == role)?;
        (!mesh.is_empty() && !node.is_empty()).then(|| Self {
            mesh: mesh.to_owned(),
            role,
            node: node.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_says_mesh_role_and_node_and_others_say_nothing() {
        let who = Who {
            mesh: "0b1c".to_owned(),
            role: Role::Seed,
            node: "worker-1.example".to_owned(),
        };
        assert_eq!(who.uri(), "spiffe://0b1c/seed/worker-1.example");
        assert_eq!(Who::parse(&who.uri()), Some(who));
        let odd = Who::parse("spiffe://a/b/peer/n").unwrap();
        assert_eq!((odd.mesh.as_str(), odd.role), ("a/b", Role::Peer));
        for bad in [
            "",
            "spiffe://",
            "spiffe://m/peer",
            "spiffe://m/king/n",
            "spiffe:///peer/n",
            "spiffe://m/peer/",
            "https://m/peer/n",
        ] {
            assert_eq!(Who::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_certificate_says_who_once_or_not_at_all() {
        let made = |uris: &[&str]| {
            let mut params = rcgen::CertificateParams::new(vec!["n".to_owned()]).unwrap();
            for uri in uris {
                let uri = rcgen::SanType::URI((*uri).try_into().unwrap());
                params.subject_alt_names.push(uri);
            }
            let key = rcgen::KeyPair::generate().unwrap();
            let cert = params.self_signed(&key).unwrap();
            Who::of(cert.der())
        };
        assert_eq!(made(&["spiffe://m/peer/n"]).unwrap().node, "n");
        assert!(made(&[]).is_err());
        assert!(made(&["spiffe://m/peer/n", "spiffe://m/seed/n"]).is_err());
        assert!(Who::of(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }
}
