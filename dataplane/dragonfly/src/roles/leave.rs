//! What a node leaves behind when its mesh was deleted: nothing.

use std::path::Path;

/// What the store's directory is called while it is deleted.
const DOOMED: &str = "store.deleted";

/// Deletes what a node kept in its directory, and nothing else that may be there. Warns of what stays.
pub(super) fn leave(state: &Path) {
    tracing::info!(state = %state.display(), "the mesh was deleted: what it held here goes with it");
    // Downloads that just failed may still write down how far they came. Where the directory has
    // another name they find it no more, and it can be emptied for good.
    let _ = std::fs::rename(state.join("store"), state.join(DOOMED));
    for name in [DOOMED, "store", "policy.json", "node-id"] {
        let path = state.join(name);
        let gone = match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(_) => continue,
        };
        if let Err(error) = gone {
            tracing::warn!(path = %path.display(), %error, "stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::leave;

    #[test]
    fn nothing_stays_while_downloads_still_write_and_what_others_put_there_does() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let store = dir.path().join("store");
            std::fs::create_dir(&store).unwrap();
            for name in ["policy.json", "node-id", "of-somebody-else"] {
                std::fs::write(dir.path().join(name), "x").unwrap();
            }
            let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for number in 0.. {
                        let _ = std::fs::write(store.join(number.to_string()), "x");
                        begun.store(number > 50, Ordering::SeqCst);
                        if done.load(Ordering::SeqCst) {
                            break;
                        }
                    }
                });
                while !begun.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                leave(dir.path());
                done.store(true, Ordering::SeqCst);
            });
            let left: Vec<_> = std::fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(left, ["of-somebody-else"]);
        }
    }
}
