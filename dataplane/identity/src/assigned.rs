//! Identities that are not chosen but follow from where a part runs, so that every issuer says the
//! same without keeping a list, and nobody can ask for another's.

use dragonfly_proto::id::NodeId;

/// What of a mesh has an identity of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The one peer, or the one seed with a directory, of a machine.
    Machine(&'a str),
    /// A seed with a volume: whichever machine it is on.
    Slot(u32),
    /// A seed without either: gone with its pod, whose UID this is.
    Pod(&'a str),
}

/// The identity of a seed or peer (`role`) of a mesh.
#[must_use]
pub fn assigned(mesh: &str, role: &str, subject: Subject<'_>) -> NodeId {
    let slot;
    let (kind, name) = match subject {
        Subject::Machine(name) => ("machine", name),
        Subject::Slot(index) => {
            slot = index.to_string();
            ("slot", slot.as_str())
        }
        Subject::Pod(uid) => ("pod", uid),
    };
    let mut hasher = blake3::Hasher::new_derive_key("dragonfly 2026-11 assigned node identity v1");
    for part in [mesh, role, kind, name] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    NodeId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_another_has_another_identity() {
        let all = [
            assigned("m", "peer", Subject::Machine("a")),
            assigned("m", "seed", Subject::Machine("a")),
            assigned("n", "peer", Subject::Machine("a")),
            assigned("m", "peer", Subject::Machine("b")),
            assigned("m", "seed", Subject::Slot(0)),
            assigned("m", "seed", Subject::Pod("0")),
            assigned("m", "seed", Subject::Machine("0")),
            assigned("mp", "eer", Subject::Machine("a")),
        ];
        let distinct: std::collections::BTreeSet<_> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
        // Every release and every replica says the same.
        assert_eq!(all[0], assigned("m", "peer", Subject::Machine("a")));
    }
}
