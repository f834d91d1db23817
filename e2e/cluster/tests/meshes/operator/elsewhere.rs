//! What runs outside of a cluster: a shell on another machine, what a person starts there, and contents.
//! It is this machine, which nodes reach at its end of their network.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dragonfly_cluster::downloads::{Client as Downloader, Ended};
use dragonfly_cluster::operator::read;
use dragonfly_cluster::place::READY;
use dragonfly_cluster::{Cluster, Place};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::process::{Process, log, tail};
use dragonfly_e2e::{binary, sample};
use serde_json::Value;

pub(crate) const MIB: u64 = 1 << 20;

/// The line of docs/kubernetes.md that begins so.
pub(crate) fn documented(beginning: &str) -> String {
    let text = read("docs/kubernetes.md").unwrap();
    let mut found = text.lines().filter_map(|line| line.strip_prefix("    "));
    let line = found.find(|line| line.starts_with(beginning));
    line.unwrap_or_else(|| panic!("docs/kubernetes.md has no command {beginning}…"))
        .to_owned()
}

/// A machine of elsewhere: a directory of its own, and what a person has in a shell there.
pub(crate) struct Machine {
    pub(crate) dir: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
}

/// What a person started there. Killed when dropped.
pub(crate) struct Started {
    pub(crate) process: Process,
    log: PathBuf,
}

impl Machine {
    pub(crate) fn new(cluster: &Cluster, place: &Place) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
        let mut config: Value = serde_saphyr::from_str(&text).unwrap();
        config["contexts"][0]["context"]["namespace"] = place.namespace.as_str().into();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let programs = [
            cluster.program("kubectl").unwrap(),
            binary::dragonfly().unwrap(),
        ];
        let mut path: Vec<_> = programs.iter().filter_map(|p| p.parent()).collect();
        let own = std::env::var_os("PATH").unwrap();
        let others: Vec<_> = std::env::split_paths(&own).collect();
        path.extend(others.iter().map(PathBuf::as_path));
        let path = std::env::join_paths(path).unwrap();
        let shown = |path: &Path| path.display().to_string();
        let environment = vec![
            ("PATH", path.into_string().unwrap()),
            ("HOME", shown(dir.path())),
            ("KUBECONFIG", shown(&kubeconfig)),
            ("ADDRESS", cluster.info().outside.clone()),
            ("STATE", shown(&dir.path().join("state"))),
            ("NAME", "default".to_owned()),
            // A machine of its own would have the default.
            ("DRAGONFLY_SOCKET", shown(&dir.path().join("node.sock"))),
        ];
        Self { dir, environment }
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(name)
    }

    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-ec", line]).env_clear();
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.current_dir(self.dir.path());
        command
    }

    /// Runs a line to its end.
    pub(crate) fn run(&self, line: &str) {
        let out = self.shell(line).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{line}: {said}");
    }

    /// Starts what goes on, and waits until it says so.
    pub(crate) async fn start(&self, name: &str, line: &str, says: &str) -> Started {
        let path = self.dir.path().join(format!("{name}.log"));
        let mut command = self.shell(&format!("exec {line}"));
        command.stderr(log(&path).unwrap());
        let process = Process::spawn(name, &mut command).unwrap();
        let mut started = Started { process, log: path };
        started.says(says).await;
        started
    }
}

impl Started {
    pub(crate) async fn says(&mut self, words: &str) {
        let until = Instant::now() + READY;
        loop {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            if said.contains(words) {
                return;
            }
            let ended = self.process.ended();
            assert!(ended.is_none(), "{ended:?}: {said}");
            assert!(Instant::now() < until, "not {words:?}: {said}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", tail(std::slice::from_ref(&self.log), 25));
        }
    }
}

/// A file of elsewhere, and a count of what was sent of it.
pub(crate) struct Content {
    pub(crate) origin: Origin,
    pub(crate) url: String,
    pub(crate) digest: String,
    pub(crate) len: u64,
    _dir: tempfile::TempDir,
}

impl Content {
    pub(crate) async fn served(cluster: &Cluster) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let len = 32 * MIB;
        let made = sample::random(&dir.path().join("file"), len, 7).unwrap();
        let at = format!("{}:0", cluster.info().outside);
        let origin = Origin::start_on(&at, 0).await.unwrap();
        let url = origin.serve("file", &made.path).unwrap();
        Self {
            origin,
            url,
            digest: made.digest,
            len,
            _dir: dir,
        }
    }

    /// Clients of all nodes get one content of this name at once; how each ended.
    pub(crate) async fn get(&self, cluster: &Cluster, name: &str) -> Vec<Ended> {
        let clients: Vec<_> = cluster
            .nodes()
            .map(|node| Downloader {
                node,
                program: binary::dragonfly().unwrap(),
                name: name.to_owned(),
                rate: "1G",
            })
            .collect();
        let all = clients.iter().map(|client| client.get(&self.url, 0));
        futures::future::try_join_all(all).await.unwrap()
    }

    /// The same, and all get the right bytes, of which the origin sent each once.
    pub(crate) async fn is_had(&self, cluster: &Cluster, name: &str) {
        let before = self.origin.sent();
        self.all_well(&self.get(cluster, name).await);
        assert_eq!(
            self.origin.sent() - before,
            self.len,
            "{name}: each byte once"
        );
    }

    pub(crate) fn all_well(&self, all: &[Ended]) {
        for ended in all {
            let digest = ended.digest.as_deref();
            assert_eq!(
                (ended.code, digest),
                (Some(0), Some(self.digest.as_str())),
                "{}",
                ended.said
            );
        }
    }
}
