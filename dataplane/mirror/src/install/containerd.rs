//! What in containerd's own settings would silently keep it from reading `hosts.toml`.

use std::path::Path;

use dragonfly_proto::rpc;
use toml_edit::{Document, Item, Table};

/// Plugins that read settings of registries: of containerd 1 and 2, for kubelets.
const CRI: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];
/// The one that pulls since containerd 2.1.
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// Something that disables the mirror or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// It cannot be read.
    #[error("containerd's config.toml is no TOML ({0}): whether the mirror is used is not known")]
    Syntax(String),
    /// The directory is not named.
    #[error("no config_path is set in [plugins.\"{0}\".registry]: set it to {1}")]
    NoPath(&'static str, String),
    /// Several directories in one.
    #[error(
        "config_path of [plugins.\"{0}\"] lists several directories ({1}): containerd 2.1 and later \
         read it as one and use no mirror; name one, or set use_local_image_pull = true"
    )]
    List(&'static str, String),
    /// Another directory.
    #[error("config_path of [plugins.\"{0}\"] is {1}, the entries are in {2}")]
    Elsewhere(&'static str, String, String),
    /// The older way, which excludes this one.
    #[error(
        "[plugins.\"{0}\".registry.mirrors] is set: containerd then reads no hosts.toml; move what it \
         says to hosts.toml"
    )]
    Mirrors(&'static str),
}

impl Finding {
    /// As schedulers are told.
    #[must_use]
    pub const fn kind(&self) -> rpc::Finding {
        match self {
            Self::Syntax(_) => rpc::Finding::ConfigUnreadable,
            Self::NoPath(..) => rpc::Finding::ConfigPathMissing,
            Self::List(..) => rpc::Finding::ConfigPathList,
            Self::Elsewhere(..) => rpc::Finding::ConfigPathElsewhere,
            Self::Mirrors(_) => rpc::Finding::RegistryMirrors,
        }
    }
}

/// Looks through containerd's `config.toml` for what disables entries in `directory` (as containerd
/// names it).
#[must_use]
pub fn findings(config: &str, directory: &Path) -> Vec<Finding> {
    let document = match Document::parse(config) {
        Ok(document) => document,
        Err(error) => return vec![Finding::Syntax(error.message().to_owned())],
    };
    let root = document.as_table();
    let plugins = root.get("plugins").and_then(Item::as_table_like);
    let wanted = directory.display().to_string();
    let mut found = vec![];
    let registry = |name: &str| {
        plugins
            .and_then(|p| p.get(name))
            .and_then(Item::as_table_like)
            .and_then(|p| p.get("registry"))
            .and_then(Item::as_table_like)
    };
    // What is not set at all is set nowhere: said of the plugin of this file's version.
    let own = if version(root) >= 3 { CRI[1] } else { CRI[0] };
    let mut named = false;
    for plugin in CRI {
        let Some(registry) = registry(plugin) else {
            continue;
        };
        let mirrors = registry.get("mirrors").and_then(Item::as_table_like);
        if mirrors.is_some_and(|mirrors| !mirrors.is_empty()) {
            found.push(Finding::Mirrors(plugin));
        }
        if let Some(path) = registry.get("config_path").and_then(Item::as_str) {
            named |= !path.is_empty();
            found.extend(judge(plugin, path, &wanted));
        }
    }
    // The older way excludes it, and says what to do.
    let older = found.iter().any(|f| matches!(f, Finding::Mirrors(_)));
    if !named && !older {
        found.push(Finding::NoPath(own, wanted.clone()));
    }
    let transfer = plugins
        .and_then(|p| p.get(TRANSFER))
        .and_then(Item::as_table_like)
        .and_then(|p| p.get("config_path"))
        .and_then(Item::as_str);
    found.extend(transfer.and_then(|path| judge(TRANSFER, path, &wanted)));
    found
}

fn judge(plugin: &'static str, path: &str, wanted: &str) -> Option<Finding> {
    let same = |path: &str| path.trim_end_matches('/') == wanted.trim_end_matches('/');
    if path.is_empty() {
        return None;
    }
    if path.contains(':') {
        return Some(Finding::List(plugin, path.to_owned()));
    }
    (!same(path)).then(|| Finding::Elsewhere(plugin, path.to_owned(), wanted.to_owned()))
}

fn version(root: &Table) -> i64 {
    root.get("version").and_then(Item::as_integer).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(config: &str) -> Vec<Finding> {
        findings(config, Path::new("/etc/containerd/certs.d"))
    }

    #[test]
    fn what_disables_the_mirror_is_said() {
        let v1 = CRI[0];
        let v2 = CRI[1];
        let list = "/etc/containerd/certs.d:/etc/docker/certs.d";
        let rows = [
            (
                format!(
                    "version = 2\n[plugins.\"{v1}\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
                ),
                vec![],
            ),
            (
                format!(
                    "version = 3\n[plugins.\"{v2}\".registry]\nconfig_path = \"/etc/containerd/certs.d/\"\n"
                ),
                vec![],
            ),
            (
                "version = 2\n".to_owned(),
                vec![Finding::NoPath(v1, "/etc/containerd/certs.d".to_owned())],
            ),
            (
                format!("version = 3\n[plugins.\"{v2}\".registry]\nconfig_path = \"{list}\"\n"),
                vec![Finding::List(v2, list.to_owned())],
            ),
            (
                format!(
                    "version = 3\n[plugins.\"{v2}\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n[plugins.\"{TRANSFER}\"]\nconfig_path = \"{list}\"\n"
                ),
                vec![Finding::List(TRANSFER, list.to_owned())],
            ),
            (
                format!("version = 2\n[plugins.\"{v1}\".registry]\nconfig_path = \"/other\"\n"),
                vec![Finding::Elsewhere(
                    v1,
                    "/other".to_owned(),
                    "/etc/containerd/certs.d".to_owned(),
                )],
            ),
            (
                format!(
                    "version = 2\n[plugins.\"{v1}\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n"
                ),
                vec![Finding::Mirrors(v1)],
            ),
        ];
        for (config, wanted) in rows {
            assert_eq!(of(&config), wanted, "{config}");
        }
        assert!(matches!(of("a = ").as_slice(), [Finding::Syntax(_)]));
    }

    proptest! {
        #[test]
        fn any_text_is_looked_through(text in ".{0,200}") {
            let _ = of(&text);
        }
    }
}
