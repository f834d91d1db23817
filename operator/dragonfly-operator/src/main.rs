//! `dragonfly-operator`: runs the meshes that a cluster's Distributions ask for. Wiring only.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use dragonfly_admin::Shown;
use dragonfly_controllers::leader::Leader;
use dragonfly_controllers::{Ages, At, Metrics, Namespaces, Operator, Options};
use dragonfly_operator_core::Settings;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs the meshes that a cluster's Distributions ask for
#[derive(Debug, Parser)]
#[command(name = "dragonfly-operator", version)]
struct Args {
    /// A namespace in which Distributions are run; repeatable, `*` for all. Whoever may create a
    /// Distribution there has the nodes that it selects [default: the operator's own]
    #[arg(
        long = "namespace",
        env = "DRAGONFLY_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    namespaces: Vec<String>,
    /// The operator's own namespace
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", hide = true)]
    own_namespace: Option<String>,
    /// The operator's own pod
    #[arg(long, env = "POD_NAME", value_name = "NAME", hide = true)]
    own_name: Option<String>,
    /// The data plane's image
    #[arg(long, env = "DRAGONFLY_IMAGE", value_name = "IMAGE")]
    image: String,
    /// When nodes pull it: Always, IfNotPresent or Never
    #[arg(long, env = "DRAGONFLY_IMAGE_PULL_POLICY", value_name = "POLICY")]
    image_pull_policy: Option<String>,
    /// A Secret in each mesh's namespace that it is pulled with; repeatable
    #[arg(
        long = "image-pull-secret",
        env = "DRAGONFLY_IMAGE_PULL_SECRETS",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    image_pull_secrets: Vec<String>,
    /// Where /healthz, /readyz and /metrics are
    #[arg(long, default_value = "[::]:8080", value_name = "ADDRESS")]
    admin: SocketAddr,
    /// Where parts of meshes get their certificates
    #[arg(long, default_value = "[::]:8443", value_name = "ADDRESS")]
    issuer: SocketAddr,
    /// The operator's own Service, by which they find it
    #[arg(
        long,
        env = "DRAGONFLY_SERVICE",
        default_value = "dragonfly-operator",
        value_name = "NAME"
    )]
    service: String,
    /// Their way to --issuer, where it is no Service's: `host:port`
    #[arg(long, value_name = "ADDRESS")]
    issuer_address: Option<String>,
    /// Hours for which their certificates are good; they are renewed at a third
    #[arg(long, default_value = "72", value_name = "HOURS", value_parser = hours)]
    certificate_lifetime: Duration,
    /// Minutes for which a mesh's new CA is trusted before it signs: nodes have to have learnt of it
    #[arg(long, default_value = "10", value_name = "MINUTES", value_parser = minutes)]
    ca_overlap: Duration,
    /// What to log: a level, or filters such as `info,dragonfly_controllers=debug`
    #[arg(
        long,
        env = "DRAGONFLY_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
    /// A line of JSON for each event
    #[arg(long)]
    log_json: bool,
}

/// From a minute to a year.
fn hours(text: &str) -> Result<Duration, String> {
    within(
        text,
        3600.0,
        60.0,
        365.0 * 86_400.0,
        "hours, from 0.02 (a minute) to 8760",
    )
}

fn minutes(text: &str) -> Result<Duration, String> {
    within(
        text,
        60.0,
        1.0,
        7.0 * 86_400.0,
        "minutes, from 0.02 to 10080",
    )
}

fn within(text: &str, unit: f64, least: f64, most: f64, says: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map(|n| n * unit);
    match seconds {
        Ok(seconds) if (least..=most).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("must be a number of {says}")),
    }
}

/// Why the operator does not run, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

impl Failed {
    fn at(what: impl std::fmt::Display, e: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {e}"))
    }
}

/// The operator on its admin port.
struct ShownOperator {
    metrics: Arc<Metrics>,
    /// The Distributions of the cluster are known.
    ready: Arc<AtomicBool>,
}

impl Shown for ShownOperator {
    fn ready(&self) -> Result<(), String> {
        if self.ready.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err("the cluster's Distributions are not known yet".to_owned())
    }

    fn metrics(&self) -> String {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        dragonfly_admin::encode(&registry)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    log(&args);
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the operator ends");
            ExitCode::FAILURE
        }
    }
}

fn log(args: &Args) {
    let filter = tracing_subscriber::EnvFilter::new(&args.log);
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr);
    if args.log_json {
        logs.json().init();
    } else {
        logs.init();
    }
}

