//! Certificates and their CA are replaced while clients download.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dragonfly_cluster::company::{self, Company, Kept};
use dragonfly_cluster::definitions::Neighbour;
use dragonfly_cluster::operator::{config, read};
use dragonfly_cluster::pod;
use dragonfly_cluster::wait::wait_until;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use super::mesh::{NAME, Standing, distribution, operator_log};

/// Two minutes of overlap, the kubelet's delay, and certificates of the new CA for everybody.
const LIMIT: Duration = Duration::from_secs(420);

/// Fewer downloads are no load: certificates may be due when it begins.
const LEAST: u32 = 4;

/// The logs of the mesh's parts.
async fn everything_said(standing: &Standing) -> String {
    let mut shown = String::new();
    for part in ["scheduler", "seed", "peer"] {
        for pod in standing.pods(part).await {
            let name = pod.name_any();
            let log = pod::log(&standing.place.client, standing.namespace(), &name);
            let log = log.await.unwrap_or_else(|e| e.to_string());
            shown.push_str(&format!("--- {name}\n{log}\n"));
        }
    }
    shown
}

/// Clients of all nodes download contents that nobody has yet, until it is done; how many. They show
/// credentials, which are sealed for keys that are replaced with the CA.
async fn load(standing: &Standing, name: &str, done: &AtomicBool) -> u32 {
    let nodes: Vec<_> = standing.cluster.nodes().collect();
    let file = tempfile::NamedTempFile::new_in(nodes[0].path(Path::new("/run"))).unwrap();
    std::fs::write(file.path(), "Authorization: Bearer somebody's\n").unwrap();
    let shown = ["--header-file", file.path().to_str().unwrap()];
    let mut count = 0;
    while count < LEAST || !done.load(Ordering::Relaxed) {
        for node in &nodes {
            let got = standing.get(node, &format!("{name}-{count}"), &shown).await;
            let said = String::from_utf8_lossy(&got.stderr).into_owned();
            if !got.status.success() {
                let shown = everything_said(standing).await;
                panic!("download {count} on {}: {said}\n{shown}", node.name());
            }
            count += 1;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    count
}

/// Whom the operator gave a certificate, and how often.
async fn issued(standing: &Standing) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    let log = operator_log(standing).await;
    for line in log.lines().filter(|l| l.contains("issued a certificate")) {
        let who = line
            .split_once("spiffe://")
            .and_then(|(_, rest)| rest.split([' ', '"']).next());
        *all.entry(who.unwrap().to_owned()).or_default() += 1;
    }
    all
}

/// The operator's Service is made anew and has another address: every part learns of it where it runs.
/// What renews certificates from here on does so there, for nobody answers at the old one.
async fn an_issuer_that_moves_is_found(standing: &Standing) {
    const OPERATOR: &str = "dragonfly-operator";
    let place = &standing.place;
    let services: Api<Service> = place.api();
    let address = async || {
        let service = services.get(OPERATOR).await.unwrap();
        format!("{}:8443", service.spec.unwrap().cluster_ip.unwrap())
    };
    let began = Instant::now();
    let before = address().await;
    let now = DeleteParams::default();
    services.delete(OPERATOR, &now).await.unwrap();
    let text = config(&read, "operator/service.yaml", standing.namespace()).unwrap();
    place.apply(&text).await;
    let after = address().await;
    assert_ne!(after, before);
    wait_until("a bootstrap that names it", LIMIT, || async {
        let bootstrap = standing.bootstrap().await;
        Ok(if bootstrap.contains(&after) {
            Ok(())
        } else {
            Err(bootstrap)
        })
    })
    .await
    .unwrap();
    let named = began.elapsed();
    // Certificates of these tests live for two minutes, too short for kubelets' own time.
    let labels = format!("app.kubernetes.io/instance={NAME}");
    pod::look_again(&place.client, standing.namespace(), &labels)
        .await
        .unwrap();
    wait_until("all parts to know it", LIMIT, || async {
        let mut missing = vec![];
        for part in ["scheduler", "seed", "peer"] {
            for pod in standing.pods(part).await {
                let name = pod.name_any();
                let log = pod::log(&place.client, standing.namespace(), &name).await?;
                let told = log
                    .lines()
                    .any(|line| line.contains("another issuer") && line.contains(&after));
                if !told {
                    missing.push(name);
                }
            }
        }
        Ok(if missing.is_empty() {
            Ok(())
        } else {
            Err(missing.join(", "))
        })
    })
    .await
    .unwrap();
    eprintln!(
        "the issuer moved: bootstrap after {named:?}, parts after {:?}",
        began.elapsed()
    );
}

pub(crate) async fn certificates_are_replaced_under_load_and_no_download_fails(
    standing: &Standing,
) {
    let began = Instant::now();
    let done = AtomicBool::new(false);
    let renewed = async {
        an_issuer_that_moves_is_found(standing).await;
        let before = issued(standing).await;
        // Scheduler, seed, two peers.
        assert!(before.len() >= 4, "{before:?}");
        wait_until("another certificate for everybody", LIMIT, || async {
            let now = issued(standing).await;
            let parts = ["/scheduler/", "/seed/", "/peer/node-0", "/peer/node-1"];
            let missing = parts.iter().filter(|part| {
                !now.iter()
                    .any(|(who, n)| who.contains(**part) && Some(n) > before.get(who))
            });
            let missing: Vec<_> = missing.collect();
            Ok(if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("not yet: {missing:?}"))
            })
        })
        .await
        .unwrap();
        // And content that goes by connections that were made since.
        tokio::time::sleep(Duration::from_secs(2)).await;
        done.store(true, Ordering::Relaxed);
    };
    let (downloads, ()) = tokio::join!(load(standing, "renewed", &done), renewed);
    eprintln!(
        "all certificates were renewed within {:?}; {downloads} downloads of 64 MiB, none failed",
        began.elapsed()
    );
}

