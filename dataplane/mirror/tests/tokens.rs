//! Pull secrets that policy gives, at registries with the token services of those that people use.
//!
//! The services here are doubles, written from what each vendor publishes of its protocol; none of the
//! vendors was asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bed;
mod double;
#[path = "../../node/tests/kit/mod.rs"]
mod kit;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bed::{Bed, Peer, mirror_with, named, pull, settings};
use bytes::Bytes;
use double::{Double, Image, ask};
use dragonfly_mirror::{More, PullSecrets};
use dragonfly_node::node::Role;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kit::bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const REGISTRY: &str = "registry.test:5000";
/// Stands in all that is secret here.
const MARK: &str = "hunter2";

/// What a token service was asked.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    target: String,
    authorization: String,
    body: String,
}

/// A token service that answers as it is told to who asks as it wants.
struct Service {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<Mutex<Value>>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Service {
    async fn start(wants: fn(&Asked) -> bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(vec![]));
        let answer = Arc::new(Mutex::new(json!({})));
        let (seen, says) = (asked.clone(), answer.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, says) = (seen.clone(), says.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (seen, says) = (seen.clone(), says.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let authorization = head.headers.get("authorization");
                        let authorization = authorization.map(|v| v.to_str().unwrap().to_owned());
                        let one = Asked {
                            method: head.method.to_string(),
                            target: head.uri.to_string(),
                            authorization: authorization.unwrap_or_default(),
                            body: String::from_utf8_lossy(&body).into_owned(),
                        };
                        let status = if wants(&one) { 200 } else { 401 };
                        // A refusal that repeats what it was asked with, as bad ones do.
                        let text = match status {
                            200 => says.lock().unwrap().to_string(),
                            _ => format!("{one:?}"),
                        };
                        seen.lock().unwrap().push(one);
                        let answer = Response::builder().status(status);
                        Ok::<_, std::io::Error>(answer.body(Full::new(Bytes::from(text))).unwrap())
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self {
            addr,
            asked,
            answer,
            _task: tokio_util::task::AbortOnDropHandle::new(task),
        }
    }

    fn says(&self, answer: Value) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// All that this process logs.
fn logged() -> Arc<Mutex<Vec<u8>>> {
    struct Writer(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    static ALL: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let all = Arc::new(Mutex::new(vec![]));
        let to = all.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || Writer(to.clone()))
            .init();
        all
    });
    all.clone()
}

fn nothing_secret_was_logged() {
    let all = logged();
    let text = String::from_utf8_lossy(&all.lock().unwrap()).into_owned();
    assert!(
        text.contains("container runtimes are served"),
        "logs are seen"
    );
    let encoded = STANDARD.encode(format!("anna:{MARK}"));
    for secret in [MARK, encoded.as_str()] {
        let at = text.find(secret);
        let around = at.map(|at| &text[at.saturating_sub(300)..at]);
        assert!(
            around.is_none(),
            "a secret after …{}",
            around.unwrap_or_default()
        );
    }
}

fn write_secret(dir: &Path, auths: &Value) {
    let below = dir.join("0");
    std::fs::create_dir_all(&below).unwrap();
    let text = json!({"auths": auths}).to_string();
    std::fs::write(below.join(".dockerconfigjson"), text).unwrap();
}

/// A mesh with two peers that have a pull secret, a registry that wants to be asked in some way, and an
/// image in it that is read with one `Authorization` alone.
struct Place {
    registry: Double,
    image: Image,
    bed: Bed,
    dir: tempfile::TempDir,
}

impl Place {
    async fn start(challenge: &str, read_with: &str, auth: &Value) -> Self {
        logged();
        let registry = Double::start().await;
        let image = registry.push("team/app", "v1", &[bytes(300_000, 1), bytes(10, 2)]);
        registry.challenge(challenge);
        registry.protect("team/app", read_with);
        let dir = tempfile::tempdir().unwrap();
        write_secret(dir.path(), &json!({(REGISTRY): auth}));
        let settings = settings(vec![named(REGISTRY, &registry)]);
        let mut bed = Bed::start(0, &settings).await;
        for n in 1..=2 {
            let node = bed.mesh.node(n, Role::Peer).await;
            let more = More {
                secrets: Some(PullSecrets::below(dir.path().to_owned())),
            };
            bed.peers
                .push(mirror_with(node, settings.clone(), more).await);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        Self {
            registry,
            image,
            bed,
            dir,
        }
    }

    fn peers(&self) -> &[Peer] {
        &self.bed.peers
    }

    /// Both nodes' clients, who show nothing, get it; the registry sends each content once.
    async fn all_pull(&self) {
        for peer in self.peers() {
            let pulled = pull(peer.at, REGISTRY, &self.image, "v1", None).await;
            if let Err(answer) = pulled {
                panic!("{} {}", answer.status, answer.text());
            }
        }
        assert_eq!(self.registry.sent(&self.image.blobs[0]), 300_000);
        // Who shows something is asked about that, and is not helped.
        let path = format!("/v2/team/app/blobs/{}?ns={REGISTRY}", self.image.blobs[0]);
        let own = [("authorization", "Bearer somebody's own")];
        let answer = ask(self.peers()[0].at, "GET", &path, &own).await;
        assert_eq!(answer.status, 401, "{}", answer.text());
        nothing_secret_was_logged();
    }
}

fn bearer(service: &Service, path: &str, name: &str) -> String {
    format!(
        "Bearer realm=\"http://{}{path}\",service=\"{name}\"",
        service.addr
    )
}

/// <https://distribution.github.io/distribution/spec/auth/token/>: GET, Basic, `scope`, `service`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_hub_harbor_and_google_give_tokens_for_a_password() {
    let key = json!({"type": "service_account", "private_key": format!("-----BEGIN\n{MARK}:\n")});
    let key = key.to_string();
    let rows: [(&str, &str, &str, &str, Value); 4] = [
        // docs.docker.com: both fields, 300 s.
        (
            "/token",
            "registry.docker.io",
            "anna",
            MARK,
            json!({"token": "good-hunter2", "access_token": "good-hunter2", "expires_in": 300}),
        ),
        // goharbor.io: robots have a `$` in their names.
        (
            "/service/token",
            "harbor-registry",
            "robot$team+ci",
            MARK,
            json!({"token": "good-hunter2", "access_token": "", "expires_in": 1800}),
        ),
        // cloud.google.com/artifact-registry: a key's whole JSON, or a token of OAuth 2.
        (
            "/v2/token",
            "europe-docker.pkg.dev",
            "_json_key",
            &key,
            json!({"token": "good-hunter2", "expires_in": 3600}),
        ),
        (
            "/v2/token",
            "gcr.io",
            "oauth2accesstoken",
            "ya29.hunter2",
            json!({"token": "good-hunter2"}),
        ),
    ];
    for (path, name, user, password, says) in rows {
        let service = Service::start(|asked| asked.authorization.starts_with("Basic ")).await;
        service.says(says);
        let auth = STANDARD.encode(format!("{user}:{password}"));
        let challenge = bearer(&service, path, name);
        let place = Place::start(&challenge, "Bearer good-hunter2", &json!({"auth": auth})).await;
        place.all_pull().await;
        let asked = service.asked();
        assert_eq!(asked.len(), 2, "once by each node: {asked:?}");
        for one in asked {
            assert_eq!(one.method, "GET");
            assert_eq!(one.authorization, format!("Basic {auth}"));
            assert!(one.target.starts_with(path), "{}", one.target);
            assert!(one.target.contains("scope=repository%3Ateam%2Fapp%3Apull"));
            assert!(
                one.target.contains(&format!("service={name}")),
                "{}",
                one.target
            );
            assert!(!one.target.contains(MARK), "not in a URL: {}", one.target);
        }
    }
}

/// <https://learn.microsoft.com/azure/container-registry>: a refresh token is posted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_gives_tokens_for_a_refresh_token() {
    let service = Service::start(|asked| {
        let fields: Vec<&str> = asked.body.split('&').collect();
        asked.method == "POST"
            && asked.target == "/oauth2/token"
            && asked.authorization.is_empty()
            && fields.contains(&"grant_type=refresh_token")
            && fields.contains(&"service=team.azurecr.io")
            && fields.contains(&"scope=repository%3Ateam%2Fapp%3Apull")
            && fields.contains(&"refresh_token=eyJ.hunter2.%2B%2F")
    })
    .await;
    service.says(json!({"access_token": "good-hunter2"}));
    let challenge = bearer(&service, "/oauth2/token", "team.azurecr.io");
    let auth = json!({"auth": STANDARD.encode("00000000-0000-0000-0000-000000000000:"), "identitytoken": "eyJ.hunter2.+/"});
    let place = Place::start(&challenge, "Bearer good-hunter2", &auth).await;
    place.all_pull().await;
    assert_eq!(service.asked().len(), 2);
}

