//! `dragonfly top`: who moves how much, now.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dragonfly_client::rpc;
use dragonfly_client::rpc::scheduler_client::SchedulerClient;
use dragonfly_identity::{IdentityError, view};
use dragonfly_node::session::speaks_tls;
use dragonfly_transport::Calls;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{EXIT_CODES, Exit, Failed, Format, NodeArgs, ended, say, show_bytes, table};

/// Show the mesh as a scheduler sees it, or this machine's node
///
/// Redrawn each second on a terminal; one table when piped.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// A scheduler's `host:port`; without it the node is asked
    #[arg(long, env = "DRAGONFLY_SCHEDULER", value_name = "ADDRESS")]
    scheduler: Option<String>,
    /// The file with the mesh's join token, where the mesh is encrypted: `top` gets a certificate for
    /// itself by it
    #[arg(long, env = "DRAGONFLY_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<std::path::PathBuf>,
    /// PEM of the CA that signed the scheduler's certificate, instead of a join token: TLS
    #[arg(long, value_name = "FILE", requires = "scheduler")]
    ca: Option<std::path::PathBuf>,
    /// PEM of a certificate to show
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<std::path::PathBuf>,
    /// PEM of its key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<std::path::PathBuf>,
    /// The name in the scheduler's certificate, when it is not the address's
    #[arg(long, value_name = "NAME", requires = "ca")]
    server_name: Option<String>,
    /// Tasks shown
    #[arg(long, default_value_t = 20)]
    tasks: usize,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args) -> ExitCode {
    ended(top(&args).await)
}

