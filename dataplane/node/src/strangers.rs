//! Connections without a task: a bound on them, and on how long one may stay so.
//!
//! Without TLS anybody may connect under any name; only a ticket says that somebody belongs here. An
//! honest node connects for a task and says so at once.

use std::sync::Arc;
use std::time::Duration;

use dragonfly_transport::{CloseReason, Conn};

use crate::links::ConnState;
use crate::node::Node;

/// Connections without a task at once; past that, one goes for each that comes.
const MOST: usize = 1024;
/// How long one has to show a ticket; a refusal is followed by other tries within three seconds.
const PATIENCE: Duration = Duration::from_secs(20);

fn is_strange(conn: &Conn) -> bool {
    conn.state::<ConnState>().is_some_and(ConnState::is_strange)
}

impl Node {
    /// Sees to it that a new connection is for something.
    pub(crate) fn watch_stranger(&self, conn: &Arc<Conn>) {
        if let Some(mesh) = self.mesh().filter(|m| m.len() > MOST) {
            let others = mesh.all().into_iter().filter(|c| !Arc::ptr_eq(c, conn));
            // One that is closed may still be in the table, and others may come at the same moment.
            let strange = others.filter(|c| !c.is_closed() && is_strange(c));
            let strange: Vec<_> = strange.collect();
            let over = (strange.len() + 1).saturating_sub(MOST);
            for conn in strange.iter().take(over) {
                let why = "too many connections without a task".to_owned();
                conn.close(CloseReason::Local(why));
            }
        }
        let (conn, stop) = (Arc::downgrade(conn), self.stop.clone());
        self.threads.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(PATIENCE) => {}
                () = stop.cancelled() => return,
            }
            if let Some(conn) = conn.upgrade().filter(|c| is_strange(c)) {
                conn.close(CloseReason::Local("no task to talk about".to_owned()));
            }
        });
    }
}
