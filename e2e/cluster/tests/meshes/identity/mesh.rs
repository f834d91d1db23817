//! A mesh by the operator on two nodes, and a process of a node's own that wants to be a part of it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

use dragonfly_cluster::{Cluster, ClusterOptions, Node, Place, mesh, operator, pod};
use dragonfly_e2e::sample;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

/// The mesh.
pub(crate) const NAME: &str = "default";

/// A cluster with a mesh that runs.
pub(crate) struct Standing {
    // Before the cluster, so that a failure can still be told.
    pub(crate) place: Place,
    pub(crate) cluster: Cluster,
    pub(crate) url: String,
    pub(crate) digest: String,
}

impl Standing {
    /// Certificates live for two minutes and a new CA signs after two.
    pub(crate) async fn up() -> Self {
        let cluster = Cluster::start(&ClusterOptions::nodes(2)).await.unwrap();
        let short = ["--certificate-lifetime=0.034", "--ca-overlap=2"];
        let place = operator::deploy(&cluster, &short).await.unwrap();
        place.apply(&distribution(&json!({}))).await;
        let services: Api<Service> = place.api();
        let origin = services.get("origin").await.unwrap();
        let address = origin.spec.unwrap().cluster_ip.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let len = mesh::CONTENT.1;
        let content = sample::random(&dir.path().join("content"), len, len).unwrap();
        let standing = Self {
            place,
            cluster,
            url: format!("http://{address}/{}", mesh::CONTENT.0),
            digest: content.digest,
        };
        standing.place.ready(NAME).await;
        standing
    }

    /// The namespace of operator and mesh.
    pub(crate) fn namespace(&self) -> &str {
        &self.place.namespace
    }

    pub(crate) fn client(&self) -> &Client {
        &self.place.client
    }

    /// Pods of a part.
    pub(crate) async fn pods(&self, part: &str) -> Vec<Pod> {
        let labels =
            format!("app.kubernetes.io/instance={NAME},app.kubernetes.io/component={part}");
        pod::with_labels(self.client(), self.namespace(), &labels)
            .await
            .unwrap()
    }

    /// The pod of a part on a node.
    pub(crate) async fn pod_on(&self, part: &str, node: &str) -> Pod {
        let on = |pod: &Pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some(node);
        let mut all = self.pods(part).await;
        all.retain(on);
        assert_eq!(all.len(), 1, "{part} on {node}");
        all.remove(0)
    }

    /// A client on a node gets a content of its own, which nobody has yet.
    pub(crate) async fn get(&self, node: &Node<'_>, which: &str, more: &[&str]) -> Output {
        let program = dragonfly_e2e::binary::dragonfly().unwrap();
        let url = format!("{}?which={which}", self.url);
        let mut line = vec!["timeout", "60", program.to_str().unwrap(), "get", "-q"];
        line.extend(["--socket", "/run/dragonfly/node.sock"]);
        // Without a digest: what the node holds under another name would be the same content by it.
        line.extend(["-O", "/run/got", &url]);
        line.extend(more);
        let got = node.exec(&line).await.unwrap();
        if got.status.success() {
            let sum = node.run(&["sha256sum", "/run/got"]).await.unwrap();
            let sum = sum.split(' ').next().unwrap_or_default();
            assert_eq!(format!("sha256:{sum}"), self.digest, "{which}");
        }
        got
    }

