//! What is shown to registries for clients that show nothing: a pull secret, or what the registry's token
//! service gives for it.
//!
//! 1. The registry is asked without anything; its 401 says how it wants to be asked (`Basic`, or `Bearer`
//!    with the address of a token service).
//! 2. `Basic`: the secret itself. `Bearer`: a token for pulls from this one repository, by GET with the
//!    secret (Docker Hub, Harbor, Google), or by POST of a refresh token (Azure).
//!
//! Invariants: tokens are in memory alone, each for one repository, until shortly before they expire; no
//! text of an error, log or `Debug` holds one; a secret goes to the registry that it is for and to the
//! token service that this registry names, over TLS where the registry is reached over TLS.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dragonfly_node::limits::Recent;
use dragonfly_source::Request;
use dragonfly_source::http::{Answer as Said, HttpSource, Redirects};
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap, WWW_AUTHENTICATE};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::ask::Wanted;
use crate::secrets::{Login, Secrets};

/// Files are looked at again after this: the kubelet renews what it mounted about once a minute.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// Tokens kept.
const MOST: usize = 1024;
/// How long a token counts whose service does not say.
const DEFAULT: Duration = Duration::from_secs(60);
/// No token counts for longer here.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long it counts that a registry wants nothing.
const NOTHING: Duration = Duration::from_secs(60);
/// How long nothing is asked for again after it was not to be had.
const FAILED: Duration = Duration::from_secs(10);
/// Longest answer of a token service.
const ANSWER: usize = 256 << 10;
/// How long registry and token service may take together: after that the registry is asked without, and
/// a runtime waits 30 s for all of it.
const PATIENCE: Duration = Duration::from_secs(8);

/// The pull secrets below a directory, and what token services gave for them.
pub struct PullSecrets {
    directory: PathBuf,
    read: Mutex<Option<(Instant, Arc<Secrets>)>>,
    tokens: Mutex<Recent<[u8; 32], Place>>,
}

/// One repository's token; whoever comes second waits for the first one's.
type Place = Arc<tokio::sync::Mutex<Option<Kept>>>;

struct Kept {
    /// For which login.
    login: Login,
    /// `None`: the registry wants nothing.
    authorization: Option<Zeroizing<String>>,
    until: Instant,
}

impl std::fmt::Debug for PullSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PullSecrets({})", self.directory.display())
    }
}

/// What is shown for a client.
pub(crate) struct Shown {
    /// `None`: nothing, for the registry wants nothing, or nothing was to be had from its token service.
    pub(crate) authorization: Option<Zeroizing<String>>,
    /// Whose it is: the same for as long as the secret is the same.
    pub(crate) identity: Zeroizing<String>,
}

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl PullSecrets {
    /// Those of Secrets that are mounted below a directory, or will be: `DIR/NAME/.dockerconfigjson`.
    #[must_use]
    pub fn below(directory: PathBuf) -> Self {
        Self {
            directory,
            read: Mutex::default(),
            tokens: Mutex::new(Recent::new(MOST)),
        }
    }

    fn secrets(&self) -> Arc<Secrets> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, secrets)) = &*read
            && at.elapsed() < LOOK_AGAIN
        {
            return secrets.clone();
        }
        let (found, wrong) = Secrets::load(&self.directory);
        for (path, why) in wrong {
            tracing::warn!(path = %path.display(), why, "a pull secret cannot be read");
        }
        let found = Arc::new(found);
        *read = Some((Instant::now(), found.clone()));
        found
    }

    /// What to show at a registry (its URL) for a repository; `None` where no secret is for it.
    pub(crate) async fn shown(
        &self,
        http: &HttpSource,
        url: &str,
        wanted: &Wanted,
    ) -> Option<Shown> {
        let (registry, repository) = (&wanted.registry, &wanted.repository);
        let login = self.secrets().of(registry, repository)?.clone();
        let identity = login.identity();
        let place = self.place(registry, repository);
        let mut kept = place.lock().await;
        let good = kept
            .as_ref()
            .filter(|kept| kept.login == login && kept.until > Instant::now());
        if good.is_none() {
            let asked = obtain(http, url, wanted, &login);
            let given = tokio::time::timeout(PATIENCE, asked).await;
            let given = given.unwrap_or_else(|_| Err(format!("nothing came for {PATIENCE:?}")));
            let (authorization, good_for) = given.unwrap_or_else(|why| {
                tracing::warn!(registry, repository, why, "a pull secret is of no use");
                (None, FAILED)
            });
            *kept = Some(Kept {
                login,
                authorization,
                until: Instant::now() + good_for,
            });
        }
        Some(Shown {
            authorization: kept.as_ref().and_then(|kept| kept.authorization.clone()),
            identity,
        })
    }

    /// The registry did not let in who showed it.
    pub(crate) fn forget(&self, wanted: &Wanted) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.remove(&key(&wanted.registry, &wanted.repository));
        drop(tokens);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been replaced by now.
        *read = None;
    }

    fn place(&self, registry: &str, repository: &str) -> Place {
        let key = key(registry, repository);
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = tokens.get(&key) {
            return place.clone();
        }
        let place = Place::default();
        tokens.put(key, place.clone());
        place
    }
}

