//! What every answer shares: errors as JSON, the headers that go with them, and reading of request headers.
//!
//! No route and no store here.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use model::{StreamName, WallTime};
use serde::Serialize;

/// Longest piece of a request that an error repeats, in characters.
const MAX_REPEATED: usize = 120;
/// How many stream names an error lists before it says that there are more.
const MAX_KNOWN_LISTED: usize = 10;
/// When to come back for a stream's first segment: one target duration.
pub(crate) const RETRY_FIRST_SEGMENT_S: u32 = 2;
/// When to come back to a server that is busy or starting.
const RETRY_BUSY_S: u32 = 1;

/// Errors may be kept for a second (RFC 8216bis appendix B.1), so that a flood of wrong requests behind a
/// cache stays there and a right one is not kept from the truth for longer.
pub(crate) const CACHE_BRIEFLY: HeaderValue = HeaderValue::from_static("max-age=1");
pub(crate) const CACHE_NOT: HeaderValue = HeaderValue::from_static("no-store");
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// An answer that is not what was asked for: `{ "error": CODE, "reason": SENTENCE }`.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    error: &'static str,
    reason: Cow<'static, str>,
    retry_after_s: Option<u32>,
    /// A further header: `Allow` or `Content-Range`. Boxed, since results carry refusals about.
    extra: Option<Box<(HeaderName, HeaderValue)>>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    reason: &'a str,
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            error,
            reason: reason.into(),
            retry_after_s: None,
            extra: None,
        }
    }

    pub(crate) fn not_found(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", reason)
    }

    pub(crate) fn bad_request(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", reason)
    }

    /// The stream is known and has no segment yet: 404 with `Retry-After`, so that a player that starts
    /// before its camera finds it there a moment later.
    pub(crate) fn not_yet(stream: &StreamName) -> Self {
        let reason = format!("stream {stream} has no segment yet");
        Self {
            retry_after_s: Some(RETRY_FIRST_SEGMENT_S),
            ..Self::new(StatusCode::NOT_FOUND, "not_yet", reason)
        }
    }

    /// No such stream; says which there are.
    pub(crate) fn no_stream<'a>(
        stream: &StreamName,
        known: impl ExactSizeIterator<Item = &'a StreamName>,
    ) -> Self {
        let count = known.len();
        let mut reason = format!("no stream named {stream}; known: ");
        for (i, name) in known.take(MAX_KNOWN_LISTED).enumerate() {
            if i > 0 {
                reason.push_str(", ");
            }
            reason.push_str(name.as_str());
        }
        match count {
            0 => reason.push_str("none yet"),
            n if n > MAX_KNOWN_LISTED => {
                reason.push_str(&format!(" and {} more", n - MAX_KNOWN_LISTED));
            }
            _ => {}
        }
        Self::not_found(reason)
    }

    pub(crate) fn wrong_method() -> Self {
        Self {
            extra: Some(Box::new((
                header::ALLOW,
                HeaderValue::from_static("GET, HEAD, OPTIONS"),
            ))),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "only GET and HEAD are answered here",
            )
        }
    }

    pub(crate) fn unsatisfiable(bytes: u64) -> Self {
        Self {
            extra: HeaderValue::try_from(format!("bytes */{bytes}"))
                .ok()
                .map(|value| Box::new((header::CONTENT_RANGE, value))),
            ..Self::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range_not_satisfiable",
                format!("the segment has {bytes} bytes and none of the range asked for"),
            )
        }
    }

    pub(crate) fn precondition_failed() -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition_failed",
            "the segment is not the one that If-Match or If-Unmodified-Since asks for",
        )
    }

    pub(crate) fn not_ready(reason: String) -> Self {
        Self {
            retry_after_s: Some(RETRY_BUSY_S),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", reason)
        }
    }

    /// More work waits for the disk than it gets done.
    pub(crate) fn busy() -> Self {
        Self {
            retry_after_s: Some(RETRY_BUSY_S),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "too many requests wait for the disk: try again in a second",
            )
        }
    }

    /// The request's body, or what answers it, takes for ever.
    pub(crate) fn too_slow(has_body: bool) -> Self {
        if has_body {
            let reason = "the request's body did not come in time";
            return Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", reason);
        }
        Self {
            retry_after_s: Some(RETRY_BUSY_S),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "there was no answer in time: try again later",
            )
        }
    }

    /// Something broke on our side; the log has the whole of it, the answer no path and no secret.
    pub(crate) fn internal(what: &str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "failed to {what}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            format!("failed to {what}; the server's log says why"),
        )
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn respond(self) -> Response {
        let body = ErrorBody {
            error: self.error,
            reason: &self.reason,
        };
        let mut response = json(&body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if self.status.is_server_error() {
            headers.insert(header::CACHE_CONTROL, CACHE_NOT);
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(extra) = self.extra {
            let (name, value) = *extra;
            headers.insert(name, value);
        }
        response
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.respond()
    }
}

/// A value as JSON, to be kept for a second.
pub(crate) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => json_bytes(text.into()),
        Err(error) => {
            tracing::error!(%error, "failed to write an answer as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

pub(crate) fn json_bytes(text: bytes::Bytes) -> Response {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::CACHE_CONTROL, CACHE_BRIEFLY);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

/// Whether the client takes gzip (RFC 9110 12.5.3): named, or `*`, and not with weight nought.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    let mut by_star = false;
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        let Ok(value) = value.to_str() else { continue };
        for coding in value.split(',') {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let refused = weight
                .trim()
                .strip_prefix("q=")
                .and_then(|q| q.parse::<f32>().ok())
                .is_some_and(|q| q <= 0.0);
            match name.trim() {
                name if name.eq_ignore_ascii_case("gzip") => return !refused,
                "*" => by_star = !refused,
                _ => {}
            }
        }
    }
    by_star
}

/// A wall time as a header's date; None outside what HTTP can say, and for the future (RFC 9110 8.8.2.1).
pub(crate) fn http_date(at: WallTime, now: SystemTime) -> Option<(HeaderValue, SystemTime)> {
    let ms = u64::try_from(at.0).ok()?;
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(ms / 1000))?;
    if time > now {
        return None;
    }
    let value = HeaderValue::try_from(httpdate::fmt_http_date(time)).ok()?;
    Some((value, time))
}

