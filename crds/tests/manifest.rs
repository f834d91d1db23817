//! Directories and files of manifests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may fail loudly"
)]

use std::fs;

use dragonfly_crds::manifest::{ChooseError, MAX_FILE, light_uid, load_dir, parse};
use dragonfly_crds::{Reason, manifest::Manifests};
use proptest::prelude::*;

const MESH: &str =
    "apiVersion: d7y.io/v1alpha1\nkind: Distribution\nmetadata: {name: NAME}\nspec: {}\n";

fn mesh(name: &str) -> String {
    MESH.replace("NAME", name)
}

fn load(files: &[(&str, &str)]) -> Result<Manifests, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    fs::create_dir(directory.path().join("below")).unwrap();
    let base = format!("{}/", directory.path().display());
    load_dir(directory.path()).map_err(|errors| {
        errors
            .iter()
            .map(|error| error.to_string().replace(&base, ""))
            .collect()
    })
}

#[test]
fn a_directory_gives_its_objects_and_says_what_it_left_out() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: dragonfly}\n---\n";
    let json = r#"{"apiVersion": "d7y.io/v1alpha1", "kind": "SchedulerPool",
        "metadata": {"name": "p", "namespace": "x"}, "spec": {"gateways": 2}}"#;
    let files = [
        ("b.yml", format!("{namespace}{}", mesh("b"))),
        ("a.yaml", mesh("a")),
        ("c.json", json.to_owned()),
        ("notes.txt", "hello".to_owned()),
        (".a.yaml.swp", "x".to_owned()),
        ("empty.yaml", "# nothing\n".to_owned()),
    ];
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .collect();
    let manifests = load(&files).unwrap();
    let names: Vec<_> = manifests
        .distributions
        .iter()
        .map(|item| item.object.metadata.name.clone())
        .collect();
    assert_eq!(names, [Some("a".to_owned()), Some("b".to_owned())]);
    assert_eq!(manifests.pools[0].object.spec.gateways, 2);
    assert_eq!(manifests.pools[0].object.spec.replicas, 1);
    let skipped: Vec<_> = manifests
        .skipped
        .iter()
        .map(|item| item.what.as_str())
        .collect();
    let wanted = [
        "hidden",
        "a directory",
        "neither .yaml nor .yml nor .json",
        "Namespace dragonfly",
    ];
    assert_eq!(skipped, wanted);
}

#[test]
fn one_mistake_names_file_line_and_field_and_gives_nothing() {
    let wrong = "# a comment\napiVersion: d7y.io/v1alpha1\nkind: Distribution\nmetadata:\n  name: b\n\
        spec:\n  storage:\n    highWatermarkPercent: 95\n    quota: plenty\n";
    let errors = load(&[("a.yaml", &mesh("a")), ("b.yaml", wrong)]).unwrap_err();
    assert_eq!(errors.len(), 1);
    let wanted =
        "b.yaml:9:5: Distribution default/b: spec.storage.quota: Invalid value: \"plenty\"";
    assert!(errors[0].starts_with(wanted), "{}", errors[0]);
}

#[test]
fn rows_of_files_that_are_refused() {
    let twice = format!("{}---\n{}", mesh("a"), mesh("a"));
    let rows = [
        ("a: [1", "a.yaml:"),
        (
            "just text",
            "a.yaml:1:1: malformed: a document must be an object",
        ),
        (
            "kind: Distribution",
            "a.yaml:1:1: apiVersion: Required value",
        ),
        (
            "apiVersion: d7y.io/v1alpha1",
            "a.yaml:1:1: kind: Required value",
        ),
        (
            "apiVersion: example.com/v1\nkind: Thing\n",
            "a.yaml:2:1: kind: unknown kind: Thing of example.com/v1",
        ),
        (
            "apiVersion: v1\nkind: List\nitems: []\n",
            "a.yaml:2:1: kind: unknown kind",
        ),
        (
            "kind: A\nkind: B\n",
            "a.yaml:2:1: kind: malformed: key \"kind\" already set",
        ),
        (
            &twice,
            "a.yaml:8:12: Distribution default/a: metadata.name: Duplicate value: the same object",
        ),
    ];
    for (text, wanted) in rows {
        let errors = load(&[("a.yaml", text)]).unwrap_err();
        assert!(errors[0].starts_with(wanted), "{text:?}: {}", errors[0]);
    }
    assert!(load_dir("/nowhere/at/all".as_ref()).is_err());
}

