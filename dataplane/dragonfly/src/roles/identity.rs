//! How a part proves itself, and has a certificate that is good for as long as it runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dragonfly_identity::{
    Credentials, IdentityError, Issuer, JoinToken, Projected, enroll, enroll_projected,
};
use dragonfly_node::node::Node;
use dragonfly_proto::id::NodeId;
use dragonfly_proto::rpc;
use dragonfly_transport::Security;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bootstrap::Known;
use super::node::read_token;
use super::{MeshArgs, RoleError};

/// How long a starting part asks for its certificate before it gives up and is started again.
const ENROLL: Duration = Duration::from_secs(60);
/// Certificates that are wanted for the keys that come with them are asked for no more often: what is
/// sealed for a key may come from anybody in the mesh.
const WANTED: Duration = Duration::from_secs(2);
/// When a certificate that was not renewed is tried for again. Two thirds of its life are left.
const AGAIN: Duration = Duration::from_secs(60);

/// What a part shows to get its certificate.
#[derive(Clone)]
pub(crate) enum Proof {
    /// The mesh's secret, to a scheduler.
    Join(JoinToken),
    /// A token that the kubelet keeps for the pod, to the operator.
    Projected {
        mesh: String,
        token_file: PathBuf,
        issuer: watch::Receiver<Option<Issuer>>,
        /// Where the credentials are kept for the next start, in memory.
        kept: Option<PathBuf>,
    },
}

/// What stands in an identity directory.
const KEPT: &str = "credentials";

impl Proof {
    /// What the arguments say.
    pub(crate) fn of(args: &MeshArgs, known: &Known) -> Result<Option<Self>, RoleError> {
        if let Some(file) = &args.identity_token_file {
            let dir = args.identity_dir.as_deref();
            return Self::projected(file.clone(), dir, known).map(Some);
        }
        let token = args
            .join_token_file
            .as_deref()
            .map(read_token)
            .transpose()?;
        Ok(token.map(Self::Join))
    }

    /// A projected token, for a mesh whose bootstrap names an issuer.
    pub(crate) fn projected(
        token_file: PathBuf,
        dir: Option<&Path>,
        known: &Known,
    ) -> Result<Self, RoleError> {
        if known.issuer.borrow().is_none() {
            return Err(RoleError(
                "--identity-token-file: the bootstrap file names no issuer and ca to show it to"
                    .to_owned(),
            ));
        }
        Ok(Self::Projected {
            mesh: known.mesh.clone(),
            token_file,
            issuer: known.issuer.clone(),
            kept: dir.map(|dir| dir.join(KEPT)),
        })
    }

    /// What an earlier process of this pod had, while nobody gives anything else.
    fn kept(&self) -> Option<Credentials> {
        match self {
            Self::Projected {
                mesh,
                kept: Some(path),
                issuer,
                ..
            } => {
                let kept = dragonfly_identity::kept(path, mesh)?;
                let ca = issuer.borrow().clone()?.ca;
                kept.trusting(&ca)
                    .ok()
                    .filter(|kept| kept.is_trusted_by(&ca))
            }
            _ => None,
        }
    }

    fn keep(&self, credentials: &Credentials) {
        let Self::Projected {
            kept: Some(path), ..
        } = self
        else {
            return;
        };
        if let Err(error) = dragonfly_identity::keep(credentials, path) {
            tracing::warn!(%error, "the certificate is not kept for the next start");
        }
    }

    pub(crate) const fn is_projected(&self) -> bool {
        matches!(self, Self::Projected { .. })
    }

    async fn ask(
        &self,
        schedulers: &[String],
        node: Option<NodeId>,
        role: rpc::Role,
    ) -> Result<Credentials, IdentityError> {
        match self {
            Self::Join(token) => {
                let node = node.unwrap_or(NodeId([0; 16]));
                enroll(schedulers, token, node, role).await
            }
            Self::Projected {
                mesh,
                token_file,
                issuer,
                ..
            } => {
                let issuer = issuer.borrow().clone().unwrap_or_default();
                let at = Projected {
                    mesh: mesh.clone(),
                    token_file: token_file.clone(),
                    issuer: issuer.address,
                    ca: issuer.ca,
                };
                enroll_projected(&at, role).await
            }
        }
    }
}

/// A part's credentials, as they are renewed.
pub(crate) struct Obtained {
    pub(crate) credentials: watch::Receiver<Credentials>,
    /// Notified: others are wanted at once.
    pub(crate) again: Arc<Notify>,
}

/// Asks for a certificate until there is one, and from then on keeps it good: another one at a third of
/// its life, or at once when its CA is trusted no more or somebody wants it; another CA bundle when
/// there is one.
///
/// # Errors
/// Somebody who decides said no, or nobody answered for a minute.
pub(crate) async fn obtain(
    proof: &Proof,
    schedulers: &watch::Receiver<Vec<String>>,
    node: Option<NodeId>,
    role: rpc::Role,
    stop: &CancellationToken,
) -> Result<Obtained, RoleError> {
    let again = Arc::new(Notify::new());
    let keeper = Keeper {
        again: again.clone(),
        proof: proof.clone(),
        schedulers: schedulers.clone(),
        node,
        role,
        stop: stop.clone(),
    };
    let first = keeper.first().await?;
    let give = watch::Sender::new(first);
    let credentials = give.subscribe();
    tokio::spawn(keeper.keep(give));
    Ok(Obtained { credentials, again })
}

