//! One question passed on as it is: status, headers and body of the answer go back to who asked, a
//! refusal's too. What a gateway needs, such as the registry mirror: its client is told what the
//! origin said and not what this crate makes of it.
//!
//! All of [`super`]'s promises hold: targets are checked, credentials stay with their origin.

use super::HttpSource;
use super::send::Wanted;
use crate::error::Result;
use crate::range::ByteRange;
use crate::secret::redact;
use crate::source::{Body, Request};
use http::{HeaderMap, Method};

/// What the origin answered, whatever it was.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, as they came. They may hold names of hosts behind the origin, no credentials of
    /// ours.
    pub headers: HeaderMap,
    /// The bytes; none after HEAD.
    pub body: Body,
}

/// What is done where the origin says that something is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirects {
    /// It is asked for there.
    Follow,
    /// That is the answer.
    Show,
}

impl HttpSource {
    /// Asks once, for these bytes or all. Makes no retries.
    ///
    /// # Errors
    /// There is no answer, or the target is refused by policy; a status is no error.
    pub async fn ask(
        &self,
        request: &Request,
        method: Method,
        range: Option<ByteRange>,
        redirects: Redirects,
    ) -> Result<Answer> {
        let wanted = Wanted {
            method,
            range,
            if_range: None,
            follow: redirects == Redirects::Follow,
            form: None,
        };
        self.answer(request, &wanted).await
    }

    /// Posts a form (`a=b&c=d`, encoded already). Redirects are not followed: what a form holds is for
    /// whom it was written for.
    ///
    /// # Errors
    /// There is no answer, or the target is refused by policy; a status is no error.
    pub async fn post(&self, request: &Request, form: &str) -> Result<Answer> {
        let wanted = Wanted {
            method: Method::POST,
            range: None,
            if_range: None,
            follow: false,
            form: Some(form),
        };
        self.answer(request, &wanted).await
    }

    async fn answer(&self, request: &Request, wanted: &Wanted<'_>) -> Result<Answer> {
        let without_body = wanted.method == Method::HEAD;
        let sent = self.send(request, request.url().clone(), wanted).await?;
        let (status, headers) = (
            sent.response.status().as_u16(),
            sent.response.headers().clone(),
        );
        let shown = redact(&sent.url);
        let body = if without_body {
            Body::empty(shown)
        } else {
            let expected = sent.response.content_length();
            self.body(sent.response, sent.origin, sent.permit, expected, shown)
        };
        Ok(Answer {
            status,
            headers,
            body,
        })
    }
}
