//! What clusters are made of and no package holds: built from Go modules, once, into a cache.
//!
//! An entry of the cache is named after its version and a hash of everything it is made from, so it is
//! right for ever and nobody updates it. It appears by one rename; a lock file lets one build at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aws_lc_rs::digest::{SHA256, digest};
use dragonfly_e2e::{Failed, Result};
use rustix::fs::{FlockOperation, flock};

use crate::hex;

/// Something that is built from a Go module of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// kube-apiserver, etcd.
    ApiServer,
    /// The same of the oldest Kubernetes that the operator is for.
    OldestApiServer,
    /// The same of the newest.
    NewestApiServer,
    /// Everything else of Kubernetes.
    Kubernetes,
    /// containerd 2.x.
    Containerd,
    /// helm.
    Helm,
    /// krew, which installs plugins of kubectl.
    Krew,
    /// kwok: fake nodes.
    Kwok,
    /// The Lua that ArgoCD has.
    Lua,
    /// The Prometheus operator.
    PrometheusOperator,
    /// Controllers of cert-manager.
    CertManager,
    /// The program of the container that holds a pod's namespaces.
    Pause,
}

/// How a tool is built.
struct Recipe {
    name: &'static str,
    version: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// A `main.go` of ours in that module, whose path is then the command; none where it is empty.
    main: &'static str,
    /// Import paths of commands.
    commands: &'static [&'static str],
    tags: &'static str,
    /// Variables that the linker sets.
    set: &'static [&'static str],
}

/// What the linker sets, so that a Kubernetes says which it is.
macro_rules! git_version {
    ($minor:literal, $patch:literal) => {
        &[
            concat!(
                "k8s.io/component-base/version.gitVersion=v1.",
                $minor,
                ".",
                $patch
            ),
            "k8s.io/component-base/version.gitMajor=1",
            concat!("k8s.io/component-base/version.gitMinor=", $minor),
            "k8s.io/component-base/version.gitTreeState=clean",
        ]
    };
}

const PAUSE: &str = include_str!("../images/pause.c");

impl Tool {
    /// All that a cluster with nodes needs.
    pub const CLUSTER: [Self; 4] = [
        Self::ApiServer,
        Self::Kubernetes,
        Self::Containerd,
        Self::Pause,
    ];

    const fn recipe(self) -> Option<Recipe> {
        let kubernetes = Recipe {
            name: "kubernetes",
            version: "1.35.4",
            go_mod: include_str!("../go/kubernetes/go.mod"),
            go_sum: include_str!("../go/kubernetes/go.sum"),
            main: "",
            commands: &[
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-scheduler",
                "k8s.io/kubernetes/cmd/kubelet",
                "k8s.io/kubernetes/cmd/kube-proxy",
                "k8s.io/kubernetes/cmd/kubectl",
            ],
            tags: "",
            set: git_version!("35", "4"),
        };
        let api_server = Recipe {
            name: "apiserver",
            commands: &[
                "k8s.io/kubernetes/cmd/kube-apiserver",
                "go.etcd.io/etcd/server/v3",
            ],
            ..kubernetes
        };
        Some(match self {
            Self::ApiServer => api_server,
            Self::OldestApiServer => Recipe {
                version: "1.33.13",
                go_mod: include_str!("../go/api-server-oldest/go.mod"),
                go_sum: include_str!("../go/api-server-oldest/go.sum"),
                set: git_version!("33", "13"),
                ..api_server
            },
            Self::NewestApiServer => Recipe {
                version: "1.37.2",
                go_mod: include_str!("../go/api-server-newest/go.mod"),
                go_sum: include_str!("../go/api-server-newest/go.sum"),
                set: git_version!("37", "2"),
                ..api_server
            },
            Self::Kubernetes => kubernetes,
            Self::Containerd => Recipe {
                name: "containerd",
                version: "2.4.2",
                go_mod: include_str!("../go/containerd/go.mod"),
                go_sum: include_str!("../go/containerd/go.sum"),
                main: "",
                commands: &[
                    "github.com/containerd/containerd/v2/cmd/containerd",
                    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                    "github.com/containerd/containerd/v2/cmd/ctr",
                ],
                tags: "no_btrfs no_devmapper no_zfs",
                set: &["github.com/containerd/containerd/v2/version.Version=2.4.2"],
            },
            Self::Helm => Recipe {
                name: "helm",
                version: "3.22.0",
                go_mod: include_str!("../go/helm/go.mod"),
                go_sum: include_str!("../go/helm/go.sum"),
                main: "",
                commands: &["helm.sh/helm/v3/cmd/helm"],
                tags: "",
                set: &[],
            },
            Self::Krew => Recipe {
                name: "krew",
                version: "0.4.4",
                go_mod: include_str!("../go/krew/go.mod"),
                go_sum: include_str!("../go/krew/go.sum"),
                main: "",
                commands: &["sigs.k8s.io/krew/cmd/krew"],
                tags: "",
                set: &[],
            },
            Self::Kwok => Recipe {
                name: "kwok",
                version: "0.8.0",
                go_mod: include_str!("../go/kwok/go.mod"),
                go_sum: include_str!("../go/kwok/go.sum"),
                main: "",
                commands: &["sigs.k8s.io/kwok/cmd/kwok"],
                tags: "",
                set: &[],
            },
            Self::Lua => Recipe {
                name: "lua",
                version: "1.1.1",
                go_mod: include_str!("../go/lua/go.mod"),
                go_sum: include_str!("../go/lua/go.sum"),
                main: "",
                commands: &["github.com/yuin/gopher-lua/cmd/glua"],
                tags: "",
                set: &[],
            },
            Self::PrometheusOperator => Recipe {
                name: "prometheus-operator",
                version: "0.85.0",
                go_mod: include_str!("../go/prometheus-operator/go.mod"),
                go_sum: include_str!("../go/prometheus-operator/go.sum"),
                main: "",
                commands: &["github.com/prometheus-operator/prometheus-operator/cmd/operator"],
                tags: "",
                set: &[],
            },
            Self::CertManager => Recipe {
                name: "cert-manager",
                version: "1.21.2",
                go_mod: include_str!("../go/cert-manager/go.mod"),
                go_sum: include_str!("../go/cert-manager/go.sum"),
                main: include_str!("../go/cert-manager/main.go"),
                commands: &["dragonfly/e2e/cert-manager"],
                tags: "",
                set: &[],
            },
            Self::Pause => return None,
        })
    }

