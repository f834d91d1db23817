//! `explain-policy`: what a node runs, and from which object each value of it comes.

use std::process::ExitCode;

use dragonfly_crds::conditions::STALLED;
use dragonfly_crds::{Distribution, SchedulerPool};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{MeshArgs, condition, full_name};
use crate::Failed;
use crate::cluster::Where;
use crate::output::{Format, Table, show};
use crate::schedulers::Schedulers;

/// Show what a node runs and from which object each value comes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node, as `peers` lists it
    node: String,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// Where each value of a policy comes from: its place there, and the field that says it.
const OF_DISTRIBUTION: [(&str, &str); 29] = [
    ("/node/transport", "spec.security.transport"),
    ("/node/revoked", "spec.security.revokedNodes"),
    ("/node/uploadBytesPerSecond", "spec.limits.upload"),
    ("/node/downloadBytesPerSecond", "spec.limits.download"),
    ("/node/backToSource", "spec.backToSource"),
    ("/node/objective", "spec.objective"),
    ("/node/storage/media", "spec.storage.media"),
    ("/node/storage/quotaBytes", "spec.storage.quota"),
    (
        "/node/storage/highWatermarkPercent",
        "spec.storage.highWatermarkPercent",
    ),
    (
        "/node/storage/lowWatermarkPercent",
        "spec.storage.lowWatermarkPercent",
    ),
    ("/node/storage/maxAgeMs", "spec.storage.maxAge"),
    (
        "/node/storage/reserveFreePercent",
        "spec.storage.reserveFreePercent",
    ),
    ("/sourceHttp/freshnessMs", "spec.sources.http.freshness"),
    (
        "/sourceHttp/queryInclude",
        "spec.sources.http.query.include",
    ),
    (
        "/sourceHttp/queryExclude",
        "spec.sources.http.query.exclude",
    ),
    ("/sourceHttp/allowedHosts", "spec.sources.http.allowedHosts"),
    ("/sourceHttp/caBundle", "spec.sources.http.caBundle"),
    ("/sourceHttp/proxy", "spec.sources.http.proxy"),
    ("/sourceHttp/noProxy", "spec.sources.http.noProxy"),
    (
        "/sourceHttp/allowPrivate",
        "spec.sources.http.addresses.private",
    ),
    (
        "/sourceHttp/allowLoopback",
        "spec.sources.http.addresses.loopback",
    ),
    (
        "/sourceHttp/allowLinkLocal",
        "spec.sources.http.addresses.linkLocal",
    ),
    (
        "/sourceHttp/maxRequestsPerOrigin",
        "spec.sources.http.maxConcurrentRequestsPerOrigin",
    ),
    (
        "/sourceHttp/maxBytesPerSecondPerOrigin",
        "spec.sources.http.maxBytesPerSecondPerOrigin",
    ),
    (
        "/sourceHttp/parallelRanges",
        "spec.sources.http.parallelRanges",
    ),
    (
        "/sourceHttp/stallTimeoutMs",
        "spec.sources.http.stallTimeout",
    ),
    (
        "/sourceHttp/connectTimeoutMs",
        "spec.sources.http.connectTimeout",
    ),
    ("/scheduler/seeds", "spec.seeds.replicas"),
    ("/scheduler/emitters", "spec.seeds.emitters"),
];
const OF_POOL: [(&str, &str); 5] = [
    ("/scheduler/replicas", "spec.replicas"),
    ("/scheduler/strategy", "spec.strategy.type"),
    ("/scheduler/degree", "spec.strategy.degree"),
    ("/scheduler/candidates", "spec.strategy.candidates"),
    ("/scheduler/gateways", "spec.gateways"),
];

/// Runs it.
///
/// # Errors
/// There is no such node, or no scheduler answers.
pub async fn run(at: &Where, args: &Args) -> Result<ExitCode, Failed> {
    let cluster = at.connect().await?;
    let mesh = args.mesh.find(&cluster).await?;
    let live = Schedulers::of(&cluster, &mesh).await?.inspect().await?;
    let node = live.nodes.iter().find(|n| n.name == args.node);
    let node = node.ok_or_else(|| {
        Failed(format!(
            "no node {} has a session with the schedulers of {}: `kubectl dragonfly peers` lists them",
            args.node,
            full_name(&mesh)
        ))
    })?;
    let policy = mesh.status.as_ref().and_then(|s| s.policy.clone());
    let policy = policy.ok_or_else(|| Failed(format!("{} has no policy", full_name(&mesh))))?;
    let pool = match &mesh.spec.scheduler_pool_ref {
        Some(reference) => {
            let namespace = mesh.namespace().unwrap_or_default();
            let found = cluster.within::<SchedulerPool>(&namespace);
            found.get_opt(&reference.name).await?
        }
        None => None,
    };
    let rows = rows(&mesh, pool.as_ref(), &policy);
    let revision = policy["revision"].as_u64().unwrap_or_default();
    let hash = policy["hash"].as_str().unwrap_or_default();
    let runs = (node.policy.revision, node.policy.hash.as_str()) == (revision, hash);
    let state = if !node.policy.error.is_empty() {
        format!(
            "refused revision {}: {}; it runs its last good one",
            node.policy.revision, node.policy.error
        )
    } else if runs {
        format!("runs revision {revision}, the one in force")
    } else {
        format!(
            "runs revision {}; {revision} is in force, and these are its values",
            node.policy.revision
        )
    };
    if matches!(at.output, Format::Table | Format::Wide) {
        eprintln!("{} of {}: {state}", node.name, full_name(&mesh));
        let conditions = mesh.status.as_ref().map(|s| s.conditions.as_slice());
        let stalled = condition(conditions.unwrap_or_default(), STALLED);
        if let Some(stalled) = stalled.filter(|c| c.status == "True") {
            eprintln!("the newest spec is not in it: {}", stalled.message);
        }
    }
    let mut table = Table::new(&["VALUE", "IS", "FROM", "BY"], 0);
    for row in &rows {
        table.row(
            format!("value{}", row.value),
            [
                row.value.trim_start_matches('/').replace('/', "."),
                row.is.clone(),
                row.from.clone(),
                row.by.clone(),
            ],
        );
    }
    let values = rows
        .iter()
        .map(|r| json!({"value": r.value, "is": r.is, "from": r.from, "by": r.by}));
    let data = json!({
        "node": node.name,
        "state": state,
        "runs": node.policy,
        "inForce": {"revision": revision, "hash": hash},
        "values": values.collect::<Vec<_>>(),
    });
    show(at.output, &table, &data)?;
    Ok(ExitCode::from(u8::from(!runs)))
}

