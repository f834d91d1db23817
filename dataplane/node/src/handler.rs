//! The node as its connections see it: frames and blocks in, blocks out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dragonfly_proto::frame::{DataHeader, Frame};
use dragonfly_proto::trust::{Leaf, Proof, TrustError};
use dragonfly_swarm::engine::Disposition;
use dragonfly_transport::{
    Block, CloseReason, Conn, Handler, Next, Outgoing, Payload, Violation, Welcome,
};

use crate::links::{ConnState, Stream};
use crate::node::Node;
use crate::task::most_blocks;
use crate::wire;

/// Blocks of epochs never told of that a connection may bring: an honest node may have lost a
/// certificate, and it is not banned for the first of them.
const UNKNOWN_EPOCHS: u32 = 8;
/// Whether another connection to a node came up is looked at this long after one was lost: of two
/// made at the same moment one goes.
const ANOTHER: Duration = Duration::from_millis(300);

impl Handler for Node {
    fn opened(&self, conn: &Arc<Conn>) {
        if self.stop.is_cancelled() {
            return conn.close(CloseReason::Local("shutting down".to_owned()));
        }
        if self.is_banned(&conn.peer()) {
            return conn.close(CloseReason::Local("banned".to_owned()));
        }
        tracing::debug!(peer = %conn.peer(), addr = %conn.addr(), "connected");
        self.watch_stranger(conn);
    }

    fn frame(&self, conn: &Arc<Conn>, stream: u32, frame: Frame) -> Result<(), Violation> {
        let Some(links) = conn.state::<ConnState>() else {
            return Ok(());
        };
        match frame {
            Frame::Hello(hello) => return self.on_hello(conn, links, stream, &hello),
            Frame::Refuse { content, reason } => {
                self.on_refused(conn, links, content, &reason);
                return Ok(());
            }
            Frame::Ping => return Ok(()),
            _ => {}
        }
        // A stream that this side has closed already: what was under way is void.
        let Some(s) = links.theirs(stream) else {
            return Ok(());
        };
        match frame {
            Frame::Close => {
                self.unlink(links, stream);
                self.tells_nothing(&s.task, conn.peer());
            }
            Frame::Epoch(cert) => {
                s.task
                    .add_epoch(&cert)
                    .map_err(|e| Violation(e.to_string()))?;
            }
            Frame::Size(size) => {
                let effects = s.task.set_size(&size).map_err(Violation)?;
                self.apply(&s.task, effects);
            }
            Frame::Priority(priority) => links.set_priority(s.ours, priority),
            Frame::Pex(peers) => self.on_pex(&s.task, conn, peers),
            frame => {
                let max = most_blocks(&s.task.geometry());
                let control = links.with_map(stream, |map| wire::control(&frame, map, max));
                if let Some(control) = control.map_err(Violation)? {
                    let (done, effects) = s.task.drive(|st, now| {
                        let done = st.engine.handle(now, s.neighbour, control);
                        st.hear(now, None);
                        done
                    });
                    self.apply(&s.task, effects);
                    done.map(|_| ()).or_else(fault)?;
                    s.task.notify_emission();
                }
            }
        }
        Ok(())
    }

    fn announced(
        &self,
        conn: &Arc<Conn>,
        stream: u32,
        header: &DataHeader,
    ) -> Result<Welcome, Violation> {
        let Some(s) = conn.state::<ConnState>().and_then(|l| l.theirs(stream)) else {
            return Ok(Welcome::Skip);
        };
        let state = s.task.state();
        let full = state.geometry.block_len(header.index);
        let last_of_unknown = state.geometry.total_len().is_none();
        let fits = match full {
            Some(len) => header.data_len == len || (last_of_unknown && header.data_len < len),
            None => false,
        };
        if !fits {
            let (index, len) = (header.index, header.data_len);
            return Err(Violation(format!("block {index} with {len} bytes")));
        }
        match state.engine.accepts(s.neighbour, header.index) {
            Ok(Disposition::Store) => Ok(Welcome::Take),
            Ok(Disposition::Skip) => {
                drop(state);
                self.received(&s, header.index)?;
                Ok(Welcome::Skip)
            }
            Err(v) => fault(v).map(|()| Welcome::Skip),
        }
    }