pub(crate) async fn the_ca_is_replaced_under_load_and_no_download_fails(standing: &Standing) {
    let asked = async {
        let security = json!({"caGeneration": 1});
        standing.place.apply(&distribution(&security)).await;
    };
    replaced(standing, "load", asked).await;
}

/// The test is the issuer.
pub(crate) async fn an_issuer_signs_the_ca_under_load_and_no_download_fails(standing: &Standing) {
    let place = &standing.place;
    Neighbour::CertManager.install(&place.client).await.unwrap();
    let asked = async {
        let security = json!({"caGeneration": 1, "issuerRef": {"name": "company"}});
        place.apply(&distribution(&security)).await;
        let request = company::asked(place, None).await;
        company::signs(place, &Company::new("the company"), &request).await;
    };
    replaced(standing, "signed", asked).await;
    let ca = Kept::of(place).await.ca.unwrap();
    assert_eq!(company::names(&ca).1, "CN=the company");
}

/// The CA is replaced as somebody asks, while clients download contents of this name.
async fn replaced(standing: &Standing, name: &str, asked: impl Future<Output = ()>) {
    let secrets: Api<Secret> = standing.place.api();
    let ca = || async {
        let secret = secrets.get(&format!("{NAME}-ca")).await.unwrap();
        let text = |key: &str| {
            let data = secret.data.as_ref().unwrap().get(key)?;
            Some(String::from_utf8(data.0.clone()).unwrap())
        };
        (
            text("ca.pem").unwrap(),
            text("next.pem"),
            text("previous.pem"),
        )
    };
    let (before, ..) = ca().await;
    let done = AtomicBool::new(false);
    let load = load(standing, name, &done);
    let began = Instant::now();
    let replace = async {
        asked.await;
        wait_until(
            "a next CA that is trusted",
            Duration::from_secs(30),
            || async {
                let (now, next, _) = ca().await;
                assert_eq!(now, before, "it signs before it is known");
                let next = next.ok_or("none yet");
                let known = next.map(|next| next.trim().replace('\n', "\\n"));
                let bootstrap = standing.bootstrap().await;
                Ok(match known {
                    Ok(known) if bootstrap.contains(&known) => Ok(()),
                    Ok(_) => Err("not in the bootstrap".to_owned()),
                    Err(why) => Err(why.to_owned()),
                })
            },
        )
        .await
        .unwrap();
        wait_until("the next CA to sign", LIMIT, || async {
            let (now, next, previous) = ca().await;
            Ok(match (now != before, next, previous) {
                (true, None, Some(previous)) if previous.starts_with(before.trim()) => Ok(()),
                other => Err(format!("{:?}", other.0)),
            })
        })
        .await
        .unwrap();
        let promoted = Instant::now();
        // Everybody's next certificate is of the new CA: renewed at a third of two minutes.
        wait_until("new certificates for all", LIMIT, || async {
            let log = operator_log(standing).await;
            let promoted = log.rfind("step=Promote").unwrap_or(log.len());
            let after = log.get(promoted..).unwrap_or_default();
            let all = ["/scheduler/", "/seed/", "/peer/"];
            let missing: Vec<_> = all.iter().filter(|part| !after.contains(**part)).collect();
            Ok(if missing.is_empty() && promoted < log.len() {
                Ok(())
            } else {
                Err(format!("{missing:?}"))
            })
        })
        .await
        .unwrap();
        // And connections made with them.
        tokio::time::sleep(Duration::from_secs(60)).await;
        done.store(true, Ordering::Relaxed);
        promoted
    };
    let (downloads, promoted) = tokio::join!(load, replace);
    assert!(downloads > 20, "{downloads} downloads are no load");
    let restarts: i32 = {
        let mut all = 0;
        for part in ["scheduler", "seed", "peer"] {
            for pod in standing.pods(part).await {
                let statuses = pod.status.clone().and_then(|s| s.container_statuses);
                let count: i32 = statuses
                    .into_iter()
                    .flatten()
                    .map(|c| c.restart_count)
                    .sum();
                assert_eq!(count, 0, "{}", pod.name_any());
                all += count;
            }
        }
        all
    };
    eprintln!(
        "{downloads} downloads of 64 MiB in {:?}, none failed, {restarts} restarts; the new CA \
         signed from {:?} on",
        began.elapsed(),
        promoted - began
    );
}