struct Row {
    value: String,
    is: String,
    from: String,
    by: String,
}

fn rows(mesh: &Distribution, pool: Option<&SchedulerPool>, policy: &Value) -> Vec<Row> {
    let profile = format!("default of profile {:?}", mesh.spec.profile);
    let set = |fields: &[ManagedFieldsEntry], path: &str| who_set(fields, path);
    let mut rows = vec![];
    let mut add = |object: &str, fields: &[ManagedFieldsEntry], at: &str, path: &str, or: &str| {
        // A policy leaves out what does not apply.
        let Some(value) = policy.pointer(at) else {
            return;
        };
        let by = set(fields, path);
        rows.push(Row {
            value: at.to_owned(),
            is: value
                .as_str()
                .map_or_else(|| short(value), ToOwned::to_owned),
            from: format!("{object} {path}"),
            by: by.unwrap_or_else(|| or.to_owned()),
        });
    };
    let object = format!("Distribution/{}", mesh.name_any());
    let fields = mesh.managed_fields();
    for (at, path) in OF_DISTRIBUTION {
        add(&object, fields, at, path, &profile);
    }
    let (object, fields) = match pool {
        Some(pool) => (
            format!("SchedulerPool/{}", pool.name_any()),
            pool.managed_fields(),
        ),
        None => ("the default pool".to_owned(), &[][..]),
    };
    for (at, path) in OF_POOL {
        add(&object, fields, at, path, "default");
    }
    rows
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 {
        text.chars().take(57).chain("...".chars()).collect()
    } else {
        text
    }
}

/// Who said a field of a spec; nobody said what was defaulted.
fn who_set(fields: &[ManagedFieldsEntry], path: &str) -> Option<String> {
    let owns = |entry: &&ManagedFieldsEntry| {
        let mut at = entry.fields_v1.as_ref().map(|f| &f.0)?;
        for name in path.split('.') {
            at = at.get(format!("f:{name}"))?;
        }
        Some(())
    };
    let owner = fields.iter().find(|entry| owns(entry).is_some())?;
    Some(format!(
        "set by {}",
        owner.manager.as_deref().unwrap_or("somebody")
    ))
}

#[cfg(test)]
mod tests {
    use dragonfly_crds::resolve;

    use super::*;

    /// A mesh with everything said, and its policy.
    fn resolved() -> (Distribution, Value) {
        let text =
            include_str!("../../../../config/samples/accepted/distribution-every-field.yaml");
        let loaded = dragonfly_crds::manifest::parse("sample", text.as_bytes()).unwrap();
        let mut mesh = loaded.distributions[0].object.clone();
        mesh.spec.scheduler_pool_ref = None;
        let policy = resolve(&mesh, None, None).unwrap();
        (mesh, serde_json::to_value(policy).unwrap())
    }

    fn leaves(at: &str, value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields
                .iter()
                .for_each(|(name, v)| leaves(&format!("{at}/{name}"), v, into)),
            _ => into.push(at.to_owned()),
        }
    }

    #[test]
    fn every_value_of_a_policy_is_explained() {
        let (mesh, policy) = resolved();
        let rows = rows(&mesh, None, &policy);
        let mut all = vec![];
        for part in ["node", "sourceHttp", "scheduler"] {
            leaves(&format!("/{part}"), &policy[part], &mut all);
        }
        let missing: Vec<_> = all
            .iter()
            .filter(|at| rows.iter().all(|row| row.value != **at))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn every_field_that_is_named_is_one() {
        let schema = |plural: &str| -> Value {
            let crds = dragonfly_crds::crdgen::crds().unwrap();
            let (_, crd) = crds.into_iter().find(|(name, _)| *name == plural).unwrap();
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
        };
        for (plural, rows) in [
            ("distributions", &OF_DISTRIBUTION[..]),
            ("schedulerpools", &OF_POOL),
        ] {
            for (_, path) in rows {
                let pointer = path.replace('.', "/properties/");
                let found = schema(plural);
                let found = found.pointer(&format!("/properties/{pointer}"));
                assert!(found.is_some(), "{path}");
            }
        }
    }

    #[test]
    fn who_set_a_field_is_known_and_a_default_is_nobodys() {
        let entry: ManagedFieldsEntry = serde_json::from_value(json!({
            "manager": "kubectl", "fieldsV1": {"f:spec": {"f:storage": {"f:quota": {}}}},
        }))
        .unwrap();
        let all = [entry];
        assert_eq!(
            who_set(&all, "spec.storage.quota").unwrap(),
            "set by kubectl"
        );
        assert_eq!(who_set(&all, "spec.storage.media"), None);
    }
}
