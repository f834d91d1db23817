//! A real image to N nodes at once: containerd pulls it through the mesh's mirrors, directly, and from
//! a pull-through cache, over the same shaped links and from the same registry. And one node that holds
//! it already, with nothing in the way (`warm`).

mod warm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use dragonfly_e2e::process::Process;
use dragonfly_e2e::{Failed, Result, sample, usage};
use serde_json::{Value, json};

use crate::bed::{Run, prime};
use crate::case::Case;
use crate::net::{Link, Net};
use crate::report;
use crate::systems::{comes_up, wait_for};

const TOO_LONG: Duration = Duration::from_secs(600);
/// The registry in the names of images.
const REGISTRY: &str = "registry.test";
const MIRROR: u16 = 4002;

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Way {
    /// Through this system.
    Mirror,
    /// From the registry.
    Direct,
    /// From a pull-through cache beside it (docker-registry).
    Cache,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Mirror => "dragonfly-mirror",
            Self::Direct => "containerd-direct",
            Self::Cache => "registry-cache",
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct ImagesArgs {
    /// Numbers of nodes
    #[arg(long, value_delimiter = ',', default_value = "6")]
    peers: Vec<usize>,
    /// Mbit/s of a link each way
    #[arg(long, default_value_t = 100)]
    rate: u64,
    /// MiB of each layer
    #[arg(long, value_delimiter = ',', default_value = "32,16,12,4")]
    layers: Vec<u64>,
    /// Runs of each way; direct pulls run once
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Which ways
    #[arg(long, value_delimiter = ',', default_value = "mirror,direct,cache")]
    ways: Vec<Way>,
    /// MiB of each layer of the image of which one node's peer is warm; none to leave that part out
    #[arg(long, value_delimiter = ',', default_value = "512,256,256")]
    warm_layers: Vec<u64>,
}

/// Runs all and writes what came of it.
pub(crate) fn run(args: &ImagesArgs, bin: &Path) -> Result<()> {
    for &peers in &args.peers {
        if !(1..=100).contains(&peers) {
            return Err(Failed::at(format!("--peers {peers}"), "1 to 100"));
        }
        let size = args.layers.iter().sum::<u64>() << 20;
        let case = Case {
            name: "simultaneous-pull",
            about: "containerd on every node pulls the same image of several layers at once",
            ..Case::equal(peers, args.rate, size)
        };
        let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
        let net = Net::new(&case.links)?;
        let mut bed = Bed::start(&net, &case, dir.path(), bin)?;
        let mut results: Vec<(Way, Vec<Run>)> = args.ways.iter().map(|w| (*w, vec![])).collect();
        for number in 0..args.runs.clamp(1, 100) {
            for (way, runs) in &mut results {
                // As with plain HTTP: once is enough.
                if *way != Way::Mirror && number > 0 {
                    continue;
                }
                let run = bed.run(*way, number, &args.layers)?;
                eprintln!("{}", report::line(&case, way.name(), number, &run));
                runs.push(run);
            }
        }
        let named: Vec<(&str, Vec<Run>)> = results
            .into_iter()
            .map(|(way, runs)| (way.name(), runs))
            .collect();
        report::write("images", vec![report::rows(&case, &named)])?;
    }
    if args.warm_layers.iter().all(|layer| *layer == 0) {
        return Ok(());
    }
    let case = Case {
        links: vec![Link::UNSHAPED; 2],
        ..Case::equal(1, 0, args.warm_layers.iter().sum::<u64>() << 20)
    };
    let dir = tempfile::tempdir().map_err(|e| Failed::at("a temporary directory", e))?;
    let net = Net::new(&case.links)?;
    let bed = Bed::start(&net, &case, dir.path(), bin)?;
    report::write("images", warm::run(&bed, &args.warm_layers, args.runs)?)
}

/// An image as it was put into the registry.
struct Pushed {
    manifest: String,
    layers: Vec<String>,
}

struct Bed<'a> {
    net: &'a Net,
    case: &'a Case,
    dir: PathBuf,
    registry: Process,
    cache: Process,
    containerds: Vec<Process>,
    mesh: Vec<Process>,
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let failed = |e| Failed::at(path.display(), e);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}