#[test]
fn a_mistake_that_only_the_resolver_finds_has_its_line_too() {
    let text = "kind: SchedulerPool\napiVersion: d7y.io/v1alpha1\nmetadata: {name: p}\nspec: {}\n---\n\
        kind: Distribution\napiVersion: d7y.io/v1alpha1\nmetadata: {name: d}\nspec:\n  \
        schedulerPoolRef: {name: p}\n  storage:\n    quota: 1k\n";
    let manifests = parse("x.yaml", text.as_bytes()).unwrap();
    let errors = manifests
        .resolve(manifests.choose(None).unwrap(), None)
        .unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "x.yaml:12:5: Distribution default/d: spec.storage.quota: Invalid value: \"1k\": must be at least 64Mi"
    );
}

#[test]
fn what_needs_a_cluster_and_would_be_missed_is_refused_without_one() {
    let text = "kind: Distribution\napiVersion: d7y.io/v1alpha1\nmetadata: {name: d}\nspec:\n  \
        security:\n    issuerRef: {name: company}\n";
    let read = |text: &str| parse("x.yaml", text.as_bytes()).unwrap();
    let manifests = read(text);
    let chosen = manifests.choose(None).unwrap();
    let chosen = manifests.resolve(chosen, None).unwrap();
    let said = chosen.runs_alone().unwrap_err().to_string();
    let place = "x.yaml:6:5: Distribution default/d: spec.security.issuerRef: Invalid value: ";
    assert!(
        said.starts_with(place) && said.contains("leave it out"),
        "{said}"
    );
    let without = text.replace("issuerRef: {name: company}", "caGeneration: 1");
    let manifests = read(&without);
    let chosen = manifests.choose(None).unwrap();
    manifests
        .resolve(chosen, None)
        .unwrap()
        .runs_alone()
        .unwrap();
}

#[test]
fn exactly_one_distribution_is_chosen() {
    let none = load(&[]).unwrap();
    assert_eq!(none.choose(None), Err(ChooseError::None));
    let (a, b) = (mesh("a"), mesh("b"));
    let two = load(&[("a.yaml", &a), ("b.yaml", &b)]).unwrap();
    assert!(
        two.choose(None)
            .unwrap_err()
            .to_string()
            .contains("Distribution default/b")
    );
    for name in ["b", "default/b"] {
        let chosen = two.choose(Some(name)).unwrap();
        assert_eq!(chosen.object.metadata.name.as_deref(), Some("b"));
    }
    assert!(matches!(
        two.choose(Some("other/b")),
        Err(ChooseError::NotFound { .. })
    ));
}

#[test]
fn identity_without_a_cluster_is_stable() {
    let uid = light_uid("Distribution", "default", "default");
    assert_eq!(uid, "38556bbe-c110-8731-81e4-d52c652c9c8c");
    assert_ne!(uid, light_uid("Distribution", "default", "other"));
}

#[test]
fn large_files_and_nested_ones_are_refused_before_they_cost_anything() {
    let large = " ".repeat(MAX_FILE + 1);
    let errors = parse("a", large.as_bytes()).unwrap_err();
    assert!(errors[0].message.contains("at most"));
    assert_eq!(errors[0].reason, Reason::Malformed);
    assert!(parse("a", &[0xff, 0xfe]).is_err());
    for pattern in ["[", "{a: ", "- ", "? ", "a: &a [*a, ", "'"] {
        let text = pattern.repeat(MAX_FILE / pattern.len());
        assert!(parse("a", text.as_bytes()).is_err(), "{pattern}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = parse("a", &bytes);
    }

    #[test]
    fn no_text_of_yaml_makes_it_panic(text in "[-a-c0-9:{}\\[\\]&*!|>'\"#?,.%~<\n \t]{0,200}") {
        let _ = parse("a", text.as_bytes());
    }

    #[test]
    fn no_change_of_a_manifest_makes_it_panic(at in 0usize..400, text in "\\PC{0,12}") {
        let whole = include_str!("../../config/samples/profiles/standard.yaml");
        let at = at % whole.len();
        if whole.is_char_boundary(at) {
            let changed = format!("{}{text}{}", &whole[..at], &whole[at..]);
            if let Ok(manifests) = parse("a", changed.as_bytes()) {
                for distribution in &manifests.distributions {
                    let _ = manifests.resolve(distribution, None);
                }
            }
        }
    }
}
