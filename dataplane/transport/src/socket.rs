//! TCP as the swarm wants it, and a socket that its reader and writer share.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// Unsent bytes beyond which a socket is not writable: what is bound to a socket can no longer be
/// chosen better, so little is bound.
const NOTSENT_LOWAT: u32 = 64 << 10;
/// What may be on its way to this side from the start, bytes: 8 Gbit/s over a millisecond. See [`tune`].
const RECEIVE: u32 = 1 << 20;
/// A peer that acknowledges nothing for this long is gone, whatever the kernel's retry count says.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets what both ends of a connection have.
///
/// The kernel begins with a receive window of 64 KiB and widens it by what is read within a round trip,
/// less what it finds still unread (Linux 6.16 and later). Who reads whole blocks always leaves the rest
/// of one unread, so the window stayed at that: 5 Mbit/s over 100 ms, 2.6 Gbit/s over 0.2 ms. A mark of
/// `RECEIVE` for what to wait for makes room for as much at once; unlike `SO_RCVBUF` it is not bounded by
/// `net.core.rmem_max`, and leaves the kernel to widen it further.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    set_receive_lowat(stream, RECEIVE)?;
    set_receive_lowat(stream, 1)?;
    let s = SockRef::from(stream);
    s.set_tcp_nodelay(true)?;
    s.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    s.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Has the kernel report the socket readable only when this many bytes are there (`SO_RCVLOWAT`,
/// socket(7)): a block is of no use before it is whole, and a wake-up for every few packets of it
/// is most of what a slow link costs. At the end of the stream and on errors it reports at once.
pub(crate) fn set_receive_lowat(stream: &TcpStream, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    #[expect(
        unsafe_code,
        reason = "no crate in the build has a safe call for this option"
    )]
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and the pointer and length
    // are those of a live integer, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the kernel knows of a connection (`TCP_INFO`, tcp(7)).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Info {
    /// Bytes that the other side has acknowledged in all.
    pub(crate) acked: u64,
    /// Bytes that came from it in all.
    pub(crate) received: u64,
    /// Bytes that were written and that it has not; a packet that is on its way counts as a full one.
    pub(crate) left: u64,
    /// The round trip, smoothed, with all queues in it.
    pub(crate) round_trip: Duration,
    /// The smallest round trip of the last minutes: the way itself, without the queues that downloads
    /// fill. Nothing before the first acknowledgement.
    pub(crate) min_round_trip: Option<Duration>,
}

/// Asks the kernel; nothing where it is older than 4.6.
pub(crate) fn info(stream: &TcpStream) -> Option<Info> {
    /// `struct tcp_info` of linux/tcp.h as far as it is wanted here; the libc crate's ends before.
    #[repr(C)]
    struct TcpInfo {
        _states: [u8; 16],
        mss: u32,
        _received_mss: u32,
        unacked_packets: u32,
        _before: [u32; 10],
        rtt_us: u32,
        _then: [u32; 12],
        bytes_acked: u64,
        bytes_received: u64,
        _further: [u32; 2],
        unsent_bytes: u32,
        min_rtt_us: u32,
    }
    const _: () = assert!(std::mem::offset_of!(TcpInfo, unacked_packets) == 24);
    const _: () = assert!(std::mem::offset_of!(TcpInfo, rtt_us) == 68);
    const _: () = assert!(std::mem::offset_of!(TcpInfo, bytes_acked) == 120);
    const _: () = assert!(std::mem::offset_of!(TcpInfo, min_rtt_us) == 148);
    let mut info = std::mem::MaybeUninit::<TcpInfo>::zeroed();
    let mut len = size_of::<TcpInfo>() as libc::socklen_t;
    #[expect(
        unsafe_code,
        reason = "no crate in the build has a safe call for this option"
    )]
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and the pointers are those of a
    // live integer and a live structure of plain integers, of which the kernel writes at most `len` bytes;
    // all zeroes are a value of that structure.
    let (result, info) = unsafe {
        let result = libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        );
        (result, info.assume_init())
    };
    let micros = |n: u32| Duration::from_micros(n.into());
    let is_known = result == 0 && len as usize >= size_of::<TcpInfo>();
    let on_the_way = u64::from(info.unacked_packets) * u64::from(info.mss);
    is_known.then(|| Info {
        acked: info.bytes_acked,
        received: info.bytes_received,
        left: on_the_way + u64::from(info.unsent_bytes),
        round_trip: micros(info.rtt_us),
        // All ones until there is a measurement.
        min_round_trip: (info.min_rtt_us != u32::MAX).then(|| micros(info.min_rtt_us)),
    })
}

/// Waits until the kernel would really take more: what tokio remembers of a socket is that no write
/// was refused so far, and what is unsent then may be far above the mark of [`tune`].
pub(crate) async fn bindable(stream: &TcpStream) -> io::Result<()> {
    stream.writable().await?;
    let asked = stream.try_io(Interest::WRITABLE, || {
        let mut fds = [PollFd::new(stream, PollFlags::OUT)];
        match rustix::event::poll(&mut fds, Some(&Timespec::default()))? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    });
    match asked {
        // Forgotten by tokio now: what it says next is the kernel's word.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => stream.writable().await,
        done => done,
    }
}

/// Writes bytes that more will follow at once, so that they share a packet with it.
pub(crate) async fn send_more(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            rustix::net::send(stream, bytes, flags).map_err(io::Error::from)
        });
        match sent {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A listener that can take its port again at once after a restart; dual-stack when the address is
/// the unspecified IPv6 one.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// One socket, read from one task and written from another without a lock between them; beneath TLS
/// it also lets the writer ask whether the kernel has room.
#[derive(Debug, Clone)]
pub(crate) struct Shared(pub(crate) Arc<TcpStream>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled();
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let mut got = None;
            let read = self.0.try_io(Interest::READABLE, || {
                let n = (&*SockRef::from(&*self.0)).read(room)?;
                got = Some(n);
                // Less than there was room for: the socket is empty, and to say so here saves the
                // call that would find it out. The end of the stream stays reported.
                if n > 0 && n < room.len() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match (got, read) {
                (Some(n), _) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
                (None, read) => return Poll::Ready(read),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(bufs) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}
