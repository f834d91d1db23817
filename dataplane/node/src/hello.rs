//! How two nodes that are connected become neighbours in a task: each says HELLO, or is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_proto::frame::{Frame, Hello};
use dragonfly_proto::id::ContentKey;
use dragonfly_proto::trust::EmitterClaim;
use dragonfly_swarm::engine::{NeighbourInfo, Stripe};
use dragonfly_transport::{Conn, Violation};

use crate::links::{ConnState, Stream};
use crate::node::Node;
use crate::task::{Link, Task, new_neighbour_id};

/// How long to wait before a refused task is asked for again: the scheduler's word may still be on
/// its way to the other node.
const REFUSED_AGAIN: [u64; 5] = [20, 60, 200, 700, 2000];

/// A node that refused so often takes no part in the task.
const REFUSED: u8 = 3;

impl Node {
    /// The other side takes part in a task, took its lease over, or gave that up.
    pub(crate) fn on_hello(
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

    /// The other side takes no part in the task, or not yet.
    pub(crate) fn on_refused(
        &self,
        conn: &Arc<Conn>,
        links: &ConnState,
        content: ContentKey,
        reason: &str,
    ) {
        let times = links.refused(&content);
        tracing::debug!(peer = %conn.peer(), task = %content.short(), reason, times, "was refused");
        let (Some(node), Some(task), conn) = (self.me(), self.find(&content), conn.clone()) else {
            return;
        };
        if times >= REFUSED {
            self.tells_nothing(&task, conn.peer());
        }
        let Some(pause) = REFUSED_AGAIN.get(usize::from(times) - 1).copied() else {
            return;
        };
        self.threads.spawn(async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if !conn.is_closed()
                && let Some(links) = conn.state::<ConnState>()
            {
                node.say_hello(&conn, links, &task);
            }
        });
    }

    /// Says again on this connection what was said on one that is gone.
    pub(crate) fn hello_again(&self, conn: &Arc<Conn>, contents: &[ContentKey]) {
        let Some(links) = conn.state::<ConnState>() else {
            return;
        };
        for task in contents.iter().filter_map(|c| self.find(c)) {
            self.say_hello(conn, links, &task);
        }
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
