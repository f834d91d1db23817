//! Policy down, reports up: what schedulers do with a Distribution's status. The operator's part of it
//! is the test's.

use std::time::{Duration, Instant};

use dragonfly_cluster::operator::load;
use dragonfly_cluster::wait::{ready_deployment, ready_pod, wait_for, wait_until};
use dragonfly_cluster::{
    Cluster, ClusterOptions, Failed, Result, apply, definitions, http, mesh, pod, pods_possible,
};
use dragonfly_crds::{Distribution, Policy, resolve};
use http_body_util::Full;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

const READY: Duration = Duration::from_secs(120);
/// From something that happens to status: a node's report, a sketch, a patch, each in its time.
const REPORTED: Duration = Duration::from_secs(60);
const DISTRIBUTION: &str = "
apiVersion: d7y.io/v1alpha1
kind: Distribution
metadata: {name: mesh}
spec: {profile: Light, storage: {reserveFreePercent: 0}}
";
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  selector: {app: NAME}
  ports: [{port: 8002}]
";
const ACCOUNT: &str = include_str!("../../../manifests/reports/account.yaml");
const SCHEDULER: &str = include_str!("../../../manifests/reports/scheduler.yaml");
const NODE: &str = include_str!("../../../manifests/reports/node.yaml");
const SCHEDULERS: [&str; 2] = ["scheduler-0", "scheduler-1"];

struct Mesh {
    client: Client,
    namespace: String,
    distributions: Api<Distribution>,
}

impl Mesh {
    /// Everything but a policy.
    async fn start(client: Client, namespace: String) -> Result<Self> {
        pods_possible(&client, &namespace).await?;
        let apply = async |text: &str| apply::yaml(&client, &namespace, text).await;
        let uid = apply(DISTRIBUTION).await?[0].uid().unwrap_or_default();
        let mut addresses = vec![];
        for name in SCHEDULERS {
            let made = apply(&SERVICE.replace("NAME", name)).await?;
            let address = made[0].data.pointer("/spec/clusterIP");
            let address = address.and_then(Value::as_str);
            addresses.push(address.unwrap_or_default().to_owned());
        }
        apply(&mesh::secrets()?).await?;
        apply(
            &ACCOUNT
                .replace("UID", &uid)
                .replace("ADDRESS", &addresses[0]),
        )
        .await?;
        for (me, other) in [(0, 1), (1, 0)] {
            let text = SCHEDULER
                .replace("OTHER_ADDRESS", &addresses[other])
                .replace("ADDRESS", &addresses[me])
                .replace("OTHER", SCHEDULERS[other])
                .replace("SLOT", SCHEDULERS[me])
                .replace("UID", &uid);
            apply(&text).await?;
        }
        for role in ["seed", "peer"] {
            apply(&NODE.replace("ROLE", role)).await?;
        }
        apply(mesh::ORIGIN).await?;
        Ok(Self {
            distributions: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
        })
    }

    async fn get(&self) -> Result<Distribution> {
        let got = self.distributions.get("mesh").await;
        got.map_err(|e| Failed::at("the distribution", e))
    }

    /// What the operator does: resolves the object and writes the policy, once `change` was made to it.
    async fn resolve(&self, change: impl FnOnce(&mut Distribution)) -> Result<Policy> {
        let mut object = self.get().await?;
        let before = object.status.clone().and_then(|s| s.policy());
        let before = before.transpose().map_err(|e| Failed::at("policy", e))?;
        change(&mut object);
        let policy = resolve(&object, None, before.as_ref())
            .map_err(|e| Failed(format!("the policy: {e:?}")))?;
        let value = serde_json::to_value(&policy).map_err(|e| Failed::at("policy", e))?;
        self.write_policy(value).await?;
        Ok(policy)
    }

    async fn write_policy(&self, policy: Value) -> Result<()> {
        let patch = Patch::Apply(json!({
            "apiVersion": "d7y.io/v1alpha1",
            "kind": "Distribution",
            "status": {"policy": policy},
        }));
        let params = PatchParams::apply("dragonfly-operator").force();
        let patched = self.distributions.patch_status("mesh", &params, &patch);
        patched.await.map_err(|e| Failed::at("status.policy", e))?;
        Ok(())
    }

