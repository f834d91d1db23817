//! What tests of real processes share.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use dragonfly_e2e::get::{Ended, Get};
use dragonfly_e2e::mesh::{Mesh, Options};
use dragonfly_e2e::origin::Origin;
use dragonfly_e2e::process::Process;
use dragonfly_e2e::sample::{self, Sample};

pub const MIB: u64 = 1 << 20;
/// No single wait of a test is longer.
pub const LIMIT: Duration = Duration::from_secs(40);

/// A mesh, and an origin with one file.
pub struct Setting {
    pub mesh: Mesh,
    pub origin: Origin,
    pub source: Sample,
    pub url: String,
}

impl Setting {
    /// The origin sends `rate` bytes a second (0: as fast as it can).
    pub async fn new(options: &Options, len: u64, rate: u64) -> Self {
        Self::at("127.0.0.1:0", options, len, rate).await
    }

    /// The same with an origin at an address.
    pub async fn at(address: &str, options: &Options, len: u64, rate: u64) -> Self {
        let mesh = Mesh::start(options).await.unwrap();
        let origin = Origin::start_on(address, rate).await.unwrap();
        let source = sample::random(&mesh.dir().join("source"), len, len).unwrap();
        let url = origin.serve("file.bin", &source.path).unwrap();
        Self {
            mesh,
            origin,
            source,
            url,
        }
    }

    /// A `get` at each peer.
    pub fn all_get(&self) -> Vec<Get> {
        (0..self.mesh.peers.len())
            .map(|n| self.mesh.get(n, &self.url, &[]).unwrap())
            .collect()
    }

    /// Until each has ended well, with the source's bytes.
    pub async fn all_have(&self, gets: Vec<Get>) -> Vec<Ended> {
        let mut ended = vec![];
        for get in gets {
            ended.push(self.has(get).await);
        }
        ended
    }

    /// Until it has ended well, with the source's bytes.
    pub async fn has(&self, get: Get) -> Ended {
        let output = get.output.clone();
        let ended = get.wait(LIMIT).await.unwrap();
        assert_eq!(
            ended.code,
            Some(0),
            "{}: {}",
            output.display(),
            ended.complaint()
        );
        assert_eq!(sample::digest(&output).unwrap(), self.source.digest);
        ended
    }

    /// The origin sent the content once, and little more.
    pub fn origin_sent_at_most(&self, more: u64) {
        let (sent, len) = (self.origin.sent(), self.source.len);
        assert!(sent <= len + more, "the origin sent {sent} bytes of {len}");
    }

    /// A command of the binary at a node, to its end.
    pub async fn run(&self, socket: &Path, args: &[&str]) -> Output {
        let socket = socket.display().to_string();
        let with_socket: Vec<_> = args.iter().copied().chain(["--socket", &socket]).collect();
        run(&self.mesh.dragonfly, &self.mesh.work, &with_socket).await
    }
}

/// Runs a test in namespaces of its own, network and mounts: by this same program, once more.
pub fn alone<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if !dragonfly_e2e::links::alone(&[name, "--exact", "--nocapture"]).unwrap() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test());
}

/// A command, in a directory, to its end; what it writes.
pub async fn run(program: &Path, dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for name in [
        "DRAGONFLY_SOCKET",
        "DRAGONFLY_SCHEDULERS",
        "DRAGONFLY_SCHEDULER",
        "DRAGONFLY_JOIN_TOKEN_FILE",
    ] {
        command.env_remove(name);
    }
    let mut process = Process::spawn(&args.join(" "), &mut command).unwrap();
    let (mut out, mut err) = (
        process.child().stdout.take().unwrap(),
        process.child().stderr.take().unwrap(),
    );
    fn all(from: &mut impl std::io::Read) -> Vec<u8> {
        let mut bytes = vec![];
        from.read_to_end(&mut bytes).unwrap();
        bytes
    }
    let out = std::thread::spawn(move || all(&mut out));
    let err = std::thread::spawn(move || all(&mut err));
    let status = process.wait(LIMIT).await.unwrap();
    Output {
        status,
        stdout: out.join().unwrap(),
        stderr: err.join().unwrap(),
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Looks again and again until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let began = std::time::Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < LIMIT, "not so after {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
