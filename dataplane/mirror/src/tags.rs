//! Tags: the registry is asked each time what one means.
//!
//! What a tag meant is remembered for each who was let in, and only where policy says that it may be
//! answered with: a registry that says no (or that there is no such tag) is always believed, one that
//! does not answer is not.

use std::sync::{Mutex, PoisonError};

use dragonfly_node::limits::Recent;
use dragonfly_source::Error;
use dragonfly_source::http::{Answer as Said, Redirects};
use hyper::Method;
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, WARNING};

use crate::access::Granted;
use crate::answer::{self, Answer, DIGEST, set, set_length};
use crate::ask::Digest;
use crate::content;
use crate::server::Call;
use crate::settings::Tags;
use crate::upstream;

/// Tags remembered.
const MOST: usize = 4096;

/// What a tag meant to somebody.
#[derive(Debug, Clone)]
struct Meant {
    digest: Digest,
    len: u64,
    kind: String,
}

/// What tags meant last.
#[derive(Debug)]
pub(crate) struct Known(Mutex<Recent<[u8; 32], Meant>>);

impl Default for Known {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(MOST)))
    }
}

impl Known {
    fn get(&self, key: &[u8; 32]) -> Option<Meant> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).cloned()
    }

    fn put(&self, key: [u8; 32], meant: Meant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.put(key, meant);
    }
}

/// A manifest by a tag.
pub(crate) async fn answer(call: &Call, tag: &str) -> Answer {
    let request = match upstream::request(call, &call.wanted) {
        Ok(request) => request,
        Err(refusal) => return refusal.answer(),
    };
    // What a tag means may depend on what the client can read.
    let accepts = call.headers.get_all(ACCEPT).iter();
    let accepts: Vec<_> = accepts.filter_map(|a| a.to_str().ok()).collect();
    let what = format!("{tag} {}", accepts.join(","));
    let key = call.shared.access.key(call.who, &call.wanted, &what);
    let said = upstream::ask(call, &request, &Method::HEAD, None, Redirects::Follow).await;
    if !is_silent(&said) {
        return match said {
            Ok(said) if said.status < 300 => meant(call, said, key).await,
            // A HEAD has no body to pass on.
            Ok(said) if call.method == Method::HEAD => upstream::pass_on(call, said),
            Ok(_) => upstream::pass(call).await,
            Err(error) => upstream::no_answer(call, &error),
        };
    }
    let last = match call.settings.tags {
        Tags::LastKnown => call.shared.tags.get(&key),
        Tags::Revalidate => None,
    };
    let Some(last) = last else {
        return match said {
            Ok(said) if call.method == Method::HEAD => upstream::pass_on(call, said),
            Ok(_) => upstream::pass(call).await,
            Err(error) => upstream::no_answer(call, &error),
        };
    };
    call.shared.metrics.stale_tags.inc();
    tracing::warn!(
        registry = call.wanted.registry,
        repository = call.wanted.repository,
        tag,
        digest = %last.digest,
        "the registry does not answer: the tag means what it last meant"
    );
    let mut answer = give(call, &last).await;
    let stale = HeaderValue::from_static("110 dragonfly \"the registry does not answer\"");
    answer.headers_mut().insert(WARNING, stale);
    answer
}

/// Whether a registry gave no word on what was asked.
pub(crate) fn is_silent(said: &Result<Said, Error>) -> bool {
    match said {
        Ok(said) => said.status >= 500,
        Err(error) => error.is_temporary(),
    }
}

/// The registry said what the tag means now.
async fn meant(call: &Call, said: Said, key: [u8; 32]) -> Answer {
    let header = |name| answer::text(&said.headers, name);
    let digest = answer::text(&said.headers, DIGEST)
        .and_then(Digest::read)
        .filter(Digest::is_sha256);
    let len = header(CONTENT_LENGTH).and_then(|len| len.parse().ok());
    let kind = header(CONTENT_TYPE).map(str::to_owned);
    let (Some(digest), Some(len), Some(kind)) = (digest, len, kind) else {
        // A registry that does not say it at a HEAD says it with the body.
        return if call.method == Method::HEAD {
            upstream::pass_on(call, said)
        } else {
            upstream::pass(call).await
        };
    };
    let meant = Meant { digest, len, kind };
    let granted = Granted::new(Some(meant.len), Some(meant.kind.clone()));
    let access = &call.shared.access;
    access.grant(call.who, &call.wanted, &meant.digest, granted);
    call.shared.tags.put(key, meant.clone());
    give(call, &meant).await
}

async fn give(call: &Call, meant: &Meant) -> Answer {
    if call.method == Method::HEAD {
        let mut answer = answer::whole(200, "");
        let headers = answer.headers_mut();
        set(headers, DIGEST, meant.digest.as_str());
        set(headers, CONTENT_TYPE, &meant.kind);
        set_length(headers, meant.len);
        return answer;
    }
    let by_digest = Call {
        wanted: call.wanted.manifest(meant.digest.clone()),
        ..call.clone()
    };
    content::answer(&by_digest, &meant.digest).await
}
