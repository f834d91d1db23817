//! The node as its connections see it: frames and blocks in, blocks out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dragonfly_proto::frame::{DataHeader, Frame, Hello};
use dragonfly_proto::id::ContentKey;
use dragonfly_proto::trust::{EmitterClaim, Leaf, Proof, TrustError};
use dragonfly_swarm::engine::{Disposition, NeighbourInfo, Stripe};
use dragonfly_transport::{
    Block, CloseReason, Conn, Handler, Next, Outgoing, Payload, Violation, Welcome,
};

use crate::links::{ConnState, Stream};
use crate::node::Node;
use crate::task::{Link, Task, most_blocks, new_neighbour_id};
use crate::wire;

/// How long to wait before a refused task is asked for again: the scheduler's word may still be on
/// its way to the other node.
const REFUSED_AGAIN: [u64; 5] = [20, 60, 200, 700, 2000];

/// A node that refused so often takes no part in the task.
const REFUSED: u8 = 3;

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
            Frame::Close => self.unlink(links, stream),
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
        let Some(links) = conn.state::<ConnState>() else {
            return Next::Idle;
        };
        if let Some(pause) = self.upload_limit.debt() {
            return Next::Later(pause);
        }
        while let Some(s) = links.take_ready() {
            let now = s.task.now();
            let (index, geometry) = {
                let mut state = s.task.state();
                let Some(index) = state.engine.next_data(now, s.neighbour) else {
                    continue;
                };
                (index, state.geometry)
            };
            // Asked until it has nothing: only then does the engine wake this stream again.
            links.sends(s.ours, geometry.block_len(index).unwrap_or(0));
            match outgoing(&s, index, geometry.offset(index), geometry.block_len(index)) {
                Ok(block) => return Next::Send(block),
                Err(e) => {
                    // Not a fault of the neighbour's: it asks another when it hears nothing.
                    tracing::warn!(task = %s.task.key().short(), index, error = %e,
                        "cannot read a block that is held");
                }
            }
        }
        Next::Idle
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
                node.hello_again(&other, &contents);
            }
        });
    }
}