    fn block(
        &self,
        conn: &Arc<Conn>,
        stream: u32,
        block: &Block<'_>,
    ) -> Result<Option<Duration>, Violation> {
        let Some(s) = conn.state::<ConnState>().and_then(|l| l.theirs(stream)) else {
            return Ok(None);
        };
        let len = block.data.len() as u32;
        let leaf = Leaf {
            index: block.index,
            len,
            hash: block.hash,
        };
        let checked =
            Proof::decode(block.proof).and_then(|proof| s.task.verifier().check(&leaf, &proof));
        if let Err(TrustError::UnknownEpoch(epoch)) = checked
            && conn
                .state::<ConnState>()
                .is_some_and(|l| l.unknown_epoch() <= UNKNOWN_EPOCHS)
        {
            tracing::debug!(peer = %conn.peer(), epoch, "a block of an unknown epoch");
            let ((), effects) = s
                .task
                .drive(|st, now| st.engine.block_lost(now, s.neighbour, block.index));
            self.apply(&s.task, effects);
            return Ok(None);
        }
        if let Err(e) = checked {
            self.metrics.blocks_rejected.inc();
            let ((), effects) = s
                .task
                .drive(|st, now| st.engine.block_rejected(now, s.neighbour, block.index));
            self.apply(&s.task, effects);
            return Err(Violation(e.to_string()));
        }
        let written = self.write_block(&s.task, &leaf, block.data, block.proof);
        if let Err(e) = written {
            let ((), effects) = s
                .task
                .drive(|st, now| st.engine.block_lost(now, s.neighbour, block.index));
            self.apply(&s.task, effects);
            self.not_stored(&s.task, &e);
            return Ok(None);
        }
        let seed = s
            .task
            .state()
            .links
            .get(&s.neighbour)
            .is_some_and(|l| l.seed);
        let (mine, all) = if seed {
            (&s.task.traffic.seeds, &self.metrics.from_seeds)
        } else {
            (&s.task.traffic.peers, &self.metrics.from_peers)
        };
        mine.fetch_add(u64::from(len), Ordering::Relaxed);
        all.inc_by(u64::from(len));
        self.received(&s, block.index)?;
        s.task.notify();
        Ok(self.download_limit.take(u64::from(len)))
    }

    fn has_next(&self, conn: &Arc<Conn>) -> bool {
        conn.state::<ConnState>().is_some_and(ConnState::has_ready)
    }

    fn next(&self, conn: &Arc<Conn>) -> Next {
        self.bind(conn, false)
    }

    fn next_unordered(&self, conn: &Arc<Conn>) -> Next {
        self.bind(conn, true)
    }

    fn sent(&self, conn: &Arc<Conn>, stream: u32, index: u32, bytes: u32) {
        self.metrics.uploaded.inc_by(u64::from(bytes));
        self.upload_limit.take(u64::from(bytes));
        let Some(s) = conn.state::<ConnState>().and_then(|l| l.ours(stream)) else {
            return;
        };
        s.task
            .traffic
            .uploaded
            .fetch_add(u64::from(bytes), Ordering::Relaxed);
        let ((), effects) = s.task.drive(|st, now| {
            st.used = Instant::now();
            st.engine.data_sent(now, s.neighbour, index);
        });
        self.apply(&s.task, effects);
    }

    fn unreadable(&self, conn: &Arc<Conn>, stream: u32, index: u32, why: &std::io::Error) {
        if let Some(s) = conn.state::<ConnState>().and_then(|l| l.ours(stream)) {
            self.cannot_read(&s, index, why);
        }
    }

