//! An operator that dies between any two writes: whoever goes on ends where it would have.
//!
//! The operator runs here, in the test, with a client that carries out a namespace's first writes and
//! loses the answer of the last one and all that comes after: what the API server knows then is what an
//! operator leaves that dies after that write. Then another one goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use dragonfly_cluster::place::SOON;
use dragonfly_cluster::wait::wait_until;
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, Installed, Place};
use dragonfly_controllers::{At, Metrics, Operator};
use dragonfly_crds::{Distribution, Preheat};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use http::{Method, Request};
use k8s_openapi::api::core::v1::Service as KubeService;
use kube::api::Api;
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Config, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Layer, Service};

use crate::bed::{options, planned, reports};
use crate::several::everything;

/// Most writes of one object's way that there is room for; fails when there are more.
const MOST: usize = 40;
/// Rows at once.
const AT_ONCE: usize = 8;

/// When whose client stops working: after so many writes of a namespace.
#[derive(Clone, Default)]
struct Faults {
    after: HashMap<String, usize>,
    /// The client works again after the answer that was lost.
    passing: bool,
    written: Arc<Mutex<HashMap<String, usize>>>,
}

impl Faults {
    /// Whether a request is carried out, and whether its answer arrives.
    fn judge<B>(&self, request: &Request<B>) -> (bool, bool) {
        let path = request.uri().path();
        let mut parts = path.split('/').skip_while(|part| *part != "namespaces");
        let Some(namespace) = parts.nth(1) else {
            return (true, true);
        };
        let mut written = self.written.lock().unwrap();
        let count = written.entry(namespace.to_owned()).or_default();
        let after = self.after.get(namespace).copied().unwrap_or(usize::MAX);
        let writes = request.method() != Method::GET;
        if *count >= after && !self.passing {
            return (false, false);
        }
        *count += usize::from(writes);
        (true, !(writes && *count == after))
    }

    fn written(&self, namespace: &str) -> usize {
        self.written
            .lock()
            .unwrap()
            .get(namespace)
            .copied()
            .unwrap_or_default()
    }

    fn is_met(&self, namespace: &str) -> bool {
        self.after
            .get(namespace)
            .is_some_and(|after| self.written(namespace) >= *after)
    }
}

/// A client with faults.
struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S> Layer<S> for Faults {
    type Service = Faulty<S>;
    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty {
            inner,
            faults: self.clone(),
        }
    }
}

impl<S> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (carried_out, answered) = self.faults.judge(&request);
        if !carried_out {
            return Box::pin(async { Err("the operator is dead".into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await.map_err(Into::into)?;
            if answered {
                Ok(answer)
            } else {
                Err("the answer was lost".into())
            }
        })
    }
}

/// An operator in this process; it ends when dropped, wherever it is.
struct Running {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Bed {
    cluster: Cluster,
    /// A namespace that rows' are beside.
    here: Place,
    /// Rows are namespaces of their own in each.
    passing: bool,
}

impl Bed {
    async fn start() -> Self {
        let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
        let here = Place::new(&cluster).await.unwrap();
        Installed::on(&cluster, &[]).await.unwrap();
        Self {
            cluster,
            here,
            passing: false,
        }
    }

    /// An operator of all namespaces.
    async fn operator(&self, faults: &Faults) -> Running {
        let path = self.cluster.kubeconfig();
        let config = Kubeconfig::read_from(path).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
        let builder = ClientBuilder::try_from(config.unwrap()).unwrap();
        let client = builder.with_layer(faults).build();
        let options = options(At::Address("192.0.2.1:8443".to_owned()));
        let operator = Operator::new(client, options, Arc::new(Metrics::default()));
        let task = tokio::spawn(async move {
            operator
                .lead(Arc::default(), CancellationToken::new())
                .await;
        });
        Running { task }
    }

    fn place(&self, row: usize) -> Place {
        self.here.beside(self.name(row))
    }

    fn name(&self, row: usize) -> String {
        let way = if self.passing { "lost" } else { "dead" };
        format!("{way}-{row:02}")
    }

