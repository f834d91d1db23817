//! The data plane on a cluster, as plain objects: a scheduler, a seed, a peer on each node.

use std::collections::BTreeMap;
use std::path::Path;

use dragonfly_identity::Authority;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;

use dragonfly_e2e::{Failed, Result};

/// An origin inside the cluster, with one file: [`CONTENT`].
pub const ORIGIN: &str = include_str!("../manifests/origin.yaml");
/// The path and the length of what the origin serves.
pub const CONTENT: (&str, u64) = ("content.bin", 64 << 20);

const MESH: &str = include_str!("../manifests/mesh.yaml");
/// The mesh's name, as parts of it say it by default.
const NAME: &str = "default";

/// A mesh with an authority of its own: the Secrets of its keys, and everything that runs.
///
/// # Errors
/// No keys can be made, or there is no place for them.
pub fn manifest() -> Result<String> {
    Ok(format!("{}\n---\n{MESH}", secrets()?))
}

/// The Secrets of a new mesh: `mesh-authority` for its schedulers, `mesh-join` for its nodes.
///
/// # Errors
/// No keys can be made, or there is no place for them.
pub fn secrets() -> Result<String> {
    let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    Authority::load_or_create(dir.path(), NAME).map_err(|e| Failed::at("the mesh's keys", e))?;
    let mut all = BTreeMap::new();
    let listed = std::fs::read_dir(dir.path()).map_err(|e| Failed::at("the mesh's keys", e))?;
    for path in listed.flatten().map(|e| e.path()) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        all.insert(name, k8s_openapi::ByteString(read(&path)?));
    }
    let join = all.iter().filter(|(name, _)| *name == "join-token");
    let join = join
        .map(|(name, bytes)| (name.clone(), bytes.clone()))
        .collect();
    let secrets = [secret("mesh-authority", all)?, secret("mesh-join", join)?];
    Ok(secrets.join("\n---\n"))
}

/// A Secret as JSON, which is YAML.
fn secret(name: &str, data: BTreeMap<String, k8s_openapi::ByteString>) -> Result<String> {
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    };
    serde_json::to_string(&secret).map_err(|e| Failed::at(name, e))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Failed::at(path.display(), e))
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;

    use super::*;

    #[test]
    fn a_mesh_has_the_secrets_that_its_pods_mount() {
        let objects = crate::apply::parse(&manifest().unwrap()).unwrap();
        let secrets = objects
            .iter()
            .filter(|o| o.types.as_ref().unwrap().kind == "Secret");
        let names: Vec<_> = secrets.map(ResourceExt::name_any).collect();
        assert_eq!(names, ["mesh-authority", "mesh-join"]);
        for name in names {
            assert!(MESH.contains(&format!("secretName: {name}")));
        }
        assert!(ORIGIN.contains(&format!("{}={}", CONTENT.0, CONTENT.1)));
    }
}
