//! One module a word.

pub mod check;
pub mod explain;
pub mod mirror;
pub mod nodes;
pub mod preheat;
pub mod status;
pub mod support;
pub mod tend;
pub mod top;

use dragonfly_crds::Distribution;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::ListParams;

use crate::Failed;
use crate::cluster::Cluster;

/// Which mesh.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct MeshArgs {
    /// The Distribution [default: the only one of the namespace]
    #[arg(short, long, value_name = "NAME")]
    pub distribution: Option<String>,
}

impl MeshArgs {
    /// The one that is meant.
    ///
    /// # Errors
    /// There is none, or several.
    pub async fn find(&self, cluster: &Cluster) -> Result<Distribution, Failed> {
        let namespace = cluster.namespace();
        let api = cluster.within::<Distribution>(namespace);
        if let Some(name) = &self.distribution {
            let found = api.get_opt(name).await?;
            return found
                .ok_or_else(|| Failed(format!("there is no Distribution {name} in {namespace}")));
        }
        let mut found = api.list(&ListParams::default()).await?.items;
        match (found.pop(), found.len()) {
            (Some(only), 0) => Ok(only),
            (None, _) => Err(Failed(format!(
                "there is no Distribution in namespace {namespace} (-n NAMESPACE)"
            ))),
            (Some(_), more) => Err(Failed(format!(
                "there are {} Distributions in {namespace}: say which (--distribution NAME)",
                more + 1
            ))),
        }
    }

    /// The one that is named, or all of the namespace or namespaces.
    ///
    /// # Errors
    /// The API server's.
    pub async fn all(&self, cluster: &Cluster) -> Result<Vec<Distribution>, Failed> {
        match &self.distribution {
            Some(_) => Ok(vec![self.find(cluster).await?]),
            None => Ok(cluster
                .api::<Distribution>()
                .list(&ListParams::default())
                .await?
                .items),
        }
    }
}

/// `namespace/name`.
pub fn full_name(object: &impl ResourceExt) -> String {
    format!(
        "{}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    )
}

/// A condition by its type.
pub fn condition<'a>(all: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    all.iter().find(|c| c.type_ == type_)
}
