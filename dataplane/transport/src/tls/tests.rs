//! Against rustls' own streams, which is what earlier releases and everybody else speak.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::TlsConfig;
use crate::security::server_name;
use crate::writer::Output;
use dragonfly_proto::id::NodeId;

const NODE: NodeId = NodeId([1; 16]);

fn config() -> TlsConfig {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut named = CertificateParams::new(vec![crate::node_name(&NODE)]).unwrap();
    let uri = rcgen::SanType::URI("spiffe://m/peer/n".try_into().unwrap());
    named.subject_alt_names.push(uri);
    let cert = named.signed_by(&key, &ca).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    TlsConfig::new(vec![cert.der().clone()], &key, &[ca.der().clone()]).unwrap()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr: SocketAddr = listener.local_addr().unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

fn shared(stream: TcpStream) -> Shared {
    Shared(Arc::new(stream))
}

fn bytes(len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(len as u64);
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

/// Lengths around those of records and buffers.
const LENGTHS: [usize; 12] = [
    0, 1, 5, 16_383, 16_384, 16_385, 65_536, 69_632, 81_920, 100_000, 262_144, 1_000_003,
];

async fn heard(reader: &mut (impl AsyncRead + Unpin), len: usize) -> Vec<u8> {
    let mut got = vec![0; len];
    let mut done = 0;
    let mut rng = fastrand::Rng::with_seed(3);
    while done < len {
        // Any room, so that records are opened in place and elsewhere.
        let room = rng.usize(1..100_000).min(len - done);
        done += reader.read(&mut got[done..done + room]).await.unwrap();
    }
    got
}

#[tokio::test]
async fn rustls_as_a_server_understands_and_is_understood() {
    let config = config();
    let (ours, theirs) = sockets().await;
    let name = server_name(&NODE).unwrap();
    let (ours, theirs) = tokio::join!(
        connect(config.client, name, shared(ours)),
        TlsAcceptor::from(config.server).accept(theirs),
    );
    let (
        Tls {
            mut reader,
            mut writer,
            ..
        },
        mut theirs,
    ) = (ours.unwrap(), theirs.unwrap());
    for len in LENGTHS {
        let sent = bytes(len);
        let (said, got) = tokio::join!(writer.say(&sent), heard(&mut theirs, len));
        said.unwrap();
        assert!(got == sent, "{len} bytes from here");
        let (said, got) = tokio::join!(theirs.write_all(&sent), heard(&mut reader, len));
        said.unwrap();
        assert!(got == sent, "{len} bytes from there");
        // New keys, both ways, and what was held is given back.
        writer.keys.ask_update();
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        writer.rest();
        crate::reader::Input::rest(&mut reader);
    }
    theirs.shutdown().await.unwrap();
    assert_eq!(reader.read(&mut [0; 9]).await.unwrap(), 0, "an honest end");
}

#[tokio::test]
async fn rustls_as_a_client_understands_and_is_understood() {
    let config = config();
    let (theirs, ours) = sockets().await;
    let name = server_name(&NODE).unwrap();
    let (ours, theirs) = tokio::join!(
        accept(config.server, shared(ours)),
        TlsConnector::from(config.client).connect(name, theirs),
    );
    let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    assert!(crate::is_node(&ours.certificate.unwrap(), &NODE, "m").is_ok());
    let (mut reader, mut writer) = (ours.reader, ours.writer);
    for len in LENGTHS {
        let sent = bytes(len);
        let (said, got) = tokio::join!(theirs.write_all(&sent), heard(&mut reader, len));
        said.unwrap();
        assert!(got == sent, "{len} bytes from there");
        let (said, got) = tokio::join!(writer.say(&sent), heard(&mut theirs, len));
        said.unwrap();
        assert!(got == sent, "{len} bytes from here");
    }
    drop(theirs);
    let cut = reader.read(&mut [0; 9]).await.unwrap_err();
    assert_eq!(
        cut.kind(),
        io::ErrorKind::UnexpectedEof,
        "not an honest end"
    );
}

#[tokio::test]
async fn no_session_is_taken_up_again_without_its_certificate() {
    let config = config();
    for _ in 0..2 {
        let (theirs, ours) = sockets().await;
        let name = server_name(&NODE).unwrap();
        let (ours, theirs) = tokio::join!(
            connect(config.client.clone(), name, shared(ours)),
            TlsAcceptor::from(config.server.clone()).accept(theirs),
        );
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        theirs.write_all(b"x").await.unwrap();
        assert_eq!(heard(&mut ours.reader, 1).await, b"x");
        let kind = theirs.get_ref().1.handshake_kind().unwrap();
        assert_ne!(kind, rustls::HandshakeKind::Resumed);
    }
}

#[tokio::test]
async fn bytes_changed_on_the_way_end_the_connection_whatever_they_are() {
    let config = config();
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..60 {
        let (ours, between) = sockets().await;
        let (onwards, theirs) = sockets().await;
        let at = rng.usize(..6000);
        let change = tokio::spawn(async move {
            let (mut from, mut to) = (between.into_split(), onwards.into_split());
            let back = async { tokio::io::copy(&mut to.0, &mut from.1).await };
            let forth = async {
                let mut buf = vec![0; 1 << 16];
                let mut seen = 0;
                loop {
                    let n = from.0.read(&mut buf).await?;
                    if n == 0 {
                        return io::Result::Ok(());
                    }
                    if (seen..seen + n).contains(&at) {
                        buf[at - seen] ^= 0x10;
                    }
                    seen += n;
                    to.1.write_all(&buf[..n]).await?;
                }
            };
            let _ = tokio::join!(back, forth);
        });
        let name = server_name(&NODE).unwrap();
        let client = async {
            let mut stream = TlsConnector::from(config.client.clone())
                .connect(name, ours)
                .await?;
            stream.write_all(&bytes(8000)).await?;
            stream.read(&mut [0; 1]).await
        };
        let server = async {
            let mut tls = accept(config.server.clone(), shared(theirs)).await?;
            let mut got = vec![0; 8000];
            tls.reader.read_exact(&mut got).await?;
            io::Result::Ok(got)
        };
        let (_, got) = tokio::join!(
            tokio::time::timeout(std::time::Duration::from_secs(5), client),
            async {
                let got = server.await;
                change.abort();
                got
            }
        );
        assert!(got.is_err(), "byte {at} was changed and nobody noticed");
    }
}
