//! Policy from a directory of manifests, read again when it changes.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dragonfly_crds::{Policy, Preheat, manifest};
use kube::ResourceExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::policy::{self, Given};
use super::{RoleError, write_atomically};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is run where no manifests are given.
const DEFAULT: &str = "\
apiVersion: d7y.io/v1alpha1
kind: Distribution
metadata: {name: default, namespace: default}
spec: {profile: Light}
";

/// What manifests say.
pub(crate) struct Read {
    pub(crate) policy: Policy,
    /// Namespace and name of the Distribution that is run.
    pub(crate) distribution: (String, String),
    pub(crate) preheats: Vec<Preheat>,
}

/// Reads and resolves; all mistakes, with file, line and field, in one text.
pub(crate) fn read(
    dir: Option<&Path>,
    name: Option<&str>,
    previous: Option<&Policy>,
) -> Result<Read, RoleError> {
    let joined = |errors: Vec<manifest::ManifestError>| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        RoleError(lines.join("\n"))
    };
    let manifests = match dir {
        Some(dir) => manifest::load_dir(dir).map_err(joined)?,
        None => manifest::parse("built-in defaults", DEFAULT.as_bytes()).map_err(joined)?,
    };
    let distribution = manifests.choose(name).map_err(|e| match dir {
        Some(dir) => RoleError::at(dir.display(), e),
        None => RoleError(e.to_string()),
    })?;
    let chosen = manifests.resolve(distribution, previous).map_err(joined)?;
    chosen.runs_alone().map_err(|error| joined(vec![error]))?;
    let object = &chosen.distribution.object;
    let distribution = (object.namespace().unwrap_or_default(), object.name_any());
    let policy = chosen.policy;
    Ok(Read {
        policy,
        distribution,
        preheats: manifests
            .preheats
            .into_iter()
            .map(|loaded| loaded.object)
            .collect(),
    })
}

/// The policy of who has no manifests.
pub(crate) fn default_policy() -> Result<Policy, RoleError> {
    read(None, None, None).map(|read| read.policy)
}

/// Policies from manifests. Where they are wrong at the start, what was in force before it stays, as it
/// does when an edit is wrong: a restart takes nobody's policy away.
pub(crate) fn policies(
    file: Option<PathBuf>,
    distribution: Option<String>,
    state: &Path,
    stop: &CancellationToken,
) -> Result<watch::Receiver<Given>, RoleError> {
    let path = state.join("policy.json");
    let kept = policy::last_good(&path);
    let read = read(file.as_deref(), distribution.as_deref(), kept.as_ref());
    let (first, preheats) = match (read, kept) {
        (Ok(read), _) => (read.policy, read.preheats),
        (Err(error), Some(kept)) => {
            let revision = kept.revision;
            tracing::error!(
                revision,
                "the manifests are wrong, the policy from before this start stays in force:\n{error}"
            );
            (kept, vec![])
        }
        (Err(error), None) => return Err(error),
    };
    for preheat in &preheats {
        let name = preheat.name_any();
        tracing::warn!(
            name,
            "a Preheat of manifests is carried out by `dragonfly up -f`, which knows of earlier runs"
        );
    }
    let policies = watch::Sender::new(Given::resolved(first)?);
    let given = policies.subscribe();
    tokio::spawn(keep(path, given.clone()));
    if let Some(dir) = file {
        let to = Followers {
            policies,
            problems: watch::Sender::new(None),
            preheats: watch::Sender::new(preheats),
        };
        tokio::spawn(follow(dir, distribution, to, stop.clone()));
    }
    Ok(given)
}

/// Keeps each policy for the next start.
async fn keep(path: PathBuf, mut policies: watch::Receiver<Given>) {
    loop {
        let json = policies.borrow_and_update().update.json.clone();
        // At the very first start nobody has made it yet.
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let made = made.map_err(|e| RoleError::at(path.display(), e));
        if let Err(error) = made.and_then(|()| write_atomically(&path, &json)) {
            tracing::warn!(%error, "the policy is not kept for the next start");
        }
        if policies.changed().await.is_err() {
            return;
        }
    }
}

/// Where changes of manifests go to.
pub(crate) struct Followers {
    pub(crate) policies: watch::Sender<Given>,
    pub(crate) problems: watch::Sender<Option<String>>,
    pub(crate) preheats: watch::Sender<Vec<Preheat>>,
}

/// Follows a directory: sends each policy that differs, and the Preheats; logs each mistake once and
/// goes on with the last good policy.
pub(crate) async fn follow(
    dir: PathBuf,
    name: Option<String>,
    to: Followers,
    stop: CancellationToken,
) {
    let Followers {
        policies,
        problems,
        preheats,
    } = to;
    let mut seen = stamp(&dir);
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let now = stamp(&dir);
        if now == seen {
            continue;
        }
        seen = now;
        let previous = policies.borrow().policy.clone();
        let read = read(Some(&dir), name.as_deref(), Some(&previous));
        let taken = read.and_then(|read| Ok((Given::resolved(read.policy)?, read.preheats)));
        match taken {
            Ok((given, now)) => {
                preheats.send_if_modified(|known| {
                    let differs = *known != now;
                    *known = now;
                    differs
                });
                problems.send_if_modified(|p| p.take().is_some());
                if !given.policy.same_as(&previous) {
                    tracing::info!(
                        revision = given.policy.revision,
                        "the manifests changed: a new policy"
                    );
                    policies.send_replace(given);
                }
            }
            Err(e) => {
                tracing::error!(
                    revision = previous.revision,
                    "the manifests are wrong, the last good policy stays in force:\n{e}"
                );
                problems.send_replace(Some(e.to_string()));
            }
        }
    }
}

/// Names, sizes and times of the files: differs when any of them was touched.
fn stamp(dir: &Path) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|e| {
            let meta = std::fs::metadata(e.path()).ok()?;
            Some((e.path(), meta.len(), meta.modified().ok()))
        })
        .collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_whose_ca_somebody_of_the_cluster_should_sign_is_not_run_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let text = "apiVersion: d7y.io/v1alpha1\nkind: Distribution\nmetadata: {name: d}\n\
                    spec: {security: {issuerRef: {name: company}}}\n";
        std::fs::write(dir.path().join("d.yaml"), text).unwrap();
        let Err(said) = read(Some(dir.path()), None, None) else {
            panic!("it would run")
        };
        let said = said.to_string();
        assert!(said.contains("spec.security.issuerRef"), "{said}");
    }
}
