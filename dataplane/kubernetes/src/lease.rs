//! Requests about a Lease that [`crate::election`] decides on.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};

use crate::election::{Record, Step, Timing};
use crate::{Error, Target, asked};

/// One Lease, as one of those sees it who want it.
pub struct HeldLease {
    api: Api<Lease>,
    name: String,
    owner: Option<OwnerReference>,
    me: String,
    holds: i32,
}

impl HeldLease {
    /// `me`: another name for each process.
    pub fn new(client: Client, namespace: &str, name: &str, me: &str, timing: Timing) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            owner: None,
            me: me.to_owned(),
            holds: i32::try_from(timing.holds.as_secs()).unwrap_or(i32::MAX),
        }
    }

    /// The Lease of one mesh's reports: `NAME-reports` beside its Distribution. `uid`: the
    /// Distribution's, whose end is the Lease's.
    pub(crate) fn of_reports(
        client: Client,
        target: &Target,
        uid: &str,
        me: &str,
        timing: Timing,
    ) -> Self {
        let name = format!("{}-reports", target.name);
        let owner = OwnerReference {
            api_version: dragonfly_crds::API_VERSION.to_owned(),
            kind: "Distribution".to_owned(),
            name: target.name.clone(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        };
        Self {
            owner: Some(owner),
            ..Self::new(client, &target.namespace, &name, me, timing)
        }
    }

    /// As it is now.
    ///
    /// # Errors
    /// The API server's, or that it does not answer.
    pub async fn read(&self) -> Result<Option<Lease>, Error> {
        let what = format!("get lease {}", self.name);
        asked(&what, self.api.get_opt(&self.name)).await
    }

    /// Does what was decided on the Lease as it was read; `None` when another was faster.
    ///
    /// # Errors
    /// The API server's, or that it does not answer.
    pub async fn write(&self, step: Step, read: Option<Lease>) -> Result<Option<Lease>, Error> {
        let mut lease = read.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        if step != Step::Renew {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(-1).saturating_add(1));
        }
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = Some(self.holds);
        spec.renew_time = Some(now);
        self.put(step, lease).await
    }

    /// So that another can take it at once.
    ///
    /// # Errors
    /// The API server's, or that it does not answer.
    pub async fn give_back(&self, mut lease: Lease) -> Result<(), Error> {
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        self.put(Step::Renew, lease).await.map(|_| ())
    }

    async fn put(&self, step: Step, mut lease: Lease) -> Result<Option<Lease>, Error> {
        let params = PostParams::default();
        let what = format!("update lease {}", self.name);
        let written = if step == Step::Create {
            lease.metadata = ObjectMeta {
                name: Some(self.name.clone()),
                owner_references: self.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            };
            asked(&what, self.api.create(&params, &lease)).await
        } else {
            asked(&what, self.api.replace(&self.name, &params, &lease)).await
        };
        match written {
            Ok(lease) => Ok(Some(lease)),
            // Somebody else wrote, made or removed it meanwhile: read again.
            Err(Error::Request { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.code == 409 || s.code == 404) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// What the election looks at.
#[must_use]
pub fn record(lease: &Lease) -> Record {
    let holder = lease
        .spec
        .as_ref()
        .and_then(|s: &LeaseSpec| s.holder_identity.clone());
    Record {
        holder: holder.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
