//! From status and headers to metadata, or to an error that says whose move it is.
//!
//! Invariant: pure; what an answer means never depends on when or where it is read.

use super::headers;
use crate::error::{Error, Fault, Kind, Result};
use crate::metadata::Metadata;
use crate::range::{ByteRange, ContentRange, number};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use std::time::SystemTime;

/// What a good answer to a GET says.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) metadata: Metadata,
    /// Which bytes the body holds; the end is unknown for a chunked body of the whole.
    pub(crate) start: u64,
    pub(crate) end: Option<u64>,
}

/// The question that an answer belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// Redacted URL.
    pub(crate) shown: &'a str,
    pub(crate) range: Option<ByteRange>,
    pub(crate) expect: Option<&'a Metadata>,
    /// `If-Range` was sent, so a 206 proves the version.
    pub(crate) if_range: bool,
}

/// Reads the answer to a GET.
pub(crate) fn read(status: StatusCode, map: &HeaderMap, question: Question<'_>) -> Result<Answer> {
    let now = SystemTime::now();
    let shown = question.shown;
    let content_range = headers::text(map, &CONTENT_RANGE);
    let answer = match (status, question.range) {
        (StatusCode::PARTIAL_CONTENT, Some(asked)) => part(map, content_range, asked, question)?,
        (StatusCode::PARTIAL_CONTENT, None) => {
            return Err(protocol(format!(
                "{shown} answered 206 to a request without a range"
            )));
        }
        (StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION, asked) => whole(map, asked),
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(asked)) => {
            let total = match content_range.and_then(ContentRange::parse) {
                Some(ContentRange::Unsatisfied { total }) => Some(total),
                _ => None,
            };
            // No range of an empty content can be satisfied: this is how "0 bytes" is said.
            if total == Some(0) && asked.start() == 0 {
                Answer {
                    metadata: metadata(map, Some(0), true),
                    start: 0,
                    end: Some(0),
                }
            } else {
                return Err(unsatisfied(asked, total, question));
            }
        }
        _ => return Err(failure(status, map, shown, question.expect.is_some(), now)),
    };
    check_version(&answer, status, question)?;
    Ok(answer)
}

fn whole(map: &HeaderMap, asked: Option<ByteRange>) -> Answer {
    let total = headers::text(map, &CONTENT_LENGTH).and_then(number);
    let claimed = claims_ranges(map);
    // A 200 to a range means that ranges are ignored, unless everything was asked for anyway. For a
    // body without a length the claim stands: a resume may try it and loses nothing.
    let accepts = claimed
        && asked
            .zip(total)
            .is_none_or(|(asked, total)| asked.start() == 0 && total <= asked.end());
    Answer {
        metadata: metadata(map, total, accepts),
        start: 0,
        end: total,
    }
}

fn part(
    map: &HeaderMap,
    content_range: Option<&str>,
    asked: ByteRange,
    question: Question<'_>,
) -> Result<Answer> {
    let shown = question.shown;
    let Some(value) = content_range else {
        return Err(protocol(format!(
            "{shown} answered 206 without a Content-Range (several parts are not asked for)"
        )));
    };
    let Some(ContentRange::Part { range, total }) = ContentRange::parse(value) else {
        return Err(protocol(format!(
            "{shown} answered with an unreadable Content-Range `{}`",
            value.escape_debug().take(80).collect::<String>()
        )));
    };
    // It may end before what was asked for (RFC 9110 section 15.3.7), never elsewhere.
    if range.start() != asked.start() || range.end() > asked.end() {
        return Err(protocol(format!(
            "{shown} was asked for bytes {asked} and sent {range}"
        )));
    }
    if let Some(len) = headers::text(map, &CONTENT_LENGTH).and_then(number)
        && len != range.len()
    {
        return Err(Error::permanent(
            Kind::LengthMismatch,
            Fault::Origin,
            format!("{shown} says bytes {range} and {len} bytes in the same answer"),
        ));
    }
    let total = total.or(question.expect.and_then(|expect| expect.total_len));
    Ok(Answer {
        metadata: metadata(map, total, true),
        start: range.start(),
        end: Some(range.end()),
    })
}

fn check_version(answer: &Answer, status: StatusCode, question: Question<'_>) -> Result<()> {
    let Some(expect) = question.expect else {
        return Ok(());
    };
    // A 206 under `If-Range` may leave its validators out; anything else that had them must have
    // them again, or it is another version as far as anybody can tell.
    let proven = status == StatusCode::PARTIAL_CONTENT && question.if_range;
    let lost = !expect.validator.is_none() && answer.metadata.validator.is_none() && !proven;
    if lost || !expect.same_content(&answer.metadata) {
        return Err(changed(question.shown));
    }
    Ok(())
}

