//! Which mesh a node is of and where its schedulers are: a file, or arguments.
//!
//! The file is `{"version":1,"mesh":"NAME","schedulers":["HOST:PORT",…]}`, and on Kubernetes also says
//! who gives certificates, and which CAs sign them: `"issuer":"HOST:PORT","ca":"PEM"`. What else stands
//! in it is for newer releases. It is read again while the node runs: a mounted ConfigMap changes by a link that
//! is turned round, so its content is looked at, not its time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dragonfly_identity::Issuer;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{MeshArgs, RoleError};

/// The version of the file that this release reads.
const VERSION: u64 = 1;
/// Largest file read, bytes.
const MAX: u64 = 64 << 10;
/// Most schedulers of a mesh.
const MAX_SCHEDULERS: usize = 64;
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a node has to know before it speaks to anybody.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Bootstrap {
    version: u64,
    pub(crate) mesh: String,
    pub(crate) schedulers: Vec<String>,
    #[serde(default)]
    issuer: Option<String>,
    #[serde(default)]
    ca: Option<String>,
}

impl Bootstrap {
    /// Who gives certificates, where that is not the schedulers.
    pub(crate) fn issuer(&self) -> Option<Issuer> {
        Some(Issuer {
            address: self.issuer.clone()?,
            ca: self.ca.clone()?,
        })
    }
}

/// What is known of a mesh, and becomes known while a node runs.
pub(crate) struct Known {
    pub(crate) mesh: String,
    /// `host:port`.
    pub(crate) schedulers: watch::Receiver<Vec<String>>,
    pub(crate) issuer: watch::Receiver<Option<Issuer>>,
}

/// Reads the file.
///
/// # Errors
/// Names the file and what is wrong in it.
pub(crate) fn read(path: &Path) -> Result<Bootstrap, RoleError> {
    let wrong = |what: String| RoleError::at(path.display(), what);
    let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
    if size.len() > MAX {
        return Err(wrong(format!("{} bytes are too many", size.len())));
    }
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    parse(&bytes).map_err(wrong)
}

fn parse(bytes: &[u8]) -> Result<Bootstrap, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    let shape = "write {\"version\":1,\"mesh\":\"NAME\",\"schedulers\":[\"HOST:PORT\"]}";
    // The version first: another one may have any shape.
    let Version { version } = serde_json::from_slice(bytes).map_err(|e| format!("{e}; {shape}"))?;
    if version != VERSION {
        return Err(format!(
            "version {version}: this release reads version {VERSION}; run nodes of the operator's release"
        ));
    }
    let read: Bootstrap = serde_json::from_slice(bytes).map_err(|e| format!("{e}; {shape}"))?;
    if read.mesh.is_empty() || read.mesh.len() > 256 {
        return Err("mesh: 1 to 256 characters".to_owned());
    }
    if read.schedulers.is_empty() || read.schedulers.len() > MAX_SCHEDULERS {
        return Err(format!("schedulers: 1 to {MAX_SCHEDULERS}"));
    }
    for address in &read.schedulers {
        if !is_address(address) {
            return Err(format!("schedulers: {address:?}: write host:port"));
        }
    }
    if let Some(address) = read.issuer.as_ref().filter(|a| !is_address(a)) {
        return Err(format!("issuer: {address:?}: write host:port"));
    }
    if let Some(ca) = &read.ca {
        dragonfly_identity::bundle(ca).map_err(|e| format!("ca: {e}"))?;
    }
    Ok(read)
}

fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').map(|(_, port)| port);
    let is_one = port.is_some_and(|p| p.parse::<u16>().is_ok_and(|p| p > 0));
    is_one && text.len() <= 256 && !text.contains(['/', ' '])
}

/// What the arguments say of a mesh, or the file they name; the file is followed.
pub(crate) fn of(args: &MeshArgs, stop: &CancellationToken) -> Result<Known, RoleError> {
    match &args.bootstrap {
        Some(path) => file(path, stop),
        None => Ok(Known {
            mesh: args.mesh.clone(),
            schedulers: fixed(args.schedulers.clone()),
            issuer: watch::Sender::new(None).subscribe(),
        }),
    }
}

/// What a file says, which is followed.
pub(crate) fn file(path: &Path, stop: &CancellationToken) -> Result<Known, RoleError> {
    let first = read(path)?;
    let tell = Tell {
        schedulers: watch::Sender::new(first.schedulers.clone()),
        issuer: watch::Sender::new(first.issuer()),
    };
    let known = Known {
        mesh: first.mesh.clone(),
        schedulers: tell.schedulers.subscribe(),
        issuer: tell.issuer.subscribe(),
    };
    tokio::spawn(follow(
        path.to_owned(),
        first,
        tell,
        LOOK_EVERY,
        stop.clone(),
    ));
    Ok(known)
}