    /// The status, once it is so.
    async fn status(&self, what: &str, so: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_until(what, REPORTED, || async {
            let status = serde_json::to_value(self.get().await?.status).unwrap_or_default();
            let so = so(&status);
            let shown = status.to_string();
            Ok(if so { Ok(status) } else { Err(shown) })
        })
        .await
    }

    async fn pod_of(&self, app: &str) -> Result<Pod> {
        let pods = pod::with_labels(&self.client, &self.namespace, &format!("app={app}")).await?;
        let alive = pods
            .into_iter()
            .find(|p| p.metadata.deletion_timestamp.is_none());
        alive.ok_or_else(|| Failed(format!("no pod of {app}")))
    }

    async fn ready(&self, names: &[&str]) -> Result<()> {
        let all: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        for name in names {
            wait_for(&all, name, READY, ready_deployment).await?;
        }
        Ok(())
    }

    /// What a part's admin port says.
    async fn admin(&self, app: &str, path: &str) -> Result<String> {
        let pod = self.pod_of(app).await?;
        let ip = pod.status.and_then(|s| s.pod_ip).unwrap_or_default();
        let port = if app.starts_with("scheduler") {
            8003
        } else {
            4001
        };
        let request = hyper::Request::get(path).body(Full::default());
        let request = request.map_err(|e| Failed::at(path, e))?;
        let answer = http::ask(&format!("{ip}:{port}"), request).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// `dragonfly get` in the peer's pod; whether it went well.
    async fn fetch(&self, path: &str, more: &[&str]) -> Result<bool> {
        let services: Api<k8s_openapi::api::core::v1::Service> =
            Api::namespaced(self.client.clone(), &self.namespace);
        let origin = services.get("origin").await;
        let origin = origin.map_err(|e| Failed::at("origin", e))?;
        let address = origin.spec.and_then(|s| s.cluster_ip).unwrap_or_default();
        let url = format!("http://{address}/{path}");
        let mut line = vec!["dragonfly", "get", &url, "-O", "/downloads/out", "-q"];
        line.extend(more);
        let pod = self.pod_of("peer").await?.name_any();
        let ended = pod::exec(&self.client, &self.namespace, &pod, &line).await?;
        Ok(ended.code == 0)
    }

    /// The replica that writes.
    async fn writer(&self) -> Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        wait_for(&leases, "mesh-reports", REPORTED, |lease| {
            let holder = lease.and_then(|l| l.spec.as_ref()?.holder_identity.clone());
            let holder = holder.unwrap_or_default();
            match holder.rsplit_once('_') {
                Some((name, _)) => Ok(name.to_owned()),
                None => Err(format!("held by {holder:?}")),
            }
        })
        .await
    }

    async fn events(&self) -> Result<Vec<(String, String)>> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let listed = events.list(&ListParams::default()).await;
        let listed = listed.map_err(|e| Failed::at("events", e))?;
        let of_mesh = |e: &Event| e.regarding.as_ref().and_then(|r| r.kind.clone());
        let ours = listed
            .items
            .into_iter()
            .filter(|e| of_mesh(e).as_deref() == Some("Distribution"));
        Ok(ours
            .map(|e| (e.reason.unwrap_or_default(), e.note.unwrap_or_default()))
            .collect())
    }

    /// Writes of Distributions' status and of Leases that the API server has counted.
    async fn writes(&self) -> Result<u64> {
        let request = hyper::Request::get("/metrics").body(vec![]);
        let request = request.map_err(|e| Failed::at("/metrics", e))?;
        let text = self.client.request_text(request).await;
        let text = text.map_err(|e| Failed::at("the API server's metrics", e))?;
        let counted = text.lines().filter(|line| {
            line.starts_with("apiserver_request_total{")
                && line.contains("resource=\"distributions\"")
                && line.contains("subresource=\"status\"")
                && ["APPLY", "PATCH", "PUT"]
                    .iter()
                    .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
        });
        let numbers = counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(numbers.sum::<f64>() as u64)
    }
}

