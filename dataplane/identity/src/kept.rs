//! Credentials that outlive their process and not its pod: in a directory in memory, so that a part
//! that is started anew where it was needs nobody for it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dragonfly_proto::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::{Credentials, IdentityError};

/// Largest file read, bytes.
const MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Which audience's token they were given for: one of another mesh is of no use.
    mesh: String,
    cert: String,
    key: String,
    ca: String,
    node: Option<String>,
    /// Seconds since 1970, and for how many they are good.
    made: u64,
    lifetime: u64,
    #[serde(default)]
    sealing: Vec<u8>,
    #[serde(default)]
    opening: Vec<Vec<u8>>,
}

fn unix() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Writes them, for their owner alone.
///
/// # Errors
/// No room.
pub fn keep(credentials: &Credentials, path: &Path) -> Result<(), IdentityError> {
    let sealing = &credentials.tls.sealing;
    let opening = sealing.open_with.iter();
    let kept = Kept {
        mesh: credentials.tls.who.mesh.clone(),
        cert: credentials.cert.clone(),
        key: credentials.key.clone(),
        ca: credentials.ca.clone(),
        node: credentials.node.map(|node| node.to_string()),
        made: unix(),
        lifetime: credentials.renew_after.as_secs().saturating_mul(3),
        sealing: sealing.seal_for.map_or_else(Vec::new, |key| key.to_vec()),
        opening: opening.map(|key| key.secret().to_vec()).collect(),
    };
    let temp = path.with_extension("new");
    let written = serde_json::to_vec(&kept)
        .map_err(std::io::Error::from)
        .and_then(|bytes| {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temp)?;
            file.write_all(&bytes)?;
            std::fs::rename(&temp, path)
        });
    written.map_err(|source| IdentityError::File {
        path: path.to_owned(),
        source,
    })
}

/// Reads them, if they are of this mesh and good for a while yet; renewed when they would have been.
#[must_use]
pub fn kept(path: &Path, mesh: &str) -> Option<Credentials> {
    let size = std::fs::metadata(path).ok()?.len();
    let bytes = std::fs::read(path).ok().filter(|_| size <= MAX)?;
    let kept: Kept = serde_json::from_slice(&bytes).ok()?;
    let age = unix().checked_sub(kept.made)?;
    // The last third is for who could not renew while he ran.
    if kept.mesh != mesh || age >= kept.lifetime / 3 * 2 {
        return None;
    }
    let mut read = Credentials::read(&kept.cert, &kept.key, &kept.ca).ok()?;
    read.tls.sealing = crate::enroll::sealing(&kept.sealing, &kept.opening).ok()?;
    let rest = (kept.lifetime / 3).saturating_sub(age);
    Some(Credentials {
        renew_after: Duration::from_secs(rest.max(1)),
        node: kept.node.and_then(|text| text.parse::<NodeId>().ok()),
        ..read
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    #[test]
    fn what_is_kept_comes_back_while_it_is_good_and_of_this_mesh() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path(), "m").unwrap();
        let mut own = authority.credentials("s").unwrap();
        own.node = Some(NodeId([5; 16]));
        own.renew_after = Duration::from_secs(100);
        let path = dir.path().join("credentials");
        keep(&own, &path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let back = kept(&path, "m").unwrap();
        assert_eq!((back.node, &back.cert), (own.node, &own.cert));
        assert!(back.renew_after <= own.renew_after);
        assert!(kept(&path, "other").is_none());

        let aged = |seconds: u64| {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let made = value["made"].as_u64().unwrap() - seconds;
            value["made"] = made.into();
            std::fs::write(&path, value.to_string()).unwrap();
        };
        aged(150);
        assert_eq!(kept(&path, "m").unwrap().renew_after.as_secs(), 1);
        aged(60);
        assert!(kept(&path, "m").is_none(), "too old");
        for bad in ["", "{}", "[]"] {
            std::fs::write(&path, bad).unwrap();
            assert!(kept(&path, "m").is_none());
        }
        assert!(kept(&dir.path().join("none"), "m").is_none());
    }
}
