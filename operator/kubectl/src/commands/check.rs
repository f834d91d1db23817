//! `check`: what is needed before an installation, and whether it does what it should after.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use dragonfly_crds::conditions::{MIRROR_USABLE, READY};
use dragonfly_crds::preheat::{CREATED_BY, PLUGIN};
use dragonfly_crds::{Distribution, Preheat};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use super::status::problems;
use super::{MeshArgs, condition, full_name};
use crate::Failed;
use crate::cluster::{Cluster, Where};
use crate::output::{Format, bytes, say};
use crate::schedulers::{Inspected, Schedulers};

const KINDS: [&str; 3] = ["distributions", "schedulerpools", "preheats"];
/// The oldest Kubernetes that the project is run on.
const OLDEST: u32 = 33;
/// How long a content may take.
const PULL: Duration = Duration::from_secs(120);

/// Check what an installation needs (--pre), or whether it does what it should
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
    /// Before installing: only what the cluster and your rights have to be
    #[arg(long)]
    pre: bool,
    /// Pull this through the mesh to one peer, and show from whom it came
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Lines, and whether any was bad.
#[derive(Default)]
struct Report {
    rows: Vec<Value>,
    bad: bool,
    quiet: bool,
}

impl Report {
    fn good(&mut self, what: impl Display) {
        self.row("ok", what.to_string(), "");
    }

    fn note(&mut self, what: impl Display) {
        self.row("--", what.to_string(), "");
    }

    fn bad(&mut self, what: impl Display, hint: &str) {
        self.bad = true;
        self.row("!!", what.to_string(), hint);
    }

    fn row(&mut self, mark: &str, what: String, hint: &str) {
        if !self.quiet {
            let hint = if hint.is_empty() {
                String::new()
            } else {
                format!("\n       {hint}")
            };
            // A reader that went away is seen at the end.
            let _ = say(&format!("[{mark}]  {what}{hint}\n"));
        }
        self.rows
            .push(json!({"result": mark, "what": what, "hint": hint}));
    }
}

/// Runs it.
///
/// # Errors
/// The cluster cannot be asked at all.
pub async fn run(at: &Where, args: &Args) -> Result<ExitCode, Failed> {
    let mut report = Report {
        quiet: matches!(at.output, Format::Json | Format::Yaml),
        ..Report::default()
    };
    let cluster = at.connect().await?;
    let version = cluster.client.apiserver_version().await?;
    let minor: String = version
        .minor
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    if minor.parse().is_ok_and(|minor: u32| minor >= OLDEST) {
        report.good(format!("Kubernetes {} answers", version.git_version));
    } else {
        report.bad(
            format!("Kubernetes {} is old", version.git_version),
            &format!("1.{OLDEST} is the oldest that is known to do"),
        );
    }
    if args.pre {
        before(&cluster, &mut report).await?;
    } else {
        after(&cluster, args, &mut report).await?;
    }
    match at.output {
        Format::Json => say(&format!("{:#}\n", json!(report.rows)))?,
        Format::Yaml => {
            let text = serde_saphyr::to_string(&report.rows).map_err(|e| Failed::at("YAML", e))?;
            say(&text)?;
        }
        _ => {}
    }
    Ok(ExitCode::from(u8::from(report.bad)))
}

async fn before(cluster: &Cluster, report: &mut Report) -> Result<(), Failed> {
    let rights = [
        (
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "create",
            false,
        ),
        ("rbac.authorization.k8s.io", "clusterroles", "create", false),
        (
            "rbac.authorization.k8s.io",
            "clusterrolebindings",
            "create",
            false,
        ),
        ("apps", "deployments", "create", true),
        ("", "serviceaccounts", "create", true),
    ];
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    for (group, resource, verb, namespaced) in rights {
        let namespace = namespaced.then(|| cluster.namespace().to_owned());
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some(verb.to_owned()),
                    namespace: namespace.clone(),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let place = namespace.map_or_else(String::new, |n| format!(" in {n}"));
        if answer.status.is_some_and(|s| s.allowed) {
            report.good(format!("you may {verb} {resource}{place}"));
        } else {
            report.bad(
                format!("you may not {verb} {resource}{place}"),
                "ask whoever administers the cluster to install it, or for that right",
            );
        }
    }
    Ok(())
}