/// Starts a program on a node, its log beside the others.
fn start(
    net: &Net,
    dir: &Path,
    node: usize,
    name: &str,
    program: &Path,
    args: &[String],
) -> Result<Process> {
    let log = |e| Failed::at(name, e);
    let file = fs::File::create(dir.join(format!("{name}.log"))).map_err(log)?;
    let again = file.try_clone().map_err(log)?;
    let mut command = net.command(node, program);
    command
        .args(args)
        .stdout(Stdio::from(file))
        .stderr(Stdio::from(again));
    Process::spawn(name, &mut command)
}

impl<'a> Bed<'a> {
    fn start(net: &'a Net, case: &'a Case, dir: &Path, bin: &Path) -> Result<Self> {
        let host = net.ip(0);
        let registry = |name: &str, port: u16, proxy: Option<String>| -> Result<Process> {
            let mut config = json!({
                "version": 0.1,
                "log": {"accesslog": {"disabled": false}, "level": "warn"},
                "storage": {"filesystem": {"rootdirectory": dir.join(name)}},
                "http": {"addr": format!("{host}:{port}")},
            });
            if let Some(url) = proxy {
                config["proxy"] = json!({"remoteurl": url});
            }
            let file = dir.join(format!("{name}.yaml"));
            write(&file, config.to_string())?;
            let args = ["serve".to_owned(), file.display().to_string()];
            start(net, dir, 0, name, Path::new("docker-registry"), &args)
        };
        let origin = registry("registry", 5000, None)?;
        let cache = registry("cache", 5001, Some(format!("http://{host}:5000")))?;
        let mut bed = Self {
            net,
            case,
            dir: dir.to_owned(),
            registry: origin,
            cache,
            containerds: vec![],
            mesh: vec![],
        };
        bed.start_mesh(bin)?;
        for node in 1..=case.peers() {
            let process = bed.start_containerd(node)?;
            bed.containerds.push(process);
        }
        for node in 1..=case.peers() {
            let socket = bed.socket(node);
            wait_for("containerd", || socket.exists())?;
        }
        for (way, at) in [
            (Way::Mirror, format!("127.0.0.1:{MIRROR}")),
            (Way::Direct, format!("{host}:5000")),
            (Way::Cache, format!("{host}:5001")),
        ] {
            let text = format!(
                "server = \"http://{host}:5000\"\n[host.\"http://{at}\"]\n\
                 capabilities = [\"pull\", \"resolve\"]\n"
            );
            write(&bed.hosts(way).join(REGISTRY).join("hosts.toml"), text)?;
        }
        Ok(bed)
    }

    fn hosts(&self, way: Way) -> PathBuf {
        self.dir.join("hosts").join(way.name())
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.dir.join(format!("c{node}/sock"))
    }

