//! The tasks in use: opening and putting away, carrying out what their engines want.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dragonfly_proto::geometry::Geometry;
use dragonfly_proto::id::ContentKey;
use dragonfly_proto::rpc::{self, failure::Code, from_node};
use dragonfly_proto::ticket::Ticket;
use dragonfly_proto::trust::{Leaf, SignedSize, Verifier};
use dragonfly_storage::ErrorKind;
use dragonfly_swarm::engine::Objective;

use crate::links::ConnState;
use crate::meta::{Meta, from_hex};
use crate::node::Node;
use crate::task::{Effects, Task, lock, most_blocks};

/// How long a task without space waits for what others let go of.
pub(crate) const SPACE_COMES_BACK: Duration = Duration::from_secs(2);

impl Node {
    /// Tasks in use.
    #[must_use]
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        lock(&self.tasks).values().cloned().collect()
    }

    /// A task in use.
    #[must_use]
    pub fn find(&self, content: &ContentKey) -> Option<Arc<Task>> {
        lock(&self.tasks).get(content).cloned()
    }

    /// A task in use, or one on disk that is put in use: another node asks for it.
    pub(crate) fn find_or_revive(&self, content: &ContentKey) -> Option<Arc<Task>> {
        if let Some(task) = self.find(content) {
            task.state().used = Instant::now();
            return Some(task);
        }
        let stored = self.store.open_task(content).ok().flatten()?;
        self.open(*content, stored.geometry(), Meta::default()).ok()
    }

    /// The task for a content, on disk and in use. `meta` is taken where nothing is kept yet. What is
    /// kept of it cut in another way, as by an origin that did not say how long it is, is of no use in a
    /// swarm that cuts it in this one: it goes, unless somebody here reads it.
    pub(crate) fn open(
        &self,
        content: ContentKey,
        geometry: Geometry,
        meta: Meta,
    ) -> Result<Arc<Task>, rpc::Failure> {
        self.make_way(&content, &geometry)?;
        let mut tasks = lock(&self.tasks);
        if let Some(task) = tasks.get(&content) {
            // Or it would be put away before its new user is entered.
            task.state().used = Instant::now();
            return Ok(task.clone());
        }
        let fresh = serde_json::to_vec(&meta).unwrap_or_default();
        let create = || self.store.create_or_open(content, geometry, &fresh);
        let stored = match create() {
            Err(e) if e.kind() == ErrorKind::Conflict => {
                tracing::info!(task = %content.short(), "{e}: it is had anew");
                self.store.delete(&content).and_then(|_| create())
            }
            outcome => outcome,
        };
        let stored = stored.map_err(|e| storage_failure(&e))?;
        let kept = stored
            .meta()
            .ok()
            .and_then(|b| serde_json::from_slice::<Meta>(&b).ok());
        let meta = kept.unwrap_or(meta);
        let geometry = stored.geometry();
        let mut verifier = Verifier::new(content, self.authorities());
        meta.certify(&mut verifier);
        let mut config = dragonfly_swarm::engine::Config::default();
        if !self.settings.borrow().slowest_first {
            config.objective = Objective::Average;
        }
        config.max_blocks = most_blocks(&geometry);
        let size = meta.size.as_ref().and_then(size_from_meta);
        let task = Task::new(content, stored, geometry, config, verifier, meta);
        task.state().size = size;
        tasks.insert(content, task.clone());
        drop(tasks);
        self.active.notify_one();
        Ok(task)
    }

    /// Puts out of use what is in use cut in another way than it is needed now, where nobody reads it.
    fn make_way(&self, content: &ContentKey, geometry: &Geometry) -> Result<(), rpc::Failure> {
        let Some(task) = self.find(content) else {
            return Ok(());
        };
        if task.is_complete() || task.geometry().agrees_with(geometry) {
            return Ok(());
        }
        if !task.state().wants.is_empty() {
            let text = format!(
                "{} is being read here as blocks of {} bytes, and others have it in blocks of {}: ask \
                 again when those who read it are done",
                task.meta().url,
                task.geometry().block_size(),
                geometry.block_size()
            );
            return Err(rpc::Failure::new(Code::Changed, text));
        }
        if self.is_current(&task) {
            self.forget_task(content);
        }
        Ok(())
    }

    pub(crate) fn ticket(&self, content: &ContentKey) -> Option<Ticket> {
        lock(&self.tickets)
            .get(content)
            .copied()
            .filter(|t| t.expires > self.clock.now())
    }

    pub(crate) fn keep_ticket(&self, ticket: Ticket) {
        lock(&self.tickets).put(ticket.content, ticket);
    }

    /// Carries out what an engine wants of the node.
    pub(crate) fn apply(&self, task: &Arc<Task>, effects: Effects) {
        if effects.is_empty() {
            return;
        }
        for conn in &effects.parted {
            self.close_stream(task, conn);
        }
        for (node, why) in effects.banned {
            self.ban(node, &why);
            self.lost(task, node, &why, true);
        }
        if let Some(count) = effects.need_neighbours {
            let known = {
                let state = task.state();
                state
                    .links
                    .values()
                    .map(|l| l.conn.peer().0.to_vec())
                    .collect()
            };
            let ask = rpc::NeedNeighbours {
                content: task.key().0.to_vec(),
                count: count as u32,
                known,
            };
            let asked = self
                .sessions
                .tell(&task.key(), from_node::Message::NeedNeighbours(ask));
            if !asked && let Some(node) = self.me() {
                node.find_neighbours(task, count);
            }
        }
        if effects.need_source {
            self.call_for_source(task);
        }
    }

    /// Tells the scheduler, or sees by itself, that nobody is known who has what is wanted.
    fn call_for_source(&self, task: &Arc<Task>) {
        let told = {
            // With the state held: the word that nobody wants it any more must not come in between.
            let state = task.state();
            if state.wants.is_empty() && state.lease.is_none() {
                return;
            }
            self.ask_for_source(task, task.wanted_source(&state))
        };
        if told {
            task.unheard.store(0, Ordering::Relaxed);
        } else if task.unheard.fetch_add(1, Ordering::Relaxed) > 0
            && self.settings().back_to_source
            && let Some(node) = self.me()
        {
            // Neither scheduler nor anybody who has the rest, twice in a row.
            node.go_alone(task);
        }
    }

    /// Asks the content's scheduler for a source, or shows it one; whether it was told.
    pub(crate) fn ask_for_source(&self, task: &Task, shown: Option<rpc::Source>) -> bool {
        let ask = rpc::NeedSource {
            content: task.key().0.to_vec(),
            ranges: vec![],
            request_key: shown.as_ref().map_or(vec![], |s| self.asked_by(s)),
            source: shown,
        };
        self.sessions
            .tell(&task.key(), from_node::Message::NeedSource(ask))
    }

    /// The holder of the lease has no source: shows what this node's clients have, where one waits.
    pub(crate) fn show_source(&self, task: &Task) {
        let state = task.state();
        if let Some(source) = task.wanted_source(&state) {
            // With the state held: the word that nobody wants it any more must not come in between.
            self.ask_for_source(task, Some(source));
        }
    }

    /// Stores a block. Where space is short, what is in use for other nodes alone gives way.
    pub(crate) fn write_block(
        &self,
        task: &Arc<Task>,
        leaf: &Leaf,
        data: &[u8],
        proof: &[u8],
    ) -> dragonfly_storage::Result<()> {
        let write = || task.store.write_block(leaf.index, data, leaf.hash, proof);
        let written = match write() {
            Err(e) if is_no_space(&e) && self.make_room(task) => write(),
            done => done,
        };
        written.map(|_| task.found_space())
    }

    /// A block could not be stored. Space may be about to come back, from a task that was let go of
    /// and is still held by whoever was at work for it: the block is asked for again for a while,
    /// before the task fails.
    pub(crate) fn not_stored(&self, task: &Arc<Task>, error: &dragonfly_storage::StorageError) {
        let short_for = is_no_space(error).then(|| task.short_of_space());
        if short_for.is_none_or(|time| time > SPACE_COMES_BACK) {
            self.storage_failed(task, error);
        }
    }

    fn storage_failed(&self, task: &Arc<Task>, error: &dragonfly_storage::StorageError) {
        task.fail(storage_failure(error));
        // Nothing more is asked for; what is held is still served.
        let ((), effects) = task.drive(|s, now| {
            s.engine
                .set_wanted(now, dragonfly_swarm::engine::Wanted::Nothing);
        });
        self.apply(task, effects);
    }

    /// Takes a task out of all connections; the other sides are told.
    pub(crate) fn close_streams(&self, task: &Arc<Task>) {
        let Some(mesh) = self.mesh() else { return };
        for conn in mesh.all() {
            self.close_stream(task, &conn);
        }
    }

    /// Takes a task out of one connection; the other side is told.
    pub(crate) fn close_stream(&self, task: &Task, conn: &Arc<dragonfly_transport::Conn>) {
        let Some(links) = conn.state::<ConnState>() else {
            return;
        };
        let (ours, stream) = links.close(&task.key());
        if let Some(ours) = ours {
            conn.send(ours, &dragonfly_proto::frame::Frame::Close);
        }
        if let Some(stream) = stream {
            self.leave(&stream);
        }
    }

    /// A content is no longer held.
    pub(crate) fn forget(&self, content: &ContentKey) {
        self.left(content, false);
    }

    /// A content is no longer held, because what was held was damaged.
    pub(crate) fn forget_damaged(&self, content: &ContentKey) {
        self.left(content, true);
    }

    fn left(&self, content: &ContentKey, damaged: bool) {
        lock(&self.tickets).remove(content);
        lock(&self.members).remove(content);
        let leave = rpc::Leave {
            content: content.0.to_vec(),
            damaged,
        };
        self.sessions
            .tell(content, from_node::Message::Leave(leave));
    }

    /// Puts a task out of use. Its streams end: bound to what is forgotten they would keep what
    /// follows it from its neighbours.
    pub(crate) fn forget_task(&self, content: &ContentKey) -> Option<Arc<Task>> {
        let task = lock(&self.tasks).remove(content)?;
        self.close_streams(&task);
        task.notify_emission();
        Some(task)
    }

    /// Whether this is the task that is in use for its content.
    pub(crate) fn is_current(&self, task: &Arc<Task>) -> bool {
        lock(&self.tasks)
            .get(&task.key())
            .is_some_and(|t| Arc::ptr_eq(t, task))
    }

    /// Nobody here wants a task any more: the scheduler is told, so that neither it nor this node keeps
    /// a client's credentials longer than the client.
    pub(crate) fn nobody_wants(&self, task: &Arc<Task>) {
        let joined = task.state().joined;
        self.let_go(task, joined);
    }

    /// The same. `told`: the scheduler was told, or will have been, that somebody does.
    pub(crate) fn let_go(&self, task: &Arc<Task>, told: bool) {
        {
            let state = task.state();
            if !state.wants.is_empty() || state.lease.is_some() {
                return;
            }
            // With the state held: a reader that comes now brings its own.
            lock(&task.source).take();
        }
        if told && !task.is_complete() && !task.is_unproven() {
            self.tell_held(task);
        }
    }
}

fn is_no_space(e: &dragonfly_storage::StorageError) -> bool {
    matches!(e.kind(), ErrorKind::DiskFull | ErrorKind::QuotaExceeded)
}

pub(crate) fn storage_failure(e: &dragonfly_storage::StorageError) -> rpc::Failure {
    let code = match e.kind() {
        _ if is_no_space(e) => Code::NoSpace,
        ErrorKind::NotFound | ErrorKind::NotHeld => Code::NotFound,
        ErrorKind::Conflict => Code::Changed,
        _ => Code::Internal,
    };
    rpc::Failure::new(code, e.to_string())
}

fn size_from_meta((total_len, epoch, hex): &(u64, u32, String)) -> Option<SignedSize> {
    let signature = from_hex(hex)?.try_into().ok()?;
    Some(SignedSize {
        total_len: *total_len,
        epoch: *epoch,
        signature,
    })
}