/// <https://docs.aws.amazon.com/AmazonECR>: no token service; `AWS` and a token of twelve hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amazon_takes_its_token_as_a_password() {
    let basic = format!("Basic {}", STANDARD.encode("AWS:hunter2"));
    let place = Place::start(
        "Basic realm=\"https://1.dkr.ecr.eu-west-1.amazonaws.com/\",service=\"ecr.amazonaws.com\"",
        &basic,
        &json!({"username": "AWS", "password": MARK}),
    )
    .await;
    place.all_pull().await;
    // Whoever renews the token writes the Secret anew: the next refusal has it read again.
    let renewed = format!("Basic {}", STANDARD.encode("AWS:hunter2-next"));
    place.registry.protect("team/app", &renewed);
    let auth = json!({"username": "AWS", "password": "hunter2-next"});
    write_secret(place.dir.path(), &json!({(REGISTRY): auth}));
    place.all_pull().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_renewed_and_refusals_are_the_registrys_own() {
    let service = Service::start(|asked| asked.authorization.starts_with("Basic ")).await;
    service.says(json!({"token": "good-hunter2", "expires_in": 1}));
    let challenge = bearer(&service, "/token", "s");
    let auth = json!({"username": "anna", "password": MARK});
    let place = Place::start(&challenge, "Bearer good-hunter2", &auth).await;
    place.all_pull().await;
    let before = service.asked().len();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    place.all_pull().await;
    assert!(
        service.asked().len() > before,
        "one that ran out is not used"
    );
    // One that was withdrawn is replaced within the same pull.
    service.says(json!({"token": "next-hunter2", "expires_in": 300}));
    place.registry.protect("team/app", "Bearer next-hunter2");
    place.all_pull().await;
    // What the secret does not open stays closed, and it is the registry that says so.
    place.registry.protect("team/app", "Bearer of-nobody");
    let refused = pull(place.peers()[0].at, REGISTRY, &place.image, "v1", None).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("www-authenticate"), challenge);
    // Neither does a service that gives nothing stand in the way of what is open to all.
    let open = place.registry.push("open/app", "v1", &[bytes(1000, 9)]);
    service.says(json!({"token": ""}));
    pull(place.peers()[0].at, REGISTRY, &open, "v1", None)
        .await
        .unwrap();
    nothing_secret_was_logged();
}
