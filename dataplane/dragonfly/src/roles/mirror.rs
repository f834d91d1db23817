//! `dragonfly mirror`: tells containerd of the mirror on its machine, for as long as it answers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use dragonfly_mirror::install::containerd::{Finding, findings};
use dragonfly_mirror::install::files::{Change, Entries, Target};
use dragonfly_mirror::install::watch;
use tokio_util::sync::CancellationToken;

use super::{LogArgs, RoleError};

/// Tell this machine's containerd of the registry mirror of its peer while the mirror answers
///
/// Entries go first into the hosts.toml of each registry and leave what is there as it is. They are
/// withdrawn within a second when the mirror does not answer, and when this ends.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Where the peer's mirror is
    #[arg(long, default_value = "127.0.0.1:4002", value_name = "ADDRESS")]
    mirror: SocketAddr,
    /// The directory with containerd's config.toml and certs.d
    #[arg(long, default_value = "/etc/containerd", value_name = "DIR")]
    containerd: PathBuf,
    /// What containerd calls that directory, where this process sees it elsewhere
    #[arg(long, value_name = "DIR")]
    on_node: Option<PathBuf>,
    /// A registry, `host` or `host=URL` where it is not at https://host; repeatable
    #[arg(long = "registry", value_name = "REGISTRY", value_parser = target)]
    registries: Vec<Target>,
    /// All registries without a directory of their own, too
    #[arg(long)]
    others: bool,
    /// Say what would be changed and what would keep it from being used, and change nothing
    #[arg(long)]
    plan: bool,
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
    let entries = Entries {
        directory: args.containerd.join("certs.d"),
        url: format!("http://{}", args.mirror),
        targets,
    };
    let found = look(&args)?;
    if args.plan {
        plan(&entries, &found, args.mirror).await;
        return Ok(());
    }
    for finding in &found {
        tracing::error!("the mirror is not used: {finding}");
    }
    watch::run(entries, args.mirror, stop, |_| ()).await;
    Ok(())
}

/// What in containerd's settings keeps it from using the entries.
fn look(args: &Args) -> Result<Vec<Finding>, RoleError> {
    let path = args.containerd.join("config.toml");
    let config = match std::fs::read_to_string(&path) {
        Ok(config) => config,
        // Then it runs by its defaults.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(RoleError::at(path.display(), e)),
    };
    let named = args.on_node.as_ref().unwrap_or(&args.containerd);
    Ok(findings(&config, &named.join("certs.d")))
}

async fn plan(entries: &Entries, found: &[Finding], mirror: SocketAddr) {
    for (path, change) in entries.plan() {
        let path = path.display();
        match change {
            Ok(Change::Nothing) => println!("{path}: has the entry"),
            Ok(Change::Made) => println!("{path}: would be made"),
            Ok(_) => println!("{path}: would get the entry, before what is there"),
            Err(error) => println!("{error}"),
        }
    }
    for finding in found {
        println!("{finding}");
    }
    if !watch::answers(mirror).await {
        println!("{mirror}: no mirror answers, so nothing would be changed now");
    }
}
