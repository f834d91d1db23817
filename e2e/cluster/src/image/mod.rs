//! Container images without any tool for images: layers are tars, the rest is JSON with digests, as in
//! the OCI image specification 1.1.
//!
//! - [`Tree`]: the files of a layer
//! - [`Image`]: layers and how to run them; pushed by [`crate::Registry`] or written as a layout
//! - [`base()`]: what a dynamically linked program needs, from this machine's packages
//! - [`COMPONENTS`]: the images of this project

mod base;
mod component;
mod elf;
mod tree;

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use dragonfly_e2e::{Failed, Result};
use serde_json::{Value, json};

pub use base::{NONROOT, base};
pub use component::{COMPONENTS, Component, component};
pub use tree::Tree;

use crate::hex;

/// The processor that an image's programs are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Architecture {
    /// This machine's.
    pub const HERE: Self = if cfg!(target_arch = "aarch64") {
        Self::Arm64
    } else {
        Self::Amd64
    };

    /// As images say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Bytes that are named by what they hash to.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:<hex>`.
    pub digest: String,
    /// The bytes.
    pub bytes: Bytes,
}

impl Blob {
    fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let digest = format!("sha256:{}", hex(digest(&SHA256, &bytes).as_ref()));
        Self { digest, bytes }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// An image for one processor.
#[derive(Debug, Clone)]
pub struct Image {
    /// Which.
    pub architecture: Architecture,
    /// The program that a container of it runs, with its first arguments.
    pub entrypoint: Vec<String>,
    /// Who it runs as: `uid:gid`.
    pub user: String,
    /// Environment: `NAME=value`.
    pub environment: Vec<String>,
    layers: Vec<Blob>,
}

impl Image {
    /// Without layers yet; runs as root.
    pub fn new(architecture: Architecture, entrypoint: &[&str]) -> Self {
        Self {
            architecture,
            entrypoint: entrypoint.iter().map(|s| (*s).to_owned()).collect(),
            user: "0:0".to_owned(),
            environment: vec!["PATH=/usr/bin:/bin".to_owned()],
            layers: vec![],
        }
    }

    /// Puts files over those of earlier layers.
    ///
    /// # Errors
    /// The names or sizes do not fit into a tar.
    pub fn layer(mut self, tree: Tree) -> Result<Self> {
        self.layers.push(Blob::new(tree.into_tar()?));
        Ok(self)
    }

    /// Runs as user and group.
    #[must_use]
    pub fn user(mut self, id: u32) -> Self {
        self.user = format!("{id}:{id}");
        self
    }

    /// Its layers and its configuration.
    pub fn blobs(&self) -> Vec<Blob> {
        let mut all = self.layers.clone();
        all.push(self.config());
        all
    }

    fn config(&self) -> Blob {
        let digests: Vec<_> = self.layers.iter().map(|l| l.digest.clone()).collect();
        // Layers are not compressed, so a layer's digest is its tar's.
        let config = json!({
            "architecture": self.architecture.name(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": self.environment,
                "User": self.user,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
        });
        Blob::new(config.to_string())
    }

    /// Its manifest: what a tag means.
    pub fn manifest(&self) -> Blob {
        let layers: Vec<_> = self.layers.iter().map(|l| l.descriptor(LAYER)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config().descriptor(CONFIG),
            "layers": layers,
        });
        Blob::new(manifest.to_string())
    }

    /// Writes an OCI image layout as a tar, which container tools import.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_layout(&self, path: &Path, name: &str) -> Result<()> {
        let mut tree = Tree::default();
        let manifest = self.manifest();
        let mut descriptor = manifest.descriptor(MANIFEST);
        descriptor["platform"] = json!({"architecture": self.architecture.name(), "os": "linux"});
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        tree.file(
            "oci-layout",
            0o644,
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        );
        tree.file("index.json", 0o644, index.to_string());
        for blob in self.blobs().into_iter().chain([manifest]) {
            let hex = blob.digest.trim_start_matches("sha256:").to_owned();
            tree.file(&format!("blobs/sha256/{hex}"), 0o644, blob.bytes);
        }
        std::fs::write(path, tree.into_tar()?).map_err(|e| Failed::at(path.display(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let mut tree = Tree::default();
        tree.file("bin/x", 0o755, "x");
        Image::new(Architecture::Amd64, &["/bin/x"])
            .layer(tree)
            .unwrap()
            .user(NONROOT)
    }

    #[test]
    fn the_same_files_make_the_same_image() {
        assert_eq!(image().manifest().digest, image().manifest().digest);
    }

    #[test]
    fn a_manifest_names_every_blob_by_digest_and_length() {
        let image = image();
        let manifest: Value = serde_json::from_slice(&image.manifest().bytes).unwrap();
        for blob in image.blobs() {
            let all = manifest["layers"]
                .as_array()
                .unwrap()
                .iter()
                .chain([&manifest["config"]]);
            let mut same = all.filter(|d| d["digest"] == blob.digest.as_str());
            assert_eq!(same.next().unwrap()["size"], blob.bytes.len());
        }
    }

    #[test]
    fn a_layout_is_a_tar_with_an_index_and_all_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        image().write_layout(&path, "dragonfly:test").unwrap();
        let mut archive = tar::Archive::new(std::fs::File::open(&path).unwrap());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(names.contains(&"index.json".to_owned()), "{names:?}");
        let blobs = names
            .iter()
            .filter(|n| n.starts_with("blobs/sha256/") && n.len() > 20);
        assert_eq!(blobs.count(), 3);
    }
}
