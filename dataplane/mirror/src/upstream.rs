//! How registries are asked, and how their answers are passed on.
//!
//! Of a client's headers only `Authorization` and `Accept` go along; of an answer's only those that
//! the registry API knows come back.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use dragonfly_proto::rpc;
use dragonfly_source::http::{Answer as Said, Redirects};
use dragonfly_source::{ByteRange, Error, Fault, Kind as Why, Request};
use hyper::Method;
use hyper::body::Frame;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    LAST_MODIFIED, LINK, RETRY_AFTER, WARNING, WWW_AUTHENTICATE,
};

use crate::answer::{self, Answer, Code, DIGEST, Out, Refusal};
use crate::ask::{Digest, Kind, Wanted};
use crate::server::Call;
use crate::settings::Upstream;

/// Headers of a registry's answer that are passed on, beside `Link`.
const PASSED_ON: [HeaderName; 14] = [
    CONTENT_LENGTH,
    CONTENT_TYPE,
    DIGEST,
    ETAG,
    LAST_MODIFIED,
    RETRY_AFTER,
    WARNING,
    WWW_AUTHENTICATE,
    answer::VERSION,
    HeaderName::from_static("oci-filters-applied"),
    HeaderName::from_static("oci-subject"),
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("docker-ratelimit-source"),
];

/// What manifests there are: what is asked for by digest is one of them, whatever a client takes.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws, */*";

/// How often a registry that fails for itself is asked again.
const AGAIN: usize = 2;
const PAUSE: Duration = Duration::from_millis(200);
/// How long a registry may take to begin its answer: a runtime waits 30 s for this one's.
const ANSWER: Duration = Duration::from_secs(20);

/// The client's own headers that go to the registry.
pub(crate) fn headers(wanted: &Wanted, headers: &HeaderMap) -> Vec<(HeaderName, String)> {
    let mut all = vec![];
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).ok();
    if let Some(value) = headers.get(AUTHORIZATION).and_then(text) {
        all.push((AUTHORIZATION, value));
    }
    match &wanted.kind {
        Kind::Manifest(_) => all.push((ACCEPT, MANIFESTS.to_owned())),
        Kind::Blob(_) => {}
        _ => {
            let said = headers.get_all(ACCEPT).iter().filter_map(text);
            all.extend(said.take(32).map(|value| (ACCEPT, value)));
        }
    }
    all
}

/// Content by digest as the mesh is asked for it: the one name that it has, whoever asks.
pub(crate) fn source(
    upstream: &Upstream,
    wanted: &Wanted,
    digest: &Digest,
    client: &HeaderMap,
) -> rpc::Source {
    let header = |(name, value): (HeaderName, String)| rpc::Header {
        name: name.as_str().to_owned(),
        value,
    };
    rpc::Source {
        url: format!("{}{}", upstream.url, wanted.upstream_path()),
        headers: headers(wanted, client).into_iter().map(header).collect(),
        digest: digest.as_str().to_owned(),
        filtered_query: vec![],
        domain: upstream.domain.clone(),
        sealed: None,
        apart: false,
    }
}

/// A call's request at its registry.
pub(crate) fn request(call: &Call, wanted: &Wanted) -> Result<Request, Refusal> {
    let url = format!("{}{}", call.upstream.url, wanted.upstream_path());
    let wrong = |e: Error| Refusal::new(400, Code::NameInvalid, e.to_string());
    let mut request = Request::new(&url).map_err(wrong)?;
    for (name, value) in headers(wanted, &call.headers) {
        request = request.with_header(name.as_str(), &value).map_err(wrong)?;
    }
    Ok(request)
}

