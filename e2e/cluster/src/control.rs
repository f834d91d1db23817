//! What an operator costs that runs a mesh on many nodes: its memory, what it asks of the API server,
//! and how soon what was applied is done. The nodes are fake, the operator and the API server are not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dragonfly_e2e::{Failed, Result, usage};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::operator::{Installed, Operator};
use crate::wait::wait_until;
use crate::{Cluster, ClusterOptions, Place, apply, fake, pods_possible};

/// Requests of ours at once.
const AT_ONCE: usize = 20;
/// How long any step may take.
const LIMIT: Duration = Duration::from_secs(900);
/// How long an operator is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(60);

/// Starts a cluster with so many fake nodes and a mesh on all of them, then makes so many Preheats at
/// once. The figures.
///
/// # Errors
/// The cluster, kwok or the operator cannot be started, or something is not done in time.
pub async fn measure(nodes: usize, preheats: usize) -> Result<Value> {
    let cluster = Cluster::start(&ClusterOptions::nodes(1)).await?;
    let place = &Place::new(&cluster).await?;
    let installed = &Installed::on(&cluster, &[&place.namespace]).await?;
    pods_possible(&place.client, &place.namespace).await?;
    fake::nodes(&cluster, nodes).await?;
    let operator = Operator::start(&cluster, installed).await?;
    wait_until("the operator to be up", LIMIT, || async {
        Ok(operator
            .metrics()
            .await
            .map(drop)
            .map_err(|e| e.to_string()))
    })
    .await?;

    let mut figures = json!({});
    let begun = Instant::now();
    apply::yaml(&place.client, &place.namespace, &mesh()).await?;
    ready(place, nodes).await?;
    figures["mesh_ready_s"] = json!(begun.elapsed().as_secs_f64());
    settled(&cluster, installed).await?;
    let until_ready = Counted::of(&cluster, installed)?;
    figures["mesh_requests"] = json!(until_ready.all);
    figures["mesh_writes"] = json!(until_ready.writes);
    figures["mesh_mib"] = json!(usage::memory(operator.id(), "VmRSS"));

    tokio::time::sleep(IDLE).await;
    let after_idle = Counted::of(&cluster, installed)?;
    figures["idle_requests_per_min"] =
        json!((after_idle.all - until_ready.all) as f64 * 60.0 / IDLE.as_secs_f64());

    let begun = Instant::now();
    make_preheats(place, preheats).await?;
    planned(place, preheats).await?;
    figures["preheats_planned_s"] = json!(begun.elapsed().as_secs_f64());
    settled(&cluster, installed).await?;
    let with_preheats = Counted::of(&cluster, installed)?;
    figures["preheat_requests_each"] =
        json!((with_preheats.all - after_idle.all) as f64 / preheats as f64);
    figures["preheat_writes_each"] =
        json!((with_preheats.writes - after_idle.writes) as f64 / preheats as f64);
    figures["peak_mib"] = json!(usage::memory(operator.id(), "VmHWM"));
    figures["cpu_s"] = json!(usage::cpu(operator.id()));
    eprintln!("of what the operator asked: {:#?}", with_preheats.by_kind);
    operator.stop().await?;
    cluster.stop().await?;
    Ok(figures)
}

/// One whose pods are all fake nodes'.
fn mesh() -> String {
    let pods = json!({"nodeSelector": {"type": "kwok"}});
    let pool = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "SchedulerPool", "metadata": {"name": "default"},
        "spec": {"pods": pods},
    });
    let mesh = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution", "metadata": {"name": "default"},
        "spec": {
            "schedulerPoolRef": {"name": "default"},
            "seeds": {"pods": pods},
            "peers": {"pods": pods},
        },
    });
    format!("{pool}\n---\n{mesh}")
}

fn resource(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("d7y.io", "v1alpha1", kind))
}

fn api(place: &Place, kind: &str) -> Api<DynamicObject> {
    Api::namespaced_with(place.client.clone(), &place.namespace, &resource(kind))
}

async fn ready(place: &Place, nodes: usize) -> Result<()> {
    let meshes = api(place, "Distribution");
    wait_until("the mesh to be ready", LIMIT, || async {
        let mesh = meshes
            .get("default")
            .await
            .map_err(|e| Failed::at("the mesh", e))?;
        let status = &mesh.data["status"];
        let rows = status["conditions"].as_array().cloned().unwrap_or_default();
        let ready = rows
            .iter()
            .any(|row| row["type"] == "Ready" && row["status"] == "True");
        let peers = &status["components"]["peers"];
        Ok(if ready && peers["ready"] == nodes {
            Ok(())
        } else {
            Err(format!("peers: {peers}"))
        })
    })
    .await
}

async fn make_preheats(place: &Place, count: usize) -> Result<()> {
    let made = futures::stream::iter(0..count).map(|n| async move {
        let object = json!({
            "apiVersion": "d7y.io/v1alpha1", "kind": "Preheat",
            "metadata": {"name": format!("many-{n}")},
            "spec": {"files": [{"url": format!("https://origin.test/{n}")}]},
        });
        apply::yaml(&place.client, &place.namespace, &object.to_string()).await
    });
    made.buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(())
}

/// Until each has its plan: what comes then is the schedulers'.
async fn planned(place: &Place, count: usize) -> Result<()> {
    let preheats = api(place, "Preheat");
    wait_until("all preheats to be planned", LIMIT, || async {
        let all = preheats.list(&ListParams::default()).await;
        let all = all.map_err(|e| Failed::at("preheats", e))?;
        let planned = all
            .iter()
            .filter(|p| p.data["status"]["plan"]["run"] == 1)
            .count();
        Ok(if planned == count {
            Ok(())
        } else {
            Err(format!("{planned} of {count} are"))
        })
    })
    .await
}

/// What the operator asked so far.
struct Counted {
    all: usize,
    writes: usize,
    by_kind: BTreeMap<String, usize>,
}

impl Counted {
    fn of(cluster: &Cluster, installed: &Installed) -> Result<Self> {
        let asked = cluster.asked(&installed.system)?;
        let own: Vec<_> = asked
            .iter()
            .filter(|a| a.account() == "dragonfly-operator")
            .collect();
        let mut by_kind = BTreeMap::new();
        for asked in &own {
            *by_kind
                .entry(format!("{} {}", asked.verb, asked.resource()))
                .or_default() += 1;
        }
        Ok(Self {
            all: own.len(),
            writes: own.iter().filter(|a| a.writes()).count(),
            by_kind,
        })
    }
}

/// Until the operator has written nothing for as long as numbers alone wait to be told.
async fn settled(cluster: &Cluster, installed: &Installed) -> Result<()> {
    let mut last = Counted::of(cluster, installed)?.writes;
    loop {
        tokio::time::sleep(Duration::from_secs(12)).await;
        let now = Counted::of(cluster, installed)?.writes;
        if now == last {
            return Ok(());
        }
        last = now;
    }
}
