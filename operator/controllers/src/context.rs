//! What all reconciliations share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_operator_core::{Kind, names};
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::Api;
use kube::runtime::events::{Recorder, Reporter};

use crate::authority::Own;
use crate::backoff::Backoff;
use crate::cache::{Cache, Streams};
use crate::issuer::Issuer;
use crate::{At, Metrics, Operator, Options};

/// How long it is believed whether the cluster knows the PodMonitor kind.
const KNOWN: Duration = Duration::from_secs(60);

/// How often it is looked whether the operator's Service has another address: it is not watched.
const MOVES: Duration = Duration::from_secs(15);

/// What the port of the operator's Service is called.
const ISSUER_PORT: &str = "issuer";
/// How often numbers alone are worth a write.
const COUNTED: Duration = Duration::from_secs(10);

/// Where parts reach the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// `host:port`.
    pub(crate) address: String,
    /// Whether the cluster's pods may have addresses of IPv6.
    pub(crate) ipv6: bool,
}

/// Shared by all reconciliations.
pub struct Context {
    pub(crate) client: Client,
    pub(crate) options: Options,
    pub(crate) cache: Cache,
    pub(crate) recorder: Recorder,
    pub(crate) backoff: Backoff,
    pub(crate) counted: Counted,
    /// What was applied and told, counted.
    pub metrics: Arc<Metrics>,
    /// By the mesh's UID: the Secret's version and what is in it, so that it is checked once.
    pub(crate) keys: Mutex<HashMap<String, (String, Own)>>,
    pub(crate) issuer: Arc<Issuer>,
    reached: Mutex<Option<(Instant, Reached)>>,
    pod_monitors: Mutex<Option<(Instant, bool)>>,
}

impl Context {
    pub(crate) fn new(operator: &Operator) -> (Self, Streams) {
        let Operator {
            client,
            options,
            metrics,
            issuer,
        } = operator;
        let (cache, streams) = Cache::new(client, &options.namespaces);
        let reporter = Reporter {
            controller: names::MANAGER.to_owned(),
            instance: options.instance.clone(),
        };
        let context = Self {
            recorder: Recorder::new(client.clone(), reporter),
            client: client.clone(),
            options: options.clone(),
            cache,
            backoff: Backoff::default(),
            counted: Counted::default(),
            metrics: metrics.clone(),
            keys: Mutex::default(),
            issuer: issuer.clone(),
            reached: Mutex::default(),
            pod_monitors: Mutex::default(),
        };
        (context, streams)
    }

    /// Where parts reach this operator for certificates.
    ///
    /// # Errors
    /// Why it is not known.
    pub(crate) async fn reached(&self) -> Result<Reached, String> {
        match self.last_reached() {
            Some((asked, reached)) if asked.elapsed() < KNOWN => Ok(reached),
            _ => self.look_up().await,
        }
    }

    fn last_reached(&self) -> Option<(Instant, Reached)> {
        let known = self.reached.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until parts reach this operator elsewhere than at `last`, and says where.
    pub(crate) async fn moved(&self, mut last: Option<Reached>) -> Reached {
        loop {
            tokio::time::sleep(MOVES).await;
            // No mesh needed to know yet: those that come ask by themselves.
            let Some((_, known)) = self.last_reached() else {
                continue;
            };
            let before = last.get_or_insert(known);
            match self.look_up().await {
                Ok(now) if now != *before => {
                    tracing::info!(address = now.address, "certificates are given elsewhere");
                    return now;
                }
                Ok(_) => {}
                // Also while its Service is being made anew.
                Err(error) => tracing::warn!(error, "where are certificates given?"),
            }
        }
    }

    async fn look_up(&self) -> Result<Reached, String> {
        let (namespace, name) = match &self.options.issuer {
            At::Address(address) => {
                return Ok(Reached {
                    address: address.clone(),
                    ipv6: true,
                });
            }
            At::Service { namespace, name } => (namespace, name),
        };
        let what = format!("the operator's Service {namespace}/{name}");
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let service = services.get(name).await;
        let service = service.map_err(|error| format!("{what}: {}", said(&error)))?;
        let spec = service.spec.unwrap_or_default();
        let ip = spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None");
        let ip = ip.ok_or_else(|| format!("{what} has no address"))?;
        let port = spec.ports.unwrap_or_default().into_iter();
        let port = port.filter(|port| port.name.as_deref() == Some(ISSUER_PORT));
        let port = port.map(|port| port.port).next();
        let port = port.ok_or_else(|| format!("{what} has no port {ISSUER_PORT}"))?;
        let v6 = ip.contains(':');
        let mut families = spec.ip_families.into_iter().flatten();
        let reached = Reached {
            address: if v6 {
                format!("[{ip}]:{port}")
            } else {
                format!("{ip}:{port}")
            },
            ipv6: v6 || families.any(|family| family == "IPv6"),
        };
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), reached.clone()));
        Ok(reached)
    }

    /// Whether the cluster knows the PodMonitor kind.
    ///
    /// # Errors
    /// The API server's, but that it does not.
    pub(crate) async fn pod_monitors(&self) -> Result<bool, kube::Error> {
        let lock = || {
            self.pod_monitors
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some((asked, known)) = *lock()
            && asked.elapsed() < KNOWN
        {
            return Ok(known);
        }
        let kind = Kind::POD_MONITOR;
        let version = kind.api_version();
        let listed = self.client.list_api_group_resources(&version);
        let known = match listed.await {
            Ok(listed) => listed.resources.iter().any(|r| r.kind == kind.kind),
            // Of no group there is not even a Status.
            Err(kube::Error::Api(status)) if status.code == 404 => false,
            Err(error) => return Err(error),
        };
        *lock() = Some((Instant::now(), known));
        Ok(known)
    }
}

/// How long it is since an object's numbers were told: they are not told each time one changes.
#[derive(Default)]
pub(crate) struct Counted(Mutex<HashMap<String, Instant>>);

impl Counted {
    /// How long to wait until numbers alone may be told again; `None`: not at all.
    pub(crate) fn wait(&self, uid: &str) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        COUNTED.checked_sub(all.get(uid)?.elapsed())
    }

    /// They were told.
    pub(crate) fn said(&self, uid: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, when| when.elapsed() < COUNTED);
        all.insert(uid.to_owned(), Instant::now());
    }
}

/// An error of the API server as people read it.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