    fn after(&self, rows: &[usize]) -> Faults {
        Faults {
            after: rows.iter().map(|row| (self.name(*row), *row)).collect(),
            passing: self.passing,
            ..Faults::default()
        }
    }
}

#[tokio::test]
async fn an_operator_that_dies_after_any_write_leaves_nothing_that_another_does_not_finish() {
    carried_through(false, "it dies").await;
}

#[tokio::test]
async fn an_operator_that_gets_no_answer_to_any_write_ends_where_it_would_have() {
    carried_through(true, "the answer is lost").await;
}

/// Rows of faults, and what leads them from nothing to their end.
async fn carried_through(passing: bool, run: &str) {
    let mut bed = Bed::start().await;
    bed.passing = passing;
    meshes(&bed, run).await;
    preheats(&bed, run).await;
    bed.cluster.stop().await.unwrap();
}

/// Of a mesh, from its object to everything applied.
async fn meshes(bed: &Bed, run: &str) {
    make_mesh(bed.place(0)).await;
    let none = Faults::default();
    let operator = bed.operator(&none).await;
    bed.place(0).applied("default").await;
    let writes = quiet(bed, &none, &[0]).await;
    drop(operator);
    assert!((10..=MOST).contains(&writes), "{writes} writes of a mesh");
    let wanted = state(&bed.place(0)).await;

    let rows: Vec<_> = (1..=writes).collect();
    each(&rows, |row| make_mesh(bed.place(row))).await;
    let faults = bed.after(&rows);
    let operator = bed.operator(&faults).await;
    met(bed, &faults, &rows, run).await;
    let operator = if bed.passing {
        operator
    } else {
        bed.operator(&Faults::default()).await
    };
    each(&rows, |row| {
        let place = bed.place(row);
        async move { drop(place.applied("default").await) }
    })
    .await;
    same(bed, &wanted, &rows, &format!("a mesh: {run}")).await;
    drop(operator);
    eprintln!("a mesh, {writes} writes: {run} after each of them, and the end is the same");
}

/// Of a preheat whose run succeeds, as its scheduler says. The meshes of all rows are there.
async fn preheats(bed: &Bed, run: &str) {
    let none = Faults::default();
    let operator = bed.operator(&none).await;
    let before = quiet(bed, &none, &[0]).await;
    carried_out(bed.place(0)).await;
    let writes = quiet(bed, &none, &[0]).await - before;
    drop(operator);
    assert!((3..=MOST).contains(&writes), "{writes} writes of a preheat");
    let wanted = state(&bed.place(0)).await;

    let rows: Vec<_> = (1..=writes).collect();
    let faults = bed.after(&rows);
    let mut operator = bed.operator(&faults).await;
    // Each on its own: one that is dead is followed by another as soon as it has done its last write.
    let going_on = async {
        met(bed, &faults, &rows, run).await;
        if !bed.passing {
            operator = bed.operator(&Faults::default()).await;
        }
    };
    let carried = each(&rows, |row| carried_out(bed.place(row)));
    futures::join!(going_on, carried);
    quiet(bed, &faults, &rows).await;
    same(bed, &wanted, &rows, &format!("a preheat: {run}")).await;
    for row in rows {
        let preheats: Api<Preheat> = bed.place(row).api();
        let status = preheats.get("once").await.unwrap().status.unwrap();
        assert_eq!(
            (status.runs, status.history.len()),
            (1, 1),
            "row {row}: begun twice"
        );
    }
    drop(operator);
    eprintln!("a preheat, {writes} writes: {run} after each of them, and the end is the same");
}

/// Does something with all rows, some at a time.
async fn each<F: Future<Output = ()>>(rows: &[usize], what: impl Fn(usize) -> F) {
    stream::iter(rows.iter().map(|row| what(*row)))
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
}

async fn make_mesh(place: Place) {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": &place.namespace},
    });
    place.apply(&namespace.to_string()).await;
    let pool = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "SchedulerPool", "metadata": {"name": "two"},
        "spec": {"replicas": 2},
    });
    place.apply(&pool.to_string()).await;
    let spec = "{schedulerPoolRef: {name: two}, seeds: {replicas: 2, storage: {volumeClaim: {size: 10Gi}}}}";
    place.mesh("default", spec).await;
}

/// A preheat: the test is its scheduler.
async fn carried_out(place: Place) {
    let run = planned(&place).await;
    reports(&place, run, "Succeeded").await;
    place
        .until("once", |preheat: &Preheat| {
            let ready = preheat.status.iter().flat_map(|s| &s.conditions);
            let ready = ready
                .clone()
                .find(|c| c.type_ == "Ready" && c.reason == "Succeeded");
            ready
                .map(|_| ())
                .ok_or_else(|| format!("{:?}", preheat.status))
        })
        .await;
}

/// Until the operator wrote nothing for a while: its writes of the first row.
async fn quiet(bed: &Bed, faults: &Faults, rows: &[usize]) -> usize {
    let all = || {
        rows.iter()
            .map(|row| faults.written(&bed.name(*row)))
            .sum::<usize>()
    };
    let mut last = all();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = all();
        if now == last {
            return faults.written(&bed.name(rows[0]));
        }
        last = now;
    }
}

