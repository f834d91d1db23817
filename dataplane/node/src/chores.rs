//! What time brings: the engines' clock, idle tasks, garbage, reports.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonfly_proto::rpc::{self, from_node};

use crate::node::{Node, unix_now_ms};
use crate::task::{State, Task, lock};
use crate::turns::weight;

/// A task that nobody needed for this long is put away; it stays on disk.
const IDLE: Duration = Duration::from_secs(60);
/// How often schedulers hear how this node does.
const REPORT: Duration = Duration::from_secs(10);
/// How long after a session began or ended, so that several make one report.
const GATHER: Duration = Duration::from_millis(200);
/// Engines' clock where nothing else drives them: fine enough for the 30 ms within which
/// announcements are gathered.
const TICK: Duration = Duration::from_millis(20);
/// How often engines hear of their links' round trips, which connections measure twice a second.
const MEASURE: Duration = Duration::from_millis(500);

impl Node {
    /// Ticks the engines that have something to time; sleeps while there are none.
    pub(crate) async fn tick(self: Arc<Self>) {
        let mut measured = Instant::now();
        loop {
            let tasks = self.tasks();
            let measure = measured.elapsed() >= MEASURE;
            if measure {
                measured = Instant::now();
            }
            let mut busy = false;
            // What contends for this node's downlink: shares go by priority.
            let wanting = |t: &&Arc<Task>| {
                let s = t.state();
                !s.wants.is_empty() && s.engine.remaining() > 0
            };
            let top = tasks.iter().filter(wanting).map(|t| t.priority()).min();
            for task in &tasks {
                let share = top.map_or(1.0, |top| {
                    weight(task.priority()) as f32 / weight(top) as f32
                });
                let due = {
                    let mut state = task.state();
                    state.engine.set_share(share.min(1.0));
                    if measure {
                        state.measure();
                    }
                    busy |= !state.links.is_empty() || !state.wants.is_empty();
                    state
                        .engine
                        .next_timeout()
                        .is_some_and(|at| at <= task.now())
                };
                if due {
                    let ((), effects) = task.drive(|s, now| s.engine.tick(now));
                    self.apply(task, effects);
                }
            }
            let pause = if busy {
                TICK
            } else {
                Duration::from_millis(500)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.active.notified(), if !busy => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Puts idle tasks away, collects garbage.
    pub(crate) async fn housekeeping(self: Arc<Self>) {
        let mut every = tokio::time::interval(Duration::from_secs(10));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = self.stop.cancelled() => return,
            }
            self.put_idle_away();
            let store = self.store.clone();
            let collected = tokio::task::spawn_blocking(move || {
                let now = unix_now_ms();
                let evicted = store.collect_garbage(now);
                (evicted, store.checkpoint())
            });
            if let Ok((evicted, durable)) = collected.await {
                for e in evicted {
                    tracing::info!(task = %e.key.short(), bytes = e.bytes, reason = ?e.reason, "evicted");
                    self.forget(&e.key);
                }
                if let Err(error) = durable {
                    tracing::warn!(%error, "cannot make the store durable");
                }
            }
        }
    }

    /// Reports in time, and at once to whom the node meets: it has to know whether it counts the node.
    pub(crate) async fn reporting(self: Arc<Self>) {
        let mut every = tokio::time::interval(REPORT);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sessions = self.sessions.changes();
        loop {
            tokio::select! {
                _ = every.tick() => {}
                changed = sessions.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Those of a mesh that starts come one after the other.
                    tokio::time::sleep(GATHER).await;
                    sessions.mark_unchanged();
                }
                () = self.stop.cancelled() => return,
            }
            self.report();
        }
    }

    fn put_idle_away(&self) {
        self.put_away(|_, s| {
            let limit = if s.lease.is_some() { IDLE * 2 } else { IDLE };
            s.used.elapsed() >= limit
        });
        let used: std::collections::HashSet<_> = lock(&self.tasks).keys().copied().collect();
        self.origins.keep_only(&used);
    }

    /// Space is short: puts away what is in use for other nodes alone, so that the store may evict
    /// it; not `but`, which needs the space. Whether there was any.
    pub(crate) fn make_room(&self, but: &Arc<Task>) -> bool {
        // A lease on what is all here, or has failed, is of no use to anybody.
        let over = |task: &Task, s: &State| task.is_complete() || s.failure.is_some();
        self.put_away(|task, s| !Arc::ptr_eq(task, but) && (s.lease.is_none() || over(task, s)))
    }

    /// Puts away those of the tasks that no client here wants for which `idle` holds, which is called
    /// with the task's state locked; whether there was one.
    fn put_away(&self, idle: impl Fn(&Arc<Task>, &State) -> bool) -> bool {
        let mut gone = vec![];
        lock(&self.tasks).retain(|_, task| {
            let s = task.state();
            let keep = !s.wants.is_empty() || !idle(task, &s);
            let leased = s.lease.is_some();
            drop(s);
            if !keep {
                gone.push((task.clone(), leased));
            }
            keep
        });
        let any = !gone.is_empty();
        for (task, leased) in gone {
            self.close_streams(&task);
            task.notify_emission();
            if leased && !task.is_complete() {
                // Whoever wants the rest later must find a lease-holder that reads.
                self.sessions.tell(
                    &task.key(),
                    from_node::Message::Leave(rpc::Leave {
                        content: task.key().0.to_vec(),
                        damaged: false,
                    }),
                );
                if task.store.held_count() > 0 && !task.is_unproven() {
                    let join = rpc::Join {
                        emitter: vec![],
                        ..self.join_message(&task, None)
                    };
                    self.sessions
                        .tell(&task.key(), from_node::Message::Join(join));
                }
            }
        }
        any
    }

    fn report(&self) {
        let tasks = self.tasks();
        let reports = tasks.iter().take(256).map(|t| rpc::TaskReport {
            content: t.key().0.to_vec(),
            held: t.store.held_count(),
            complete: t.is_complete(),
        });
        let mut report = self.metrics.since_last_report();
        report.active_tasks = tasks.len() as u32;
        report.connections = self.mesh().map_or(0, |m| m.len() as u32);
        report.stored_bytes = self.store.usage().bytes;
        report.tasks = reports.collect();
        if self.sessions.report(&self.identity.node, &report) {
            self.metrics.reported(&report);
        }
    }
}
