//! What krew installs names what is built, and is as krew wants it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const HOME: &str = "https://dragonfly.test";
const URL: &str = "https://releases.test/v0/";

/// kubectl finds a plugin, and its completion, by these names.
fn programs() -> [String; 2] {
    let name = |path: &str| {
        Path::new(path)
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    [
        name(env!("CARGO_BIN_EXE_kubectl-dragonfly")),
        name(env!("CARGO_BIN_EXE_kubectl_complete-dragonfly")),
    ]
}

/// Programs of a processor: they are only packed.
fn stand_ins(dir: &Path, arch: &str) -> PathBuf {
    let dir = dir.join(arch);
    std::fs::create_dir(&dir).unwrap();
    for name in programs() {
        // The mode comes along.
        std::fs::copy("/bin/true", dir.join(&name)).unwrap();
        std::fs::write(dir.join(&name), format!("{name} for {arch}")).unwrap();
    }
    dir
}

fn pack(output: &Path, version: &str, dirs: &[String]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/krew.sh");
    let mut command = Command::new(script);
    command.arg(output).args([version, HOME, URL]).args(dirs);
    command.output().unwrap()
}

fn said(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn archives_and_manifest_are_as_krew_takes_them_and_hold_the_programs_that_are_built() {
    let dir = tempfile::tempdir().unwrap();
    let dirs =
        ["amd64", "arm64"].map(|arch| format!("{arch}={}", stand_ins(dir.path(), arch).display()));
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    let output = dir.path().join("output");
    let made = pack(&output, &version, &dirs);
    assert!(made.status.success(), "{made:?}");
    // The file is called as the plugin is.
    let text = std::fs::read_to_string(output.join("dragonfly.yaml")).unwrap();
    let manifest: Value = serde_saphyr::from_str(&text).unwrap();
    let api = "krew.googlecontainertools.github.com/v1alpha2";
    assert_eq!(
        (&manifest["apiVersion"], &manifest["kind"]),
        (&api.into(), &"Plugin".into())
    );
    assert_eq!(
        manifest["metadata"],
        serde_json::json!({"name": "dragonfly"})
    );
    let spec = &manifest["spec"];
    let known = "caveats description homepage platforms shortDescription version";
    assert_eq!(keys(spec), known.split(' ').collect());
    assert_eq!(
        (&spec["version"], &spec["homepage"]),
        (&version.clone().into(), &HOME.into())
    );
    let short = spec["shortDescription"].as_str().unwrap();
    assert!(
        (1..=60).contains(&short.len()) && !short.contains('\n'),
        "{short}"
    );
    let [plugin, completion] = programs();
    // Where krew puts what an archive holds.
    let caveats = spec["caveats"].as_str().unwrap();
    let stored = format!("/store/dragonfly/{version}/{completion}");
    assert!(caveats.contains(&stored), "{caveats}");

    let mut of = vec![];
    for platform in spec["platforms"].as_array().unwrap() {
        assert_eq!(
            keys(platform),
            BTreeSet::from(["bin", "selector", "sha256", "uri"])
        );
        let labels = &platform["selector"]["matchLabels"];
        assert_eq!(keys(labels), BTreeSet::from(["arch", "os"]));
        let [os, arch] = ["os", "arch"].map(|label| labels[label].as_str().unwrap());
        let file = format!("kubectl-dragonfly_{os}_{arch}.tar.gz");
        assert_eq!(platform["uri"], format!("https://releases.test/v0/{file}"));
        let archive = output.join(&file).display().to_string();
        let sum = platform["sha256"].as_str().unwrap();
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        assert!(sum.len() == 64 && sum.bytes().all(hex), "{sum}");
        assert_eq!(said("sha256sum", &[&archive]).split(' ').next(), Some(sum));
        assert_eq!(platform["bin"], plugin);
        let listed = said(
            "tar",
            &["--list", "--verbose", "--gzip", "--file", &archive],
        );
        let mut files: Vec<_> = listed.lines().collect();
        files.sort_by_key(|line| line.rsplit(' ').next());
        assert_eq!(files.len(), 2, "{listed}");
        for (line, program) in files.iter().zip([&plugin, &completion]) {
            assert!(
                line.starts_with("-rwxr-xr-x") && line.ends_with(program.as_str()),
                "{line}"
            );
            let args = [
                "--extract",
                "--to-stdout",
                "--gzip",
                "--file",
                &archive,
                program,
            ];
            assert_eq!(said("tar", &args), format!("{program} for {arch}"));
        }
        of.push((os.to_owned(), arch.to_owned()));
    }
    let pair = |arch: &str| ("linux".to_owned(), arch.to_owned());
    assert_eq!(of, [pair("amd64"), pair("arm64")]);
    for left in ["VERSION", "HOMEPAGE", "URL", "SHA256"] {
        assert!(!text.contains(left), "{left}: {text}");
    }
    // Sums that were published stay right for who builds the same.
    let again = dir.path().join("again");
    assert!(pack(&again, &version, &dirs).status.success());
    assert_eq!(
        std::fs::read_to_string(again.join("dragonfly.yaml")).unwrap(),
        text
    );
}

#[test]
fn what_cannot_be_packed_is_said_and_makes_no_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let one = format!("amd64={}", stand_ins(dir.path(), "amd64").display());
    let nowhere = format!("arm64={}", dir.path().join("nowhere").display());
    for (version, dirs, wanted) in [
        ("1.0.0", vec![one.clone()], "VERSION: '1.0.0'"),
        ("v1.0.0", vec![one.clone()], "SHA256_LINUX_ARM64"),
        (
            "v1.0.0",
            vec![one.clone(), nowhere],
            "nowhere/kubectl-dragonfly is not there",
        ),
        (
            "v1.0.0",
            vec![one, "s390x=/".to_owned()],
            "no platform linux/s390x",
        ),
    ] {
        let output = dir.path().join("output");
        let out = pack(&output, version, &dirs);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && said.contains(wanted),
            "{wanted}: {said}"
        );
        assert!(!output.join("dragonfly.yaml").exists());
    }
}

#[test]
fn the_completion_program_answers_as_kubectl_asks() {
    let asked = |line: &[&str]| said(env!("CARGO_BIN_EXE_kubectl_complete-dragonfly"), line);
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
