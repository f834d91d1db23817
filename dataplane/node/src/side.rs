//! The side channel: a read-only descriptor of content for a client of the same machine.
//!
//! gRPC cannot carry descriptors, so this is a socket of its own beside the API's. A client that
//! finished a download, or copies while it comes, shows the ticket it was given (32 bytes); the answer is one byte, 0 with the
//! descriptor attached (`SCM_RIGHTS`), or a refusal without one. The daemon opens no path that a
//! client names: it hands out only what it holds itself.
//!
//! A ticket is random, works once and for a minute, and only for the user who was given it. A user
//! who asks for many loses its own oldest ones, nobody else's.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::task::{Task, lock};

/// Bytes of a ticket.
pub const TICKET: usize = 32;
/// The answer that has a descriptor with it.
pub const GRANTED: u8 = 0;
/// The answer to a ticket that is unknown, used, too old or another user's.
pub const REFUSED: u8 = 1;
/// The answer when the content cannot be opened any more.
pub const GONE: u8 = 2;

const LIFE: Duration = Duration::from_secs(60);
const PER_USER: usize = 64;
const IN_ALL: usize = 4096;
/// Clients served at once; more wait.
const CLIENTS: usize = 64;
/// A client says its ticket at once or not at all.
const PATIENCE: Duration = Duration::from_secs(5);

struct Entry<T> {
    task: T,
    /// Absent where the system does not say who the peer is.
    uid: Option<u32>,
    issued: Instant,
}

/// The tickets given out and not used yet. They keep their content from being evicted.
pub(crate) struct Tickets<T = Arc<Task>>(Mutex<HashMap<[u8; TICKET], Entry<T>>>);

impl<T> Default for Tickets<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Tickets<T> {
    /// A ticket for a task; none when there are too many, or no randomness.
    pub(crate) fn issue(&self, task: T, uid: Option<u32>, now: Instant) -> Option<Vec<u8>> {
        let mut ticket = [0; TICKET];
        aws_lc_rs::rand::fill(&mut ticket).ok()?;
        let mut all = lock(&self.0);
        all.retain(|_, e| now.saturating_duration_since(e.issued) < LIFE);
        let own = all.iter().filter(|(_, e)| e.uid == uid);
        if own.clone().count() >= PER_USER
            && let Some(oldest) = own.min_by_key(|(_, e)| e.issued).map(|(t, _)| *t)
        {
            all.remove(&oldest);
        }
        if all.len() >= IN_ALL {
            return None;
        }
        all.insert(
            ticket,
            Entry {
                task,
                uid,
                issued: now,
            },
        );
        Some(ticket.to_vec())
    }

    fn redeem(&self, ticket: &[u8; TICKET], uid: Option<u32>, now: Instant) -> Option<T> {
        let mut all = lock(&self.0);
        let entry = all.get(ticket)?;
        if entry.uid != uid {
            // Left in place: another user's guess must not cost the owner its ticket.
            return None;
        }
        let entry = all.remove(ticket)?;
        (now.saturating_duration_since(entry.issued) < LIFE).then_some(entry.task)
    }

    /// Takes a ticket back; whether nobody had used it.
    pub(crate) fn withdraw(&self, ticket: &[u8]) -> bool {
        lock(&self.0).remove(ticket).is_some()
    }

    /// Lets go of tickets that are too old.
    pub(crate) fn expire(&self, now: Instant) {
        lock(&self.0).retain(|_, e| now.saturating_duration_since(e.issued) < LIFE);
    }
}

/// Answers on the side channel until stopped.
pub(crate) async fn serve(listener: UnixListener, tickets: Arc<Tickets>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = stop.cancelled() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let tickets = tickets.clone();
                tokio::spawn(async move {
                    let _place = place;
                    match tokio::time::timeout(PATIENCE, answer(stream, &tickets)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "side channel"),
                        Err(_) => tracing::debug!("a client of the side channel says nothing"),
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: those in use come back.
                tracing::warn!(%error, "cannot accept on the side channel");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, tickets: &Tickets) -> io::Result<()> {
    let uid = stream.peer_cred().ok().map(|c| c.uid());
    let mut ticket = [0; TICKET];
    stream.read_exact(&mut ticket).await?;
    let Some(task) = tickets.redeem(&ticket, uid, Instant::now()) else {
        return stream.write_all(&[REFUSED]).await;
    };
    let file = if task.is_complete() {
        task.store.file().map(Some)
    } else {
        task.store.growing_file()
    };
    let file = match file {
        Ok(Some(file)) => file,
        Ok(None) => return stream.write_all(&[GONE]).await,
        Err(error) => {
            tracing::warn!(task = %task.key().short(), %error, "no descriptor for a client");
            return stream.write_all(&[GONE]).await;
        }
    };
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [file.as_fd()];
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            let data = [IoSlice::new(&[GRANTED])];
            sendmsg(&stream, &data, &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ticket: &[u8]) -> [u8; TICKET] {
        ticket.try_into().unwrap()
    }

    #[test]
    fn a_ticket_is_for_one_user_once_and_for_a_minute() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let ticket = shown(&tickets.issue("a", Some(1), now).unwrap());
        assert_eq!(
            tickets.redeem(&ticket, Some(2), now),
            None,
            "another user's"
        );
        assert_eq!(tickets.redeem(&ticket, None, now), None, "nobody's");
        assert_eq!(tickets.redeem(&ticket, Some(1), now), Some("a"));
        assert_eq!(tickets.redeem(&ticket, Some(1), now), None, "used");
        let late = shown(&tickets.issue("b", Some(1), now).unwrap());
        assert_eq!(tickets.redeem(&late, Some(1), now + LIFE), None);
    }

    #[test]
    fn a_user_with_many_tickets_loses_its_own_oldest() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let others = shown(&tickets.issue(0, Some(2), now).unwrap());
        let at = |i: usize| now + Duration::from_millis(i as u64);
        let mine: Vec<_> = (0..=PER_USER)
            .map(|i| shown(&tickets.issue(i, Some(1), at(i)).unwrap()))
            .collect();
        assert_eq!(tickets.redeem(&mine[0], Some(1), at(0)), None);
        assert_eq!(tickets.redeem(&mine[1], Some(1), at(0)), Some(1));
        assert_eq!(tickets.redeem(&others, Some(2), at(0)), Some(0));
    }
}
