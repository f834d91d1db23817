//! The arrows of ARCHITECTURE.md, held to what Cargo knows: who may use whom, and what the pure
//! crates may not drag in.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// For each crate of the workspace, the crates of the workspace that it may use.
const ARROWS: [(&str, &[&str]); 18] = [
    ("dragonfly-crds", &[]),
    ("dragonfly-proto", &[]),
    ("dragonfly-swarm", &[]),
    ("dragonfly-source", &[]),
    ("dragonfly-storage", &["dragonfly-proto"]),
    ("dragonfly-transport", &["dragonfly-proto"]),
    (
        "dragonfly-identity",
        &["dragonfly-proto", "dragonfly-transport"],
    ),
    ("dragonfly-client", &["dragonfly-proto"]),
    (
        "dragonfly-scheduler",
        &["dragonfly-proto", "dragonfly-swarm", "dragonfly-transport"],
    ),
    (
        "dragonfly-kubernetes",
        &["dragonfly-crds", "dragonfly-proto"],
    ),
    (
        "dragonfly-node",
        &[
            "dragonfly-proto",
            "dragonfly-source",
            "dragonfly-storage",
            "dragonfly-swarm",
            "dragonfly-transport",
        ],
    ),
    (
        "dragonfly-mirror",
        &["dragonfly-node", "dragonfly-proto", "dragonfly-source"],
    ),
    ("dragonfly-operator-core", &["dragonfly-crds"]),
    (
        "dragonfly-controllers",
        &[
            "dragonfly-crds",
            "dragonfly-identity",
            "dragonfly-operator-core",
        ],
    ),
    // Binaries wire everything.
    ("dragonfly", &["*"]),
    (
        "dragonfly-operator",
        &["dragonfly-controllers", "dragonfly-operator-core"],
    ),
    ("dragonfly-e2e", &["*"]),
    (
        "dragonfly-cluster",
        &["dragonfly-e2e", "dragonfly-identity"],
    ),
];

/// Pure crates know no runtime, no socket, no gRPC, no client of Kubernetes.
const PURE: [&str; 3] = [
    "dragonfly-crds",
    "dragonfly-swarm",
    "dragonfly-operator-core",
];
const BANNED: [&str; 7] = [
    "tokio",
    "tonic",
    "hyper",
    "reqwest",
    "kube-client",
    "kube-runtime",
    "socket2",
];

fn tree(args: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let out = Command::new(cargo).arg("tree").args(args).output().unwrap();
    assert!(
        out.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn arrows_between_crates_point_one_way() {
    let rules: BTreeMap<_, _> = ARROWS.into_iter().collect();
    for (name, allowed) in &rules {
        let listed = tree(&[
            "-p", name, "-e", "normal", "--depth", "1", "--prefix", "none",
        ]);
        let used: BTreeSet<_> = listed
            .lines()
            .skip(1)
            .filter_map(|l| l.split_whitespace().next())
            .filter(|n| n.starts_with("dragonfly"))
            .collect();
        for other in used {
            assert!(
                rules.contains_key(other),
                "{other} has no rule: add it here and to the map"
            );
            let ok = allowed.contains(&"*") || allowed.contains(&other);
            assert!(
                ok,
                "{name} uses {other}, which ARCHITECTURE.md does not allow"
            );
        }
    }
}

#[test]
fn every_crate_of_the_workspace_has_its_rule() {
    let listed = tree(&["--workspace", "--depth", "0", "--prefix", "none"]);
    for name in listed.lines().filter_map(|l| l.split_whitespace().next()) {
        assert!(ARROWS.iter().any(|(n, _)| n == &name), "{name} has no rule");
    }
}

#[test]
fn the_pure_crates_drag_in_no_runtime() {
    for name in PURE {
        let listed = tree(&["-p", name, "-e", "normal", "--prefix", "none"]);
        for line in listed.lines() {
            let used = line.split_whitespace().next().unwrap_or_default();
            assert!(!BANNED.contains(&used), "{name} drags in {used}");
        }
    }
}

#[test]
fn there_is_one_provider_of_cryptography() {
    let listed = tree(&["--workspace", "-e", "normal", "--prefix", "none"]);
    assert!(
        !listed.lines().any(|l| l.starts_with("ring ")),
        "ring is in the build"
    );
}

/// The files of a directory and of those below it whose names end so.
fn files_below(dir: &std::path::Path, end: &str, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && !name.as_encoded_bytes().starts_with(b".") {
            files_below(&path, end, found);
        } else if name.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_the_table_of_faults_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![];
    files_below(&root.join("e2e"), ".rs", &mut files);
    files_below(&root.join("dataplane"), ".rs", &mut files);
    let sources: Vec<_> = files
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let text = std::fs::read_to_string(root.join("docs/testing.md")).unwrap();
    let table = text.split("## Faults and bad input").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let names: Vec<_> = words.filter(|word| word.len() > 20).collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let wanted = format!("fn {name}(");
        assert!(sources.iter().any(|s| s.contains(&wanted)), "{name}");
    }
}