/// Asks the registry, for these bytes or all; a failure of its own once more.
pub(crate) async fn ask(
    call: &Call,
    request: &Request,
    method: &Method,
    range: Option<ByteRange>,
    redirects: Redirects,
) -> Result<Said, Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        call.shared.metrics.upstream_requests.inc();
        let http = call.shared.http();
        let asked = http.ask(request, method.clone(), range, redirects);
        let said = tokio::time::timeout(ANSWER, asked)
            .await
            .unwrap_or_else(|_| {
                let text = format!("{} said nothing for {ANSWER:?}", request.display());
                Err(Error::temporary(Why::Stalled, Fault::Origin, text))
            });
        let passes = match &said {
            Ok(said) => matches!(said.status, 500 | 502 | 504),
            // Nobody listens: that does not pass within a moment, and the runtime has other hosts.
            Err(error) => error.is_temporary() && error.kind() == Why::Interrupted,
        };
        if !passes || tries >= AGAIN {
            return said;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks for what a call is about and passes the answer on, whatever it is.
pub(crate) async fn pass(call: &Call) -> Answer {
    let request = match request(call, &call.wanted) {
        Ok(request) => request,
        Err(refusal) => return refusal.answer(),
    };
    match ask(call, &request, &call.method, None, Redirects::Follow).await {
        Ok(said) => pass_on(call, said),
        Err(error) => no_answer(call, &error),
    }
}

/// What a registry said, as a client of the mirror has to see it.
pub(crate) fn pass_on(call: &Call, said: Said) -> Answer {
    if said.status >= 400 {
        call.shared.metrics.refused_upstream.inc();
        tracing::debug!(
            registry = call.wanted.registry,
            repository = call.wanted.repository,
            status = said.status,
            "the registry refuses"
        );
    }
    let (mut answer, out) = answer::flowing(said.status);
    for name in PASSED_ON {
        for value in said.headers.get_all(&name) {
            if name == answer::VERSION {
                answer.headers_mut().insert(name.clone(), value.clone());
            } else {
                answer.headers_mut().append(name.clone(), value.clone());
            }
        }
    }
    for value in said.headers.get_all(LINK) {
        let led = value.to_str().ok().and_then(|v| link(v, &call.wanted));
        if let Some(led) = led.and_then(|v| HeaderValue::from_str(&v).ok()) {
            answer.headers_mut().append(LINK, led);
        }
    }
    if call.method == Method::HEAD {
        return answer;
    }
    tokio::spawn(copy(said, out));
    answer
}

async fn copy(mut said: Said, out: Out) {
    loop {
        let frame = match said.body.next_chunk().await {
            Ok(Some(bytes)) => Ok(Frame::data(bytes)),
            Ok(None) => return,
            Err(error) => Err(io::Error::other(error)),
        };
        let over = frame.is_err();
        // A client that closes early is no error.
        if out.send(frame).await.is_err() || over {
            return;
        }
    }
}

/// No answer came: the runtime goes to its next host.
pub(crate) fn no_answer(call: &Call, error: &Error) -> Answer {
    tracing::warn!(registry = call.wanted.registry, %error, "the registry does not answer");
    let text = error.to_string();
    match error.kind() {
        Why::Refused => Refusal::new(403, Code::Denied, text).answer(),
        _ => Refusal::unavailable(text).answer(),
    }
}

/// A `Link` to the next page of a list, as a client of the mirror has to follow it.
pub(crate) fn link(value: &str, wanted: &Wanted) -> Option<String> {
    let (target, rest) = value.strip_prefix('<')?.split_once('>')?;
    // Registries give a path or their own URL.
    let path = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..))?,
        None => target,
    };
    let below = path.strip_prefix("/v2/")?;
    let led = if wanted.in_path {
        format!("/v2/{}/{below}", wanted.registry)
    } else {
        let with = if below.contains('?') { '&' } else { '?' };
        let ns = wanted.registry.replace(':', "%3A");
        format!("{path}{with}ns={ns}")
    };
    Some(format!("<{led}>{rest}"))
}

/// An error of the body for who serves it: the connection ends, so that the client knows that it did
/// not get all.
pub(crate) fn cut(why: &str) -> io::Result<Frame<Bytes>> {
    Err(io::Error::other(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_a_list_are_followed_through_the_mirror() {
        let by_query = Wanted::read("/v2/a/tags/list", Some("n=1&ns=r.test:5000")).unwrap();
        let by_path = Wanted::read("/v2/r.test/a/tags/list", None).unwrap();
        let rows = [
            (
                "</v2/a/tags/list?last=x&n=1>; rel=\"next\"",
                "</v2/a/tags/list?last=x&n=1&ns=r.test%3A5000>; rel=\"next\"",
                "</v2/r.test/a/tags/list?last=x&n=1>; rel=\"next\"",
            ),
            (
                "<https://r.test/v2/a/tags/list>; rel=next",
                "</v2/a/tags/list?ns=r.test%3A5000>; rel=next",
                "</v2/r.test/a/tags/list>; rel=next",
            ),
        ];
        for (said, query, path) in rows {
            assert_eq!(link(said, &by_query).as_deref(), Some(query));
            assert_eq!(link(said, &by_path).as_deref(), Some(path));
        }
        for nonsense in ["", "<", "<x>", "</other>", "<https://r.test>", "x</v2/a>"] {
            assert_eq!(link(nonsense, &by_query), None, "{nonsense}");
        }
    }
}
