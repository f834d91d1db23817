//! The harness's side of a cluster: starts its supervisor, waits until it can be used, and hands out
//! what tests need.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, Node as KubeNode, ServiceAccount};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::OnceCell;

use dragonfly_e2e::{Failed, Result};

use crate::image::{Architecture, Image, Tree};
use crate::node::Node;
use crate::options::ClusterOptions;
use crate::registry::{PAUSE, Registry};
use crate::supervisor::{Info, Order, Request, Said};
use crate::tied::Supervisor;
use crate::tools::Tool;
use crate::wait::{ready_node, wait_until};
use crate::{diagnostics, preflight};

/// How long nodes may take to be ready.
const READY: Duration = Duration::from_secs(120);

/// A cluster that is ready to be used. It is taken down when this is dropped or its process ends,
/// however that happens.
#[derive(Debug)]
pub struct Cluster {
    info: Info,
    supervisor: Option<Supervisor>,
}

impl Cluster {
    /// Builds what is missing in the cache, starts a cluster, and waits until its nodes are ready.
    ///
    /// # Errors
    /// What this machine lacks, what could not be built, or which part did not start, with its log.
    pub async fn start(options: &ClusterOptions) -> Result<Self> {
        preflight::check()?;
        if options.nodes.len() > ClusterOptions::MOST_NODES {
            let most = ClusterOptions::MOST_NODES;
            return Err(Failed(format!(
                "a cluster has at most {most} nodes; fake ones: kwok"
            )));
        }
        let wanted = options.clone();
        let request = tokio::task::spawn_blocking(move || request(wanted));
        let request = request
            .await
            .map_err(|e| Failed::at("the build of the cluster's parts", e))??;
        let mut supervisor = Supervisor::start()?;
        let pause = if options.nodes.is_empty() {
            None
        } else {
            Some(pause(&request)?)
        };
        let info = supervisor.up(&request).await?;
        let cluster = Self {
            info,
            supervisor: Some(supervisor),
        };
        match cluster.ready(pause.as_ref()).await {
            Ok(()) => Ok(cluster),
            Err(wrong) => {
                let logs = cluster.logs();
                cluster.stop().await?;
                Err(Failed(format!("{wrong}\n{logs}")))
            }
        }
    }

