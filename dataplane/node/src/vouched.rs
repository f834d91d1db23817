//! By whose word a task's blocks and its size are what they are.

use dragonfly_proto::frame::Frame;
use dragonfly_proto::trust::{EpochCert, SignedSize, TrustError};
use dragonfly_swarm::engine::Violation;

use crate::meta::to_hex;
use crate::task::{Effects, Task};
use crate::users::wanted;

impl Task {
    /// A lease's certificate; true when it is new. Neighbours hear of it before anything slow is
    /// done: blocks of the epoch may come in elsewhere and be relayed meanwhile, and who gets a
    /// block of an epoch that it was not told of takes its neighbour for a liar.
    pub(crate) fn add_epoch(&self, cert: &EpochCert) -> Result<bool, TrustError> {
        let new = self.verifier().add_epoch(cert)?;
        if new {
            for link in self.state().links.values() {
                link.conn.send(link.ours, &Frame::Epoch(*cert));
            }
            let text = to_hex(&cert.encode());
            self.update_meta(|m| m.epochs.push(text));
        }
        Ok(new)
    }

    /// The length of a content whose origin gave none, signed by a lease-holder.
    pub(crate) fn set_size(&self, size: &SignedSize) -> Result<Effects, String> {
        self.verifier()
            .check_size(size)
            .map_err(|e| e.to_string())?;
        self.take_size(size)
    }

    /// The length of a content, by this node's own word or checked.
    pub(crate) fn take_size(&self, size: &SignedSize) -> Result<Effects, String> {
        let known = self.geometry().total_len();
        if known == Some(size.total_len) {
            return Ok(Effects::default());
        }
        if known.is_some() {
            return Err(TrustError::SizeConflict.to_string());
        }
        self.store
            .set_total_len(size.total_len)
            .map_err(|e| e.to_string())?;
        let (done, effects) = self.drive(|s, now| -> Result<(), String> {
            s.geometry = s
                .geometry
                .with_total(size.total_len)
                .map_err(|e| e.to_string())?;
            s.size = Some(*size);
            let blocks = s.geometry.total_blocks().unwrap_or(0);
            s.engine
                .set_total(now, blocks)
                .map_err(|e: Violation| e.to_string())?;
            let wanted = wanted(s);
            s.engine.set_wanted(now, wanted);
            for link in s.links.values() {
                link.conn.send(link.ours, &Frame::Size(*size));
            }
            Ok(())
        });
        done?;
        self.keep_size(size);
        self.notify();
        Ok(effects)
    }

    /// Keeps who vouches for the length.
    pub(crate) fn keep_size(&self, size: &SignedSize) {
        self.state().size = Some(*size);
        let hex = to_hex(&size.signature);
        self.update_meta(|m| m.size = Some((size.total_len, size.epoch, hex)));
    }
}