/// Uses another certificate, or CA bundle, whenever there is one, and has others made when the node
/// lacks keys that come with them.
pub(crate) async fn follow(node: Arc<Node>, obtained: Obtained, security: Security) {
    let mut credentials = obtained.credentials;
    loop {
        tokio::select! {
            // Ends with whoever keeps them.
            changed = credentials.changed() => if changed.is_err() { return },
            () = node.keys_wanted() => {
                obtained.again.notify_one();
                continue;
            }
        }
        let new = credentials.borrow_and_update().clone();
        security.replace(new.tls.clone());
        node.set_grpc_tls(new.client());
        node.keys_changed();
    }
}

struct Keeper {
    again: Arc<Notify>,
    proof: Proof,
    schedulers: watch::Receiver<Vec<String>>,
    node: Option<NodeId>,
    role: rpc::Role,
    stop: CancellationToken,
}

impl Keeper {
    async fn ask(&self) -> Result<Credentials, IdentityError> {
        let schedulers = self.schedulers.borrow().clone();
        self.proof.ask(&schedulers, self.node, self.role).await
    }

    async fn first(&self) -> Result<Credentials, RoleError> {
        let until = Instant::now() + ENROLL;
        let mut pause = Duration::from_millis(100);
        loop {
            let answer = tokio::select! {
                answer = self.ask() => answer,
                () = self.stop.cancelled() => return Err(RoleError::stopped()),
            };
            match answer {
                Ok(credentials) => {
                    self.proof.keep(&credentials);
                    return Ok(credentials);
                }
                // Who is turned away once is so again: the reason at once, instead of patience.
                Err(e @ IdentityError::Unreachable(_)) if Instant::now() > until => {
                    return Err(RoleError(e.to_string()));
                }
                Err(e) if !matches!(e, IdentityError::Unreachable(_)) => {
                    return Err(RoleError(e.to_string()));
                }
                // A scheduler that starts at the same time is no news.
                Err(error) => {
                    if let Some(kept) = self.proof.kept() {
                        tracing::warn!(%error, "the certificate of before the restart is used");
                        return Ok(kept);
                    }
                    waits(&error, pause);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return Err(RoleError::stopped()),
            }
            pause = (pause * 2).min(Duration::from_secs(3));
        }
    }

    async fn keep(self, give: watch::Sender<Credentials>) {
        let mut issuer = match &self.proof {
            Proof::Projected { issuer, .. } => Some(issuer.clone()),
            Proof::Join(_) => None,
        };
        let mut due = Instant::now() + give.borrow().renew_after;
        let mut last = Instant::now();
        let mut is_overdue = false;
        loop {
            let wanted = async {
                tokio::time::sleep_until(last + WANTED).await;
                self.again.notified().await;
            };
            let renew = tokio::select! {
                () = tokio::time::sleep_until(due) => true,
                () = wanted => true,
                changed = changed(&mut issuer) => match changed {
                    // Who did not answer may do so where he is now.
                    Some(known) => !take_bundle(&give, &known.ca) || is_overdue,
                    None => return,
                },
                () = self.stop.cancelled() => return,
                () = give.closed() => return,
            };
            if !renew {
                continue;
            }
            last = Instant::now();
            let asked = self.ask().await;
            is_overdue = asked.is_err();
            let wait = match asked {
                Ok(new) => {
                    let wait = new.renew_after;
                    self.proof.keep(&new);
                    give.send_replace(new);
                    tracing::info!("the certificate was renewed");
                    wait
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate was not renewed; trying again");
                    AGAIN.min(give.borrow().renew_after)
                }
            };
            due = Instant::now() + wait;
        }
    }
}

fn waits(error: &IdentityError, pause: Duration) {
    if pause < Duration::from_secs(1) {
        tracing::debug!(%error, "no certificate yet");
    } else {
        tracing::warn!(%error, "no certificate yet; asking again");
    }
}

/// The issuer, once it is another; never where there is none.
async fn changed(issuer: &mut Option<watch::Receiver<Option<Issuer>>>) -> Option<Issuer> {
    let Some(known) = issuer else {
        return std::future::pending().await;
    };
    loop {
        known.changed().await.ok()?;
        // A file that names none any more is a mistake: what was known is kept.
        if let Some(known) = known.borrow_and_update().clone() {
            return Some(known);
        }
    }
}

/// Trusts another bundle from now on. Whether the certificate is still good with it.
fn take_bundle(give: &watch::Sender<Credentials>, ca: &str) -> bool {
    let now = give.borrow().clone();
    if dragonfly_identity::bundle(ca).ok() == dragonfly_identity::bundle(&now.ca).ok() {
        return now.is_trusted_by(ca);
    }
    match now.trusting(ca) {
        Ok(new) => {
            let is_good = new.is_trusted_by(ca);
            give.send_replace(new);
            tracing::info!(is_good, "another CA bundle is trusted from now on");
            is_good
        }
        Err(error) => {
            tracing::error!(%error, "the CA bundle stays the one that it was");
            true
        }
    }
}
