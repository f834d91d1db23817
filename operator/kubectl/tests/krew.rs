//! The krew manifest names what is built.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::Value;

#[test]
fn the_krew_manifest_is_of_this_plugin_and_names_programs_that_are_built() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(own.join("../../config/krew/dragonfly.yaml")).unwrap();
    let manifest: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(
        manifest["apiVersion"],
        "krew.googlecontainertools.github.com/v1alpha2"
    );
    assert_eq!(
        (&manifest["kind"], &manifest["metadata"]["name"]),
        (&"Plugin".into(), &"dragonfly".into())
    );
    // kubectl finds a plugin, and its completion, by these names.
    let plugin = env!("CARGO_BIN_EXE_kubectl-dragonfly");
    let completion = env!("CARGO_BIN_EXE_kubectl_complete-dragonfly");
    let name = |path: &str| {
        Path::new(path)
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let caveats = manifest["spec"]["caveats"].as_str().unwrap();
    assert!(caveats.contains(&name(completion)), "{caveats}");
    let platforms = manifest["spec"]["platforms"].as_array().unwrap();
    let mut of = vec![];
    for platform in platforms {
        assert_eq!(platform["bin"], name(plugin));
        let labels = &platform["selector"]["matchLabels"];
        let (os, arch) = (
            labels["os"].as_str().unwrap(),
            labels["arch"].as_str().unwrap(),
        );
        let uri = platform["uri"].as_str().unwrap();
        assert!(
            uri.ends_with(&format!("{}_{os}_{arch}.tar.gz", name(plugin))),
            "{uri}"
        );
        assert!(platform["sha256"].is_string());
        of.push((os, arch));
    }
    assert_eq!(of, [("linux", "amd64"), ("linux", "arm64")]);
}

#[test]
fn the_completion_program_answers_as_kubectl_asks() {
    let asked = |line: &[&str]| {
        let mut command =
            std::process::Command::new(env!("CARGO_BIN_EXE_kubectl_complete-dragonfly"));
        let out = command.args(line).output().unwrap();
        assert!(out.status.success(), "{line:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let said = asked(&[""]);
    let words: Vec<_> = said.lines().filter_map(|l| l.split('\t').next()).collect();
    for word in [
        "check", "status", "top", "preheat", "tasks", "peers", "purge", "pin",
    ] {
        assert!(words.contains(&word), "{word}: {said}");
    }
    // The directive that ends it: no files.
    assert_eq!(words.last(), Some(&":4"));
}
