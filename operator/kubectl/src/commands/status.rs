//! `status`: meshes at a glance, what is wrong first.

use std::process::ExitCode;

use dragonfly_crds::conditions::{MIRROR_USABLE, READY, STALLED};
use dragonfly_crds::reports::MIRROR_UNUSED;
use dragonfly_crds::{Distribution, Preheat};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use super::{MeshArgs, condition, full_name};
use crate::Failed;
use crate::cluster::Where;
use crate::output::{Format, Table, bytes, say, show};

/// Show meshes at a glance, with what is wrong first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The Distribution [default: all of the namespace]
    name: Option<String>,
}

/// Runs it.
///
/// # Errors
/// The API server's.
pub async fn run(at: &Where, args: &Args) -> Result<ExitCode, Failed> {
    let cluster = at.connect().await?;
    let which = MeshArgs {
        distribution: args.name.clone(),
    };
    let mut meshes = which.all(&cluster).await?;
    // Those with problems first.
    meshes.sort_by_key(|mesh| (problems(mesh).is_empty(), full_name(mesh)));
    let preheats = cluster
        .api::<Preheat>()
        .list(&ListParams::default())
        .await?;
    if at.output == Format::Table {
        let text: Vec<_> = meshes
            .iter()
            .map(|mesh| shown(mesh, &preheats.items))
            .collect();
        if text.is_empty() {
            eprintln!("no Distribution in {}", place(at, cluster.namespace()));
        }
        say(&text.join("\n"))?;
    } else {
        let columns = [
            "NAMESPACE",
            "NAME",
            "READY",
            "NODES",
            "SAVED",
            "PROBLEMS",
            "MESSAGE",
        ];
        let mut table = Table::new(&columns, 1);
        for mesh in &meshes {
            table.row(
                format!("distribution.d7y.io/{}", mesh.name_any()),
                row(mesh),
            );
        }
        show(at.output, &table, &json!({"items": meshes}))?;
    }
    let well = meshes.iter().all(|mesh| problems(mesh).is_empty());
    Ok(ExitCode::from(u8::from(!well)))
}

fn place(at: &Where, namespace: &str) -> String {
    if at.all_namespaces {
        "any namespace".to_owned()
    } else {
        format!("namespace {namespace} (-A: all)")
    }
}

fn row(mesh: &Distribution) -> Vec<String> {
    let status = mesh.status.clone().unwrap_or_default();
    let ready = condition(&status.conditions, READY);
    let saved = status.traffic.as_ref().and_then(|t| t.saved_percent);
    vec![
        mesh.namespace().unwrap_or_default(),
        mesh.name_any(),
        ready.map_or_else(|| "Unknown".to_owned(), |c| c.status.clone()),
        status.rollout.as_ref().map_or(0, |r| r.nodes).to_string(),
        saved.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%")),
        problems(mesh).len().to_string(),
        ready.map_or_else(String::new, |c| c.message.clone()),
    ]
}

/// What is wrong with a mesh, worst first.
pub fn problems(mesh: &Distribution) -> Vec<String> {
    let status = mesh.status.clone().unwrap_or_default();
    let mut found = vec![];
    match (
        condition(&status.conditions, STALLED),
        condition(&status.conditions, READY),
    ) {
        (_, None) => found.push(
            "the operator has not looked at it: does it run, and is this one of its namespaces?"
                .to_owned(),
        ),
        (Some(stalled), _) if stalled.status == "True" => {
            found.push(format!("{}: {}", stalled.reason, stalled.message));
        }
        (_, Some(ready)) if ready.status != "True" => {
            found.push(format!("{}: {}", ready.reason, ready.message));
        }
        _ => {}
    }
    if mesh.metadata.generation != status.observed_generation && !found.is_empty() {
        found.push("its newest spec is not looked at yet".to_owned());
    }
    if let Some(rollout) = &status.rollout {
        let pods = status
            .components
            .map_or(0, |c| c.peers.ready + c.seeds.ready);
        if i64::from(pods) > rollout.nodes {
            let text = format!(
                "{} of {pods} nodes have no session with a scheduler",
                i64::from(pods) - rollout.nodes
            );
            found.push(text);
        }
        if rollout.refused > 0 {
            found.push(format!(
                "{} nodes refused policy revision {}",
                rollout.refused, rollout.revision
            ));
        }
        if rollout.seeds == 0 && rollout.peers > 0 && mesh.spec.seeds.replicas != Some(0) {
            found.push("no seed has a session: nobody fetches for the others".to_owned());
        }
    }
    let mirror = condition(&status.conditions, MIRROR_USABLE);
    if let Some(mirror) = mirror.filter(|c| c.status == "False") {
        found.push(format!(
            "{MIRROR_USABLE}: {}: {}",
            mirror.reason, mirror.message
        ));
    }
    // What was found of runtimes once is no problem any more where what is found now is said.
    let past = |reason: &str| mirror.is_some() && reason == MIRROR_UNUSED;
    for failure in status.failures.iter().filter(|f| !past(&f.reason)) {
        let origin = failure.origin.as_deref().unwrap_or_default();
        let origin = if origin.is_empty() {
            String::new()
        } else {
            format!("{origin}: ")
        };
        found.push(format!(
            "{}: {origin}{} ({} times, last at {})",
            failure.reason, failure.message, failure.count, failure.last_time.0
        ));
    }
    found
}