    fn start_mesh(&mut self, bin: &Path) -> Result<()> {
        let host = self.net.ip(0);
        let manifests = self.dir.join("manifests");
        let text = format!(
            "apiVersion: d7y.io/v1alpha1\nkind: Distribution\nmetadata: {{name: bench}}\nspec:\n  \
             profile: Light\n  storage: {{reserveFreePercent: 0}}\n  mirror:\n    port: {MIRROR}\n    registries:\n      \
             - {{host: {REGISTRY}, url: 'http://{host}:5000'}}\n"
        );
        write(&manifests.join("mesh.yaml"), text)?;
        let scheduler = self.dir.join("scheduler");
        let text = |parts: &[&str]| parts.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        let address = format!("{host}:8002");
        let args = text(&[
            "scheduler",
            "--listen",
            &address,
            "--state",
            &scheduler.display().to_string(),
            "-f",
            &manifests.display().to_string(),
        ]);
        let mut process = start(self.net, &self.dir, 0, "scheduler", bin, &args)?;
        let token = scheduler.join("mesh/join-token");
        let log = self.dir.join("scheduler.log");
        comes_up("the scheduler", &mut process, &log, || token.exists())?;
        self.mesh.push(process);
        for node in 0..=self.case.peers() {
            let home = self.dir.join(format!("node-{node}"));
            let args = text(&[
                if node == 0 { "seed" } else { "peer" },
                "--scheduler",
                &address,
                "--listen",
                &format!("{}:4000", self.net.ip(node)),
                "--name",
                &format!("n{node}"),
                "--state",
                &home.display().to_string(),
                "--socket",
                &home.join("node.sock").display().to_string(),
                "--join-token-file",
                &token.display().to_string(),
            ]);
            let name = format!("n{node}");
            let process = start(self.net, &self.dir, node, &name, bin, &args)?;
            self.mesh.push(process);
        }
        for node in 1..=self.case.peers() {
            let log = self.dir.join(format!("n{node}.log"));
            wait_for("the mirrors", || {
                fs::read_to_string(&log).is_ok_and(|t| t.contains("container runtimes are served"))
            })?;
        }
        Ok(())
    }

    fn start_containerd(&self, node: usize) -> Result<Process> {
        let home = self.dir.join(format!("c{node}"));
        let at = |name: &str| home.join(name).display().to_string();
        let off = [
            "io.containerd.grpc.v1.cri",
            "io.containerd.internal.v1.opt",
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.zfs",
            "io.containerd.snapshotter.v1.aufs",
            "io.containerd.snapshotter.v1.devmapper",
        ];
        let off: Vec<_> = off.iter().map(|name| format!("\"{name}\"")).collect();
        let text = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [{}]\n\
             [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n",
            at("root"),
            at("state"),
            off.join(", "),
            at("sock"),
            at("sock.ttrpc"),
        );
        let config = home.join("config.toml");
        write(&config, text)?;
        let args = ["--config".to_owned(), config.display().to_string()];
        let name = format!("containerd-{node}");
        start(
            self.net,
            &self.dir,
            node,
            &name,
            Path::new("containerd"),
            &args,
        )
    }