/// Until the faults of all rows came about, or a row ended before: what comes at the same moment may be
/// one write less.
async fn met(bed: &Bed, faults: &Faults, rows: &[usize], run: &str) {
    wait_until(run, SOON, || async {
        let mut left = vec![];
        for row in rows {
            if !faults.is_met(&bed.name(*row)) && !is_preheated(&bed.place(*row)).await {
                left.push(row);
            }
        }
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("not yet after writes {left:?}"))
        })
    })
    .await
    .unwrap();
}

async fn is_preheated(place: &Place) -> bool {
    let preheats: Api<Preheat> = place.api();
    let preheat = preheats.get_opt("once").await.unwrap();
    let status = preheat.and_then(|preheat| preheat.status);
    status.is_some_and(|s| s.conditions.iter().any(|c| c.reason == "Succeeded"))
}

/// Until rows are as the undisturbed one.
async fn same(bed: &Bed, wanted: &BTreeMap<String, Value>, rows: &[usize], what: &str) {
    for row in rows {
        let place = bed.place(*row);
        wait_until(&format!("{what}, write {row}"), SOON, || async {
            let is = state(&place).await;
            Ok::<_, Failed>(difference(wanted, &is).map_or(Ok(()), Err))
        })
        .await
        .unwrap();
    }
}

fn difference(wanted: &BTreeMap<String, Value>, is: &BTreeMap<String, Value>) -> Option<String> {
    for (name, wanted) in wanted {
        match is.get(name) {
            None => return Some(format!("{name} is missing")),
            Some(is) if is != wanted => {
                return Some(format!("{name} is\n{is:#}\ninstead of\n{wanted:#}"));
            }
            Some(_) => {}
        }
    }
    is.keys()
        .find(|name| !wanted.contains_key(*name))
        .map(|name| format!("{name} is too many"))
}

/// Everything of a namespace, without what is another in each: by kind and name.
async fn state(place: &Place) -> BTreeMap<String, Value> {
    let own = Own::of(place).await;
    let mut all = BTreeMap::new();
    for (kind, objects) in everything(place).await {
        for object in objects {
            let name = format!("{kind} {}", object.name_any());
            let mut value = serde_json::to_value(&object).unwrap();
            own.take_out(&mut value);
            all.insert(name, value);
        }
    }
    all
}

/// What is a mesh's own: names, numbers, addresses and keys, and what is put for them.
struct Own(Vec<(String, String)>);

impl Own {
    async fn of(place: &Place) -> Self {
        let mut words = vec![(place.namespace.clone(), "NAMESPACE".to_owned())];
        let meshes: Api<Distribution> = place.api();
        let mesh = meshes.get("default").await.unwrap();
        words.push((mesh.uid().unwrap(), "UID".to_owned()));
        let services: Api<KubeService> = place.api();
        for service in services.list(&Default::default()).await.unwrap() {
            let name = service.name_any();
            for ip in service.spec.unwrap().cluster_ips.into_iter().flatten() {
                words.push((ip, format!("IP of {name}")));
            }
        }
        // Longer ones first: none is found within another.
        words.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
        Self(words)
    }

    fn take_out(&self, value: &mut Value) {
        /// Times, versions, and what follows from keys and from the mesh's identity.
        const TAKEN: [&str; 11] = [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "time",
            "lastTransitionTime",
            "startTime",
            "lastRunTime",
            "hash",
            "d7y.io/ca-since",
            "d7y.io/authority",
            "d7y.io/applied",
        ];
        match value {
            Value::Object(map) => {
                for (key, mut value) in std::mem::take(map) {
                    match &mut value {
                        // Which keys there are counts.
                        Value::Object(inner) if key == "data" => {
                            inner.values_mut().for_each(|value| *value = Value::Null);
                        }
                        _ if TAKEN.contains(&key.as_str()) => value = Value::Null,
                        _ => self.take_out(&mut value),
                    }
                    // In the order of their times, which are not ours.
                    if let Value::Array(all) = &mut value
                        && key == "managedFields"
                    {
                        all.sort_by_key(ToString::to_string);
                    }
                    // Of managed fields identities are in keys.
                    map.insert(self.put(&key), value);
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|value| self.take_out(value)),
            Value::String(text) => *text = self.put(text),
            _ => {}
        }
    }

    /// A text without what is a mesh's own.
    fn put(&self, text: &str) -> String {
        let words = self.0.iter();
        words.fold(text.to_owned(), |text, (word, put)| text.replace(word, put))
    }
}