/// Now, by this machine's clock.
pub(crate) fn wall_now() -> WallTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A piece of a request, cut so that an error stays readable.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_REPEATED) {
        Some((at, _)) => Cow::Owned(format!("{}…", text.get(..at).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_taken_when_named_and_not_refused() {
        for (value, takes) in [
            ("gzip", true),
            ("GZIP", true),
            ("br, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000, br", false),
            ("*", true),
            ("*;q=0", false),
            ("*, gzip;q=0", false),
            ("br", false),
            ("identity", false),
            ("", false),
        ] {
            let headers =
                HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(takes_gzip(&headers), takes, "{value:?}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn dates_are_never_in_the_future() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let (value, _) = http_date(WallTime(999_999_999_999), now).unwrap();
        assert_eq!(value, "Sun, 09 Sep 2001 01:46:39 GMT");
        assert!(http_date(WallTime(1_000_000_001_000), now).is_none());
        assert!(http_date(WallTime(-1), now).is_none());
        assert!(http_date(WallTime(i64::MAX), now).is_none());
    }

    #[test]
    fn a_long_list_of_streams_is_cut() {
        let names: Vec<StreamName> = (0..12)
            .map(|n| format!("cam-{n}").parse().unwrap())
            .collect();
        let missing: StreamName = "gate".parse().unwrap();
        for (count, end) in [
            (0, "known: none yet"),
            (2, "known: cam-0, cam-1"),
            (12, "cam-9 and 2 more"),
        ] {
            let refusal = Refusal::no_stream(&missing, names[..count].iter());
            assert!(refusal.reason.starts_with("no stream named gate; known: "));
            assert!(refusal.reason.ends_with(end), "{}", refusal.reason);
        }
    }

    #[test]
    fn what_an_error_repeats_is_cut() {
        assert_eq!(shortened("/s/gate"), "/s/gate");
        let long = "é".repeat(MAX_REPEATED + 1);
        assert_eq!(shortened(&long).chars().count(), MAX_REPEATED + 1);
        assert!(shortened(&long).ends_with('…'));
    }
}