fn key(registry: &str, repository: &str) -> [u8; 32] {
    // Neither holds a blank.
    *blake3::hash(format!("{registry} {repository}").as_bytes()).as_bytes()
}

type Given = (Option<Zeroizing<String>>, Duration);

/// Asks the registry how it wants to be asked, and its token service where it has one.
async fn obtain(
    http: &HttpSource,
    url: &str,
    wanted: &Wanted,
    login: &Login,
) -> Result<Given, String> {
    if let Login::Bearer(token) = login {
        return Ok((Some(bearer(token)), LONGEST));
    }
    let Some(challenge) = challenge(http, url, wanted).await? else {
        return Ok((None, NOTHING));
    };
    let (realm, service, scope) = match challenge {
        Challenge::Basic => {
            let Login::Password(user, password) = login else {
                return Err("the registry wants a user and a password".to_owned());
            };
            return Ok((Some(Login::basic(user, password)), LONGEST));
        }
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => (realm, service, scope),
    };
    if url.starts_with("https://") && !realm.starts_with("https://") {
        return Err("the registry names a token service without TLS".to_owned());
    }
    // What it is for is said here and not by the registry: no more than this pull needs.
    let own = format!("repository:{}:pull", wanted.repository);
    let scope = scope
        .filter(|s| s.split(' ').any(|s| *s == own))
        .unwrap_or(own);
    let said = match login {
        Login::Password(user, password) => {
            let mut query = form(&[("scope", &scope), ("account", user)]);
            if let Some(service) = &service {
                query.push_str(&format!("&{}", form(&[("service", service)])));
            }
            let with = if realm.contains('?') { '&' } else { '?' };
            let request = request(&format!("{realm}{with}{query}"))?
                .with_header(AUTHORIZATION.as_str(), &Login::basic(user, password))
                .map_err(|e| e.to_string())?;
            http.ask(&request, Method::GET, None, Redirects::Follow)
                .await
        }
        Login::Refresh(token) => {
            let body = Zeroizing::new(form(&[
                ("grant_type", "refresh_token"),
                ("client_id", "dragonfly"),
                ("service", service.as_deref().unwrap_or_default()),
                ("scope", &scope),
                ("refresh_token", token),
            ]));
            http.post(&request(&realm)?, &body).await
        }
        Login::Bearer(_) => return Err("a token of the registry needs no other".to_owned()),
    };
    token(said.map_err(|e| e.to_string())?).await
}

/// `None`: the registry wants nothing.
async fn challenge(
    http: &HttpSource,
    url: &str,
    wanted: &Wanted,
) -> Result<Option<Challenge>, String> {
    // Some want nothing at `/v2/` and something below it.
    for (path, method) in [
        ("/v2/".to_owned(), Method::GET),
        (wanted.upstream_path(), Method::HEAD),
    ] {
        let request = request(&format!("{url}{path}"))?;
        let said = http.ask(&request, method, None, Redirects::Show).await;
        let said = said.map_err(|e| e.to_string())?;
        if said.status == 401 {
            let found = read_challenge(&said.headers);
            let text = "the registry's 401 names neither Basic nor Bearer";
            return found.map(Some).ok_or_else(|| text.to_owned());
        }
    }
    Ok(None)
}

fn request(url: &str) -> Result<Request, String> {
    Request::new(url).map_err(|e| e.to_string())
}

fn bearer(token: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("Bearer {token}"))
}

