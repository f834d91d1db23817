//! The API server that most tests share, with the operator as a process beside it; and a scheduler's
//! part, where a test plays it.

use std::sync::{Arc, Mutex};

use dragonfly_cluster::{Cluster, ClusterOptions, Installed, Operator, Place};
use dragonfly_controllers::{Ages, At, Namespaces, Options};
use dragonfly_crds::Preheat;
use dragonfly_operator_core::Settings;
use kube::Config;
use kube::api::{Api, Patch, PatchParams};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::crash::faulty::Faults;

/// How many tests may share it: the operator is told its namespaces when it starts.
const TESTS: usize = 32;

/// The shared API server and operator.
pub(crate) struct Bed {
    pub(crate) cluster: Arc<Cluster>,
    /// Namespaces that no test has yet.
    free: Mutex<Vec<String>>,
    /// Runs for as long as the tests do.
    operator: Operator,
}

impl Bed {
    async fn start() -> Self {
        let cluster = Cluster::shared(&ClusterOptions::api_server())
            .await
            .unwrap();
        let mut free = vec![];
        for _ in 0..TESTS {
            free.push(Place::new(&cluster).await.unwrap().namespace.clone());
        }
        let names: Vec<_> = free.iter().map(String::as_str).collect();
        let installed = Installed::on(&cluster, &names).await.unwrap();
        let operator = Operator::start(&cluster, &installed).await.unwrap();
        Self {
            cluster,
            free: Mutex::new(free),
            operator,
        }
    }
}

/// One for all tests of this binary.
pub(crate) async fn shared() -> &'static Bed {
    static BED: OnceCell<Bed> = OnceCell::const_new();
    BED.get_or_init(Bed::start).await
}

/// A namespace for this test, in which the shared operator runs meshes.
pub(crate) async fn place() -> Place {
    let bed = shared().await;
    let name = bed.free.lock().unwrap().pop().expect("more namespaces");
    let place = Place::of(&bed.cluster, name).await.unwrap();
    place.with_log(bed.operator.log().to_owned())
}

/// An API server of this test alone, where an operator may run meshes in the place.
pub(crate) async fn own() -> (Cluster, Installed, Place) {
    let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
    let place = Place::new(&cluster).await.unwrap();
    let installed = Installed::on(&cluster, &[&place.namespace]).await.unwrap();
    (cluster, installed, place)
}

/// An operator in this process, or an issuer; it ends when dropped, wherever it is.
pub(crate) struct Running(pub(crate) tokio::task::JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An operator in this process, of all namespaces, whose client has these faults.
pub(crate) async fn operator(cluster: &Cluster, faults: &Faults) -> Running {
    let config = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    let builder = ClientBuilder::try_from(config.unwrap()).unwrap();
    let client = builder.with_layer(faults).build();
    let options = options(At::Address("192.0.2.1:8443".to_owned()));
    let operator = dragonfly_controllers::Operator::new(client, options, Arc::default());
    Running(tokio::spawn(async move {
        operator
            .lead(Arc::default(), CancellationToken::new())
            .await;
    }))
}

/// Options of an operator within the test, of all namespaces.
pub(crate) fn options(issuer: At) -> Options {
    Options {
        namespaces: Namespaces::All,
        settings: Settings {
            image: "registry.test/dragonfly:dev".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: vec![],
        },
        instance: None,
        issuer,
        ages: Ages::default(),
    }
}

/// Makes a preheat and waits for its plan: the number of its run.
pub(crate) async fn planned(place: &Place) -> i64 {
    let preheat = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Preheat", "metadata": {"name": "once"},
        "spec": {"files": [{"url": "http://origin.test/file"}]},
    });
    place.apply(&preheat.to_string()).await;
    let planned = |preheat: &Preheat| {
        let plan = preheat.status.as_ref().and_then(|s| s.plan.as_ref());
        plan.map(|plan| plan.run)
            .ok_or_else(|| "has no plan".to_owned())
    };
    place.until("once", planned).await
}

/// Says of a run what a scheduler says of it.
pub(crate) async fn reports(place: &Place, run: i64, state: &str) {
    let (active, succeeded) = if state == "Running" { (1, 0) } else { (0, 1) };
    let mut progress = json!({
        "run": run, "state": state, "message": state,
        "targets": {
            "desired": 1, "active": active, "succeeded": succeeded, "failed": 0, "skipped": 0,
        },
    });
    if active == 0 {
        progress["endTime"] = json!("2026-01-02T03:04:05Z");
    }
    let status = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "Preheat", "metadata": {"name": "once"},
        "status": {"progress": progress},
    });
    let preheats: Api<Preheat> = place.api();
    let params = PatchParams::apply("scheduler").force();
    preheats
        .patch_status("once", &params, &Patch::Apply(&status))
        .await
        .unwrap();
}