fn shown(mesh: &Distribution, preheats: &[Preheat]) -> String {
    let status = mesh.status.clone().unwrap_or_default();
    let wrong = problems(mesh);
    let head = if wrong.is_empty() { "well" } else { "NOT WELL" };
    let mut lines = vec![format!("{}: {head}", full_name(mesh))];
    lines.extend(wrong.iter().map(|problem| format!("  x {problem}")));
    if let Some(c) = status.components {
        lines.push(format!(
            "  parts    {} of {} schedulers, {} of {} seeds, {} of {} peers ready",
            c.schedulers.ready,
            c.schedulers.desired,
            c.seeds.ready,
            c.seeds.desired,
            c.peers.ready,
            c.peers.desired
        ));
    }
    if let Some(r) = &status.rollout {
        lines.push(format!(
            "  policy   revision {}: {} of {} nodes run it",
            r.revision, r.acknowledged, r.nodes
        ));
    }
    let mirror = condition(&status.conditions, MIRROR_USABLE);
    if let Some(mirror) = mirror.filter(|c| c.status != "False") {
        lines.push(format!("  mirror   {}", mirror.message));
    }
    if let Some(t) = &status.traffic {
        let sum = |n: i64| bytes(u64::try_from(n).unwrap_or_default());
        let saved = t
            .saved_percent
            .map_or(String::new(), |p| format!(", {p}% saved"));
        lines.push(format!(
            "  traffic  {} delivered; from origins {}, seeds {}, peers {}{saved}",
            sum(t.delivered_bytes),
            sum(t.origin_bytes),
            sum(t.seed_bytes),
            sum(t.peer_bytes)
        ));
        lines.push(format!(
            "  now      origins {}/s, seeds {}/s, peers {}/s; {} contents on their way",
            sum(t.origin_bytes_per_second),
            sum(t.seed_bytes_per_second),
            sum(t.peer_bytes_per_second),
            t.active_tasks
        ));
    }
    let own = preheats.iter().filter(|preheat| {
        preheat.namespace() == mesh.namespace()
            && preheat.spec.distribution_ref.name == mesh.name_any()
    });
    for preheat in own {
        let conditions = preheat.status.as_ref().map(|s| s.conditions.as_slice());
        let ready = condition(conditions.unwrap_or_default(), READY);
        let said = ready.map_or_else(
            || "not looked at yet".to_owned(),
            |c| format!("{}: {}", c.reason, c.message),
        );
        lines.push(format!("  preheat  {}: {said}", preheat.name_any()));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(conditions: &[(&str, &str, &str)]) -> Distribution {
        let conditions = conditions.iter().map(|(type_, status, message)| {
            json!({"type": type_, "status": status, "reason": "R", "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        let found = json!({
            "apiVersion": dragonfly_crds::API_VERSION, "kind": "Distribution",
            "metadata": {"name": "m", "namespace": "n", "generation": 1}, "spec": {},
            "status": {
                "observedGeneration": 1,
                "conditions": conditions.collect::<Vec<_>>(),
                "failures": [{"reason": "MirrorUnused", "message": "once", "count": 1,
                    "firstTime": "2026-01-01T00:00:00Z", "lastTime": "2026-01-01T00:00:00Z"}],
            },
        });
        serde_json::from_value(found).unwrap()
    }

    #[test]
    fn what_keeps_runtimes_from_the_mirror_is_a_problem_while_it_does() {
        let ready = ("Ready", "True", "");
        let bad = mesh(&[ready, ("MirrorUsable", "False", "on 1 of 2 nodes x")]);
        assert_eq!(problems(&bad), ["MirrorUsable: R: on 1 of 2 nodes x"]);
        assert!(shown(&bad, &[]).starts_with("n/m: NOT WELL\n  x MirrorUsable"));
        let good = mesh(&[ready, ("MirrorUsable", "True", "nothing on 2 nodes")]);
        assert!(problems(&good).is_empty());
        assert_eq!(
            shown(&good, &[]),
            "n/m: well\n  mirror   nothing on 2 nodes\n"
        );
        // Schedulers of an earlier release say no more than that it was found.
        let earlier = problems(&mesh(&[ready]));
        assert!(earlier[0].starts_with("MirrorUnused: once"), "{earlier:?}");
    }
}