fn unsatisfied(asked: ByteRange, total: Option<u64>, question: Question<'_>) -> Error {
    let expected = question.expect.and_then(|expect| expect.total_len);
    if matches!((expected, total), (Some(a), Some(b)) if a != b) {
        return changed(question.shown);
    }
    let total = total.map_or_else(|| "less".to_owned(), |total| format!("{total} bytes"));
    Error::permanent(
        Kind::RangeNotSatisfiable,
        if expected.is_some() {
            Fault::Origin
        } else {
            Fault::Caller
        },
        format!("{} has no bytes {asked}: it has {total}", question.shown),
    )
    .with_status(416)
}

fn changed(shown: &str) -> Error {
    Error::permanent(
        Kind::ContentChanged,
        Fault::Origin,
        format!("{shown} changed under way: start again under a new content key"),
    )
}

fn protocol(text: String) -> Error {
    Error::permanent(Kind::Protocol, Fault::Origin, text)
}

fn claims_ranges(map: &HeaderMap) -> bool {
    headers::text(map, &ACCEPT_RANGES).is_some_and(|units| {
        units
            .split(',')
            .any(|unit| unit.trim().eq_ignore_ascii_case("bytes"))
    })
}

/// What the headers say about the whole content.
fn metadata(map: &HeaderMap, total_len: Option<u64>, accepts_ranges: bool) -> Metadata {
    Metadata {
        total_len,
        validator: headers::validator(map),
        accepts_ranges,
        content_type: headers::text(map, &CONTENT_TYPE).map(str::to_owned),
        content_encoding: headers::content_encoding(map),
        digest: headers::digest(map),
        final_url: None,
        freshness: headers::freshness(map, SystemTime::now()),
    }
}

/// What the answer to a HEAD says.
pub(crate) fn read_head(status: StatusCode, map: &HeaderMap, shown: &str) -> Result<Metadata> {
    match status {
        StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION => {
            let total = headers::text(map, &CONTENT_LENGTH).and_then(number);
            Ok(metadata(map, total, claims_ranges(map)))
        }
        _ => Err(failure(status, map, shown, false, SystemTime::now())),
    }
}

/// The error for a status that brings no content.
fn failure(
    status: StatusCode,
    map: &HeaderMap,
    shown: &str,
    conditional: bool,
    now: SystemTime,
) -> Error {
    let code = status.as_u16();
    let wish = headers::retry_after(map, now);
    let permanent = |kind, fault, hint: &str| {
        Error::permanent(kind, fault, format!("{shown} answered {code}: {hint}")).with_status(code)
    };
    let temporary = |kind, hint: &str| {
        Error::temporary(
            kind,
            Fault::Origin,
            format!("{shown} answered {code}: {hint}"),
        )
        .with_status(code)
        .with_retry_after(wish)
    };
    match code {
        401 => permanent(
            Kind::Unauthorized,
            Fault::Caller,
            "it wants credentials, or others: give the source a Secret or send Authorization",
        )
        .with_challenge(headers::challenge(map)),
        407 => permanent(
            Kind::Unauthorized,
            Fault::Policy,
            "the proxy wants credentials: put them into the proxy's URL",
        ),
        403 | 451 => permanent(
            Kind::Forbidden,
            Fault::Caller,
            "these credentials (or none) may not read it, or a signed URL has expired",
        ),
        404 | 410 => permanent(Kind::NotFound, Fault::Caller, "there is no such content"),
        412 if conditional => changed(shown).with_status(code),
        416 => permanent(
            Kind::RangeNotSatisfiable,
            Fault::Origin,
            "no range was asked for",
        ),
        429 => temporary(
            Kind::Throttled,
            "too many requests; lower the limits for this origin",
        ),
        503 if wish.is_some() => temporary(Kind::Throttled, "it asks to come back later"),
        501 | 505 => permanent(
            Kind::Status,
            Fault::Origin,
            "it does not do this kind of request",
        ),
        408 | 421 | 425 | 500..=599 => temporary(Kind::Unavailable, "it has trouble of its own"),
        300..=399 => permanent(
            Kind::Redirect,
            Fault::Origin,
            "a redirect that leads nowhere",
        ),
        _ => permanent(
            Kind::Status,
            Fault::Origin,
            "no content comes with this status",
        ),
    }
}
