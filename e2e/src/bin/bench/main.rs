//! `make bench`: this system beside others on shaped links, in one run, system after system in turn.
//!
//! Every node is a network namespace with a veth to one bridge, shaped both ways (HTB); namespaces,
//! processes and files are gone at the end, also after a failure. Writes `target/bench/swarm.json`
//! and `docs/benchmarks.md`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, String>;

/// HTB counts Ethernet bytes: what is left for content at 1500 bytes a packet.
const GOODPUT: f64 = 0.956;

struct Args {
    peers: Vec<usize>,
    rate_mbit: u64,
    size: u64,
    runs: usize,
    systems: Vec<System>,
}

#[derive(Clone, Copy, PartialEq)]
enum System {
    Tls,
    Plaintext,
    Libtorrent,
    Http,
}

impl System {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Tls, "dragonfly-tls"),
        (Self::Plaintext, "dragonfly-plaintext"),
        (Self::Libtorrent, "libtorrent"),
        (Self::Http, "http"),
    ];

    fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(s, _)| *s == self)
            .map_or("", |(_, n)| n)
    }
}

fn main() {
    let outcome = args().and_then(|args| bench(&args));
    if let Err(e) = outcome {
        eprintln!("bench: {e}");
        std::process::exit(1);
    }
}

fn args() -> Result<Args> {
    let mut args = Args {
        peers: vec![6],
        rate_mbit: 100,
        size: 64 << 20,
        runs: 5,
        systems: System::ALL.iter().map(|(s, _)| *s).collect(),
    };
    let mut given = std::env::args().skip(1);
    while let Some(flag) = given.next() {
        let value = given.next().ok_or(format!("{flag} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{flag} {value}: not a number"))
        };
        match flag.as_str() {
            "--peers" => {
                let all = value
                    .split(',')
                    .map(|n| n.parse().map_err(|_| format!("--peers {n}")));
                args.peers = all.collect::<Result<_>>()?;
            }
            "--rate" => args.rate_mbit = number()?,
            "--size-mib" => args.size = number()? << 20,
            "--runs" => args.runs = number()?.clamp(1, 100) as usize,
            "--bench" if value == "swarm" => {}
            "--systems" => {
                let find = |n: &str| {
                    let known = System::ALL.iter().find(|(_, name)| *name == n);
                    known
                        .map(|(s, _)| *s)
                        .ok_or(format!("--systems {n}: unknown"))
                };
                args.systems = value.split(',').map(find).collect::<Result<_>>()?;
            }
            _ => {
                return Err(format!(
                    "{flag} {value}: there are --peers 6,12 --rate MBIT --size-mib N --runs N \
                     --systems a,b --bench swarm"
                ));
            }
        }
    }
    Ok(args)
}

/// One measured run.
struct Run {
    slowest: f64,
    p50: f64,
    p99: f64,
    seed_bytes: f64,
    cpu: f64,
    rss_mib: f64,
}

fn bench(args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".to_owned());
    }
    let bin = std::env::current_exe().map_err(|e| e.to_string())?;
    let bin = bin.parent().ok_or("no directory")?.join("dragonfly");
    let mut json = String::new();
    let mut table = String::new();
    for &peers in &args.peers {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let net = Net::new(peers + 1, args.rate_mbit)?;
        let mut bed = Bed::new(&net, dir.path(), &bin, args, peers)?;
        let mut results: Vec<(System, Vec<Run>)> =
            args.systems.iter().map(|s| (*s, Vec::new())).collect();
        for n in 0..args.runs {
            for (system, runs) in &mut results {
                // Plain HTTP cannot be better than N times the limit: once is enough.
                if *system == System::Http && n > 0 {
                    continue;
                }
                let run = bed.run(*system, n)?;
                let limit = limit(args);
                eprintln!(
                    "N={peers} {:20} run {n}: slowest {:.3} x the limit, p50 {:.3}, seed sent {:.3} F, {:.1} CPU s/GiB, {:.0} MiB",
                    system.name(),
                    run.slowest / limit,
                    run.p50 / limit,
                    run.seed_bytes / args.size as f64,
                    run.cpu / (peers as f64 * args.size as f64 / (1u64 << 30) as f64),
                    run.rss_mib
                );
                runs.push(run);
            }
        }
        drop(bed);
        summarise(args, peers, &results, &mut json, &mut table);
    }
    write(args, &json, &table)
}