async fn run(args: Args) -> Result<(), Failed> {
    // Once in the process, before anything speaks TLS.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| Failed("a second provider of TLS in one process".to_owned()))?;
    let options = options(&args)?;
    let client = kube::Client::try_default()
        .await
        .map_err(|e| Failed::at("the API server's address and credentials", e))?;
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::default());
    let ready = Arc::new(AtomicBool::new(false));
    let shown = Arc::new(ShownOperator {
        metrics: metrics.clone(),
        ready: ready.clone(),
    });
    let addr = dragonfly_admin::serve(args.admin, shown, stop.clone())
        .await
        .map_err(|e| Failed::at(format!("admin port {}", args.admin), e))?;
    tracing::info!(%addr, namespaces = %options.namespaces, image = options.settings.image,
        "the operator is up");
    on_signal(stop.clone())?;
    // Outside of a pod whoever starts it sees to it that there is one.
    let mut leader = args.own_namespace.as_deref().map(|namespace| {
        let me = args.own_name.as_deref().unwrap_or("operator");
        Leader::new(client.clone(), namespace, me)
    });
    let wrong = |e| Failed::at(format!("issuer port {}", args.issuer), e);
    let callers = TcpListener::bind(args.issuer).await.map_err(wrong)?;
    let issuer = callers.local_addr().map_err(wrong)?;
    tracing::info!(%issuer, "certificates are given");
    let operator = Arc::new(Operator::new(client, options, metrics));
    let giving = tokio::spawn({
        let (operator, stop) = (operator.clone(), stop.clone());
        async move { operator.give_certificates(callers, stop).await }
    });
    if let Some(leader) = &mut leader {
        let until = stop.child_token();
        let leads = tokio::select! {
            leads = leader.wait(&stop) => leads,
            () = operator.stand_by(&ready, until) => false,
        };
        if !leads {
            // Never an error: whoever is asked to stop while it stands by was of no less use.
            let _ = giving.await;
            return Ok(());
        }
    }
    let reconciling = operator.lead(ready, stop.clone());
    match &mut leader {
        None => reconciling.await,
        Some(leader) => {
            let done = CancellationToken::new();
            let until = done.clone();
            let reconciling = async move {
                reconciling.await;
                done.cancel();
            };
            // Also while what is under way is finished: it writes.
            let lost = async {
                leader.keep(&until).await;
                until.is_cancelled()
            };
            tokio::pin!(lost);
            tokio::select! {
                () = reconciling => {}
                still = &mut lost => if !still {
                    return Err(Failed("another operator may lead by now".to_owned()));
                },
            }
        }
    }
    if let Some(leader) = &mut leader {
        leader.give_back().await;
    }
    if stop.is_cancelled() {
        let _ = giving.await;
    }
    // A watch that ends by itself would leave a pod that looks well and does nothing.
    if !stop.is_cancelled() {
        return Err(Failed("the controllers ended by themselves".to_owned()));
    }
    tracing::info!("stopped");
    Ok(())
}

fn options(args: &Args) -> Result<Options, Failed> {
    let named: BTreeSet<_> = args
        .namespaces
        .iter()
        .filter(|name| !name.is_empty())
        .cloned()
        .collect();
    let namespaces = if named.contains("*") {
        Namespaces::All
    } else if !named.is_empty() {
        Namespaces::Listed(named)
    } else if let Some(own) = &args.own_namespace {
        Namespaces::Listed([own.clone()].into())
    } else {
        let text =
            "which namespaces? Outside of a pod name them: --namespace (DRAGONFLY_NAMESPACES)";
        return Err(Failed(text.to_owned()));
    };
    if let Some(policy) = &args.image_pull_policy
        && !["Always", "IfNotPresent", "Never"].contains(&policy.as_str())
    {
        let text = format!("--image-pull-policy {policy}: must be Always, IfNotPresent or Never");
        return Err(Failed(text));
    }
    Ok(Options {
        namespaces,
        settings: Settings {
            image: args.image.clone(),
            image_pull_policy: args.image_pull_policy.clone(),
            image_pull_secrets: args
                .image_pull_secrets
                .iter()
                .filter(|name| !name.is_empty())
                .cloned()
                .collect(),
        },
        instance: args.own_name.clone(),
        issuer: at(args)?,
        ages: Ages {
            overlap: args.ca_overlap,
            certificate: args.certificate_lifetime,
        },
    })
}

/// Where parts reach the issuer.
fn at(args: &Args) -> Result<At, Failed> {
    match (&args.issuer_address, &args.own_namespace) {
        (Some(address), _) => Ok(At::Address(address.clone())),
        (None, Some(namespace)) => Ok(At::Service {
            namespace: namespace.clone(),
            name: args.service.clone(),
        }),
        (None, None) => {
            let text =
                "how do parts reach this operator? Outside of a pod say it: --issuer-address";
            Err(Failed(text.to_owned()))
        }
    }
}

fn on_signal(stop: CancellationToken) -> Result<(), Failed> {
    let wrong = |e| Failed::at("waiting for signals", e);
    let mut terminated = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(wrong)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        tracing::info!("stopping: what is under way is finished");
        stop.cancel();
    });
    Ok(())
}