    fn closed(&self, conn: &Arc<Conn>, reason: &CloseReason) {
        let peer = conn.peer();
        if let CloseReason::Violation(why) = reason {
            self.ban(peer, &why.0);
        } else {
            tracing::debug!(%peer, %reason, "connection closed");
        }
        let Some(links) = conn.state::<ConnState>() else {
            return;
        };
        let (streams, mut contents) = links.drain();
        contents.extend(streams.iter().map(|s| s.task.key()));
        let banned = matches!(reason, CloseReason::Violation(_));
        // Of two connections that were made at once one goes, and what was said on it is lost: it is
        // said again on the other.
        let other = self.mesh().and_then(|m| m.get(&peer)).filter(|_| !banned);
        for s in streams {
            self.leave(&s);
            if other.is_none() {
                self.lost(&s.task, peer, &reason.to_string(), banned);
            }
        }
        if banned || contents.is_empty() || self.stop.is_cancelled() {
            return;
        }
        contents.sort_unstable();
        contents.dedup();
        if let Some(other) = other {
            return self.hello_again(&other, &contents);
        }
        let Some(node) = self.me() else { return };
        self.threads.spawn(async move {
            tokio::time::sleep(ANOTHER).await;
            if let Some(other) = node.mesh().and_then(|m| m.get(&peer)) {
                return node.hello_again(&other, &contents);
            }
            for task in contents.iter().filter_map(|c| node.find(c)) {
                node.tells_nothing(&task, peer);
            }
        });
    }
}

/// What the other side did wrong. That it is no neighbour any more is this side's doing: the engine let
/// go of it while a frame was on its way, and nobody is banned for that.
fn fault(v: dragonfly_swarm::engine::Violation) -> Result<(), Violation> {
    match v {
        dragonfly_swarm::engine::Violation::UnknownNeighbour => Ok(()),
        v => Err(Violation(v.to_string())),
    }
}

fn outgoing(
    s: &Stream,
    index: u32,
    offset: u64,
    len: Option<u32>,
) -> Result<Outgoing, dragonfly_storage::StorageError> {
    let proof = s.task.store.proof(index)?;
    let file = s.task.store.sendfile_source()?;
    let (len, proof) = (len.unwrap_or(0), proof.map(|p| p.proof).unwrap_or_default());
    Ok(Outgoing {
        stream: s.ours,
        index,
        proof,
        payload: Payload::File { file, offset, len },
    })
}

impl Node {
    /// A block for one of a connection's sockets.
    fn bind(&self, conn: &Arc<Conn>, is_lane: bool) -> Next {
        let Some(links) = conn.state::<ConnState>() else {
            return Next::Idle;
        };
        if let Some(pause) = self.upload_limit.debt() {
            return Next::Later(pause);
        }
        let mut left = Vec::new();
        let mut found = Next::Idle;
        while let Some(s) = links.take_ready() {
            let now = s.task.now();
            let (index, geometry) = {
                let mut state = s.task.state();
                let bound = match is_lane {
                    true => state.engine.next_unordered(now, s.neighbour),
                    false => state.engine.next_data(now, s.neighbour),
                };
                let Some(index) = bound else {
                    if is_lane {
                        // What it has may be for the first socket.
                        left.push(s.ours);
                    }
                    continue;
                };
                (index, state.geometry)
            };
            // Asked until it has nothing: only then does the engine wake this stream again.
            links.sends(s.ours, geometry.block_len(index).unwrap_or(0));
            match outgoing(&s, index, geometry.offset(index), geometry.block_len(index)) {
                Ok(block) => {
                    found = Next::Send(block);
                    break;
                }
                // Not a fault of the neighbour's: it asks another when it hears nothing.
                Err(e) => self.cannot_read(&s, index, &e),
            }
        }
        left.into_iter().for_each(|ours| links.ready(ours));
        found
    }

    /// A block that is held is none: what else is held of its content may be none either.
    fn cannot_read(&self, s: &Stream, index: u32, error: &dyn std::fmt::Display) {
        tracing::warn!(task = %s.task.key().short(), index, %error, "cannot read a block that is held");
        if let Some(node) = self.me() {
            node.check_held(s.task.key());
        }
    }

    fn received(&self, s: &Stream, index: u32) -> Result<(), Violation> {
        let (done, effects) = s
            .task
            .drive(|st, now| st.engine.block_received(now, s.neighbour, index));
        self.apply(&s.task, effects);
        done.map(|_| ()).or_else(fault)
    }

    /// Ends a stream on this side.
    pub(crate) fn unlink(&self, links: &ConnState, theirs: u32) {
        if let Some(s) = links.unbind(theirs) {
            self.leave(&s);
        }
    }

    pub(crate) fn leave(&self, s: &Stream) {
        let ((), effects) = s.task.drive(|st, now| {
            st.links.remove(&s.neighbour);
            st.engine.leave(now, s.neighbour);
        });
        self.apply(&s.task, effects);
        s.task.notify_emission();
    }
}
