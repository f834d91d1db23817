//! Dialling and accepting lanes.

use std::sync::Arc;

use dragonfly_proto::frame::Greeting;
use dragonfly_proto::id::NodeId;

use super::{ConnectError, Dialled, Link, Mesh, unreachable};
use crate::conn::Conn;
use crate::reader::Input;
use crate::who::Who;
use crate::writer::Output;
use crate::{Handler, lane};

impl<H: Handler> Mesh<H> {
    /// Dials a lane of a connection.
    pub(crate) async fn dial_lane(self: &Arc<Self>, conn: &Arc<Conn>) -> Result<(), ConnectError> {
        let held = self.hold_lane(conn)?;
        let lane = Dialled::Lane(conn.clone(), held);
        self.dial_for(lane, conn.addr()).await.map(drop)
    }

    /// What a lane of this connection needs.
    fn hold_lane(&self, conn: &Arc<Conn>) -> Result<lane::Held, ConnectError> {
        let no = |why| ConnectError::NoLane(conn.peer(), why);
        let one = conn.lane.begin().ok_or_else(|| no("there is one"))?;
        let turn = self.lanes.clone().try_acquire_owned();
        let turn = turn.map_err(|_| no("this node has as many as it has processors for"))?;
        Ok([turn, one])
    }

    /// The connection that somebody dials a lane of.
    pub(super) fn lane_for<R, W>(
        &self,
        link: &Link<R, W>,
        theirs: &Greeting,
        judge: impl Fn(&NodeId) -> Result<Option<Who>, ConnectError>,
    ) -> Result<(Arc<Conn>, lane::Held), ConnectError> {
        if theirs.mesh != self.local.mesh {
            return Err(ConnectError::Stranger(link.addr, theirs.node));
        }
        judge(&theirs.node)?;
        let is_its = |c: &Arc<Conn>| {
            let is_meant = c.lane.numbers.0 == theirs.conn;
            is_meant && !c.dialled() && c.addr().ip() == link.addr.ip()
        };
        let conn = self.get(&theirs.node).filter(is_its);
        let none = ConnectError::NoLane(theirs.node, "it has no first one from there");
        let conn = conn.ok_or(none)?;
        let held = self.hold_lane(&conn)?;
        Ok((conn, held))
    }

    pub(super) fn start_lane<R: Input + 'static, W: Output + 'static>(
        &self,
        conn: Arc<Conn>,
        link: Link<R, W>,
        held: lane::Held,
        first: lane::First,
    ) -> Result<Arc<Conn>, ConnectError> {
        let (peer, addr) = (conn.peer(), link.addr);
        tracing::debug!(%peer, %addr, "near and fast: a second connection");
        let parts = (link.reader, link.writer, link.socket);
        lane::start(conn.clone(), self.handler.clone(), parts, held, first)
            .map_err(|source| unreachable(Some(peer), addr, source))?;
        Ok(conn)
    }
}
