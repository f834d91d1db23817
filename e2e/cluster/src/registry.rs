//! The cluster's registry: images are pushed to it and nodes really pull them.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, LOCATION};
use hyper::{Method, Request, StatusCode};

use dragonfly_e2e::{Failed, Result};

use crate::http::{Answer, ask};
use crate::image::{Image, MANIFEST};

/// The host in references to images: each node's containerd knows where it is.
pub(crate) const NAME: &str = "registry.test";
/// The image of the container that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "registry.test/pause:1";

/// A registry of one cluster.
#[derive(Debug, Clone)]
pub struct Registry {
    address: String,
}

impl Registry {
    pub(crate) const fn new(address: String) -> Self {
        Self { address }
    }

    /// Its `host:port`, over plain HTTP, for tests and for what runs in the cluster.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Pushes an image as `name:tag`, and returns the reference that pods name it by.
    ///
    /// # Errors
    /// The registry refuses it or does not answer.
    pub async fn push(&self, image: &Image, name: &str) -> Result<String> {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        for blob in image.blobs() {
            let at = format!("/v2/{repository}/blobs/{}", blob.digest);
            if self
                .ask(Method::HEAD, &at, None, Bytes::new())
                .await?
                .status
                == StatusCode::OK
            {
                continue;
            }
            let uploads = format!("/v2/{repository}/blobs/uploads/");
            let begun = self.ask(Method::POST, &uploads, None, Bytes::new()).await?;
            let begun = expect(begun, StatusCode::ACCEPTED, &uploads)?;
            let to = begun.headers.get(LOCATION).and_then(|to| to.to_str().ok());
            let to = to.ok_or_else(|| Failed::at(&uploads, "no Location in the answer"))?;
            // It may be a whole URL; the registry is where it was.
            let to = to
                .strip_prefix("http://")
                .and_then(|r| r.find('/').map(|n| &r[n..]))
                .unwrap_or(to);
            let with = if to.contains('?') { '&' } else { '?' };
            let to = format!("{to}{with}digest={}", blob.digest);
            let octets = Some((CONTENT_TYPE, "application/octet-stream"));
            let put = self.ask(Method::PUT, &to, octets, blob.bytes).await?;
            expect(put, StatusCode::CREATED, &uploads)?;
        }
        let at = format!("/v2/{repository}/manifests/{tag}");
        let kind = Some((CONTENT_TYPE, MANIFEST));
        let put = self
            .ask(Method::PUT, &at, kind, image.manifest().bytes)
            .await?;
        expect(put, StatusCode::CREATED, &at)?;
        Ok(format!("{NAME}/{repository}:{tag}"))
    }

    /// Asks the registry's API for something.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.ask(Method::GET, path, None, Bytes::new()).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        header: Option<(HeaderName, &str)>,
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|e| Failed::at(path, e))?;
        ask(&self.address, request).await
    }
}

fn expect(answer: Answer, status: StatusCode, at: &str) -> Result<Answer> {
    if answer.status == status {
        return Ok(answer);
    }
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    Err(Failed::at(
        at,
        format!("the registry answers {}: {said}", answer.status),
    ))
}
