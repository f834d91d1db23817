//! The certificates of a cluster and the kubeconfigs that carry them.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use dragonfly_e2e::{Failed, Result};

/// The cluster's authority, and the directory that all of it is written to.
pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
    server: String,
}

/// A certificate's and a key's files.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pki {
    /// Makes the authority. `server` is the API server's URL, for kubeconfigs.
    pub(crate) fn new(dir: &Path, server: &str) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Failed::at(dir.display(), e))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "dragonfly-e2e");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let ca = CertifiedIssuer::self_signed(params, key()?).map_err(wrong)?;
        let pki = Self {
            ca,
            dir: dir.to_owned(),
            server: server.to_owned(),
        };
        private(&pki.ca_file(), &pki.ca.pem())?;
        Ok(pki)
    }

    /// The authority's certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The key pair that service account tokens are signed with; its files are key and public key.
    pub(crate) fn service_accounts(&self) -> Result<Pair> {
        let made = key()?;
        let files = self.pair("service-accounts");
        private(&files.key, &made.serialize_pem())?;
        private(&files.certificate, &made.public_key_pem())?;
        Ok(files)
    }

    /// A server's certificate, good as a client's too.
    pub(crate) fn server(&self, name: &str, addresses: &[IpAddr], names: &[&str]) -> Result<Pair> {
        let mut all: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        all.extend(addresses.iter().map(IpAddr::to_string));
        self.issue(name, name, None, all)
    }

    /// A client's certificate.
    pub(crate) fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Pair> {
        self.issue(file, user, group, vec![])
    }

    fn issue(
        &self,
        file: &str,
        name: &str,
        group: Option<&str>,
        alternatives: Vec<String>,
    ) -> Result<Pair> {
        let mut params = CertificateParams::new(alternatives).map_err(wrong)?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let made = key()?;
        let certificate = params.signed_by(&made, &self.ca).map_err(wrong)?;
        let files = self.pair(file);
        private(&files.certificate, &certificate.pem())?;
        private(&files.key, &made.serialize_pem())?;
        Ok(files)
    }

    /// Where the key of that name is.
    pub(crate) fn key_of(&self, name: &str) -> PathBuf {
        self.pair(name).key
    }

    fn pair(&self, name: &str) -> Pair {
        Pair {
            certificate: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
        }
    }

    /// A kubeconfig with all it needs inside, so that it can be copied.
    pub(crate) fn kubeconfig(
        &self,
        file: &str,
        user: &str,
        group: Option<&str>,
    ) -> Result<PathBuf> {
        let pair = self.client(file, user, group)?;
        let data = |path: &Path| {
            let bytes = fs::read(path).map_err(|e| Failed::at(path.display(), e))?;
            Ok(k8s_openapi::ByteString(bytes))
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "dragonfly-e2e", "cluster": {
                "server": self.server,
                "certificate-authority-data": data(&self.ca_file())?,
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": data(&pair.certificate)?,
                "client-key-data": data(&pair.key)?,
            }}],
            "contexts": [{"name": "dragonfly-e2e", "context": {
                "cluster": "dragonfly-e2e", "user": user,
            }}],
            "current-context": "dragonfly-e2e",
        });
        let path = self.dir.join(format!("{file}.kubeconfig"));
        private(&path, &config.to_string())?;
        Ok(path)
    }
}

fn key() -> Result<KeyPair> {
    KeyPair::generate().map_err(wrong)
}

fn wrong(e: rcgen::Error) -> Failed {
    Failed::at("a certificate of the cluster", e)
}

/// Writes a file that its owner alone reads.
fn private(path: &Path, text: &str) -> Result<()> {
    let opened = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let mut file = opened.map_err(|e| Failed::at(path.display(), e))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(|e| Failed::at(path.display(), e))
}