    /// Builds it where the cache has none, and says where each of its programs is.
    ///
    /// `KUBEBUILDER_ASSETS` names a directory with kube-apiserver and etcd that are used instead.
    ///
    /// # Errors
    /// No Go or C compiler, no modules to be had, no room: with the compiler's own words.
    pub fn built(self) -> Result<Programs> {
        if self == Self::ApiServer
            && let Some(dir) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
        {
            return given(&dir, &["kube-apiserver", "etcd"]);
        }
        let Some(recipe) = self.recipe() else {
            let source = digest(&SHA256, PAUSE.as_bytes());
            let entry = format!("pause-1-{}", &hex(source.as_ref())[..12]);
            return programs(&cached(&entry, build_pause)?);
        };
        let mut all = digest_of(&[recipe.go_mod, recipe.go_sum, recipe.tags]);
        for part in recipe.commands.iter().chain(recipe.set) {
            all = digest_of(&[&all, part]);
        }
        if !recipe.main.is_empty() {
            all = digest_of(&[&all, recipe.main]);
        }
        let entry = format!("{}-{}-{}", recipe.name, recipe.version, &all[..12]);
        programs(&cached(&entry, |dir| recipe.build(dir))?)
    }
}

impl Recipe {
    fn build(&self, dir: &Path) -> Result<()> {
        let source = dir.join("source");
        fs::create_dir_all(&source).map_err(|e| Failed::at(source.display(), e))?;
        let files = [
            ("go.mod", self.go_mod),
            ("go.sum", self.go_sum),
            ("main.go", self.main),
        ];
        for (name, text) in files.into_iter().filter(|(_, text)| !text.is_empty()) {
            let path = source.join(name);
            fs::write(&path, text).map_err(|e| Failed::at(path.display(), e))?;
        }
        let mut set = String::from("-s -w");
        self.set
            .iter()
            .for_each(|one| set.push_str(&format!(" -X {one}")));
        // All at once: while one is linked, others are compiled.
        let mut go = Command::new("go");
        go.current_dir(&source)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-buildvcs=false")
            .env("GOWORK", "off")
            .env("GO111MODULE", "on")
            .args(["build", "-mod=readonly", "-trimpath", "-tags", self.tags])
            .args(["-ldflags", &set, "-o"])
            // With the slash at its end it is a directory for sure.
            .arg(dir.join(""))
            .args(self.commands);
        finished(self.name, &mut go)?;
        // Named after its directory; `v3` does not count.
        let server = dir.join("server");
        if server.exists() {
            let etcd = dir.join("etcd");
            fs::rename(&server, &etcd).map_err(|e| Failed::at(server.display(), e))?;
        }
        fs::remove_dir_all(&source).map_err(|e| Failed::at(source.display(), e))
    }
}

/// Programs by their names.
pub type Programs = BTreeMap<String, PathBuf>;

fn programs(dir: &Path) -> Result<Programs> {
    let listed = fs::read_dir(dir).map_err(|e| Failed::at(dir.display(), e))?;
    let named = listed
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()));
    Ok(named.collect())
}