/// Whether a neighbour emits: only who shows the certified key of a lease on this content is
/// believed, for it may push what nobody asked for.
fn emits(task: &Task, conn: &Conn, claim: Option<&EmitterClaim>) -> Result<bool, Violation> {
    let Some(claim) = claim else {
        return Ok(false);
    };
    task.add_epoch(&claim.cert)
        .and_then(|_| claim.check(&conn.peer()))
        .map(|()| true)
        .map_err(|e| Violation(e.to_string()))
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
    fn hello_again(&self, conn: &Arc<Conn>, contents: &[ContentKey]) {
        let Some(links) = conn.state::<ConnState>() else {
            return;
        };
        for task in contents.iter().filter_map(|c| self.find(c)) {
            self.say_hello(conn, links, &task);
        }
    }

    fn received(&self, s: &Stream, index: u32) -> Result<(), Violation> {
        let (done, effects) = s
            .task
            .drive(|st, now| st.engine.block_received(now, s.neighbour, index));
        self.apply(&s.task, effects);
        done.map(|_| ()).or_else(fault)
    }

    fn on_hello(
        &self,
        conn: &Arc<Conn>,
        links: &ConnState,
        theirs: u32,
        hello: &Hello,
    ) -> Result<(), Violation> {
        let content = hello.content;
        if let Some(s) = links.theirs(theirs) {
            if s.task.key() != content {
                return Err(Violation("a second task on one stream".to_owned()));
            }
            // It took over the lease, or gave it up.
            let emits = emits(&s.task, conn, hello.emitter.as_deref())?;
            let ((), effects) = s.task.drive(|st, now| {
                let told = st.told.get(&conn.peer()).is_none_or(|told| told.emitter);
                st.engine.set_emitter(now, s.neighbour, emits && told);
            });
            self.apply(&s.task, effects);
            return Ok(());
        }
        let refuse = |reason: String| {
            tracing::debug!(peer = %conn.peer(), task = %content.short(), reason, "refused");
            conn.send(0, &Frame::Refuse { content, reason });
            Ok(())
        };
        if self.is_banned(&conn.peer()) {
            return Err(Violation("a banned node came back".to_owned()));
        }
        let authorities = self.authorities();
        if let Err(e) = hello
            .ticket
            .check(&authorities, &content, &conn.peer(), self.clock.now())
        {
            return refuse(e.to_string());
        }
        let Some(task) = self.find_or_revive(&content) else {
            return refuse("this node does not have the task (yet)".to_owned());
        };
        if task.is_unproven() {
            return refuse("this node cannot prove what it has of the task".to_owned());
        }
        let geometry = task.geometry();
        let same_len = hello.total_len.is_none()
            || geometry.total_len().is_none()
            || hello.total_len == geometry.total_len();
        if hello.block_size != geometry.block_size() || !same_len {
            return refuse("another geometry is known for this task".to_owned());
        }
        let emits = emits(&task, conn, hello.emitter.as_deref())?;
        if let Some(old) = links.bound(&content) {
            // The other side forgot the stream and opened it anew.
            self.unlink(links, old);
        }
        let ours = match links.hello_sent(&content) {
            Some(ours) => ours,
            None => match self.say_hello(conn, links, &task) {
                Some(ours) => ours,
                None => return refuse("no ticket here yet".to_owned()),
            },
        };
        let neighbour = new_neighbour_id();
        let stream = Stream {
            task: task.clone(),
            neighbour,
            ours,
        };
        if !links.bind(theirs, stream) {
            return Err(Violation("too many tasks on one connection".to_owned()));
        }
        let seed = {
            let mut st = task.state();
            let seed = emits || st.seeds.contains(&conn.peer());
            st.links.insert(
                neighbour,
                Link {
                    conn: conn.clone(),
                    ours,
                    seed,
                },
            );
            st.used = Instant::now();
            seed
        };
        tracing::debug!(peer = %conn.peer(), task = %content.short(), seed, "neighbours");
        // From here on new certificates and the size reach the link by themselves; what was known
        // before goes ahead of the first block that needs it.
        let epochs: Vec<_> = task.verifier().epochs().copied().collect();
        epochs
            .into_iter()
            .for_each(|e| conn.send(ours, &Frame::Epoch(e)));
        // Behind the certificates: who cannot check it takes it for a lie.
        let size = task.state().size;
        if let Some(size) = size {
            conn.send(ours, &Frame::Size(size));
        }
        let priority = task.priority();
        if priority != 0 {
            conn.send(ours, &Frame::Priority(priority));
        }
        let ((), effects) = task.drive(|st, now| {
            let told = st.told.get(&conn.peer()).copied();
            let info = NeighbourInfo {
                emitter: emits && told.is_none_or(|told| told.emitter),
                rtt: conn.round_trip(),
                may_ask: told.map_or(Some(Stripe::WHOLE), |told| told.may_ask),
            };
            st.engine.join(now, neighbour, info);
        });
        self.apply(&task, effects);
        self.introduce(&task, conn, ours);
        task.notify_emission();
        Ok(())
    }

    /// Opens a stream for the task; the number it got, or `None` when there is no ticket yet or one
    /// is open.
    pub(crate) fn say_hello(
        &self,
        conn: &Arc<Conn>,
        links: &ConnState,
        task: &Arc<Task>,
    ) -> Option<u32> {
        if task.is_unproven() {
            return None;
        }
        let (ticket, geometry, lease) = {
            let state = task.state();
            let ticket = state.ticket.or_else(|| self.ticket(&task.key()))?;
            (ticket, state.geometry, state.lease.clone())
        };
        let emitter = lease.and_then(|signer| self.claim(task, &signer));
        let ours = links.begin_hello(task.key())?;
        let hello = Hello {
            content: task.key(),
            ticket,
            block_size: geometry.block_size(),
            total_len: geometry.total_len(),
            emitter,
        };
        conn.send(ours, &Frame::Hello(hello));
        Some(ours)
    }

    fn on_refused(&self, conn: &Arc<Conn>, links: &ConnState, content: ContentKey, reason: &str) {
        let times = links.refused(&content);
        tracing::debug!(peer = %conn.peer(), task = %content.short(), reason, times, "was refused");
        let Some(pause) = REFUSED_AGAIN.get(usize::from(times) - 1).copied() else {
            return;
        };
        let (Some(node), Some(task), conn) = (self.me(), self.find(&content), conn.clone()) else {
            return;
        };
        if times >= REFUSED {
            self.tells_nothing(&task, conn.peer());
        }
        self.threads.spawn(async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if !conn.is_closed()
                && let Some(links) = conn.state::<ConnState>()
            {
                node.say_hello(&conn, links, &task);
            }
        });
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
