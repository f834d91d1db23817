//! An operator that dies between any two writes: whoever goes on ends where it would have.
//!
//! The operator runs here, in the test, with a client that carries out a namespace's first writes and
//! loses the answer of the last one and all that comes after: what the API server knows then is what an
//! operator leaves that dies after that write. Then another one goes on.

pub(super) mod faulty;
mod state;

use std::collections::BTreeMap;
use std::time::Duration;

use dragonfly_cluster::company::{Company, Kept, names, request_kind, signs};
use dragonfly_cluster::definitions::Neighbour;
use dragonfly_cluster::place::{SOON, condition};
use dragonfly_cluster::wait::wait_until;
use dragonfly_cluster::{Cluster, ClusterOptions, Failed, Installed, Place};
use dragonfly_crds::{Distribution, Preheat};
use futures::stream::{self, StreamExt};
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use serde_json::{Value, json};

use super::bed::{Running, operator, planned, reports};
use faulty::Faults;
use state::{difference, state};

/// Most writes of one object's way that there is room for; fails when there are more.
const MOST: usize = 40;
/// The same for a new CA.
const MOST_OF_CA: usize = 12;
/// Of a spec: an issuer signs the CA.
const ISSUED: &str = "security: {issuerRef: {name: company}}";
/// Rows at once.
const AT_ONCE: usize = 8;

struct Bed {
    cluster: Cluster,
    /// A namespace that rows' are beside.
    here: Place,
    /// Rows are namespaces of their own in each, and for each kind of mesh.
    passing: bool,
    kind: &'static str,
}

impl Bed {
    async fn start(passing: bool, kind: &'static str) -> Self {
        let cluster = Cluster::start(&ClusterOptions::api_server()).await.unwrap();
        let here = Place::new(&cluster).await.unwrap();
        Neighbour::CertManager.install(&here.client).await.unwrap();
        Installed::on(&cluster, &[]).await.unwrap();
        Self {
            cluster,
            here,
            passing,
            kind,
        }
    }

    async fn operator(&self, faults: &Faults) -> Running {
        operator(&self.cluster, faults).await
    }

    fn place(&self, row: usize) -> Place {
        self.here.beside(self.name(row))
    }

