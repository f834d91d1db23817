//! TLS 1.3 of the pieces' connections: rustls shakes hands and keeps the keys, the records in between
//! are made and read here.
//!
//! rustls' own streams copy each byte four times on its way; a node that moves gigabytes feels it. Its
//! interface for kernels that encrypt themselves (`rustls::kernel`) gives the traffic keys after the
//! handshake, and with them a block is read from its file into the record it is sealed in, and opened
//! from the socket's buffer into the block's. The two directions share nothing but key updates.
//!
//! * `records`: one direction's keys and numbers, no IO (RFC 8446, section 5).
//! * `reading`, `writing`: the halves of a connection.

mod reading;
mod records;
mod writing;

pub(crate) use reading::TlsReader;
pub(crate) use writing::TlsWriter;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::socket::Shared;
use records::Direction;

/// A handshake's message and what came behind it; certificates of a mesh take a few KiB.
const MAX_INCOMING: usize = 64 << 10;
const FIRST_INCOMING: usize = 8 << 10;

/// A connection after its handshake.
pub(crate) struct Tls {
    pub(crate) reader: TlsReader,
    pub(crate) writer: TlsWriter,
    /// The other side's own certificate.
    pub(crate) certificate: Option<CertificateDer<'static>>,
}

/// What both halves need of the connection after its handshake.
pub(crate) struct Keys {
    kernel: Mutex<Kernel>,
    /// The other side asked for new keys of ours.
    update: AtomicBool,
}

enum Kernel {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

type Next = Result<(u64, ConnectionTrafficSecrets), rustls::Error>;

impl Keys {
    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_sending(&self) -> io::Result<Direction> {
        let next: Next = match &mut *self.kernel() {
            Kernel::Client(c) => c.update_tx_secret(),
            Kernel::Server(s) => s.update_tx_secret(),
        };
        Direction::new(next.map_err(wrong)?)
    }

    fn next_receiving(&self) -> io::Result<Direction> {
        let next: Next = match &mut *self.kernel() {
            Kernel::Client(c) => c.update_rx_secret(),
            Kernel::Server(s) => s.update_rx_secret(),
        };
        Direction::new(next.map_err(wrong)?)
    }

    /// For the next connection to the same node.
    fn keep_ticket(&self, payload: &[u8]) -> io::Result<()> {
        match &mut *self.kernel() {
            Kernel::Client(c) => c.handle_new_session_ticket(payload).map_err(wrong),
            Kernel::Server(_) => Err(records::bad("a session ticket from a client")),
        }
    }

    fn ask_update(&self) {
        self.update.store(true, Ordering::Relaxed);
    }