async fn top(args: &Args) -> Result<(), Failed> {
    let live = args.output == Format::Table && std::io::stdout().is_terminal();
    let mut scheduler = match &args.scheduler {
        Some(address) => Some(Scheduler::new(args, address).await?),
        None => None,
    };
    loop {
        let text = match &mut scheduler {
            Some(scheduler) => {
                if scheduler.renew.is_some_and(|at| at < Instant::now()) {
                    *scheduler = Scheduler::new(args, &scheduler.address).await?;
                }
                mesh(args, scheduler).await?
            }
            None => node(args).await?,
        };
        if !live {
            return say(&text);
        }
        // Home, and each line wiped to its end: no flicker.
        let text = text.replace('\n', "\x1b[K\n");
        say(&format!("\x1b[H{text}\x1b[J"))?;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// Where to ask, and until when with this certificate.
struct Scheduler {
    address: String,
    channel: Channel,
    renew: Option<Instant>,
}

impl Scheduler {
    async fn new(args: &Args, address: &str) -> Result<Self, Failed> {
        let wrong = |e: tonic::transport::Error| {
            Failed::new(Exit::Usage, format!("--scheduler {address}: {e}"))
        };
        let endpoint = |scheme: &str| {
            let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(wrong)?;
            Ok::<_, Failed>(
                endpoint
                    .connect_timeout(Duration::from_secs(3))
                    .timeout(Duration::from_secs(10)),
            )
        };
        let (channel, renew) = match (&args.ca, &args.join_token_file) {
            (Some(ca), _) => {
                let endpoint = endpoint("https")?.tls_config(named(args, ca)?);
                (endpoint.map_err(wrong)?.connect_lazy(), None)
            }
            (None, Some(file)) => {
                let (calls, renew) = joined(file, address).await?;
                let endpoint = endpoint("http")?;
                (endpoint.connect_with_connector_lazy(calls), Some(renew))
            }
            (None, None) => (endpoint("http")?.connect_lazy(), None),
        };
        Ok(Self {
            address: address.to_owned(),
            channel,
            renew,
        })
    }
}

/// TLS by the files that the arguments name.
fn named(args: &Args, ca: &Path) -> Result<ClientTlsConfig, Failed> {
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|e| Failed::new(Exit::Usage, format!("{}: {e}", path.display())))
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    if let (Some(cert), Some(key)) = (&args.cert, &args.key) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    if let Some(name) = &args.server_name {
        tls = tls.domain_name(name.clone());
    }
    Ok(tls)
}

/// TLS by a certificate that the scheduler gives for a join token, and when to get another.
async fn joined(file: &Path, address: &str) -> Result<(Calls, Instant), Failed> {
    let token = crate::roles::node::read_token(file)
        .map_err(|e| Failed::new(Exit::Usage, e.to_string()))?;
    let given = view(address, &token).await.map_err(|e| {
        let exit = match e {
            IdentityError::Unreachable(_) => Exit::Unavailable,
            _ => Exit::Denied,
        };
        Failed::new(exit, e.to_string())
    })?;
    Ok((given.client(), Instant::now() + given.renew_after))
}

async fn mesh(args: &Args, scheduler: &Scheduler) -> Result<String, Failed> {
    let mut client =
        SchedulerClient::new(scheduler.channel.clone()).max_decoding_message_size(64 << 20);
    let reply = client.inspect(rpc::InspectRequest {}).await;
    let reply = match reply {
        Ok(reply) => reply,
        Err(status) => return Err(unanswered(scheduler, &status).await),
    };
    let reply = reply.into_inner();
    Ok(match args.output {
        Format::Table => mesh_table(&reply, args.tasks),
        Format::Json => format!("{}\n", mesh_json(&reply)),
    })
}

async fn unanswered(scheduler: &Scheduler, status: &tonic::Status) -> Failed {
    let address = &scheduler.address;
    if scheduler.renew.is_none() && speaks_tls(address).await {
        let text = format!(
            "the scheduler at {address} wants a certificate: show the mesh's join token with \
             --join-token-file"
        );
        return Failed::new(Exit::Denied, text);
    }
    let text = format!(
        "the scheduler at {address} does not answer: {}",
        status.message()
    );
    Failed::new(Exit::Unavailable, text)
}

fn mesh_table(reply: &rpc::InspectReply, tasks: usize) -> String {
    let nodes: Vec<_> = reply.nodes.iter().map(node_row).collect();
    let mut busy: Vec<_> = reply.tasks.iter().collect();
    busy.sort_by_key(|t| std::cmp::Reverse(t.members.saturating_sub(t.complete)));
    let rows: Vec<_> = busy.iter().take(tasks).map(|t| task_row(t)).collect();
    let revision = reply.policy.as_ref().map_or(0, |p| p.revision);
    let heads = [
        "NODE", "ROLE", "ZONE", "IN/S", "OUT/S", "ORIGIN", "SEEDS", "PEERS", "SENT", "TASKS",
    ];
    let mut out = format!(
        "scheduler {}, policy {revision}: {} nodes, {} tasks\n\n",
        reply.scheduler,
        reply.nodes.len(),
        reply.tasks.len()
    );
    out.push_str(&table(&heads, &nodes));
    out.push('\n');
    out.push_str(&table(
        &["TASK", "SIZE", "MEMBERS", "COMPLETE", "EMITTER", "URL"],
        &rows,
    ));
    out
}

fn node_row(n: &rpc::NodeInfo) -> Vec<String> {
    let t = n.totals.clone().unwrap_or_default();
    vec![
        n.name.clone(),
        role(n.role()).to_owned(),
        n.zone.clone(),
        show_bytes(n.rate_in),
        show_bytes(n.rate_out),
        show_bytes(t.from_origin),
        show_bytes(t.from_seeds),
        show_bytes(t.from_peers),
        show_bytes(t.uploaded),
        t.active_tasks.to_string(),
    ]
}

fn task_row(t: &rpc::TaskInfo) -> Vec<String> {
    let total = t.geometry.as_ref().and_then(|g| g.total_len);
    vec![
        hex(&t.content).chars().take(12).collect(),
        total.map_or_else(|| "?".to_owned(), show_bytes),
        t.members.to_string(),
        t.complete.to_string(),
        t.emitter.clone(),
        t.url.clone(),
    ]
}

const fn role(role: rpc::Role) -> &'static str {
    match role {
        rpc::Role::Seed => "seed",
        rpc::Role::Peer => "peer",
        rpc::Role::Viewer | rpc::Role::Scheduler | rpc::Role::Unspecified => "?",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn mesh_json(reply: &rpc::InspectReply) -> serde_json::Value {
    let nodes = reply.nodes.iter().map(|n| {
        let t = n.totals.clone().unwrap_or_default();
        serde_json::json!({
            "node": hex(&n.node), "name": n.name, "role": role(n.role()), "zone": n.zone,
            "addresses": n.addresses, "bytesPerSecondIn": n.rate_in, "bytesPerSecondOut": n.rate_out,
            "fromOrigin": t.from_origin, "fromSeeds": t.from_seeds, "fromPeers": t.from_peers,
            "uploaded": t.uploaded, "storedBytes": t.stored_bytes, "activeTasks": t.active_tasks,
            "connections": t.connections, "tasksDone": t.tasks_done, "tasksFailed": t.tasks_failed,
            "policyRevision": n.policy.as_ref().map(|p| p.revision),
            "policyError": n.policy.as_ref().map(|p| p.error.clone()).filter(|e| !e.is_empty()),
        })
    });
    let tasks = reply.tasks.iter().map(|t| {
        serde_json::json!({
            "task": hex(&t.content), "url": t.url, "members": t.members, "complete": t.complete,
            "emitter": t.emitter, "epoch": t.epoch,
            "totalLength": t.geometry.as_ref().and_then(|g| g.total_len),
        })
    });
    serde_json::json!({
        "scheduler": reply.scheduler,
        "policyRevision": reply.policy.as_ref().map(|p| p.revision),
        "nodes": nodes.collect::<Vec<_>>(),
        "tasks": tasks.collect::<Vec<_>>(),
    })
}

async fn node(args: &Args) -> Result<String, Failed> {
    let s = args.node.connect().await?.status().await?;
    let t = s.totals.unwrap_or_default();
    if args.output == Format::Json {
        let json = serde_json::json!({
            "node": hex(&s.node), "name": s.name, "version": s.version, "schedulers": s.schedulers,
            "policyRevision": s.policy_revision, "storedBytes": s.stored_bytes,
            "quotaBytes": s.quota_bytes, "connections": s.connections,
            "fromCache": t.from_cache, "fromOrigin": t.from_origin, "fromSeeds": t.from_seeds,
            "fromPeers": t.from_peers, "uploaded": s.uploaded,
        });
        return Ok(format!("{json}\n"));
    }
    let schedulers = match s.schedulers.as_slice() {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    let rows = [vec![
        s.name,
        format!(
            "{} of {}",
            show_bytes(s.stored_bytes),
            show_bytes(s.quota_bytes)
        ),
        show_bytes(t.from_cache),
        show_bytes(t.from_origin),
        show_bytes(t.from_seeds),
        show_bytes(t.from_peers),
        show_bytes(s.uploaded),
        s.connections.to_string(),
        schedulers,
    ]];
    let heads = [
        "NODE",
        "STORED",
        "CACHE",
        "ORIGIN",
        "SEEDS",
        "PEERS",
        "SENT",
        "LINKS",
        "SCHEDULERS",
    ];
    Ok(table(&heads, &rows))
}
