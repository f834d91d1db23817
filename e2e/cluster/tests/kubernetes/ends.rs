//! Clusters go without a trace, however whoever wanted them ended and whatever their pods were at.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dragonfly_cluster::operator::load;
use dragonfly_cluster::wait::{ready_pod, wait_for};
use dragonfly_cluster::{Cluster, Failed, apply, pod, pods_possible, standing};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use rustix::process::{Pid, Signal, kill_process};

use crate::trace::{Seen, command_line, groups, processes};

const READY: Duration = Duration::from_secs(60);

/// Pods that do not make it easy: on their node's network and among its processes, two containers that
/// share theirs, one that does not end when asked to, one that asks for ten minutes to end, one that
/// fails and is started again all the time, one whose image is nowhere.
const PODS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: near}
spec:
  hostNetwork: true
  hostPID: true
  containers:
    - {name: a, image: 'registry.test/test-origin:dev', args: ['--listen=[::]:8081', --stubborn, '--dir=/MARK'],
       volumeMounts: [{name: disk, mountPath: /disk}]}
  securityContext: {runAsUser: 0}
  volumes: [{name: disk, hostPath: {path: /var/lib/near, type: DirectoryOrCreate}}]
---
apiVersion: v1
kind: Pod
metadata: {name: shared}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 600
  containers:
    - {name: a, image: 'registry.test/test-origin:dev', args: ['--dir=/MARK', --stubborn]}
    - {name: b, image: 'registry.test/test-origin:dev', args: ['--listen=[::]:8082', '--dir=/MARK', --stubborn],
       volumeMounts: [{name: memory, mountPath: /memory}]}
  volumes: [{name: memory, emptyDir: {medium: Memory}}]
---
apiVersion: v1
kind: Pod
metadata: {name: frozen}
spec:
  containers: [{name: a, image: 'registry.test/test-origin:dev', args: ['--dir=/MARK-frozen']}]
---
apiVersion: v1
kind: Pod
metadata: {name: failing}
spec:
  containers: [{name: a, image: 'registry.test/test-origin:dev', args: [--nonsense]}]
---
apiVersion: v1
kind: Pod
metadata: {name: lost}
spec:
  containers: [{name: a, image: 'registry.test/no-such-image:1'}]
";
/// Those of them that run.
const RUNNING: [&str; 3] = ["near", "shared", "frozen"];
/// How many processes these have, and one more is started in the first.
const PROCESSES: usize = 5;

/// The program, in whose place a test's process stands: killed when dropped.
struct Harness(Child);

impl Harness {
    /// Starts a cluster in another process.
    fn start(nodes: usize) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
        command.args(["up", "--hold", "--nodes", &nodes.to_string()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0);
        Self(command.spawn().unwrap())
    }

    /// Until its cluster is up.
    fn up(&mut self) -> Seen {
        let mut lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let config = lines
            .find_map(|line| {
                line.unwrap()
                    .strip_prefix("export KUBECONFIG=")
                    .map(str::to_owned)
            })
            .expect("the cluster comes up");
        Seen::at(Path::new(&config).ancestors().nth(2).unwrap())
    }