/// Schedulers that stay the same.
pub(crate) fn fixed(schedulers: Vec<String>) -> watch::Receiver<Vec<String>> {
    watch::Sender::new(schedulers).subscribe()
}

struct Tell {
    schedulers: watch::Sender<Vec<String>>,
    issuer: watch::Sender<Option<Issuer>>,
}

async fn follow(
    path: PathBuf,
    mut now: Bootstrap,
    tell: Tell,
    every: Duration,
    stop: CancellationToken,
) {
    let mut complaint = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return,
        }
        let read = read(&path).and_then(|new| {
            if new.mesh == now.mesh {
                return Ok(new);
            }
            let text = format!(
                "the mesh is {} now, this node is of {}: restart it",
                new.mesh, now.mesh
            );
            Err(RoleError::at(path.display(), text))
        });
        match read {
            Ok(new) => {
                complaint.clear();
                if new.schedulers != now.schedulers {
                    tracing::info!(schedulers = ?new.schedulers, "other schedulers from now on");
                    tell.schedulers.send_replace(new.schedulers.clone());
                }
                if new.issuer() != now.issuer() {
                    tracing::info!(
                        issuer = new.issuer,
                        "another issuer or CA bundle from now on"
                    );
                    tell.issuer.send_replace(new.issuer());
                }
                now = new;
            }
            Err(error) => {
                let error = error.to_string();
                if error != complaint {
                    tracing::error!(error, "the schedulers stay those that they were");
                    complaint = error;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"version":1,"mesh":"m","schedulers":["10.0.0.1:8002","[::1]:8002"],"new":1}"#;

    #[test]
    fn a_file_says_mesh_and_schedulers_and_a_wrong_one_is_named_with_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bootstrap.json");
        std::fs::write(&path, GOOD).unwrap();
        let good = read(&path).unwrap();
        assert_eq!((good.mesh.as_str(), good.schedulers.len()), ("m", 2));
        for (text, says) in [
            ("", "EOF"),
            ("[]", "HOST:PORT"),
            (
                r#"{"version":2,"anything":[]}"#,
                "this release reads version 1",
            ),
            (r#"{"version":1,"mesh":"m"}"#, "schedulers"),
            (r#"{"version":1,"mesh":"","schedulers":["a:1"]}"#, "mesh"),
            (r#"{"version":1,"mesh":"m","schedulers":[]}"#, "schedulers"),
            (
                r#"{"version":1,"mesh":"m","schedulers":["a"]}"#,
                "host:port",
            ),
            (
                r#"{"version":1,"mesh":"m","schedulers":["a:0"]}"#,
                "host:port",
            ),
            (
                r#"{"version":1,"mesh":"m","schedulers":["https://a:1/"]}"#,
                "host:port",
            ),
            (
                r#"{"version":1,"mesh":"m","schedulers":["a:1"],"issuer":"b"}"#,
                "issuer",
            ),
            (
                r#"{"version":1,"mesh":"m","schedulers":["a:1"],"issuer":"b:1","ca":"x"}"#,
                "ca",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains("bootstrap.json") && error.contains(says),
                "{text}: {error}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("bootstrap.json")
        );
    }

    #[tokio::test]
    async fn a_file_that_changes_is_followed_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bootstrap.json");
        std::fs::write(&path, GOOD).unwrap();
        let first = read(&path).unwrap();
        let tell = Tell {
            schedulers: watch::Sender::new(first.schedulers.clone()),
            issuer: watch::Sender::new(None),
        };
        let mut given = tell.schedulers.subscribe();
        let (every, stop) = (Duration::from_millis(5), CancellationToken::new());
        tokio::spawn(follow(path.clone(), first, tell, every, stop.clone()));
        for broken in ["{", r#"{"version":1,"mesh":"other","schedulers":["a:1"]}"#] {
            std::fs::write(&path, broken).unwrap();
            tokio::time::sleep(every * 20).await;
            assert!(!given.has_changed().unwrap(), "{broken}");
        }
        std::fs::write(&path, r#"{"version":1,"mesh":"m","schedulers":["a:1"]}"#).unwrap();
        given.changed().await.unwrap();
        assert_eq!(*given.borrow(), ["a:1"]);
        stop.cancel();
    }
}