    /// One pull on every node, of an image that nobody has.
    fn run(&mut self, way: Way, number: usize, layers: &[u64]) -> Result<Run> {
        let repository = format!("{}-{number}", way.name());
        self.push(&repository, layers)?;
        prime(
            &self.dir,
            2 * (self.case.peers() as u64 + 1) * self.case.size,
        )?;
        std::thread::sleep(Duration::from_secs(1));
        let pids: Vec<u32> = self
            .mesh
            .iter()
            .chain(&self.containerds)
            .chain([&self.registry, &self.cache])
            .map(Process::id)
            .collect();
        let cpu = |pids: &[u32]| {
            pids.iter().map(|p| usage::cpu(*p)).sum::<f64>() + usage::ended_children()
        };
        let (spent, sent) = (cpu(&pids), self.net.sent(0)?);
        let mut run = Run::default();
        let began = Instant::now();
        let mut pulling = vec![];
        for node in 1..=self.case.peers() {
            let mut ctr = self.net.command(node, Path::new("ctr"));
            let log = self.dir.join(format!("pull-{node}.log"));
            let log = fs::File::create(&log).map_err(|e| Failed::at(log.display(), e))?;
            ctr.arg("-a").arg(self.socket(node));
            ctr.args(["content", "fetch", "--hosts-dir"])
                .arg(self.hosts(way));
            ctr.arg(format!("{REGISTRY}/{repository}:v1")).stderr(log);
            pulling.push((node, Process::spawn("ctr", &mut ctr)?));
        }
        while !pulling.is_empty() {
            for (node, mut process) in std::mem::take(&mut pulling) {
                let seconds = began.elapsed().as_secs_f64();
                match process.ended() {
                    None => pulling.push((node, process)),
                    Some(status) if status.success() => run.times.push(seconds),
                    Some(status) => {
                        let log = self.dir.join(format!("pull-{node}.log"));
                        let said = fs::read_to_string(log).unwrap_or_default();
                        return Err(Failed::at(way.name(), format!("{status}: {said}")));
                    }
                }
            }
            if began.elapsed() > TOO_LONG {
                return Err(Failed::at(way.name(), "no end after ten minutes"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        run.cpu = cpu(&pids) - spent;
        let ours = self.mesh.iter().map(|p| usage::memory(p.id(), "VmHWM"));
        run.rss_mib = match way {
            Way::Mirror => ours.fold(0.0, f64::max),
            Way::Direct => usage::memory(self.registry.id(), "VmHWM"),
            Way::Cache => usage::memory(self.cache.id(), "VmHWM"),
        };
        run.seed_bytes = (self.net.sent(0)? - sent) as f64;
        run.origin_bytes = self.registry_sent(&repository) as f64;
        run.times.sort_by(f64::total_cmp);
        Ok(run)
    }

    /// Bytes of bodies that the registry sent of a repository.
    fn registry_sent(&self, repository: &str) -> u64 {
        let log = fs::read_to_string(self.dir.join("registry.log")).unwrap_or_default();
        let part = format!("/v2/{repository}/");
        let sent = log.lines().filter_map(|line| {
            let mut quoted = line.split('"');
            let request = quoted.nth(1)?;
            let answer = quoted.next()?;
            let counts = request.starts_with("GET ") && request.contains(&part);
            counts.then(|| answer.split_whitespace().nth(1)?.parse::<u64>().ok())?
        });
        sent.sum()
    }

    /// Puts an image of random layers where the registry keeps them.
    fn push(&self, repository: &str, layers: &[u64]) -> Result<Pushed> {
        let root = self.dir.join("registry/docker/registry/v2");
        let name = root.join("repositories").join(repository);
        let mut listed: Vec<Value> = vec![];
        let descriptor = |kind: &str, digest: &str, size: u64| {
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({"mediaType": kind, "digest": digest, "size": size})
        };
        let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        let place = |digest: &str| {
            let hex = hex(digest);
            let two = hex.get(..2).unwrap_or_default().to_owned();
            root.join("blobs/sha256").join(two).join(hex).join("data")
        };
        let link = |kind: &str, digest: &str| {
            write(
                &name
                    .join(kind)
                    .join("sha256")
                    .join(hex(digest))
                    .join("link"),
                digest,
            )
        };
        let put = |bytes: &[u8]| -> Result<String> {
            let temporary = self.dir.join("blob");
            write(&temporary, bytes)?;
            let digest = sample::digest(&temporary)?;
            write(&place(&digest), bytes)?;
            Ok(digest)
        };
        for layer in layers {
            let file = self.dir.join("layer");
            let made = sample::random(&file, layer << 20, fastrand::u64(..))?;
            let to = place(&made.digest);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(|e| Failed::at(parent.display(), e))?;
            }
            fs::rename(&file, &to).map_err(|e| Failed::at(to.display(), e))?;
            link("_layers", &made.digest)?;
            listed.push(descriptor("layer.v1.tar", &made.digest, layer << 20));
        }
        let ids: Vec<_> = listed.iter().map(|l| l["digest"].clone()).collect();
        let architecture = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": &ids},
        })
        .to_string();
        let digest = put(config.as_bytes())?;
        link("_layers", &digest)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &digest, config.len() as u64),
            "layers": listed,
        })
        .to_string();
        let digest = put(manifest.as_bytes())?;
        link("_manifests/revisions", &digest)?;
        link("_manifests/tags/v1/index", &digest)?;
        write(&name.join("_manifests/tags/v1/current/link"), &digest)?;
        let layers = ids.iter().filter_map(Value::as_str).map(str::to_owned);
        Ok(Pushed {
            layers: layers.collect(),
            manifest: digest,
        })
    }
}
