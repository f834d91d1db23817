//! `dragonfly mirror`: tells container runtimes of the mirror on their machine, for as long as it answers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dragonfly_mirror::install::containerd::{Finding, findings};
use dragonfly_mirror::install::files::{Change, Entries, Target};
use dragonfly_mirror::install::watch::{self, Findings};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{LogArgs, RoleError};

/// Tell this machine's container runtimes of the registry mirror of its peer while the mirror answers
///
/// Entries go first and leave what is there as it is. They are withdrawn within a second when the mirror
/// does not answer, and when this ends.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Where the peer's mirror is
    #[arg(long, default_value = "127.0.0.1:4002", value_name = "ADDRESS")]
    mirror: SocketAddr,
    /// The directory with containerd's config.toml and certs.d [default: /etc/containerd, where no
    /// other runtime is named]
    #[arg(long, value_name = "DIR")]
    containerd: Option<PathBuf>,
    /// What containerd calls that directory, where this process sees it elsewhere
    #[arg(long, value_name = "DIR")]
    on_node: Option<PathBuf>,
    /// The directory with registries.conf.d, for CRI-O and podman: /etc/containers
    #[arg(long, value_name = "DIR")]
    containers: Option<PathBuf>,
    /// The directory with Docker's daemon.json: /etc/docker. Docker Hub alone; reload Docker to have it
    /// read
    #[arg(long, value_name = "DIR")]
    docker: Option<PathBuf>,
    /// A registry, `host` or `host=URL` where it is not at https://host; repeatable
    #[arg(long = "registry", value_name = "REGISTRY", value_parser = target)]
    registries: Vec<Target>,
    /// All registries without a directory of their own, too (containerd)
    #[arg(long)]
    others: bool,
    /// This machine's name: with --percent it decides whether its runtimes are told
    #[arg(long, default_value = "", value_name = "NAME")]
    node: String,
    /// Of machines that are told alike, how many; the others are looked at and left as they are
    #[arg(long, default_value_t = 100, value_name = "PERCENT")]
    percent: u8,
    /// Say what would be changed and what would keep it from being used, and change nothing
    #[arg(long)]
    plan: bool,
    /// With --plan: for programs
    #[arg(long, requires = "plan")]
    json: bool,
    #[command(flatten)]
    log: LogArgs,
}

/// Reads `host` or `host=URL`. Both end up in a file that containerd reads.
fn target(text: &str) -> Result<Target, String> {
    let (host, url) = match text.split_once('=') {
        Some((host, url)) => (host, Some(url)),
        None => (text, None),
    };
    let plain = |text: &str, more: &[u8]| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    if !plain(host, b"-._:") || host.starts_with('.') {
        return Err(format!("`{host}` is no host or host:port of a registry"));
    }
    let sound = |url: &str| {
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"));
        rest.is_some_and(|rest| plain(rest, b"-._:[]/"))
    };
    if let Some(url) = url.filter(|url| !sound(url)) {
        return Err(format!(
            "`{url}` is no http://host:port or https://host:port"
        ));
    }
    Ok(Target {
        registry: Some(host.to_owned()),
        server: url.map(str::to_owned),
    })
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.log.start();
    super::until_signalled(|stop| serve(args, stop)).await
}

/// Whether a machine is among the share that is told: the same ones each time, and with a higher share
/// those of a lower one.
fn is_told(node: &str, percent: u8) -> bool {
    let hash = blake3::hash(node.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d]) % 100 < u32::from(percent)
}

