//! Which cluster, which namespace.

use std::path::PathBuf;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config};

use crate::Failed;
use crate::output::Format;

/// Where to look, and how to show it: kubectl's own flags.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct Where {
    /// Namespace [default: that of the context]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Kubeconfig [default: KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// How to show it
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
}

/// A cluster that can be asked.
#[derive(Clone)]
pub struct Cluster {
    /// For requests.
    pub client: Client,
    /// `None`: all.
    namespace: Option<String>,
    own: String,
}

impl Where {
    /// Connects.
    ///
    /// # Errors
    /// There is no usable kubeconfig.
    pub async fn connect(&self) -> Result<Cluster, Failed> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &self.kubeconfig {
            Some(path) => {
                let read =
                    Kubeconfig::read_from(path).map_err(|e| Failed::at(path.display(), e))?;
                Config::from_custom_kubeconfig(read, &options)
                    .await
                    .map_err(|e| Failed::at(path.display(), e))?
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .map_err(|e| Failed::at("kubeconfig", e))?,
            None => Config::infer()
                .await
                .map_err(|e| Failed::at("no cluster: name one with --kubeconfig", e))?,
        };
        let own = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let namespace = (!self.all_namespaces).then(|| own.clone());
        let client = Client::try_from(config).map_err(|e| Failed::at("kubeconfig", e))?;
        Ok(Cluster {
            client,
            namespace,
            own,
        })
    }
}

impl Cluster {
    /// Objects of a kind in the namespace, or in all of them.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Objects of a kind in a namespace.
    pub fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The namespace that is meant where one has to be.
    pub fn namespace(&self) -> &str {
        &self.own
    }

    /// Whether namespaces are told apart in what is shown.
    pub const fn shows_namespaces(&self) -> bool {
        self.namespace.is_none()
    }
}
