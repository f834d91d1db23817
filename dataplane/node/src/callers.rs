//! Connections of clients: so many in all, so many of one user, and none that says nothing.
//!
//! Over the bounds a connection is ended at once: clients ask again for a while, and none waits for a place
//! behind others that may never go. Once a client has said its first words, pings of HTTP/2 see whether it
//! is still there.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, UdsConnectInfo};

use crate::task::lock;

/// Connections in all, where the system allows so many descriptors.
const CONNECTIONS: usize = 2048;
/// Bytes of HTTP/2's preface, which each client sends at once.
const PREFACE: usize = 24;
/// How long nobody is accepted after the system refused one: descriptors that are in use come back.
const PAUSE: Duration = Duration::from_millis(200);
/// How often it is said that connections were ended.
const TELL: Duration = Duration::from_secs(60);

/// Connections that clients may have: a quarter of this process's descriptors at most, content and the mesh
/// need the rest.
pub(crate) fn most_connections() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    let quarter = descriptors.and_then(|n| usize::try_from(n / 4).ok());
    quarter.unwrap_or(CONNECTIONS).min(CONNECTIONS)
}

/// Clients that connect, for as long as this is asked for them. One that does not say its first words within
/// `patience` is ended.
pub(crate) fn callers(
    listener: UnixListener,
    connections: usize,
    patience: Duration,
) -> impl Stream<Item = io::Result<Caller>> {
    let places = Places::new(connections);
    futures::stream::unfold(
        (listener, places),
        move |(listener, mut places)| async move {
            let caller = loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        if let Some(place) = places.take(uid(&stream)) {
                            break Caller::new(stream, place, patience);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept clients; trying again");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            };
            Some((Ok(caller), (listener, places)))
        },
    )
}

fn uid(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok().map(|c| c.uid())
}

/// Connections by user; who the system does not name is one of them.
type Counts = HashMap<Option<u32>, usize>;

struct Places {
    taken: Arc<Mutex<Counts>>,
    in_all: usize,
    /// When it was last said that there was none.
    said: Option<Instant>,
}

impl Places {
    fn new(in_all: usize) -> Self {
        Self {
            taken: Arc::default(),
            in_all,
            said: None,
        }
    }

    /// A place for a connection of this user, who has half of all at most.
    fn take(&mut self, uid: Option<u32>) -> Option<Place> {
        let mut taken = lock(&self.taken);
        let (all, own) = (taken.values().sum::<usize>(), taken.get(&uid).copied());
        let own = own.unwrap_or(0);
        if all < self.in_all && own < self.in_all.div_ceil(2) {
            taken.insert(uid, own + 1);
            let taken = self.taken.clone();
            return Some(Place { taken, uid });
        }
        drop(taken);
        if self.said.is_none_or(|said| said.elapsed() > TELL) {
            self.said = Some(Instant::now());
            tracing::warn!(
                uid,
                own,
                all,
                "too many connections of clients: new ones are ended"
            );
        }
        None
    }
}

/// One of the connections that there may be, until this is dropped.
struct Place {
    taken: Arc<Mutex<Counts>>,
    uid: Option<u32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(own) = taken.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

/// A client's connection.
pub(crate) struct Caller {
    stream: UnixStream,
    /// Bytes of its first words that are still to come, and until when.
    silent: Option<(usize, Pin<Box<Sleep>>)>,
    _place: Place,
}

impl Caller {
    fn new(stream: UnixStream, place: Place, patience: Duration) -> Self {
        Self {
            stream,
            silent: Some((PREFACE, Box::pin(tokio::time::sleep(patience)))),
            _place: place,
        }
    }

    /// So many bytes came.
    fn heard(&mut self, bytes: usize) {
        self.silent = self.silent.take().and_then(|(left, until)| {
            let left = left.saturating_sub(bytes);
            (left > 0).then_some((left, until))
        });
    }
}

impl Connected for Caller {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(read) => {
                self.heard(buf.filled().len() - before);
                Poll::Ready(read)
            }
            Poll::Pending => match &mut self.silent {
                Some((_, until)) => {
                    ready!(until.as_mut().poll(cx));
                    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                }
                None => Poll::Pending,
            },
        }
    }
}

impl AsyncWrite for Caller {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_half_of_the_places_at_most_and_one_that_is_left_is_had_again() {
        let mut places = Places::new(4);
        let first: Vec<_> = (0..3).map(|_| places.take(Some(1))).collect();
        assert_eq!(first.iter().flatten().count(), 2);
        let others: Vec<_> = [2, 3, 4].map(|uid| places.take(Some(uid))).into();
        assert_eq!(others.iter().flatten().count(), 2, "four in all");
        drop(first);
        assert!(places.take(Some(1)).is_some());
        drop(others);
        assert!(lock(&places.taken).is_empty());
    }
}