async fn serve(args: Args, stop: CancellationToken) -> Result<(), RoleError> {
    let mut targets = args.registries.clone();
    if args.others {
        targets.push(Target {
            registry: None,
            server: None,
        });
    }
    if targets.is_empty() {
        let text = "for which registries? Name them (--registry), or all (--others)";
        return Err(RoleError(text.to_owned()));
    }
    let no_other = args.containers.is_none() && args.docker.is_none();
    let default = || PathBuf::from("/etc/containerd");
    let containerd = args.containerd.clone().or_else(|| no_other.then(default));
    let told = is_told(&args.node, args.percent);
    let entries = Entries {
        containerd: containerd.as_ref().map(|dir| dir.join("certs.d")),
        containers: args.containers.clone(),
        docker: args.docker.clone(),
        mirror: args.mirror,
        targets,
    };
    let settings = containerd.map(|here| {
        let on_node = args.on_node.clone().unwrap_or_else(|| here.clone());
        (here, on_node)
    });
    let look = move || match &settings {
        Some((here, on_node)) => look(here, on_node),
        None => vec![],
    };
    if args.plan {
        plan(&args, &entries, &look(), told).await;
        return Ok(());
    }
    for finding in look() {
        tracing::error!("the mirror is not used: {finding}");
    }
    if !told {
        let percent = args.percent;
        tracing::info!(percent, "this machine is not among those that are told");
    }
    let kinds = || look().iter().map(Finding::kind).collect::<Findings>();
    watch::run(entries, told, kinds, stop, |_| ()).await;
    Ok(())
}

/// What in containerd's settings keeps it from using the entries.
fn look(here: &Path, on_node: &Path) -> Vec<Finding> {
    let path = here.join("config.toml");
    match std::fs::read_to_string(&path) {
        Ok(config) => findings(&config, &on_node.join("certs.d")),
        // Then it runs by its defaults.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            findings("", &on_node.join("certs.d"))
        }
        Err(e) => vec![Finding::Syntax(e.to_string())],
    }
}

/// What the machine calls a path that this process has elsewhere.
fn on_machine(args: &Args, text: &str) -> String {
    let places = [
        (&args.containerd, args.on_node.as_deref()),
        (&args.containers, Some(Path::new("/etc/containers"))),
        (&args.docker, Some(Path::new("/etc/docker"))),
    ];
    places
        .iter()
        .fold(text.to_owned(), |text, place| match place {
            (Some(here), Some(there)) => {
                text.replace(&here.display().to_string(), &there.display().to_string())
            }
            _ => text,
        })
}

async fn plan(args: &Args, entries: &Entries, found: &[Finding], told: bool) {
    let answers = watch::answers(args.mirror, None).await;
    let mut files = vec![];
    let mut errors: Vec<_> = found.iter().map(ToString::to_string).collect();
    for (path, change) in entries.plan() {
        let path = on_machine(args, &path.display().to_string());
        match change {
            Ok(change) => files.push((path, change)),
            Err(error) => errors.push(on_machine(args, &error.to_string())),
        }
    }
    if args.json {
        let files = files.iter().map(|(path, change)| {
            let change = match change {
                Change::Nothing => "HasEntry",
                Change::Made => "Made",
                Change::Changed | Change::Restored => "Changed",
            };
            json!({"path": path, "change": change})
        });
        let files: Vec<_> = files.collect();
        let all = json!({
            "node": args.node, "told": told, "answers": answers, "files": files,
            "findings": errors,
        });
        println!("{all}");
        return;
    }
    for (path, change) in files {
        match change {
            Change::Nothing => println!("{path}: has the entry"),
            Change::Made => println!("{path}: would be made"),
            _ => println!("{path}: would get the entry, before what is there"),
        }
    }
    for error in errors {
        println!("{error}");
    }
    if !told {
        println!(
            "this machine is not among the {} % that are told",
            args.percent
        );
    }
    if !answers {
        println!(
            "{}: no mirror answers, so nothing would be changed now",
            args.mirror
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_machines_grow_by_who_joins_them() {
        let told = |percent| -> Vec<_> {
            (0..1000)
                .filter(|n| is_told(&format!("node-{n}"), percent))
                .collect()
        };
        let shares = [0, 1, 10, 50, 100].map(told);
        assert!(shares[0].is_empty() && shares[4].len() == 1000);
        assert!((60..140).contains(&shares[2].len()), "{}", shares[2].len());
        for pair in shares.windows(2) {
            assert!(pair[0].iter().all(|n| pair[1].contains(n)));
        }
    }
}
