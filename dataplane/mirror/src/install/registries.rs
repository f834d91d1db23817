//! What a file of `registries.conf.d` is to be, for whatever reads `registries.conf` (CRI-O, podman),
//! without IO. Each registry is named in the mirror's path, for these clients send no `ns`.

use toml_edit::{Item, TableLike};

use super::files::Target;
use super::hosts::{self, Unsound};

/// A line of the entry that says who made the directory around it.
const MADE: &str = "# this directory was made for this file";

/// The text with a mirror at `mirror` (`127.0.0.1:4002`) for each of the registries; as it was where
/// there are none. `made`: the directory goes with the file.
///
/// # Errors
/// The text is not what such clients would read.
pub fn with_entry(
    text: &str,
    mirror: &str,
    registries: &[&Target],
    made: bool,
) -> Result<String, Unsound> {
    let text = hosts::without_entry(text)?;
    hosts::read(&text)?;
    let mut entry = String::new();
    for target in registries {
        let Some(host) = &target.registry else {
            continue;
        };
        let (location, insecure) = match target.server.as_deref() {
            None => (host.as_str(), false),
            Some(url) => match url.split_once("://") {
                Some((scheme, rest)) => (rest.trim_end_matches('/'), scheme == "http"),
                None => (url, false),
            },
        };
        entry.push_str(&format!(
            "[[registry]]\nprefix = \"{host}\"\nlocation = \"{location}\"\n"
        ));
        if insecure {
            entry.push_str("insecure = true\n");
        }
        // On loopback, so without TLS.
        entry.push_str(&format!(
            "[[registry.mirror]]\nlocation = \"{mirror}/{host}\"\ninsecure = true\n"
        ));
    }
    if entry.is_empty() {
        return Ok(text);
    }
    if made {
        entry = format!("{MADE}\n{entry}");
    }
    let made = hosts::between(&text, &entry, "");
    hosts::read(&made).map_err(|e| Unsound::NoPlace(e.to_string()))?;
    Ok(made)
}

/// Whether the directory was made for the file.
#[must_use]
pub fn made_directory(text: &str) -> bool {
    hosts::has_entry(text) && text.contains(MADE)
}

/// Whether a file says where a registry is: whoever says it anew would take away what it says.
///
/// # Errors
/// The text is no TOML.
pub fn names(text: &str, registry: &str) -> Result<bool, Unsound> {
    let text = hosts::without_entry(text)?;
    let document = hosts::read(&text)?;
    let says = |table: &dyn TableLike| {
        let value = |key: &str| table.get(key).and_then(Item::as_str);
        let prefix = value("prefix").filter(|p| !p.is_empty());
        prefix.or_else(|| value("location")) == Some(registry)
    };
    Ok(match document.as_table().get("registry") {
        Some(Item::ArrayOfTables(all)) => all.iter().any(|table| says(table)),
        Some(item) => item.as_array().is_some_and(|all| {
            let tables = all.iter().filter_map(|value| value.as_inline_table());
            tables.into_iter().any(|table| says(table))
        }),
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml_edit::Document;

    fn target(host: &str, server: Option<&str>) -> Target {
        Target {
            registry: Some(host.to_owned()),
            server: server.map(str::to_owned),
        }
    }

    #[test]
    fn each_registry_has_the_mirror_before_itself() {
        let all = [
            target("docker.io", None),
            target("r.test:5000", Some("http://10.0.0.5:5000/")),
        ];
        let all: Vec<_> = all.iter().collect();
        let made = with_entry("", "127.0.0.1:4002", &all, true).unwrap();
        let read = Document::parse(made.as_str()).unwrap();
        let registries = read["registry"].as_array_of_tables().unwrap();
        let shown: Vec<_> = registries
            .iter()
            .map(|r| {
                let mirrors = r["mirror"].as_array_of_tables().unwrap();
                let mirror = mirrors.get(0).unwrap();
                (
                    r["prefix"].as_str().unwrap(),
                    r["location"].as_str().unwrap(),
                    r.get("insecure").and_then(Item::as_bool),
                    mirror["location"].as_str().unwrap(),
                    mirror["insecure"].as_bool(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (
                    "docker.io",
                    "docker.io",
                    None,
                    "127.0.0.1:4002/docker.io",
                    Some(true)
                ),
                (
                    "r.test:5000",
                    "10.0.0.5:5000",
                    Some(true),
                    "127.0.0.1:4002/r.test:5000",
                    Some(true)
                ),
            ]
        );
        assert!(made_directory(&made));
        assert_eq!(hosts::without_entry(&made).unwrap(), "");
        // In a file with something else, which stays as it was.
        let own = "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"x\"";
        let both = with_entry(own, "127.0.0.1:4002", &all, false).unwrap();
        assert_eq!(hosts::without_entry(&both).unwrap(), own);
        assert!(!made_directory(&both));
        assert_eq!(
            with_entry(&both, "127.0.0.1:4002", &[], false).unwrap(),
            own
        );
    }

    #[test]
    fn what_another_file_says_of_a_registry_is_seen() {
        // As distributions ship them, and both ways to write one.
        let fedora = "unqualified-search-registries = [\"registry.fedoraproject.org\", \"docker.io\"]\n\
                      short-name-mode = \"enforcing\"\n[aliases]\n\"alpine\" = \"docker.io/library/alpine\"\n";
        let openshift = "[[registry]]\n  prefix = \"\"\n  location = \"quay.io/openshift\"\n  mirror-by-digest-only = true\n\
                         [[registry.mirror]]\n    location = \"mirror.test/openshift\"\n\
                         [[registry]]\nprefix = \"*.example.com\"\nlocation = \"r.test\"\n\
                         [[registry]]\nlocation = \"own.test:5000\"\ninsecure = true\n";
        let inline = "registry = [{prefix = \"in.test\", location = \"x\"}]\n";
        let rows = [
            (fedora, "docker.io", false),
            (openshift, "quay.io", false),
            (openshift, "quay.io/openshift", true),
            (openshift, "r.test", false),
            (openshift, "own.test:5000", true),
            (inline, "in.test", true),
            ("", "a", false),
        ];
        for (text, registry, is) in rows {
            assert_eq!(names(text, registry).unwrap(), is, "{registry} in {text}");
        }
        assert!(names("a = ", "x").is_err());
        let ours = with_entry("", "127.0.0.1:1", &[&target("a.test", None)], false).unwrap();
        assert!(
            !names(&ours, "a.test").unwrap(),
            "what is ours is no other's"
        );
    }
}