    /// A token as the API server gives it to a kubelet: of a part's account, bound to a pod or to none.
    pub(crate) async fn token(&self, account: &str, audience: &str, pod: Option<&Pod>) -> String {
        let accounts: Api<ServiceAccount> = self.place.api();
        let bound = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name_any()),
            uid: pod.uid(),
        });
        let wanted = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                expiration_seconds: Some(600),
                bound_object_ref: bound,
            },
            ..TokenRequest::default()
        };
        let given = accounts
            .create_token_request(account, &PostParams::default(), &wanted)
            .await
            .unwrap();
        given.status.unwrap().token
    }

    /// The audience of the mesh's tokens.
    pub(crate) async fn audience(&self) -> String {
        let mesh = self.place.get(NAME).await;
        format!("dragonfly.d7y.io/{}", mesh.metadata.uid.unwrap())
    }

    /// The bootstrap file as pods have it.
    pub(crate) async fn bootstrap(&self) -> String {
        let maps: Api<ConfigMap> = self.place.api();
        let map = maps.get(&format!("{NAME}-bootstrap")).await.unwrap();
        map.data.unwrap()["bootstrap.json"].clone()
    }

    /// Starts a process on a node that wants to be a part by this token, for some seconds: what it
    /// logged.
    pub(crate) async fn intrude(
        &self,
        node: &Node<'_>,
        role: &str,
        token: &str,
        environment: &[String],
    ) -> String {
        // A directory that both this machine and the node see.
        let dir = tempfile::tempdir_in(node.path(Path::new("/run"))).unwrap();
        let file = |name: &str, text: &str| -> PathBuf {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let bootstrap = file("bootstrap.json", &self.bootstrap().await);
        let token = file("token", token);
        let program = dragonfly_e2e::binary::dragonfly().unwrap();
        let argument = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let line: Vec<String> = ["env".to_owned()]
            .into_iter()
            .chain(environment.iter().cloned())
            .chain(["timeout", "--signal=INT", "8"].map(str::to_owned))
            .chain([program.display().to_string(), role.to_owned()])
            .chain([
                argument("bootstrap", &bootstrap),
                argument("identity-token-file", &token),
                argument("state", &dir.path().join("state")),
                argument("socket", &dir.path().join("socket")),
                "--listen=127.0.0.1:0".to_owned(),
                "--name=intruder".to_owned(),
            ])
            .collect();
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        let ended = node.exec(&line).await.unwrap();
        String::from_utf8_lossy(&ended.stderr).into_owned()
    }
}

/// The mesh with this in `spec.security`.
pub(crate) fn distribution(security: &serde_json::Value) -> String {
    json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Distribution", "metadata": {"name": NAME},
        "spec": {
            "profile": "Light",
            "security": security,
            // What a node gets without the others is no content of theirs.
            "backToSource": "Never",
            // Little of a machine that may be rather full: each download is a content of its own.
            "storage": {"quota": "512Mi", "reserveFreePercent": 0},
        },
    })
    .to_string()
}

pub(crate) async fn every_part_has_a_certificate_and_a_download_goes_through(standing: &Standing) {
    let began = Instant::now();
    for node in standing.cluster.nodes() {
        let got = standing.get(&node, "first", &[]).await;
        let said = String::from_utf8_lossy(&got.stderr).into_owned();
        assert!(got.status.success(), "{}: {said}", node.name());
    }
    eprintln!("two downloads of 64 MiB, encrypted: {:?}", began.elapsed());
    let log = operator_log(standing).await;
    for (role, count) in [("scheduler", 1), ("seed", 1), ("peer", 2)] {
        let issued = log
            .lines()
            .filter(|l| l.contains("issued a certificate") && l.contains(&format!("/{role}/")));
        assert!(issued.count() >= count, "{role}: {log}");
    }
    for part in ["peer", "seed"] {
        for pod in standing.pods(part).await {
            let log = pod::log(standing.client(), standing.namespace(), &pod.name_any())
                .await
                .unwrap();
            assert!(log.contains("encrypted=true"), "{log}");
        }
    }
}

/// What the operator logged.
pub(crate) async fn operator_log(standing: &Standing) -> String {
    let labels = "app.kubernetes.io/name=dragonfly-operator";
    let operators = pod::with_labels(standing.client(), standing.namespace(), labels)
        .await
        .unwrap();
    pod::log(
        standing.client(),
        standing.namespace(),
        &operators[0].name_any(),
    )
    .await
    .unwrap()
}
