//! What all reconciliations share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_operator_core::build::Keys;
use dragonfly_operator_core::{Kind, names};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};

use crate::backoff::Backoff;
use crate::cache::{Cache, Streams};
use crate::{Metrics, Options};

/// How long it is believed whether the cluster knows the PodMonitor kind.
const KNOWN: Duration = Duration::from_secs(60);

/// Shared by all reconciliations.
pub struct Context {
    pub(crate) client: Client,
    pub(crate) options: Options,
    pub(crate) cache: Cache,
    pub(crate) recorder: Recorder,
    pub(crate) backoff: Backoff,
    /// What was applied and told, counted.
    pub metrics: Arc<Metrics>,
    /// By the mesh's UID: the Secret's version and what is in it, so that it is checked once.
    pub(crate) keys: Mutex<HashMap<String, (String, Keys)>>,
    pod_monitors: Mutex<Option<(Instant, bool)>>,
}

impl Context {
    pub(crate) fn new(client: Client, options: Options, metrics: Arc<Metrics>) -> (Self, Streams) {
        let (cache, streams) = Cache::new(&client, &options.namespaces);
        let reporter = Reporter {
            controller: names::MANAGER.to_owned(),
            instance: options.instance.clone(),
        };
        let context = Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            options,
            cache,
            backoff: Backoff::default(),
            metrics,
            keys: Mutex::default(),
            pod_monitors: Mutex::default(),
        };
        (context, streams)
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

/// An error of the API server as people read it.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