fn given(dir: &Path, names: &[&str]) -> Result<Programs> {
    let found: Programs = names
        .iter()
        .map(|n| ((*n).to_owned(), dir.join(n)))
        .collect();
    match found.values().find(|path| !path.is_file()) {
        None => Ok(found),
        Some(path) => Err(Failed::at(
            path.display(),
            "is not there, but KUBEBUILDER_ASSETS says so",
        )),
    }
}

fn build_pause(dir: &Path) -> Result<()> {
    let source = dir.join("pause.c");
    fs::write(&source, PAUSE).map_err(|e| Failed::at(source.display(), e))?;
    let mut cc = Command::new("cc");
    cc.args(["-static", "-Os", "-s", "-o"])
        .arg(dir.join("pause"))
        .arg(&source);
    finished("pause", &mut cc)?;
    fs::remove_file(&source).map_err(|e| Failed::at(source.display(), e))
}

pub(crate) fn finished(what: &str, command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.stdin(Stdio::null()).output().map_err(|e| {
        Failed(format!(
            "{program}: {e}: it is needed to build {what}; scripts/setup.sh cluster checks for it"
        ))
    })?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(Failed(format!(
        "building {what}: {}\n{}",
        out.status,
        said.trim_end()
    )))
}

/// Where entries are: `XDG_CACHE_HOME/dragonfly-e2e`.
pub fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.filter(|p| p.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = base.or_else(home);
    let base = base.ok_or_else(|| Failed("neither HOME nor XDG_CACHE_HOME is set".to_owned()))?;
    Ok(base.join("dragonfly-e2e"))
}

/// An entry of the cache: made by `make` in a directory of its own if it is not there.
pub(crate) fn cached(entry: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache()?;
    cached_in(&cache, entry, make)
}

fn cached_in(cache: &Path, entry: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = cache.join(entry);
    if done.is_dir() {
        return Ok(done);
    }
    fs::create_dir_all(cache).map_err(|e| Failed::at(cache.display(), e))?;
    let lock = cache.join(format!("{entry}.lock"));
    let file = File::create(&lock).map_err(|e| Failed::at(lock.display(), e))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| Failed::at(lock.display(), e))?;
    if done.is_dir() {
        return Ok(done);
    }
    // Under the lock this name is ours, and what is there was left by a builder that was killed.
    let making = cache.join(format!("{entry}.making"));
    let _ = fs::remove_dir_all(&making);
    fs::create_dir_all(&making).map_err(|e| Failed::at(making.display(), e))?;
    eprintln!("building {entry} into {} (once)", cache.display());
    if let Err(wrong) = make(&making) {
        let _ = fs::remove_dir_all(&making);
        return Err(wrong);
    }
    fs::rename(&making, &done).map_err(|e| Failed::at(done.display(), e))?;
    Ok(done)
}

fn digest_of(parts: &[&str]) -> String {
    let mut all = vec![];
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_le_bytes());
        all.extend_from_slice(part.as_bytes());
    }
    hex(digest(&SHA256, &all).as_ref())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn two_builders_at_once_build_once() {
        let dir = tempfile::tempdir().unwrap();
        let built = AtomicUsize::new(0);
        let build = || {
            cached_in(dir.path(), "x-1", |making| {
                built.fetch_add(1, Ordering::SeqCst);
                fs::write(making.join("program"), "x").map_err(|e| Failed::at("program", e))
            })
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(build)).collect();
            for one in all {
                let at = one.join().unwrap().unwrap();
                assert!(at.join("program").is_file());
            }
        });
        assert_eq!(built.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_build_that_failed_leaves_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = cached_in(dir.path(), "x-1", |making| {
            fs::write(making.join("half"), "x").map_err(|e| Failed::at("half", e))?;
            Err(Failed("no".to_owned()))
        });
        assert!(wrong.is_err());
        assert!(!dir.path().join("x-1").exists());
        let right = cached_in(dir.path(), "x-1", |_| Ok(())).unwrap();
        assert_eq!(fs::read_dir(right).unwrap().count(), 0);
    }

    #[test]
    fn every_version_is_the_one_its_module_requires() {
        for tool in [
            Tool::ApiServer,
            Tool::OldestApiServer,
            Tool::NewestApiServer,
            Tool::Kubernetes,
            Tool::Containerd,
            Tool::Helm,
            Tool::Krew,
            Tool::Kwok,
            Tool::Lua,
            Tool::PrometheusOperator,
            Tool::CertManager,
        ] {
            let recipe = tool.recipe().unwrap();
            let wanted = format!("v{}", recipe.version);
            let mut words = recipe.go_mod.split_whitespace();
            assert!(words.any(|word| word == wanted), "{}", recipe.name);
        }
    }
}