#[tokio::test]
async fn policy_reaches_every_node_and_reports_come_back_with_few_writes() {
    // One of its own: what the API server counts is then this test's alone.
    let cluster = Cluster::start(&ClusterOptions::nodes(1)).await.unwrap();
    load(&cluster, "dragonfly").await.unwrap();
    load(&cluster, "test-origin").await.unwrap();
    let client = cluster.client().await.unwrap();
    for kind in ["distributions", "schedulerpools"] {
        let file = format!(
            "{}/../../config/crd/d7y.io_{kind}.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = std::fs::read_to_string(file).unwrap();
        definitions::install(&client, &text).await.unwrap();
    }
    let tested = cluster.with_temp_ns(|client, namespace| async move {
        let mesh = Mesh::start(client, namespace).await?;
        without_a_policy_schedulers_wait(&mesh).await?;
        policy_is_acknowledged(&mesh).await?;
        traffic_and_failures_are_told(&mesh).await?;
        a_broken_policy_changes_nothing(&mesh).await?;
        sums_outlive_the_writer(&mesh).await?;
        writes_are_few(&mesh).await
    });
    tested.await.unwrap();
    cluster.stop().await.unwrap();
}

async fn without_a_policy_schedulers_wait(mesh: &Mesh) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(mesh.client.clone(), &mesh.namespace);
    for name in SCHEDULERS {
        let said = wait_until(name, READY, || async {
            let said = match mesh.admin(name, "/readyz").await {
                Ok(said) => said,
                Err(why) => return Ok(Err(why.to_string())),
            };
            let waits = said.contains("no status.policy yet");
            Ok(if waits { Ok(said) } else { Err(said) })
        });
        said.await?;
        let pod = mesh.pod_of(name).await?.name_any();
        let pod = pods.get(&pod).await.map_err(|e| Failed::at(name, e))?;
        assert!(ready_pod(Some(&pod)).is_err(), "ready without a policy");
    }
    Ok(())
}

async fn policy_is_acknowledged(mesh: &Mesh) -> Result<()> {
    let first = mesh.resolve(|_| ()).await?;
    assert_eq!(first.revision, 1);
    mesh.ready(&["scheduler-0", "scheduler-1", "seed", "peer", "origin"])
        .await?;
    let wanted = json!({
        "revision": 1, "nodes": 2, "seeds": 1, "peers": 1, "acknowledged": 2, "refused": 0,
        "revisions": [{"revision": 1, "nodes": 2}],
    });
    mesh.status("the first policy to be acknowledged", |s| {
        s["rollout"] == wanted
    })
    .await?;
    let second = mesh
        .resolve(|d| d.spec.limits.upload = Some("512Mi".to_owned()))
        .await?;
    assert_eq!(second.revision, 2);
    let status = mesh.status("the second policy to be acknowledged", |s| {
        s["rollout"]["revision"] == 2 && s["rollout"]["acknowledged"] == 2
    });
    let status = status.await?;
    assert_eq!(
        status["rollout"]["revisions"],
        json!([{"revision": 2, "nodes": 2}])
    );
    let said = mesh.admin("scheduler-0", "/metrics").await?;
    for line in ["policy_revision 2", "policy_acknowledged_nodes 2"] {
        assert!(
            said.contains(&format!("dragonfly_scheduler_{line}")),
            "{said}"
        );
    }
    Ok(())
}

async fn traffic_and_failures_are_told(mesh: &Mesh) -> Result<()> {
    let (content, len) = mesh::CONTENT;
    assert!(mesh.fetch(content, &[]).await?, "the file does not come");
    assert!(
        !mesh.fetch("nothing-here", &[]).await?,
        "what is not there came"
    );
    let status = mesh.status("the traffic", |s| {
        let t = &s["traffic"];
        t["finished"] == 1 && t["failed"] == 1 && t["originBytes"].as_u64() == Some(len)
    });
    let status = status.await?;
    let traffic = &status["traffic"];
    let of = |name: &str| traffic[name].as_u64().unwrap_or_default();
    assert_eq!(of("deliveredBytes"), len, "{traffic}");
    assert_eq!(of("seedBytes") + of("peerBytes"), len, "{traffic}");
    assert_eq!(
        traffic["savedPercent"], 0,
        "one peer saves nothing: {traffic}"
    );
    let failures = &status["failures"];
    assert_eq!(failures.as_array().map(Vec::len), Some(1), "{failures}");
    assert_eq!(failures[0]["reason"], "OriginNotFound", "{failures}");
    let origin = failures[0]["origin"].as_str().unwrap_or_default();
    assert!(origin.starts_with("http://"), "{failures}");
    // A second time from the node's own cache.
    assert!(mesh.fetch(content, &[]).await?);
    let status = mesh.status("what was saved", |s| s["traffic"]["savedPercent"] == 50);
    assert_eq!(status.await?["traffic"]["cacheBytes"].as_u64(), Some(len));
    Ok(())
}