fn limit(args: &Args) -> f64 {
    args.size as f64 * 8.0 / (args.rate_mbit as f64 * 1e6 * GOODPUT)
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

fn summarise(
    args: &Args,
    peers: usize,
    results: &[(System, Vec<Run>)],
    json: &mut String,
    table: &mut String,
) {
    let (limit, size) = (limit(args), args.size as f64);
    let gib = peers as f64 * size / (1u64 << 30) as f64;
    let mut systems = vec![];
    for (system, runs) in results {
        let row = |r: &Run| {
            format!(
                "{{\"slowest_over_limit\":{:.4},\"p99_over_p50\":{:.4},\"origin_over_size\":1.0,\"seed_over_size\":{:.4},\"cpu_s_per_gib\":{:.3},\"peak_rss_mib\":{:.1},\"wall_s\":{:.3}}}",
                r.slowest / limit,
                r.p99 / r.p50,
                r.seed_bytes / size,
                r.cpu / gib,
                r.rss_mib,
                r.slowest
            )
        };
        let of = |f: &dyn Fn(&Run) -> f64| median(runs.iter().map(f).collect());
        let all: Vec<_> = runs.iter().map(row).collect();
        let m = Run {
            slowest: of(&|r| r.slowest),
            p50: of(&|r| r.p50),
            p99: of(&|r| r.p99),
            seed_bytes: of(&|r| r.seed_bytes),
            cpu: of(&|r| r.cpu),
            rss_mib: of(&|r| r.rss_mib),
        };
        systems.push(format!(
            "{{\"system\":\"{}\",\"runs\":[{}],\"median\":{}}}",
            system.name(),
            all.join(","),
            row(&m)
        ));
        let lowest = runs
            .iter()
            .map(|r| r.slowest / limit)
            .fold(f64::INFINITY, f64::min);
        let highest = runs.iter().map(|r| r.slowest / limit).fold(0.0, f64::max);
        let _ = writeln!(
            table,
            "| {peers} | {} | {} | {:.3}; {lowest:.3}-{highest:.3} | {:.3} | {:.2} | {:.1} | {:.0} |",
            system.name(),
            runs.len(),
            m.slowest / limit,
            m.p99 / m.p50,
            m.seed_bytes / size,
            m.cpu / gib,
            m.rss_mib
        );
    }
    let comma = if json.is_empty() { "" } else { "," };
    let _ = write!(
        json,
        "{comma}{{\"case\":\"equal\",\"peers\":{peers},\"rate_mbit\":{},\"size_bytes\":{},\"systems\":[{}]}}",
        args.rate_mbit,
        args.size,
        systems.join(",")
    );
}

fn write(args: &Args, json: &str, table: &str) -> Result<()> {
    let err = |e: std::io::Error| e.to_string();
    fs::create_dir_all("target/bench").map_err(err)?;
    fs::write(
        "target/bench/swarm.json",
        format!("{{\"bench\":\"swarm\",\"cases\":[{json}]}}\n"),
    )
    .map_err(err)?;
    let text = format!(
        "# Benchmarks\n\nWritten by `make bench`; nothing here is edited by hand. {} MiB, every link {} Mbit/s each \
         way, the seed's too; systems in turn in one run; SHA-256 of every copy checked. The limit is the \
         time one link needs for the content once ({:.2} s). CPU is user and system time of all processes \
         over N x size; memory is the largest peak of one process.\n\n\
         | N | system | runs | slowest/limit (median; range) | p99/p50 | seed sent, x size | CPU s/GiB | peak MiB |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n{table}",
        args.size >> 20,
        args.rate_mbit,
        limit(args)
    );
    fs::write("docs/benchmarks.md", &text).map_err(err)?;
    println!("{text}");
    Ok(())
}

fn sh(args: &[&str]) -> Result<String> {
    let (cmd, rest) = args.split_first().ok_or("no command")?;
    let out = Command::new(cmd)
        .args(rest)
        .output()
        .map_err(|e| format!("{cmd}: {e}"))?;
    if !out.status.success() {
        return Err(format!(
            "{}: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr)
        ));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A bridge and nodes, each in a namespace of its own.
struct Net {
    prefix: String,
    nodes: usize,
}

impl Net {
    fn new(nodes: usize, rate_mbit: u64) -> Result<Self> {
        let net = Self {
            prefix: format!("dfb{}", std::process::id()),
            nodes,
        };
        let bridge = net.bridge();
        sh(&["ip", "netns", "add", &bridge])?;
        sh(&["ip", "-n", &bridge, "link", "add", "br0", "type", "bridge"])?;
        sh(&["ip", "-n", &bridge, "link", "set", "br0", "up"])?;
        for n in 0..nodes {
            let (ns, port) = (net.ns(n), format!("p{n}"));
            sh(&["ip", "netns", "add", &ns])?;
            sh(&[
                "ip", "-n", &bridge, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                "netns", &ns,
            ])?;
            sh(&[
                "ip", "-n", &bridge, "link", "set", &port, "master", "br0", "up",
            ])?;
            sh(&[
                "ip",
                "-n",
                &ns,
                "addr",
                "add",
                &format!("{}/24", net.ip(n)),
                "dev",
                "eth0",
            ])?;
            sh(&["ip", "-n", &ns, "link", "set", "eth0", "up"])?;
            sh(&["ip", "-n", &ns, "link", "set", "lo", "up"])?;
            for (ns, dev) in [(&ns, "eth0"), (&bridge, port.as_str())] {
                shape(ns, dev, rate_mbit)?;
            }
        }
        Ok(net)
    }

    fn bridge(&self) -> String {
        format!("{}-br", self.prefix)
    }

    fn ns(&self, n: usize) -> String {
        format!("{}-{n}", self.prefix)
    }

    fn ip(&self, n: usize) -> String {
        format!("10.77.0.{}", n + 1)
    }

    /// A command inside a node.
    fn command(&self, n: usize, program: &Path) -> Command {
        let mut c = Command::new("ip");
        c.args(["netns", "exec", &self.ns(n)]).arg(program);
        c.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        c
    }

    fn sent(&self, n: usize) -> Result<u64> {
        let path = "/sys/class/net/eth0/statistics/tx_bytes";
        let text = sh(&["ip", "netns", "exec", &self.ns(n), "cat", path])?;
        text.trim().parse().map_err(|_| "tx_bytes".to_owned())
    }
}

fn shape(ns: &str, dev: &str, rate_mbit: u64) -> Result<()> {
    let rate = format!("{rate_mbit}mbit");
    sh(&[
        "tc", "-n", ns, "qdisc", "add", "dev", dev, "root", "handle", "1:", "htb", "default", "1",
    ])?;
    sh(&[
        "tc", "-n", ns, "class", "add", "dev", dev, "parent", "1:", "classid", "1:1", "htb",
        "rate", &rate, "burst", "64k",
    ])?;
    sh(&[
        "tc", "-n", ns, "qdisc", "add", "dev", dev, "parent", "1:1", "pfifo", "limit", "300",
    ])?;
    Ok(())
}

impl Drop for Net {
    fn drop(&mut self) {
        for n in 0..self.nodes {
            let _ = sh(&["ip", "netns", "del", &self.ns(n)]);
        }
        let _ = sh(&["ip", "netns", "del", &self.bridge()]);
    }
}

/// A process that ends with this value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// User and system seconds and peak memory in MiB of a process that runs.
fn usage(pid: u32) -> (f64, f64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |n: usize| {
        fields
            .get(n)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = peak
        .and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0);
    ((ticks(11) + ticks(12)) / 100.0, kib / 1024.0)
}

/// CPU seconds of children that ended.
fn ended_children() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |n: usize| {
        fields
            .get(n)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(13) + ticks(14)) / 100.0
}

/// One mesh on the net, encrypted or not.
struct Mesh {
    daemons: Vec<Daemon>,
    /// The seed's first.
    sockets: Vec<PathBuf>,
}

struct Bed<'a> {
    net: &'a Net,
    dir: PathBuf,
    bin: PathBuf,
    peers: usize,
    digest: String,
    content: PathBuf,
    meshes: Vec<(System, Mesh)>,
    _origin: Daemon,
}

impl<'a> Bed<'a> {
    fn new(net: &'a Net, dir: &Path, bin: &Path, args: &Args, peers: usize) -> Result<Self> {
        let www = dir.join("www");
        fs::create_dir_all(&www).map_err(|e| e.to_string())?;
        let content = www.join("content");
        random_file(&content, args.size)?;
        let conf = dir.join("nginx.conf");
        let text = format!(
            "daemon off; pid {0}/nginx.pid; error_log {0}/nginx.log; worker_processes 1;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; server {{ listen 8080; root {0}/www;\n\
             location ~ ^/run {{ rewrite ^ /content break; }} }} }}\n",
            dir.display()
        );
        // Each run has a path of its own, so that no cache answers it, and one file on disk.
        fs::write(&conf, text).map_err(|e| e.to_string())?;
        let origin = net
            .command(0, Path::new("nginx"))
            .arg("-c")
            .arg(&conf)
            .spawn()
            .map_err(|e| format!("nginx: {e}"))?;
        let mut bed = Self {
            net,
            dir: dir.to_owned(),
            bin: bin.to_owned(),
            peers,
            digest: sha256(&content)?,
            content,
            meshes: vec![],
            _origin: Daemon(origin),
        };
        for system in [System::Tls, System::Plaintext] {
            if args.systems.contains(&system) {
                let mesh = bed.start_mesh(system)?;
                bed.meshes.push((system, mesh));
            }
        }
        std::thread::sleep(Duration::from_secs(2));
        Ok(bed)
    }

    fn start_mesh(&self, system: System) -> Result<Mesh> {
        let err = |e: std::io::Error| e.to_string();
        let dir = self.dir.join(system.name());
        let manifests = dir.join("manifests");
        fs::create_dir_all(&manifests).map_err(err)?;
        let transport = if system == System::Tls {
            "MutualTLS"
        } else {
            "Plaintext"
        };
        fs::write(
            manifests.join("mesh.yaml"),
            format!(
                "apiVersion: d7y.io/v1alpha1\nkind: Distribution\nmetadata: {{name: bench}}\n\
                 spec: {{profile: Light, security: {{transport: {transport}}}}}\n"
            ),
        )
        .map_err(err)?;
        let offset = if system == System::Tls { 0 } else { 10 };
        let scheduler = format!("{}:{}", self.net.ip(0), 8002 + offset);
        let state = dir.join("scheduler");
        let log = |name: &str| fs::File::create(dir.join(name)).map_err(err);
        let mut daemons = vec![];
        let spawn = |mut c: Command| c.spawn().map(Daemon).map_err(err);
        let mut c = self.net.command(0, &self.bin);
        c.args(["scheduler", "--listen", &scheduler, "--state"])
            .arg(&state)
            .arg("-f")
            .arg(&manifests);
        c.stderr(log("scheduler.log")?);
        daemons.push(spawn(c)?);
        let token = state.join("mesh/join-token");
        let until = Instant::now() + Duration::from_secs(10);
        while !token.exists() {
            if Instant::now() > until {
                return Err("the scheduler does not start".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut sockets = vec![];
        for n in 0..=self.peers {
            let role = if n == 0 { "seed" } else { "peer" };
            let home = dir.join(format!("node-{n}"));
            let socket = home.join("node.sock");
            let listen = format!("{}:{}", self.net.ip(n), 4000 + offset);
            let mut c = self.net.command(n, &self.bin);
            c.args([
                role,
                "--scheduler",
                &scheduler,
                "--listen",
                &listen,
                "--name",
                &format!("n{n}"),
            ]);
            c.arg("--state").arg(&home).arg("--socket").arg(&socket);
            if system == System::Tls {
                c.arg("--join-token-file").arg(&token);
            }
            c.stderr(log(&format!("node-{n}.log"))?);
            daemons.push(spawn(c)?);
            sockets.push(socket);
        }
        Ok(Mesh { daemons, sockets })
    }

    fn run(&mut self, system: System, n: usize) -> Result<Run> {
        let outputs: Vec<PathBuf> = (1..=self.peers)
            .map(|p| self.dir.join(format!("out-{p}")))
            .collect();
        for out in &outputs {
            let _ = fs::remove_file(out);
            let _ = fs::remove_file(out.with_extension("done"));
            let _ = fs::remove_dir_all(out.with_extension("dir"));
        }
        self.prime()?;
        let mut helpers = vec![];
        let commands: Vec<Command> = match system {
            System::Tls | System::Plaintext => {
                let mesh = self.meshes.iter().find(|(s, _)| *s == system);
                let mesh = mesh.map(|(_, m)| m).ok_or("no mesh")?;
                let url = format!("http://{}:8080/run-{}-{n}", self.net.ip(0), system.name());
                let get = |(p, out): (usize, &PathBuf)| {
                    let mut c = self.net.command(p + 1, &self.bin);
                    c.args(["get", "--quiet", "--socket"])
                        .arg(&mesh.sockets[p + 1]);
                    c.arg("-O").arg(out).arg(&url);
                    c
                };
                outputs.iter().enumerate().map(get).collect()
            }
            System::Http => {
                let url = format!("http://{}:8080/content", self.net.ip(0));
                let get = |(p, out): (usize, &PathBuf)| {
                    let mut c = self.net.command(p + 1, Path::new("curl"));
                    c.arg("-sfo").arg(out).arg(&url);
                    c
                };
                outputs.iter().enumerate().map(get).collect()
            }
            System::Libtorrent => self.torrent(&outputs, &mut helpers)?,
        };
        let daemons: Vec<u32> = self
            .meshes
            .iter()
            .filter(|(s, _)| *s == system)
            .flat_map(|(_, m)| m.daemons.iter().map(|d| d.0.id()))
            .chain(helpers.iter().map(|d: &Daemon| d.0.id()))
            .collect();
        let cpu = || daemons.iter().map(|p| usage(*p).0).sum::<f64>() + ended_children();
        let (cpu_before, sent_before) = (cpu(), self.net.sent(0)?);
        let started = Instant::now();
        let mut waiting: Vec<(Child, PathBuf)> = vec![];
        for (mut c, out) in commands.into_iter().zip(&outputs) {
            let child = c.spawn().map_err(|e| e.to_string())?;
            waiting.push((child, out.with_extension("done")));
        }
        // Some clients are to serve others after they finished: they leave a mark and stay.
        let mut stay = vec![];
        let mut times = vec![];
        let mut rss: f64 = 0.0;
        while !waiting.is_empty() {
            let mut still = vec![];
            for (mut child, mark) in waiting {
                rss = rss.max(usage(child.id()).1);
                if mark.exists() {
                    times.push(started.elapsed().as_secs_f64());
                    stay.push(Daemon(child));
                    continue;
                }
                match child.try_wait().map_err(|e| e.to_string())? {
                    Some(status) if status.success() => times.push(started.elapsed().as_secs_f64()),
                    Some(status) => {
                        return Err(format!("{}: a get ended with {status}", system.name()));
                    }
                    None => still.push((child, mark)),
                }
            }
            waiting = still;
            if started.elapsed() > Duration::from_secs(600) {
                return Err(format!("{}: no end after ten minutes", system.name()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let staying: f64 = stay.iter().map(|d| usage(d.0.id()).0).sum();
        let spent = cpu() - cpu_before + staying;
        drop(stay);
        let sent = self.net.sent(0)? - sent_before;
        for out in &outputs {
            if sha256(out)? != self.digest {
                return Err(format!(
                    "{}: {} is not what was sent",
                    system.name(),
                    out.display()
                ));
            }
            let _ = fs::remove_file(out);
        }
        rss = daemons.iter().map(|p| usage(*p).1).fold(rss, f64::max);
        self.forget(system)?;
        times.sort_by(f64::total_cmp);
        let at = |q: f64| times[((times.len() as f64 * q) as usize).min(times.len() - 1)];
        Ok(Run {
            slowest: at(1.0),
            p50: at(0.5),
            p99: at(0.99),
            seed_bytes: sent as f64 * GOODPUT,
            cpu: spent,
            rss_mib: rss,
        })
    }

    /// Touches as much memory as a run fills with page cache. A virtual machine may get its memory
    /// from the host page by page at first use, which costs several times the copy and would be
    /// charged to whichever system comes first.
    fn prime(&self) -> Result<()> {
        let path = self.dir.join("prime");
        let size = self.content.metadata().map_err(|e| e.to_string())?.len();
        let file = fs::File::create(&path).map_err(|e| e.to_string())?;
        let zeroes = vec![0u8; 1 << 20];
        for _ in 0..(2 * (self.peers as u64 + 1) * size) >> 20 {
            (&file).write_all(&zeroes).map_err(|e| e.to_string())?;
        }
        fs::remove_file(&path).map_err(|e| e.to_string())
    }

    /// Removes what the nodes keep, as the files of the other systems are removed.
    fn forget(&self, system: System) -> Result<()> {
        let Some((_, mesh)) = self.meshes.iter().find(|(s, _)| *s == system) else {
            return Ok(());
        };
        let bin = self.bin.display().to_string();
        for socket in &mesh.sockets {
            let socket = socket.display().to_string();
            let list = sh(&[&bin, "ls", "--socket", &socket, "-o", "json"])?;
            for line in list.lines() {
                let task: serde_json::Value =
                    serde_json::from_str(line).map_err(|e| format!("ls: {e}"))?;
                let id = task["task"].as_str().ok_or("ls names no id")?.to_owned();
                sh(&[&bin, "rm", "--socket", &socket, &id])?;
            }
        }
        Ok(())
    }

    /// libtorrent, tuned: no uTP, DHT, LSD or encryption, quick choking, peers connected explicitly.
    fn torrent(&self, outputs: &[PathBuf], helpers: &mut Vec<Daemon>) -> Result<Vec<Command>> {
        let script = self.dir.join("torrent.py");
        fs::write(&script, include_str!("torrent.py")).map_err(|e| e.to_string())?;
        let python = std::env::var("BENCH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let python = Path::new(&python);
        let all: Vec<String> = (0..=self.peers).map(|n| self.net.ip(n)).collect();
        let torrent = self.dir.join("content.torrent");
        let ready = self.dir.join("seeding");
        let _ = fs::remove_file(&ready);
        let mut seed = self.net.command(0, python);
        seed.arg(&script)
            .arg("seed")
            .arg(&torrent)
            .arg(&self.content)
            .arg(&ready)
            .args(&all);
        helpers.push(Daemon(seed.spawn().map_err(|e| e.to_string())?));
        let until = Instant::now() + Duration::from_secs(30);
        while !ready.exists() {
            if Instant::now() > until {
                return Err(
                    "libtorrent's seed does not start: is python's libtorrent there?".to_owned(),
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let peers = outputs.iter().enumerate().map(|(p, out)| {
            let mut c = self.net.command(p + 1, python);
            c.arg(&script)
                .arg("leech")
                .arg(&torrent)
                .arg(out)
                .arg("-")
                .args(&all);
            c
        });
        Ok(peers.collect())
    }
}

fn random_file(path: &Path, size: u64) -> Result<()> {
    use std::io::Read;
    let err = |e: std::io::Error| e.to_string();
    let mut from = fs::File::open("/dev/urandom").map_err(err)?.take(size);
    let mut to = fs::File::create(path).map_err(err)?;
    std::io::copy(&mut from, &mut to).map_err(err)?;
    to.flush().map_err(err)
}

fn sha256(path: &Path) -> Result<String> {
    let text = sh(&["sha256sum", &path.display().to_string()])?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
