//! Clusters come side by side and go without a trace, however whoever wanted them ended.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dragonfly_cluster::supervisor::Info;
use dragonfly_cluster::{Cluster, ClusterOptions, apply, standing};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster and the process that holds it: another one may have its number a moment later.
struct Seen {
    info: Info,
    supervisor: String,
}

impl Seen {
    fn of(info: Info) -> Self {
        let supervisor = std::fs::read_to_string(info.dir.join("supervisor")).unwrap();
        Self { info, supervisor }
    }
}

/// What there still is of a cluster: files, processes, cgroups, interfaces, mounts.
fn left_of(seen: &Seen) -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    let info = &seen.info;
    let holder = std::fs::read_to_string(info.dir.join("supervisor"));
    if holder.is_ok_and(|holder| holder != seen.supervisor) {
        return left;
    }
    let dir = info.dir.display().to_string();
    if info.dir.exists() {
        left.insert(dir.clone());
    }
    let group = format!("dragonfly-e2e/{}", info.number);
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let path = hierarchy.path().join(&group);
        if path.exists() {
            left.insert(path.display().to_string());
        }
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| std::fs::read(process.path().join(name)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        let in_group = groups
            .lines()
            .any(|l| l.ends_with(&group) || l.contains(&format!("{group}/")));
        if in_group || line.contains(&format!("{dir}/")) {
            left.insert(format!("{} {line}", process.path().display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    left.extend(
        mounts
            .lines()
            .filter(|l| l.contains(&dir))
            .map(str::to_owned),
    );
    let interface = format!("/sys/class/net/dfe2e{}", info.number);
    if Path::new(&interface).exists() {
        left.insert(interface);
    }
    left
}

fn nothing_is_left_of(seen: &Seen) {
    let until = Instant::now() + LIMIT;
    loop {
        let left = left_of(seen);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The program, in whose place a test's process stands: killed when dropped.
struct Harness(Child);

impl Drop for Harness {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cluster(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Starts a cluster in another process, and says when it is up.
fn held_by_another() -> (Harness, Seen) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
    command.args(["up", "--nodes", "1", "--hold"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    let mut harness = Harness(command.spawn().unwrap());
    let lines = BufReader::new(harness.0.stdout.take().unwrap()).lines();
    let config = lines
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix("export KUBECONFIG=").map(str::to_owned))
        .expect("the cluster comes up");
    let dir = Path::new(&config).ancestors().nth(2).unwrap();
    let info = std::fs::read(dir.join("info.json")).unwrap();
    (harness, Seen::of(serde_json::from_slice(&info).unwrap()))
}

#[test]
fn a_cluster_goes_without_a_trace_when_its_harness_is_killed() {
    let (mut harness, seen) = held_by_another();
    assert!(left_of(&seen).len() > 10, "it runs");
    harness.0.kill().unwrap();
    nothing_is_left_of(&seen);
}

#[test]
fn a_cluster_whose_supervisor_was_killed_too_is_swept_by_whoever_comes_next() {
    let (mut harness, seen) = held_by_another();
    let id = rustix::process::Pid::from_raw(seen.supervisor.parse().unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    harness.0.kill().unwrap();
    assert!(!left_of(&seen).is_empty());
    standing::sweep().unwrap();
    assert_eq!(left_of(&seen), BTreeSet::new());
}

#[tokio::test]
async fn two_clusters_run_side_by_side_and_do_not_see_each_other() {
    let options = ClusterOptions::nodes(1);
    let (one, two) = tokio::join!(Cluster::start(&options), Cluster::start(&options));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.info().number, two.info().number);
    let address = |cluster: &Cluster| cluster.node(0).unwrap().address().to_owned();
    assert_ne!(address(&one), address(&two));
    let only = r"{apiVersion: v1, kind: Namespace, metadata: {name: only-in-one}}";
    apply::yaml(&one.client().await.unwrap(), "", only)
        .await
        .unwrap();
    let others: Api<Namespace> = Api::all(two.client().await.unwrap());
    assert!(others.get_opt("only-in-one").await.unwrap().is_none());
    let (first, second) = (Seen::of(one.info().clone()), Seen::of(two.info().clone()));
    one.stop().await.unwrap();
    nothing_is_left_of(&first);
    assert!(
        two.client()
            .await
            .unwrap()
            .apiserver_version()
            .await
            .is_ok()
    );
    drop(two);
    nothing_is_left_of(&second);
}

#[test]
fn a_cluster_that_stays_is_listed_and_taken_down_by_its_number() {
    let up = cluster(&["up", "--nodes", "0"]).output().unwrap();
    assert!(
        up.status.success(),
        "{}",
        String::from_utf8_lossy(&up.stderr)
    );
    let said = String::from_utf8(up.stdout).unwrap();
    let config = said
        .lines()
        .find_map(|l| l.strip_prefix("export KUBECONFIG="))
        .unwrap();
    let dir = Path::new(config).ancestors().nth(2).unwrap();
    let info: Info =
        serde_json::from_slice(&std::fs::read(dir.join("info.json")).unwrap()).unwrap();
    let number = info.number.to_string();
    let seen = Seen::of(info);
    let status = String::from_utf8(cluster(&["status"]).output().unwrap().stdout).unwrap();
    let listed = status
        .lines()
        .find(|l| l.starts_with(&format!("cluster {number} ")))
        .unwrap();
    assert!(
        listed.contains("stays") && listed.ends_with(config),
        "{listed}"
    );
    assert!(cluster(&["down", &number]).status().unwrap().success());
    nothing_is_left_of(&seen);
    assert!(
        !cluster(&["down", &number]).status().unwrap().success(),
        "it is gone"
    );
}

#[tokio::test]
async fn without_root_a_cluster_says_what_it_needs() {
    // Somebody with a user of their own, as far as programs can tell.
    let line = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("cluster");
    std::fs::copy(env!("CARGO_BIN_EXE_cluster"), &program).unwrap();
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), all).unwrap();
    let out = Command::new("setpriv")
        .args(line)
        .arg(&program)
        .args(["up"])
        .output()
        .unwrap();
    assert!(!out.status.success());
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("you are not root"), "{said}");
}