async fn a_broken_policy_changes_nothing(mesh: &Mesh) -> Result<()> {
    let good = mesh.get().await?.status.and_then(|s| s.policy);
    let mut newer = good.clone().unwrap_or_default();
    newer["revision"] = 3.into();
    newer["requiredFeatures"] = 1.into();
    mesh.write_policy(newer).await?;
    let status = mesh.status("the refusal", |s| {
        let failures = s["failures"].as_array();
        failures.is_some_and(|f| f.iter().any(|f| f["reason"] == "PolicyUnreadable"))
    });
    let status = status.await?;
    assert_eq!(status["rollout"]["revision"], 2, "{status}");
    assert_eq!(status["rollout"]["acknowledged"], 2, "{status}");
    let writer = mesh.writer().await?;
    let said = mesh.admin(&writer, "/metrics").await?;
    assert!(
        said.contains("dragonfly_scheduler_policies_refused_total 1"),
        "{said}"
    );
    let told = mesh.events().await?;
    let told = told
        .iter()
        .filter(|(reason, _)| reason == "PolicyUnreadable");
    let told: Vec<_> = told.collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].1.contains("upgrade"), "{told:?}");
    mesh.write_policy(good.unwrap_or_default()).await?;
    Ok(())
}

async fn sums_outlive_the_writer(mesh: &Mesh) -> Result<()> {
    let writer = mesh.writer().await?;
    let before = mesh.get().await?.status.and_then(|s| s.traffic);
    let pods: Api<Pod> = Api::namespaced(mesh.client.clone(), &mesh.namespace);
    // Killed: it gives nothing back.
    let name = mesh.pod_of(&writer).await?.name_any();
    let now = DeleteParams::default().grace_period(0);
    pods.delete(&name, &now)
        .await
        .map_err(|e| Failed::at(&name, e))?;
    assert!(
        mesh.fetch(mesh::CONTENT.0, &[]).await?,
        "a scheduler less and nothing comes"
    );
    let before = before.unwrap_or_default();
    let wanted = before.finished + 1;
    let after = wait_until("the next writer", Duration::from_secs(90), || async {
        let status = mesh.get().await?.status.unwrap_or_default();
        let (traffic, rollout) = (status.traffic.unwrap_or_default(), status.rollout);
        assert!(
            traffic.origin_bytes >= before.origin_bytes && traffic.finished >= before.finished,
            "sums went back: {traffic:?}"
        );
        let rollout = rollout.unwrap_or_default();
        let so = traffic.finished == wanted && rollout.acknowledged == 2;
        let shown = format!("{traffic:?} {rollout:?}");
        Ok(if so { Ok(traffic) } else { Err(shown) })
    });
    let after = after.await?;
    assert_eq!(after.origin_bytes, before.origin_bytes);
    mesh.ready(&SCHEDULERS).await
}

async fn writes_are_few(mesh: &Mesh) -> Result<()> {
    // What was is over, in the means too.
    let idle = |s: &Value| {
        let t = &s["traffic"];
        [
            "originBytesPerSecond",
            "seedBytesPerSecond",
            "peerBytesPerSecond",
        ]
        .iter()
        .all(|name| t[*name] == 0)
    };
    mesh.status("quiet", idle).await?;
    // Two rounds of reports each; ten minutes of both are counted with the operator's writes.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let before = mesh.writes().await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let idle = mesh.writes().await? - before;
    assert_eq!(idle, 0, "nothing changed in 20 s and status was written");
    let (before, since) = (mesh.writes().await?, Instant::now());
    while since.elapsed() < Duration::from_secs(20) {
        assert!(mesh.fetch(mesh::CONTENT.0, &[]).await?);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let busy = mesh.writes().await? - before;
    // One in ten seconds, and one that was due.
    let most = since.elapsed().as_secs() / 10 + 1;
    assert!(
        (1..=most).contains(&busy),
        "{busy} writes of status in {:?}",
        since.elapsed()
    );
    println!("writes of status: {idle} in 20 s of idleness, {busy} in 20 s of work");
    Ok(())
}