    fn take_update(&self) -> bool {
        self.update.load(Ordering::Relaxed) && self.update.swap(false, Ordering::Relaxed)
    }
}

/// rustls' word, that callers look for.
fn wrong(e: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

/// Shakes hands with who was dialled.
pub(crate) async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    socket: Shared,
) -> io::Result<Tls> {
    let mut conn = UnbufferedClientConnection::new(config, name).map_err(wrong)?;
    let shaken = shake(&mut conn, socket.clone()).await?;
    let certificate = first(conn.peer_certificates());
    let (secrets, kernel) = conn.dangerous_into_kernel_connection().map_err(wrong)?;
    shaken.into_tls(
        socket,
        secrets,
        Kernel::Client(Box::new(kernel)),
        certificate,
    )
}

/// Shakes hands with a caller.
pub(crate) async fn accept(config: Arc<ServerConfig>, socket: Shared) -> io::Result<Tls> {
    let mut conn = UnbufferedServerConnection::new(config).map_err(wrong)?;
    let shaken = shake(&mut conn, socket.clone()).await?;
    let certificate = first(conn.peer_certificates());
    let (secrets, kernel) = conn.dangerous_into_kernel_connection().map_err(wrong)?;
    shaken.into_tls(
        socket,
        secrets,
        Kernel::Server(Box::new(kernel)),
        certificate,
    )
}

fn first(chain: Option<&[CertificateDer<'_>]>) -> Option<CertificateDer<'static>> {
    chain?.first().map(|c| c.clone().into_owned())
}

/// Either side of a handshake.
trait Shaking {
    type Data;
    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn goes_on(&self) -> bool;
}

impl Shaking for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn goes_on(&self) -> bool {
        self.is_handshaking()
    }
}

impl Shaking for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn goes_on(&self) -> bool {
        self.is_handshaking()
    }
}

/// What came behind the handshake's last message.
#[derive(Default)]
struct Shaken {
    /// Opened already.
    early: Vec<u8>,
    /// Not opened yet.
    rest: Vec<u8>,
}

impl Shaken {
    fn into_tls(
        self,
        socket: Shared,
        secrets: ExtractedSecrets,
        kernel: Kernel,
        certificate: Option<CertificateDer<'static>>,
    ) -> io::Result<Tls> {
        let keys = Arc::new(Keys {
            kernel: Mutex::new(kernel),
            update: AtomicBool::new(false),
        });
        let (receiving, sending) = (Direction::new(secrets.rx)?, Direction::new(secrets.tx)?);
        Ok(Tls {
            reader: TlsReader::new(
                socket.clone(),
                receiving,
                keys.clone(),
                self.early,
                &self.rest,
            ),
            writer: TlsWriter::new(socket, sending, keys),
            certificate,
        })
    }
}

/// What to do next in a handshake.
enum Step {
    Again,
    Send,
    Read,
    Done,
    Closed,
}

async fn shake<C: Shaking>(conn: &mut C, mut socket: Shared) -> io::Result<Shaken> {
    let (mut incoming, mut used) = (vec![0; FIRST_INCOMING], 0);
    let mut outgoing = Vec::new();
    let mut early = Vec::new();
    loop {
        let UnbufferedStatus {
            mut discard, state, ..
        } = conn.step(&mut incoming[..used]);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut data, &mut outgoing)?;
                Ok(Step::Again)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Step::Send)
            }
            Ok(ConnectionState::ReadTraffic(mut data)) => {
                while let Some(record) = data.next_record() {
                    let record = record.map_err(wrong)?;
                    discard += record.discard;
                    early.extend_from_slice(record.payload);
                }
                Ok(Step::Again)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::Read),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Step::Closed),
            Ok(_) => Err(records::bad("data before the handshake")),
            Err(e) => Err(wrong(e)),
        };
        incoming.copy_within(discard..used, 0);
        used -= discard;
        let step = match step {
            Ok(Step::Done) if conn.goes_on() => Step::Read,
            Ok(step) => step,
            Err(e) => {
                // The other side is told why, if there is a way to.
                alert(conn, &mut incoming[..used], &mut outgoing);
                let _ = socket.write_all(&outgoing).await;
                return Err(e);
            }
        };
        match step {
            Step::Again => {}
            Step::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
            Step::Send | Step::Done => {
                socket.write_all(&outgoing).await?;
                outgoing.clear();
                if matches!(step, Step::Done) {
                    incoming.truncate(used);
                    return Ok(Shaken {
                        early,
                        rest: incoming,
                    });
                }
            }
            Step::Read => {
                if used == incoming.len() {
                    if used >= MAX_INCOMING {
                        return Err(records::bad("a handshake without end"));
                    }
                    incoming.resize(used * 2, 0);
                }
                match socket.read(&mut incoming[used..]).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => used += n,
                }
            }
        }
    }
}

/// What rustls has to say after an error. Asked once: when it has said it, it would look at the bytes
/// that it refused again.
fn alert<C: Shaking>(conn: &mut C, refused: &mut [u8], outgoing: &mut Vec<u8>) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = conn.step(refused).state {
        // Nobody hears it otherwise.
        let _ = encode(&mut data, outgoing);
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let at = outgoing.len();
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            required_size
        }
        Err(e) => return Err(io::Error::other(e)),
        Ok(_) => return Ok(()),
    };
    outgoing.resize(at + needed, 0);
    let written = data.encode(&mut outgoing[at..]).map_err(io::Error::other)?;
    outgoing.truncate(at + written);
    Ok(())
}

#[cfg(test)]
mod tests;
