//! A registry that fails as it is told: what it has is the cluster's registry's.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    /// What a registry does.
    Well,
    /// Every answer is this one.
    Status(u16),
    /// Bodies of the layer end after so many bytes.
    Cut(u64),
    /// So many bytes a second of the layer.
    Slow(u64),
    /// A byte of the layer is another.
    Wrong,
    /// Connections are closed before anything is said.
    Gone,
}

struct State {
    mode: Mode,
    /// What faults of bodies are about.
    layer: String,
    /// Bytes of it that were sent.
    sent: u64,
}

/// The gate, on an address that nodes reach.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

impl Gate {
    pub(crate) async fn before(registry: &str) -> Self {
        // The address of this machine that the registry's machine sees.
        let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
        probe.connect(registry).unwrap();
        let own = probe.local_addr().unwrap().ip();
        let listener = TcpListener::bind((own, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            mode: Mode::Well,
            layer: String::new(),
            sent: 0,
        }));
        let (registry, shared) = (registry.to_owned(), state.clone());
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (registry, state) = (registry.clone(), shared.clone());
                if state.lock().unwrap().mode == Mode::Gone {
                    continue;
                }
                tokio::spawn(async move {
                    let service =
                        service_fn(move |request| answer(registry.clone(), state.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, state }
    }

    /// From now on, for this layer.
    pub(crate) fn does(&self, mode: Mode, layer: &str) {
        let mut state = self.state.lock().unwrap();
        if state.layer != layer {
            layer.clone_into(&mut state.layer);
            state.sent = 0;
        }
        state.mode = mode;
    }

    /// Bytes of the layer that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.state.lock().unwrap().sent
    }
}

fn gone(why: &str) -> std::io::Error {
    std::io::Error::other(why.to_owned())
}

async fn answer(
    registry: String,
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let (mode, layer) = {
        let state = state.lock().unwrap();
        (state.mode, state.layer.clone())
    };
    match mode {
        Mode::Gone => return Err(gone("the registry is gone")),
        Mode::Status(status) => {
            let text = "{\"errors\":[{\"code\":\"TOLD\",\"message\":\"said the gate\"}]}";
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
            let answer = Response::builder()
                .status(status)
                .header("content-type", "application/json");
            return Ok(answer.body(body.boxed_unsync()).unwrap());
        }
        _ => {}
    }
    let stream = TcpStream::connect(&registry).await?;
    let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    let (head, _) = request.into_parts();
    let mut asked = Request::builder().method(head.method).uri(head.uri.clone());
    for (name, value) in &head.headers {
        asked = asked.header(name, value);
    }
    let asked = asked.body(Empty::<Bytes>::new()).unwrap();
    let said = sender.send_request(asked).await;
    let (parts, body) = said.map_err(std::io::Error::other)?.into_parts();
    let is_layer = !layer.is_empty() && head.uri.path().ends_with(&layer);
    if !is_layer {
        let body = body.map_err(std::io::Error::other).boxed_unsync();
        return Ok(Response::from_parts(parts, body));
    }
    let mut within = 0_u64;
    let body = body.into_data_stream().then(move |bytes| {
        let (state, at) = (state.clone(), within);
        if let Ok(bytes) = &bytes {
            within += bytes.len() as u64;
        }
        async move {
            let mut bytes = bytes.map_err(std::io::Error::other)?.to_vec();
            // As it is by now: a registry may stop in the middle.
            let mode = state.lock().unwrap().mode;
            match mode {
                Mode::Gone => return Err(gone("the registry is gone")),
                Mode::Cut(after) if at >= after => return Err(gone("cut")),
                Mode::Slow(rate) => {
                    let time = bytes.len() as f64 / rate as f64;
                    tokio::time::sleep(Duration::from_secs_f64(time)).await;
                }
                Mode::Wrong => {
                    if let Some(byte) = bytes.first_mut().filter(|_| at > 0) {
                        *byte ^= 1;
                    }
                }
                _ => {}
            }
            state.lock().unwrap().sent += bytes.len() as u64;
            Ok(Frame::data(Bytes::from(bytes)))
        }
    });
    Ok(Response::from_parts(
        parts,
        StreamBody::new(body).boxed_unsync(),
    ))
}
