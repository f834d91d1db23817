//! The samples in `config/samples` are what their directories say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may fail loudly"
)]

use std::path::{Path, PathBuf};

use dragonfly_crds::manifest::{ManifestError, load_dir};
use dragonfly_crds::policy::Policy;

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../config/samples")
        .join(name)
}

fn files(name: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn join(errors: &[ManifestError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Loads a file and resolves every Distribution in it.
fn run(path: &Path) -> Result<Vec<Policy>, Vec<ManifestError>> {
    let manifests = load_dir(path)?;
    let mut policies = Vec::new();
    for distribution in &manifests.distributions {
        policies.push(manifests.resolve(distribution, None)?.policy);
    }
    Ok(policies)
}

/// The field and the beginning of reason and message that a file expects.
fn expectation(path: &Path) -> (String, String) {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text
        .lines()
        .next()
        .unwrap()
        .strip_prefix("# expect: ")
        .unwrap();
    let (field, rest) = line.split_once(": ").unwrap();
    (field.to_owned(), rest.to_owned())
}

fn holds_to_its_expectation(path: &Path, errors: &[ManifestError]) {
    let (field, fragment) = expectation(path);
    let name = path.display();
    assert_eq!(errors.len(), 1, "{name}: {}", join(errors));
    let error = &errors[0];
    let said = format!("{}: {}", error.reason, error.message);
    assert!(
        error.field == field && said.starts_with(&fragment),
        "{name}: {error}"
    );
    assert!(
        error.position.line > 1,
        "{name} has its first field after the comment: {error}"
    );
}

#[test]
fn every_rejected_sample_is_rejected_by_the_schema_for_its_reason() {
    for path in files("rejected") {
        holds_to_its_expectation(
            &path,
            &load_dir(&path).expect_err(&path.display().to_string()),
        );
    }
}

#[test]
fn every_stalled_sample_passes_the_schema_and_not_the_resolver() {
    for path in files("stalled") {
        let manifests = load_dir(&path).unwrap_or_else(|errors| panic!("{}", join(&errors)));
        let errors = manifests
            .resolve(&manifests.distributions[0], None)
            .unwrap_err();
        holds_to_its_expectation(&path, &errors);
    }
}

#[test]
fn every_accepted_sample_becomes_a_policy_that_survives_its_encoding() {
    for path in files("accepted")
        .into_iter()
        .chain(files("profiles"))
        .chain(files("preheats"))
        .chain(files("external"))
        .chain(files(""))
    {
        // The first mesh refers to a pool in another file of its directory.
        if path.ends_with("distribution.yaml") {
            continue;
        }
        for policy in run(&path).unwrap_or_else(|errors| panic!("{}", join(&errors))) {
            assert_eq!(Policy::decode(&policy.encode().unwrap()).unwrap(), policy);
        }
    }
}

#[test]
fn the_directory_of_the_first_mesh_holds_exactly_one() {
    let manifests = load_dir(&directory("")).unwrap_or_else(|errors| panic!("{}", join(&errors)));
    let chosen = manifests
        .resolve(manifests.choose(None).unwrap(), None)
        .unwrap();
    assert!(chosen.pool.is_some());
    assert!(
        chosen.policy.source_http.allow_loopback,
        "the demo's origin is on the same machine"
    );
    let skipped: Vec<_> = manifests
        .skipped
        .iter()
        .map(|skipped| skipped.what.as_str())
        .collect();
    assert_eq!(
        skipped
            .iter()
            .filter(|what| **what == "a directory")
            .count(),
        6
    );
}

#[test]
fn every_rule_and_every_bounded_field_has_a_rejected_sample() {
    let rejected: Vec<_> = files("rejected")
        .iter()
        .map(|path| expectation(path))
        .collect();
    let mut rules = std::collections::BTreeSet::new();
    for (_, crd) in dragonfly_crds::crdgen::crds().unwrap() {
        messages(&crd, &mut rules);
    }
    assert!(rules.len() >= 13, "rules are not found: {rules:?}");
    for (field, _) in &rejected {
        assert!(!field.is_empty());
    }
    let messages: Vec<_> = files("rejected")
        .iter()
        .map(|path| join(&load_dir(path).unwrap_err()))
        .collect();
    for rule in rules {
        assert!(
            messages.iter().any(|message| message.contains(&rule)),
            "{rule}"
        );
    }
}

/// What the rules of a schema say when they do not hold.
fn messages(schema: &serde_json::Value, into: &mut std::collections::BTreeSet<String>) {
    match schema {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let rules = value
                    .as_array()
                    .filter(|_| name == "x-kubernetes-validations");
                for rule in rules.into_iter().flatten() {
                    into.insert(rule["message"].as_str().unwrap().to_owned());
                }
                messages(value, into);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| messages(item, into)),
        _ => {}
    }
}
