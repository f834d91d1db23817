//! The API server that most tests share, with the operator as a process beside it.

use std::sync::{Arc, Mutex};

use dragonfly_cluster::{Cluster, ClusterOptions, Installed, Operator, Place};
use dragonfly_controllers::{Ages, At, Namespaces, Options};
use dragonfly_operator_core::Settings;
use tokio::sync::OnceCell;

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
