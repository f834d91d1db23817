//! Tickets: what a peer shows another before it is served anything.
//!
//! The scheduler issues one to a member of a task (or to all of a tenant's domain); it names its
//! bearer, whom the transport has authenticated, so that a copied ticket is worth nothing.

use crate::id::{ContentKey, NodeId};
use crate::sign::{PublicKey, Signature, SigningKey, verify};

const PURPOSE: &str = "dragonfly 2026-11 ticket v1";

/// Tolerated difference of two nodes' clocks, seconds.
pub const CLOCK_SKEW: u64 = 120;

/// Why a ticket admits nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not a ticket.
    #[error("malformed ticket")]
    Malformed,
    /// For another node than the one that shows it.
    #[error("the ticket was issued to node {0}, not to the node that shows it")]
    Bearer(NodeId),
    /// For another task.
    #[error("the ticket is for task {0}")]
    Task(ContentKey),
    /// Too old.
    #[error("the ticket expired {0} s ago: ask the scheduler for a new one, or check the clocks")]
    Expired(u64),
    /// Not signed by this mesh's authority.
    #[error("the ticket is not from this mesh's authority")]
    Signature,
}

/// Leave to exchange one content's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Which content.
    pub content: ContentKey,
    /// Who may.
    pub bearer: NodeId,
    /// Until when, seconds since 1970.
    pub expires: u64,
    /// By the authority.
    pub signature: Signature,
}

impl Ticket {
    /// Encoded length, bytes.
    pub const LEN: usize = 32 + 16 + 8 + 64;

    /// Issues a ticket.
    #[must_use]
    pub fn issue(key: &SigningKey, content: ContentKey, bearer: NodeId, expires: u64) -> Self {
        let signature = key.sign(PURPOSE, &[&content.0, &bearer.0, &expires.to_le_bytes()]);
        Self {
            content,
            bearer,
            expires,
            signature,
        }
    }

    /// Whether it admits `bearer` to `content` at `now` (seconds since 1970).
    pub fn check(
        &self,
        authorities: &[PublicKey],
        content: &ContentKey,
        bearer: &NodeId,
        now: u64,
    ) -> Result<(), TicketError> {
        if self.content != *content {
            return Err(TicketError::Task(self.content));
        }
        if self.bearer != *bearer {
            return Err(TicketError::Bearer(self.bearer));
        }
        let limit = self.expires.saturating_add(CLOCK_SKEW);
        if now > limit {
            return Err(TicketError::Expired(now - limit));
        }
        let parts: [&[u8]; 3] = [&self.content.0, &self.bearer.0, &self.expires.to_le_bytes()];
        let ok = authorities
            .iter()
            .any(|a| verify(a, PURPOSE, &parts, &self.signature));
        ok.then_some(()).ok_or(TicketError::Signature)
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..32].copy_from_slice(&self.content.0);
        out[32..48].copy_from_slice(&self.bearer.0);
        out[48..56].copy_from_slice(&self.expires.to_le_bytes());
        out[56..].copy_from_slice(&self.signature);
        out
    }

    /// Reads [`Self::encode`]'s bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, TicketError> {
        let b: &[u8; Self::LEN] = bytes.try_into().map_err(|_| TicketError::Malformed)?;
        fn array<const N: usize>(b: &[u8]) -> Result<[u8; N], TicketError> {
            b.try_into().map_err(|_| TicketError::Malformed)
        }
        Ok(Self {
            content: ContentKey(array(&b[..32])?),
            bearer: NodeId(array(&b[32..48])?),
            expires: u64::from_le_bytes(array(&b[48..56])?),
            signature: array(&b[56..])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_admits_its_bearer_to_its_task_until_it_expires_and_nobody_else() {
        let (key, _) = SigningKey::generate().unwrap();
        let (stranger, _) = SigningKey::generate().unwrap();
        let (task, me) = (ContentKey([1; 32]), NodeId([2; 16]));
        let t = Ticket::issue(&key, task, me, 1000);
        let auth = [*key.public()];
        let t = Ticket::decode(&t.encode()).unwrap();
        assert_eq!(t.check(&auth, &task, &me, 1000 + CLOCK_SKEW), Ok(()));
        assert_eq!(
            t.check(&auth, &task, &me, 1001 + CLOCK_SKEW),
            Err(TicketError::Expired(1))
        );
        assert!(matches!(
            t.check(&auth, &ContentKey([9; 32]), &me, 0),
            Err(TicketError::Task(_))
        ));
        assert!(matches!(
            t.check(&auth, &task, &NodeId([9; 16]), 0),
            Err(TicketError::Bearer(_))
        ));
        assert_eq!(
            t.check(&[*stranger.public()], &task, &me, 0),
            Err(TicketError::Signature)
        );
        let longer = Ticket { expires: 2000, ..t };
        assert_eq!(
            longer.check(&auth, &task, &me, 0),
            Err(TicketError::Signature)
        );
    }
}