    fn id(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(id: i32, signal: Signal) {
    // It may have ended by itself since we looked.
    let _ = kill_process(Pid::from_raw(id).unwrap(), signal);
}

fn kill(id: i32) {
    signal(id, Signal::KILL);
}

/// Runs the pods on a cluster, and something on its node.
async fn at_work(cluster: &Cluster, seen: &mut Seen) -> Result<(), Failed> {
    load(cluster, "test-origin").await?;
    let mark = format!("mark-{}", fastrand::u64(..));
    let client = cluster.client().await?;
    pods_possible(&client, "default").await?;
    apply::yaml(&client, "default", &PODS.replace("MARK", &mark)).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    for name in RUNNING {
        wait_for(&pods, name, READY, ready_pod).await?;
    }
    let dir = format!("--dir=/{mark}");
    let line = ["test-origin", "--listen=[::]:8083", "--stubborn", &dir];
    // They end with the cluster, which is after this.
    let line = line.map(str::to_owned);
    tokio::spawn(async move {
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        let _ = pod::exec(&client, "default", "near", &line).await;
    });
    let until = Instant::now() + READY;
    let marked = loop {
        let marked: Vec<_> = processes()
            .filter(|id| command_line(*id).contains(&mark))
            .collect();
        if marked.len() == PROCESSES {
            break marked;
        }
        assert!(Instant::now() < until, "{marked:?} run the pods");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for id in marked {
        let outside: Vec<_> = groups(id)
            .into_iter()
            .filter(|(hierarchy, group)| {
                hierarchy == "pids" && !group.starts_with("/dragonfly-e2e/")
            })
            .collect();
        assert_eq!(outside, [], "{}", command_line(id));
        if command_line(id).contains("frozen") {
            freeze(id);
        }
    }
    seen.marks.push(mark);
    seen.look();
    Ok(())
}

/// Stops a container as runc does before it kills its processes, where cgroups are of version 1: from
/// then on not even a kill ends them.
fn freeze(id: i32) {
    let groups = groups(id);
    if let Some((_, group)) = groups.iter().find(|(hierarchy, _)| hierarchy == "freezer") {
        let state = format!("/sys/fs/cgroup/freezer{group}/freezer.state");
        assert!(group.starts_with("/dragonfly-e2e/"), "{group}");
        std::fs::write(state, "FROZEN").unwrap();
    }
}

/// A cluster whose pods run, and then its end.
fn ends(nodes: usize, end: impl FnOnce(&mut Harness, &Seen)) {
    let mut harness = Harness::start(nodes);
    let mut seen = harness.up();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let cluster = standing::find(seen.number).unwrap();
    runtime.block_on(at_work(&cluster, &mut seen)).unwrap();
    let (held, holds) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        // A command that a test runs on a node, and what that starts.
        let line = "sleep 600 & sleep 600";
        let _ = held.send(
            cluster
                .node(0)
                .unwrap()
                .exec(&["sh", "-c", line])
                .await
                .is_ok(),
        );
    });
    std::thread::sleep(Duration::from_millis(200));
    seen.look();
    assert!(seen.left().len() > 20, "it runs");
    end(&mut harness, &seen);
    seen.is_gone();
    assert_eq!(
        holds.recv_timeout(READY),
        Ok(true),
        "the command on the node ended"
    );
}

#[test]
fn an_interrupted_harness_takes_its_cluster_and_its_pods_down() {
    ends(1, |harness, _| {
        signal(harness.id(), Signal::INT);
        assert!(harness.0.wait().unwrap().success());
    });
}

#[test]
fn a_killed_harness_leaves_no_trace_of_its_cluster_and_its_pods() {
    ends(2, |harness, _| kill(harness.id()));
}

#[test]
fn a_killed_supervisor_leaves_no_trace_although_its_harness_lives() {
    ends(1, |_, seen| kill(seen.supervisor));
}

#[test]
fn harness_and_supervisor_killed_at_once_leave_no_trace() {
    ends(1, |harness, seen| {
        kill(seen.supervisor);
        kill(harness.id());
    });
}

#[test]
fn pods_that_alone_are_left_are_swept_by_whoever_comes_next() {
    // Ends of sessions look like this, where all that a session started is killed by its cgroup:
    // containers have others.
    ends(2, |harness, seen| {
        for id in [seen.guard(), harness.id(), seen.supervisor] {
            kill(id);
        }
        seen.members(true).into_iter().for_each(kill);
        assert!(!seen.left().is_empty(), "somebody has to come");
        standing::sweep().unwrap();
    });
}

#[test]
fn a_start_that_is_cut_short_anywhere_leaves_no_trace() {
    let moments = [0, 30, 100, 250, 500, 1000, 1500, 2200, 3000, 4000];
    for (n, moment) in moments.into_iter().enumerate() {
        let harness = Harness::start(1);
        let mut seen = Seen::started_by(harness.0.id());
        std::thread::sleep(Duration::from_millis(moment));
        seen.look();
        let whom = match n % 3 {
            0 => vec![harness.id()],
            1 => vec![seen.supervisor],
            _ => vec![seen.supervisor, harness.id()],
        };
        whom.into_iter().for_each(kill);
        seen.is_gone();
    }
}
