//! The arrows of ARCHITECTURE.md, held to what Cargo knows: who may use whom, and what the pure
//! crates may not drag in.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// For each crate of the workspace, the crates of the workspace that it may use.
const ARROWS: [(&str, &[&str]); 20] = [
    ("dragonfly-crds", &[]),
    ("dragonfly-proto", &[]),
    ("dragonfly-swarm", &[]),
    ("dragonfly-source", &[]),
    ("dragonfly-storage", &["dragonfly-proto"]),
    ("dragonfly-admin", &[]),
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
            "dragonfly-kubernetes",
            "dragonfly-operator-core",
            "dragonfly-proto",
        ],
    ),
    // Binaries wire everything.
    ("dragonfly", &["*"]),
    (
        "dragonfly-operator",
        &[
            "dragonfly-admin",
            "dragonfly-controllers",
            "dragonfly-operator-core",
        ],
    ),
    (
        "dragonfly-kubectl",
        &[
            "dragonfly-crds",
            "dragonfly-operator-core",
            "dragonfly-proto",
        ],
    ),
    ("dragonfly-e2e", &["*"]),
    (
        "dragonfly-cluster",
        &["dragonfly-crds", "dragonfly-e2e", "dragonfly-identity"],
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

/// The text of every Rust file of the project.
fn sources() -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![];
    for dir in ["crds", "dataplane", "e2e", "operator"] {
        files_below(&root.join(dir), ".rs", &mut files);
    }
    let texts = files
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap());
    texts.collect()
}

/// What stands in backquotes in the tables of a page and is as long as the name of a test.
fn named_tests(page: &str, after: &str) -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join(page)).unwrap();
    let tables = text.split_once(after).unwrap().1;
    let rows = tables.lines().filter(|line| line.starts_with("| "));
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let is_name = |word: &&str| word.len() > 20 && word.contains('_') && !word.contains('.');
    words.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn every_test_that_the_table_of_faults_names_is_there() {
    let sources = sources();
    for (page, after, least) in [
        ("docs/testing.md", "## Faults and bad input", 30),
        ("docs/threat-model.md", "## Attacks by who", 30),
        ("docs/troubleshooting.md", "## The likeliest mistakes", 10),
    ] {
        let names = named_tests(page, after);
        assert!(names.len() > least, "{page}: {names:?}");
        for name in names {
            let wanted = format!("fn {name}(");
            assert!(
                sources.iter().any(|s| s.contains(&wanted)),
                "{page}: {name}"
            );
        }
    }
}

#[test]
fn every_attack_and_every_mistake_names_a_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let rows_of = |page: &str, after: &str| -> Vec<String> {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let tables = text.split_once(after).unwrap().1;
        let rows = tables.lines().filter(|line| line.starts_with("| "));
        rows.map(str::to_owned).collect()
    };
    let mut rows = rows_of("docs/threat-model.md", "## Attacks by who");
    rows.extend(rows_of(
        "docs/troubleshooting.md",
        "## The likeliest mistakes",
    ));
    let titles = ["| attack", "| mistake", "| ---"];
    for row in rows
        .iter()
        .filter(|row| !titles.iter().any(|title| row.starts_with(title)))
    {
        let last = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        assert!(last.starts_with('`') && last.len() > 20, "{row}");
    }
}