/// A token service's answer.
async fn token(mut said: Said) -> Result<Given, String> {
    let mut text = Zeroizing::new(vec![]);
    loop {
        match said.body.next_chunk().await {
            Ok(Some(bytes)) if text.len() + bytes.len() <= ANSWER => text.extend_from_slice(&bytes),
            Ok(Some(_)) => return Err("the token service's answer is too long".to_owned()),
            Ok(None) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    if said.status != 200 {
        // Its text may repeat what it was asked with.
        return Err(format!("the token service answers {}", said.status));
    }
    let answer: Value = serde_json::from_slice(&text)
        .map_err(|_| "the token service's answer is no JSON".to_owned())?;
    let given = ["token", "access_token"].iter().find_map(|field| {
        let given = answer.get(field).and_then(Value::as_str);
        given.filter(|given| !given.is_empty())
    });
    let given = given.ok_or("the token service gave no token")?;
    let printable = given.bytes().all(|b| b.is_ascii_graphic());
    if !printable {
        return Err("the token service gave what is no token".to_owned());
    }
    let good_for = answer.get("expires_in").and_then(Value::as_u64);
    let good_for = good_for.map_or(DEFAULT, Duration::from_secs).min(LONGEST);
    // A fetch that begins with it has to get through its questions.
    Ok((Some(bearer(given)), good_for.mul_f64(0.7)))
}

/// The first challenge that can be met.
fn read_challenge(headers: &HeaderMap) -> Option<Challenge> {
    let all = headers.get_all(WWW_AUTHENTICATE).iter();
    all.filter_map(|value| value.to_str().ok())
        .find_map(|text| {
            let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
            if scheme.eq_ignore_ascii_case("basic") {
                return Some(Challenge::Basic);
            }
            if !scheme.eq_ignore_ascii_case("bearer") {
                return None;
            }
            let parameter = |name: &str| {
                let found = parameters(rest).into_iter().find(|(n, _)| n == name);
                found.map(|(_, value)| value)
            };
            Some(Challenge::Bearer {
                realm: parameter("realm")?,
                service: parameter("service"),
                scope: parameter("scope"),
            })
        })
}

/// `a="b, c",d=e`.
fn parameters(text: &str) -> Vec<(String, String)> {
    let (mut all, mut rest) = (vec![], text);
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let after = after.trim_start();
        let (value, left) = if let Some(quoted) = after.strip_prefix('"') {
            let mut value = String::new();
            let (mut escaped, mut end) = (false, quoted.len());
            for (at, c) in quoted.char_indices() {
                match c {
                    _ if escaped => {
                        value.push(c);
                        escaped = false;
                    }
                    '\\' => escaped = true,
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    _ => value.push(c),
                }
            }
            (value, quoted.get(end..).unwrap_or_default())
        } else {
            let end = after.find(',').unwrap_or(after.len());
            let value = after.get(..end).unwrap_or_default().trim().to_owned();
            (value, after.get(end..).unwrap_or_default())
        };
        all.push((name, value));
        rest = left;
    }
    all
}

/// `a=b&c=d`, encoded.
fn form(fields: &[(&str, &str)]) -> String {
    let encoded = |text: &str| {
        let mut out = String::new();
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
        out
    };
    let pairs = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)));
    pairs.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn challenge_of(text: &str) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, text.parse().ok()?);
        read_challenge(&headers)
    }

    /// As the registries' documents print them.
    #[test]
    fn challenges_of_registries_are_understood() {
        let bearer = |realm: &str, service: &str, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: Some(service.to_owned()),
                scope: scope.map(str::to_owned),
            })
        };
        let rows = [
            (
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\"",
                bearer("https://auth.docker.io/token", "registry.docker.io", None),
            ),
            (
                "Bearer realm=\"https://harbor.test/service/token\", service=\"harbor-registry\", scope=\"repository:a/b:pull,push\"",
                bearer(
                    "https://harbor.test/service/token",
                    "harbor-registry",
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (
                "bearer REALM=\"https://a.azurecr.io/oauth2/token\",service=a.azurecr.io",
                bearer("https://a.azurecr.io/oauth2/token", "a.azurecr.io", None),
            ),
            (
                "Basic realm=\"https://1.dkr.ecr.eu-west-1.amazonaws.com/\",service=\"ecr.amazonaws.com\"",
                Some(Challenge::Basic),
            ),
            ("Negotiate", None),
            ("Bearer service=\"x\"", None),
            ("", None),
        ];
        for (text, wanted) in rows {
            assert_eq!(challenge_of(text), wanted, "{text}");
        }
    }

    #[test]
    fn forms_are_encoded() {
        let text = form(&[("scope", "repository:a/b:pull"), ("t", "x&y=z %+")]);
        assert_eq!(text, "scope=repository%3Aa%2Fb%3Apull&t=x%26y%3Dz%20%25%2B");
    }

    proptest! {
        #[test]
        fn any_challenge_is_read(text in ".{0,200}") {
            let _ = challenge_of(&text);
            let _ = parameters(&text);
        }
    }
}