    fn name(&self, row: usize) -> String {
        let way = if self.passing { "lost" } else { "dead" };
        format!("{}-{}-{way}-{row:02}", self.here.namespace, self.kind)
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

#[tokio::test]
#[ignore = "takes minutes: make test-full runs it"]
async fn an_operator_that_dies_after_any_write_while_an_issuer_signs_is_followed_by_another() {
    signed(false, "it dies").await;
}

#[tokio::test]
#[ignore = "takes minutes: make test-full runs it"]
async fn an_operator_that_gets_no_answer_to_any_write_while_an_issuer_signs_goes_on() {
    signed(true, "the answer is lost").await;
}

/// Rows of faults, and what leads them from nothing to their end.
async fn carried_through(passing: bool, run: &str) {
    let bed = Bed::start(passing, "own").await;
    meshes(&bed, run, "").await;
    preheats(&bed, run).await;
    bed.cluster.stop().await.unwrap();
}

/// The same where an issuer signs: the first CA of a mesh, and the next one of meshes that had their own.
async fn signed(passing: bool, run: &str) {
    let mut bed = Bed::start(passing, "issued").await;
    let issuer = issues(&bed, Company::new("the company"));
    for row in meshes(&bed, run, ISSUED).await {
        let kept = Kept::of(&bed.place(row)).await;
        let by = names(kept.ca.as_ref().unwrap()).1;
        assert_eq!(by, "CN=the company", "row {row}: {kept:?}");
    }
    bed.kind = "own";
    replacements(&bed, run).await;
    drop(issuer);
    bed.cluster.stop().await.unwrap();
}

/// Signs whatever CA is asked for, as cert-manager would with an issuer `company`.
fn issues(bed: &Bed, company: Company) -> Running {
    let here = bed.here.beside(bed.here.namespace.clone());
    let everywhere = Api::<DynamicObject>::all_with(here.client.clone(), &request_kind());
    Running(tokio::spawn(async move {
        loop {
            for request in everywhere.list(&ListParams::default()).await.unwrap() {
                if request.data["status"]["certificate"].is_null() {
                    let place = here.beside(request.namespace().unwrap());
                    signs(&place, &company, &request).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }))
}

/// Of a mesh, from its object to everything applied; its spec has this in addition. The rows.
async fn meshes(bed: &Bed, run: &str, more: &str) -> Vec<usize> {
    make_mesh(bed.place(0), more).await;
    let none = Faults::default();
    let operator = bed.operator(&none).await;
    bed.place(0).applied("default").await;
    let writes = quiet(bed, &none, &[0]).await;
    drop(operator);
    assert!((10..=MOST).contains(&writes), "{writes} writes of a mesh");
    let wanted = state(&bed.place(0)).await;

    let rows: Vec<_> = (1..=writes).collect();
    each(&rows, |row| make_mesh(bed.place(row), more)).await;
    let faults = bed.after(&rows);
    let operator = bed.operator(&faults).await;
    // Of what is said while an issuer has not answered yet there may be a write less.
    met(bed, &faults, &rows, run, async |place: &Place| {
        let meshes: Api<Distribution> = place.api();
        !more.is_empty() && settled(&meshes.get("default").await.unwrap()).is_ok()
    })
    .await;
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
    same(bed, &wanted, &rows, &format!("a mesh {more}: {run}")).await;
    drop(operator);
    eprintln!("a mesh {more}, {writes} writes: {run} after each of them, and the end is the same");
    rows
}

/// A mesh of which all is applied, and that waits for no issuer.
fn settled(mesh: &Distribution) -> Result<(), String> {
    let said = condition(mesh, "Reconciling").ok_or("nothing is said yet")?;
    let current = said.observed_generation == mesh.metadata.generation;
    if current && said.reason == "Progressing" && !said.message.contains("issuerRef") {
        Ok(())
    } else {
        Err(format!("{said:?}"))
    }
}

/// Of a mesh with a CA of its own to the next one, which an issuer signed.
async fn replacements(bed: &Bed, run: &str) {
    let none = Faults::default();
    let operator = bed.operator(&none).await;
    let all: Vec<_> = (0..=MOST_OF_CA).collect();
    each(&all, |row| make_mesh(bed.place(row), "")).await;
    for row in all {
        bed.place(row).applied("default").await;
    }
    let before = quiet(bed, &none, &[0]).await;
    spec(&bed.place(0), ISSUED).await;
    let next = |kept: &Kept| kept.next.is_some() && kept.asked.is_none();
    Kept::once(&bed.place(0), next).await;
    // What the status says of it comes a little later.
    bed.place(0).until("default", settled).await;
    let writes = quiet(bed, &none, &[0]).await - before;
    drop(operator);
    assert!(
        (3..=MOST_OF_CA).contains(&writes),
        "{writes} writes of a new CA"
    );
    let wanted = state(&bed.place(0)).await;

    let rows: Vec<_> = (1..=writes).collect();
    each(&rows, async |row| spec(&bed.place(row), ISSUED).await).await;
    let faults = bed.after(&rows);
    let mut operator = bed.operator(&faults).await;
    let ended = async |place: &Place| next(&Kept::of(place).await);
    met(bed, &faults, &rows, run, ended).await;
    if !bed.passing {
        operator = bed.operator(&Faults::default()).await;
    }
    same(bed, &wanted, &rows, &format!("a new CA: {run}")).await;
    for row in rows {
        let kept = Kept::of(&bed.place(row)).await;
        let by = names(kept.next.as_ref().unwrap()).1;
        assert_eq!(by, "CN=the company", "row {row}: {kept:?}");
    }
    drop(operator);
    eprintln!("a new CA, {writes} writes: {run} after each of them, and the end is the same");
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
        met(bed, &faults, &rows, run, is_preheated).await;
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
async fn each(rows: &[usize], what: impl AsyncFn(usize)) {
    stream::iter(rows.iter().map(|row| what(*row)))
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
}

async fn make_mesh(place: Place, more: &str) {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": &place.namespace},
    });
    place.apply(&namespace.to_string()).await;
    let pool = json!({
        "apiVersion": "d7y.io/v1alpha1", "kind": "SchedulerPool", "metadata": {"name": "two"},
        "spec": {"replicas": 2},
    });
    place.apply(&pool.to_string()).await;
    spec(&place, more).await;
}

/// Applies the mesh with this in its spec in addition.
async fn spec(place: &Place, more: &str) {
    let spec =
        "schedulerPoolRef: {name: two}, seeds: {replicas: 2, storage: {volumeClaim: {size: 10Gi}}}";
    place.mesh("default", &format!("{{{spec}, {more}}}")).await;
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
async fn met(
    bed: &Bed,
    faults: &Faults,
    rows: &[usize],
    run: &str,
    ended: impl AsyncFn(&Place) -> bool,
) {
    wait_until(run, SOON, || async {
        let mut left = vec![];
        for row in rows {
            if !faults.is_met(&bed.name(*row)) && !ended(&bed.place(*row)).await {
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