async fn after(cluster: &Cluster, args: &Args, report: &mut Report) -> Result<(), Failed> {
    if !kinds(cluster, report).await? {
        return Ok(());
    }
    operator(cluster, report).await;
    let meshes = args.mesh.all(cluster).await?;
    if meshes.is_empty() {
        report.bad(
            format!(
                "there is no Distribution in namespace {}",
                cluster.namespace()
            ),
            "make one where the operator runs meshes (kubectl apply -n NAMESPACE -f config/samples/), or look elsewhere: -n, -A",
        );
    }
    for mesh in &meshes {
        let Some(found) = mesh_is_well(cluster, mesh, report).await else {
            continue;
        };
        match &args.url {
            Some(url) => pull(cluster, mesh, url, &found, report).await?,
            None => report.note(format!(
                "{}: no content was pulled through it: name one with --url",
                full_name(mesh)
            )),
        }
    }
    Ok(())
}

/// Whether the kinds are there.
async fn kinds(cluster: &Cluster, report: &mut Report) -> Result<bool, Failed> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut all = true;
    for plural in KINDS {
        let name = format!("{plural}.{}", dragonfly_crds::GROUP);
        match api.get_opt(&name).await {
            Ok(Some(crd)) => {
                let conditions = crd.status.and_then(|s| s.conditions).unwrap_or_default();
                let established = conditions
                    .iter()
                    .any(|c| c.type_ == "Established" && c.status == "True");
                if established {
                    report.good(format!("the kind {name} is there"));
                } else {
                    all = false;
                    report.bad(
                        format!("the kind {name} is not established"),
                        &format!("kubectl describe crd {name}"),
                    );
                }
            }
            Ok(None) => {
                all = false;
                report.bad(
                    format!("there is no kind {name}"),
                    "install the chart dragonfly-crds, or kubectl apply -k config/crd",
                );
            }
            // Who may not look at CRDs may look at objects.
            Err(kube::Error::Api(s)) if s.code == 403 => {
                report.note(format!("you may not look at the kind {name}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

async fn operator(cluster: &Cluster, report: &mut Report) {
    let api: Api<Deployment> = Api::all(cluster.client.clone());
    let labels = "app.kubernetes.io/name=dragonfly-operator";
    let found = api.list(&ListParams::default().labels(labels)).await;
    match found {
        Ok(found) if found.items.is_empty() => report.bad(
            "no operator is installed",
            "install the chart dragonfly, or kubectl apply -k config/default",
        ),
        Ok(found) => {
            for deployment in found.items {
                let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas);
                let name = full_name(&deployment);
                if ready.unwrap_or_default() > 0 {
                    report.good(format!("the operator {name} is ready"));
                } else {
                    report.bad(
                        format!("the operator {name} is not ready"),
                        &format!(
                            "kubectl -n {} logs deployment/{}",
                            deployment.namespace().unwrap_or_default(),
                            deployment.name_any()
                        ),
                    );
                }
            }
        }
        Err(error) => report.note(format!(
            "the operator was not looked at: {}",
            Failed::from(error)
        )),
    }
}

/// What its schedulers know, when they answer.
async fn mesh_is_well(
    cluster: &Cluster,
    mesh: &Distribution,
    report: &mut Report,
) -> Option<Inspected> {
    let name = full_name(mesh);
    let wrong = problems(mesh);
    if wrong.is_empty() {
        report.good(format!("{name} is ready"));
    }
    let conditions = mesh.status.as_ref().map(|s| s.conditions.as_slice());
    match condition(conditions.unwrap_or_default(), MIRROR_USABLE) {
        Some(mirror) if mirror.status == "True" => {
            report.good(format!("{name}: {}", mirror.message));
        }
        Some(mirror) if mirror.status == "Unknown" => {
            report.note(format!("{name}: {}", mirror.message));
        }
        // Among what is wrong, or there is no mirror.
        _ => {}
    }
    for problem in wrong {
        report.bad(
            format!("{name}: {problem}"),
            &format!(
                "kubectl -n {} describe distribution {}",
                mesh.namespace().unwrap_or_default(),
                mesh.name_any()
            ),
        );
    }
    if mesh.spec.external_schedulers.is_some() {
        report.note(format!(
            "{name}: its schedulers run elsewhere and were not asked"
        ));
        return None;
    }
    let schedulers = match Schedulers::of(cluster, mesh).await {
        Ok(schedulers) => schedulers,
        Err(error) => {
            report.bad(error, "");
            return None;
        }
    };
    match schedulers.inspect().await {
        Ok(found) => {
            let role = |role: &str| found.nodes.iter().filter(|n| n.role == role).count();
            report.good(format!(
                "{name}: its schedulers answer: {} seeds and {} peers have sessions",
                role("seed"),
                role("peer")
            ));
            Some(found)
        }
        Err(error) => {
            report.bad(format!("{name}: {error}"), "");
            None
        }
    }
}

/// Gets a content to one peer, and tells from whom it came.
async fn pull(
    cluster: &Cluster,
    mesh: &Distribution,
    url: &str,
    before: &Inspected,
    report: &mut Report,
) -> Result<(), Failed> {
    let name = full_name(mesh);
    let object = json!({
        "apiVersion": dragonfly_crds::API_VERSION,
        "kind": "Preheat",
        "metadata": {"generateName": "check-", "labels": {CREATED_BY: PLUGIN}},
        "spec": {
            "distributionRef": {"name": mesh.name_any()},
            "files": [{"url": url}],
            "targets": {"role": "Peers", "count": 1},
            "retry": {"limit": 0},
            "deadline": format!("{}s", PULL.as_secs()),
            "ttl": "1h",
        },
    });
    let typed: Preheat = serde_json::from_value(object).map_err(|e| Failed::at("a Preheat", e))?;
    let api: Api<Preheat> = cluster.within(&mesh.namespace().unwrap_or_default());
    let made = match api.create(&PostParams::default(), &typed).await {
        Ok(made) => made,
        Err(error) => {
            report.bad(
                format!("{name}: {url} was not pulled: {}", Failed::from(error)),
                "it needs the right to create and delete preheats",
            );
            return Ok(());
        }
    };
    let ended = until_over(&api, &made.name_any()).await;
    let gone = api.delete(&made.name_any(), &DeleteParams::default()).await;
    if let Err(error) = gone {
        report.note(format!(
            "{} goes away by itself: {}",
            full_name(&made),
            Failed::from(error)
        ));
    }
    let (well, message) = ended?;
    if !well {
        report.bad(
            format!("{name}: {url} did not come: {message}"),
            "is the URL reachable for the seeds, and allowed by spec.sources.http?",
        );
        return Ok(());
    }
    // Nodes report every ten seconds.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let after = Schedulers::of(cluster, mesh).await?.inspect().await?;
    report.good(format!("{name}: {url} came: {message}"));
    for line in moved(before, &after) {
        report.note(line);
    }
    Ok(())
}

async fn until_over(api: &Api<Preheat>, name: &str) -> Result<(bool, String), Failed> {
    let until = tokio::time::Instant::now() + PULL + Duration::from_secs(75);
    let mut last = "nothing was heard of it".to_owned();
    while tokio::time::Instant::now() < until {
        let status = api.get(name).await?.status.unwrap_or_default();
        let stalled = condition(&status.conditions, "Stalled").is_some_and(|c| c.status == "True");
        if let Some(ready) = condition(&status.conditions, READY) {
            if ready.status == "True" || stalled {
                return Ok((ready.status == "True", ready.message.clone()));
            }
            last = format!("{}: {}", ready.reason, ready.message);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok((false, last))
}

/// What nodes got since, and from whom.
fn moved(before: &Inspected, after: &Inspected) -> Vec<String> {
    let mut lines = vec![];
    for node in &after.nodes {
        let was = before.nodes.iter().find(|n| n.id == node.id);
        let was = was.cloned().unwrap_or_default();
        let more = [
            (
                "the origin",
                node.from_origin.saturating_sub(was.from_origin),
            ),
            ("seeds", node.from_seeds.saturating_sub(was.from_seeds)),
            ("peers", node.from_peers.saturating_sub(was.from_peers)),
        ];
        let parts: Vec<_> = more
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(from, n)| format!("{} from {from}", bytes(*n)))
            .collect();
        if !parts.is_empty() {
            lines.push(format!(
                "{} {} got {}",
                node.role,
                node.name,
                parts.join(", ")
            ));
        }
    }
    if lines.is_empty() {
        lines.push("nothing had to move: it was held already".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::Node;

    fn seen(origin: u64, seeds: u64) -> Inspected {
        Inspected {
            nodes: vec![Node {
                name: "n".to_owned(),
                id: Some("1".to_owned()),
                role: "peer".to_owned(),
                from_origin: origin,
                from_seeds: seeds,
                ..Node::default()
            }],
            ..Inspected::default()
        }
    }

    #[test]
    fn from_whom_a_content_came_is_what_was_counted_since() {
        let lines = moved(&seen(5, 0), &seen(5, 2048));
        assert_eq!(lines, ["peer n got 2.0 KiB from seeds"]);
        let lines = moved(&seen(5, 7), &seen(5, 7));
        assert!(lines[0].contains("held already"));
    }
}