    /// The one cluster of this test binary with these options: started by the first test that asks,
    /// taken down when the binary ends.
    ///
    /// # Errors
    /// As [`Cluster::start`], for every test that asks.
    pub async fn shared(options: &ClusterOptions) -> Result<Arc<Self>> {
        type Cell = Arc<OnceCell<Result<Arc<Cluster>>>>;
        static ALL: OnceLock<std::sync::Mutex<HashMap<ClusterOptions, Cell>>> = OnceLock::new();
        let cell = {
            let all = ALL.get_or_init(Default::default);
            let mut all = all
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            all.entry(options.clone()).or_default().clone()
        };
        // A runtime of its own, since that of the first test ends with that test.
        let start = || async {
            let options = options.clone();
            let (to, from) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(async {
                        let started = Self::start(&options).await.map(Arc::new);
                        let _ = to.send(started);
                        std::future::pending::<()>().await;
                    }),
                    Err(e) => {
                        let _ = to.send(Err(Failed::at("a runtime", e)));
                    }
                }
            });
            from.await
                .unwrap_or_else(|_| Err(Failed("the cluster's thread ended".to_owned())))
        };
        cell.get_or_init(start).await.clone()
    }

    /// A cluster that somebody else holds, as `cluster up` left it.
    pub(crate) const fn of(info: Info) -> Self {
        Self {
            info,
            supervisor: None,
        }
    }

    async fn ready(&self, pause: Option<&Image>) -> Result<()> {
        let client = self.client().await?;
        let answers = wait_until("the API server to be ready", READY, || async {
            let asked = hyper::Request::get("/readyz").body(vec![]);
            let asked = asked.map_err(|e| Failed::at("/readyz", e))?;
            match client.request_text(asked).await {
                Ok(_) => Ok(Ok(())),
                Err(e) => Ok(Err(e.to_string())),
            }
        });
        self.or_ended(answers).await?;
        if let Some(pause) = pause {
            let name = PAUSE.split_once('/').map_or(PAUSE, |(_, name)| name);
            let pushed = wait_until("the registry", READY, || async {
                let pushed = self.registry().push(pause, name).await;
                Ok(pushed.map(|_| ()).map_err(|e| e.to_string()))
            });
            self.or_ended(pushed).await?;
        }
        let nodes: Api<KubeNode> = Api::all(client);
        for node in &self.info.nodes {
            let what = format!("{} to be ready", node.name);
            let waiting = wait_until(&what, READY, || async {
                let found = nodes
                    .get_opt(&node.name)
                    .await
                    .map_err(|e| Failed::at(&node.name, e))?;
                Ok(ready_node(found.as_ref()))
            });
            self.or_ended(waiting).await?;
        }
        Ok(())
    }

    /// Waits, but not for what cannot come any more since a daemon ended.
    async fn or_ended<T>(&self, waiting: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(supervisor) = &self.supervisor else {
            return waiting.await;
        };
        let ended = async {
            match supervisor.pipes.lock().await.next().await {
                Ok(Said::Ended(why) | Said::Failed(why)) => Failed(why),
                Ok(other) => Failed(format!("the supervisor says {other:?}")),
                Err(wrong) => wrong,
            }
        };
        tokio::select! {
            done = waiting => done,
            why = ended => Err(why),
        }
    }

    /// What runs where.
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// The administrator's kubeconfig: a file that can be copied.
    pub fn kubeconfig(&self) -> &Path {
        &self.info.kubeconfig
    }

    /// A program of Kubernetes, such as kubectl.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let found = self.info.programs.get(name).cloned();
        found.ok_or_else(|| Failed::at(name, "is not among the cluster's programs"))
    }

    /// The administrator's client, of the runtime that asks: no two tests share one.
    ///
    /// # Errors
    /// The kubeconfig is gone: the cluster was taken down.
    pub async fn client(&self) -> Result<Client> {
        client(&self.info.kubeconfig).await
    }

    /// Its nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        self.info.nodes.iter().map(Node::new)
    }

    /// A node.
    ///
    /// # Errors
    /// There are not so many.
    pub fn node(&self, index: usize) -> Result<Node<'_>> {
        let node = self.info.nodes.get(index).map(Node::new);
        node.ok_or_else(|| {
            Failed(format!(
                "no node {index}: there are {}",
                self.info.nodes.len()
            ))
        })
    }

    /// Its registry. A cluster without nodes has none.
    pub fn registry(&self) -> Registry {
        Registry::new(self.info.registry.clone())
    }

    /// Pushes an image as `name:tag` to the registry and returns what pods call it.
    ///
    /// # Errors
    /// The registry refuses it.
    pub async fn load_image(&self, image: &Image, name: &str) -> Result<String> {
        self.registry().push(image, name).await
    }

    /// Kills a daemon (`kubelet-0`, `containerd-1`, `kube-apiserver`, …) and starts it again.
    ///
    /// # Errors
    /// There is none of that name, or this process did not start the cluster.
    pub async fn restart(&self, daemon: &str) -> Result<()> {
        self.order(&Order::Restart(daemon.to_owned())).await
    }

    /// Kills a daemon; [`Cluster::restart`] starts it again.
    ///
    /// # Errors
    /// There is none of that name, or this process did not start the cluster.
    pub async fn kill(&self, daemon: &str) -> Result<()> {
        self.order(&Order::Kill(daemon.to_owned())).await
    }

    /// Starts one more daemon on the control plane's machine; it goes with the cluster, its log is
    /// beside the others.
    ///
    /// # Errors
    /// This process did not start the cluster. Whether the daemon stays is not waited for.
    pub async fn start_daemon(&self, name: &str, line: Vec<String>) -> Result<()> {
        self.order(&Order::Start(name.to_owned(), line)).await
    }

    async fn order(&self, order: &Order) -> Result<()> {
        let held = self.supervisor.as_ref();
        let held =
            held.ok_or_else(|| Failed("only who started a cluster gives orders".to_owned()))?;
        let mut pipes = held.pipes.lock().await;
        pipes.tell(order).await?;
        loop {
            match pipes.next().await? {
                Said::Done => return Ok(()),
                Said::Failed(why) => return Err(Failed(why)),
                Said::Ended(_) | Said::Up(_) => {}
            }
        }
    }

    /// Runs a test in a namespace of its own, made for it and deleted after it. When the test panics or
    /// returns an error, the states of its pods, its events and the logs of its containers are printed.
    ///
    /// # Errors
    /// The test's own, or the namespace cannot be made.
    ///
    /// # Panics
    /// When the test does.
    pub async fn with_temp_ns<T, E, F>(
        &self,
        test: impl FnOnce(Client, String) -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: From<Failed> + std::fmt::Display,
    {
        let client = self.client().await?;
        let name = temp_namespace(&client).await?;
        let outcome = AssertUnwindSafe(test(client.clone(), name.clone()))
            .catch_unwind()
            .await;
        if !matches!(outcome, Ok(Ok(_))) {
            if let Ok(Err(wrong)) = &outcome {
                eprintln!("test in {name}: {wrong}");
            }
            eprintln!("{}", diagnostics::of_namespace(&client, &name).await);
            eprintln!("{}", self.logs());
        }
        let all: Api<Namespace> = Api::all(client);
        // Not waited for: names are random, and the cluster goes as a whole.
        let deleted = all.delete(&name, &DeleteParams::default()).await;
        match outcome {
            Ok(Ok(value)) => {
                deleted.map_err(|e| Failed::at(&name, e))?;
                Ok(value)
            }
            Ok(Err(wrong)) => Err(wrong),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The last lines of each daemon's log.
    pub fn logs(&self) -> String {
        diagnostics::of_daemons(&self.info.dir.join("logs"))
    }

    /// Takes it down and waits until nothing is left.
    ///
    /// # Errors
    /// Something does not go away.
    pub async fn stop(mut self) -> Result<()> {
        match self.supervisor.take() {
            Some(supervisor) => supervisor.end().await,
            None => Ok(()),
        }
    }

    /// Lets it go on without this process: `cluster down` ends it.
    ///
    /// # Errors
    /// The supervisor is gone already.
    pub async fn keep(mut self) -> Result<Info> {
        if let Some(supervisor) = self.supervisor.take() {
            // Dropping it does not end it any more.
            supervisor.pipes.lock().await.tell(&Order::Keep).await?;
        }
        Ok(self.info.clone())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            // Blocks its thread for about a second, so that whoever comes next finds nothing left.
            supervisor.end_blocking();
        }
    }
}

fn request(options: ClusterOptions) -> Result<Request> {
    let mut programs = Tool::ApiServer.built()?;
    let mut containerd = crate::tools::Programs::new();
    if !options.nodes.is_empty() {
        programs.extend(Tool::Kubernetes.built()?);
        programs.extend(Tool::Pause.built()?);
    }
    if options.nodes.contains(&crate::options::Containerd::Two) {
        containerd = Tool::Containerd.built()?;
    }
    Ok(Request {
        options,
        programs,
        containerd,
    })
}

fn pause(request: &Request) -> Result<Image> {
    let program = request.programs.get("pause");
    let program = program.ok_or_else(|| Failed("pause was not built".to_owned()))?;
    let mut tree = Tree::default();
    tree.copy("pause", 0o755, program)?;
    Image::new(Architecture::HERE, &["/pause"]).layer(tree)
}

/// A client of the runtime that asks, with what a kubeconfig says.
pub(crate) async fn client(path: &Path) -> Result<Client> {
    let config = Kubeconfig::read_from(path).map_err(|e| Failed::at(path.display(), e))?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    let config = config.map_err(|e| Failed::at(path.display(), e))?;
    Client::try_from(config).map_err(|e| Failed::at(path.display(), e))
}

/// Makes a namespace with a random name.
pub(crate) async fn temp_namespace(client: &Client) -> Result<String> {
    let name = format!("test-{}", crate::random_name());
    let all: Api<Namespace> = Api::all(client.clone());
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    all.create(&PostParams::default(), &namespace)
        .await
        .map_err(|e| Failed::at(&name, e))?;
    Ok(name)
}

/// Until pods can be made in a namespace: they need its account, which a controller makes.
///
/// # Errors
/// It is not made in time, as in a cluster without controllers.
pub async fn pods_possible(client: &Client, namespace: &str) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    wait_until("the namespace's service account", READY, || async {
        let found = accounts
            .get_opt("default")
            .await
            .map_err(|e| Failed::at(namespace, e))?;
        Ok(found.map(|_| ()).ok_or_else(|| "not there".to_owned()))
    })
    .await
}
