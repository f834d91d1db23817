//! Preheats among the manifests of `dragonfly up`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{LIMIT, MIB, text, until};
use dragonfly_e2e::mesh::port;
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::process::{Process, log};
use dragonfly_e2e::{binary, get::Get, sample};
use rustix::process::Signal;
use serde_json::{Value, json};

/// `dragonfly up` over a directory of manifests.
struct Up {
    dir: tempfile::TempDir,
    process: Process,
}

impl Up {
    fn start(dir: tempfile::TempDir) -> Self {
        let process = Self::spawn(dir.path());
        Self { dir, process }
    }

    fn spawn(dir: &Path) -> Process {
        let mut command = Command::new(binary::dragonfly().unwrap());
        command.arg("up").arg("-f").arg(dir.join("manifests"));
        command
            .args(["--peers", "2", "--state"])
            .arg(dir.join("state"));
        command.args(["--listen", &port().unwrap().to_string()]);
        command
            .stdout(Stdio::null())
            .stderr(log(&dir.join("log")).unwrap());
        Process::spawn("up", &mut command).unwrap()
    }

    /// Ends, and begins anew with the same state.
    async fn again(&mut self) {
        self.process.signal(Signal::TERM).unwrap();
        assert!(
            self.process.wait(LIMIT).await.unwrap().success(),
            "{}",
            self.said()
        );
        self.process = Self::spawn(self.dir.path());
    }

    fn said(&self) -> String {
        text(&std::fs::read(self.dir.path().join("log")).unwrap_or_default())
    }

    fn file(&self, name: &str) -> PathBuf {
        let kept = format!("state/status/preheats/default/{name}.json");
        self.dir.path().join(kept)
    }

    fn kept(&self, name: &str) -> Value {
        let bytes = std::fs::read(self.file(name)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Until its Ready condition has this reason; the status then.
    async fn until(&self, name: &str, reason: &str) -> Value {
        let ready = || {
            let kept = self.kept(name);
            let rows = kept["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            rows.into_iter()
                .find(|row| row["type"] == "Ready")
                .unwrap_or_default()
        };
        until(&format!("{name}: {reason}"), || async {
            ready()["reason"] == reason
        })
        .await;
        self.kept(name)["status"].clone()
    }
}

fn apply(dir: &Path, name: &str, spec: &Value) {
    let object = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Preheat",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    });
    std::fs::write(
        dir.join("manifests").join(format!("{name}.json")),
        object.to_string(),
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn up_carries_out_preheats_of_its_manifests_once_each_and_says_what_it_cannot() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("manifests")).unwrap();
    let mesh = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution",
        "metadata": {"name": "default", "namespace": "default"},
        "spec": {"profile": "Light", "storage": {"reserveFreePercent": 0}},
    });
    std::fs::write(dir.path().join("manifests/mesh.json"), mesh.to_string()).unwrap();
    let origin = Origin::start(0).await.unwrap();
    let source = sample::random(&dir.path().join("source"), 8 * MIB, 7).unwrap();
    let url = origin.serve("file", &source.path).unwrap();
    let files = json!([{"url": url, "digest": source.digest}]);
    let peers = json!({"files": files, "targets": {"role": "Peers"}});
    apply(dir.path(), "now", &peers);
    // Of another mesh; of labels, which nodes do not have here.
    apply(
        dir.path(),
        "other",
        &json!({"files": files, "distributionRef": {"name": "other"}}),
    );
    let labels = json!({"role": "Peers", "nodeSelector": {"disk": "ssd"}});
    apply(
        dir.path(),
        "labels",
        &json!({"files": files, "targets": labels}),
    );
    let nightly = json!({"type": "Cron", "cron": {"expression": "0 3 * * *"}});
    apply(
        dir.path(),
        "nightly",
        &json!({"files": files, "when": nightly}),
    );

    let mut up = Up::start(dir);
    let status = up.until("now", "Succeeded").await;
    let progress = &status["progress"];
    assert_eq!(progress["targets"]["succeeded"], 2, "{status}");
    assert_eq!(progress["files"][0]["bytes"], 2 * source.len);
    // Looking at it first takes a byte, where that is not answered by who gets it already.
    let sent = origin.sent();
    assert!((source.len..=source.len + 1).contains(&sent), "{sent}");
    let other = up.until("other", "DistributionMissing").await;
    assert!(
        other["conditions"][0]["message"]
            .as_str()
            .unwrap()
            .contains("other"),
        "{other}"
    );
    let labels = up.until("labels", "InvalidSpec").await;
    let why = labels["conditions"][0]["message"].as_str().unwrap();
    assert!(why.contains("spec.targets.nodeSelector"), "{why}");
    let nightly = up.until("nightly", "Scheduled").await;
    assert!(
        nightly["nextRunTime"]
            .as_str()
            .unwrap()
            .contains("T03:00:00"),
        "{nightly}"
    );
    // Both peers have it: the origin may be looked at, which reads the beginning of its answer, and is not
    // asked for it.
    origin.set_rate(MIB);
    let at_most = source.len + MIB;
    for peer in ["peer-0", "peer-1"] {
        let socket = up.dir.path().join("state").join(peer).join("node.sock");
        let output = up.dir.path().join(peer);
        let program = binary::dragonfly().unwrap();
        let digest = ["--digest", source.digest.as_str()];
        let get = Get::start(&program, &socket, &url, &output, &digest).unwrap();
        let ended = get.wait(LIMIT).await.unwrap();
        assert_eq!(ended.code, Some(0), "{}", ended.complaint());
        assert_eq!(sample::digest(&output).unwrap(), source.digest);
    }
    assert!(origin.sent() < at_most, "{}", origin.sent());

    // A restart begins nothing twice; a time that comes does begin something, and so does an edit.
    let soon = jiff::Timestamp::now() + Duration::from_secs(4);
    up.again().await;
    let at = json!({"type": "At", "at": soon.to_string()});
    apply(up.dir.path(), "at", &json!({"files": files, "when": at}));
    let status = up.until("at", "Succeeded").await;
    let began = status["plan"]["startTime"].as_str().unwrap();
    assert!(
        began.parse::<jiff::Timestamp>().unwrap() + Duration::from_secs(1) >= soon,
        "{began}"
    );
    assert_eq!(up.kept("now")["status"]["runs"], 1);
    apply(
        up.dir.path(),
        "now",
        &json!({"files": files, "targets": {"role": "Peers", "count": 1}}),
    );
    until("the edited one runs again", || async {
        let status = up.kept("now")["status"].clone();
        status["runs"] == 2 && status["history"][0]["run"] == 2
    })
    .await;
    assert_eq!(up.kept("now")["metadata"]["generation"], 2);
    assert!(origin.sent() < at_most, "{}", origin.sent());

    // What has no manifest any more is gone.
    std::fs::remove_file(up.dir.path().join("manifests/now.json")).unwrap();
    until("it is forgotten", || async { !up.file("now").exists() }).await;
    // What is missing is said by node and reason, and cancelled by taking it away.
    let missing = json!({"files": [{"url": origin.url("missing")}], "retry": {"limit": 0}});
    apply(up.dir.path(), "missing", &missing);
    let status = up.until("missing", "NodesFailed").await;
    let why = status["progress"]["failedNodes"][0]["message"]
        .as_str()
        .unwrap();
    assert!(why.contains("404"), "{why}");
}
