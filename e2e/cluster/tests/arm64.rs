//! The images for 64-bit ARM: their files alone, run by an emulator of the processor.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use dragonfly_cluster::image::{Architecture, component};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::sample;

/// What `make arm64` builds, beside what tests are built into.
fn program(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_cluster"))
        .ancestors()
        .nth(2)
        .unwrap();
    let program = target.join("aarch64-unknown-linux-gnu/debug").join(name);
    assert!(
        program.is_file(),
        "{} is not there: run `make arm64`",
        program.display()
    );
    program
}

/// An image's files in a directory, and the emulator among them.
fn unpacked(name: &str) -> tempfile::TempDir {
    let image = component(name)
        .unwrap()
        .image(Architecture::Arm64, &program(name))
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let blobs = image.blobs();
    // The last one is the configuration.
    for layer in &blobs[..blobs.len() - 1] {
        tar::Archive::new(layer.bytes.as_ref())
            .unpack(dir.path())
            .unwrap();
    }
    std::fs::copy("/usr/bin/qemu-aarch64-static", dir.path().join("emulator")).unwrap();
    dir
}

/// Nothing but the image can be reached.
fn run(root: &Path, name: &str, args: &[&str]) -> String {
    let out = Command::new("chroot")
        .arg(root)
        .args(["/emulator", &format!("/usr/bin/{name}")])
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {}: {said}", out.status);
    String::from_utf8(out.stdout).unwrap()
}

#[tokio::test]
#[ignore = "needs a cross-compiled binary: make test-full builds it"]
async fn the_arm64_image_says_its_version_and_gets_a_file() {
    let root = unpacked("dragonfly");
    assert!(run(root.path(), "dragonfly", &["--version"]).starts_with("dragonfly "));
    let source = sample::random(&root.path().join("source"), 3 << 20, 1).unwrap();
    let origin = Origin::start(0).await.unwrap();
    let url = origin.serve("file.bin", &source.path).unwrap();
    let path = root.path().to_owned();
    let digest = source.digest.clone();
    let got = tokio::task::spawn_blocking(move || {
        run(
            &path,
            "dragonfly",
            &[
                "get",
                &url,
                "-O",
                "/tmp/out",
                "--digest",
                &digest,
                "--no-node",
                "-q",
            ],
        )
    });
    got.await.unwrap();
    let written = std::fs::metadata(root.path().join("tmp/out"))
        .unwrap()
        .len();
    assert_eq!((written, origin.sent()), (source.len, source.len));
}

#[test]
#[ignore = "needs a cross-compiled binary: make test-full builds it"]
fn the_arm64_image_of_the_operator_says_its_version_and_what_it_takes() {
    let root = unpacked("dragonfly-operator");
    let said = run(root.path(), "dragonfly-operator", &["--version"]);
    assert!(said.starts_with("dragonfly-operator "), "{said}");
    let help = run(root.path(), "dragonfly-operator", &["--help"]);
    assert!(help.contains("--image"), "{help}");
}
