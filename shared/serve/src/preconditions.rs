//! What a request for a segment gets: all of it, a range, or word that it has it already (RFC 9110 13 and 14).
//!
//! Pure: header values in, a decision out.

use std::{ops::Range, time::SystemTime};

use axum::http::{HeaderMap, Method, header};
use http_range_header::{EndPosition, RangeUnsatisfiableError, StartPosition, parse_range_header};

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// 200 with everything.
    Whole,
    /// 206 with these bytes: never empty, never past the end.
    Part(Range<u64>),
    /// 304.
    NotModified,
    /// 412.
    Failed,
    /// 416.
    Unsatisfiable,
}

/// What is asked for: its strong ETag with its quotes, when it last changed, its length in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entity<'a> {
    pub(crate) etag: &'a str,
    pub(crate) last_modified: Option<SystemTime>,
    pub(crate) bytes: u64,
}

/// Decides in the order of RFC 9110 13.2.2.
pub(crate) fn decide(method: &Method, headers: &HeaderMap, entity: Entity<'_>) -> Verdict {
    if let Some(tags) = headers.get(header::IF_MATCH) {
        if !tags.to_str().is_ok_and(|t| lists_strongly(t, entity.etag)) {
            return Verdict::Failed;
        }
    } else if let (Some(since), Some(modified)) = (
        date(headers, header::IF_UNMODIFIED_SINCE),
        entity.last_modified,
    ) && modified > since
    {
        return Verdict::Failed;
    }
    if headers.contains_key(header::IF_NONE_MATCH) {
        if none_match_names(headers, &[entity.etag]) {
            return Verdict::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (
        date(headers, header::IF_MODIFIED_SINCE),
        entity.last_modified,
    ) && modified <= since
    {
        return Verdict::NotModified;
    }
    // A range is for GET only (14.2), and only while If-Range names what we have (13.1.5).
    match headers.get(header::RANGE).and_then(|r| r.to_str().ok()) {
        Some(range) if method == Method::GET && range_applies(headers, entity) => {
            bytes_of(range, entity.bytes)
        }
        _ => Verdict::Whole,
    }
}

/// Whether If-None-Match lists one of these tags, compared weakly, or is `*`.
pub(crate) fn none_match_names(headers: &HeaderMap, etags: &[&str]) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        value.to_str().is_ok_and(|tags| {
            tags.split(',')
                .map(str::trim)
                .any(|tag| tag == "*" || etags.contains(&tag.strip_prefix("W/").unwrap_or(tag)))
        })
    })
}

fn lists_strongly(tags: &str, etag: &str) -> bool {
    tags.split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag == etag)
}

fn date(headers: &HeaderMap, name: header::HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

fn range_applies(headers: &HeaderMap, entity: Entity<'_>) -> bool {
    let Some(condition) = headers.get(header::IF_RANGE) else {
        return true;
    };
    let Ok(condition) = condition.to_str() else {
        return false;
    };
    let condition = condition.trim();
    if condition.starts_with('"') || condition.starts_with("W/") {
        // A weak tag never matches strongly, ours are never weak.
        return condition == entity.etag;
    }
    let date = httpdate::parse_http_date(condition).ok();
    date.is_some() && date == entity.last_modified
}

/// One range becomes a part. What is not understood, and several ranges at once, get the whole, which RFC
/// 9110 14.2 allows; a multipart answer is of no use to any player.
fn bytes_of(range: &str, bytes: u64) -> Verdict {
    let ranges = match parse_range_header(range) {
        Ok(parsed) => parsed.ranges,
        // A suffix of no bytes is a range that nothing satisfies (14.1.2).
        Err(RangeUnsatisfiableError::ZeroSuffix) => return Verdict::Unsatisfiable,
        Err(_) => return Verdict::Whole,
    };
    let [range] = ranges.as_slice() else {
        return Verdict::Whole;
    };
    let (start, end) = match (range.start, range.end) {
        (StartPosition::FromLast(count), _) => (bytes.saturating_sub(count), bytes),
        (StartPosition::Index(start), EndPosition::LastByte) => (start, bytes),
        (StartPosition::Index(start), EndPosition::Index(last)) if last < start => {
            return Verdict::Whole;
        }
        (StartPosition::Index(start), EndPosition::Index(last)) => {
            (start, last.saturating_add(1).min(bytes))
        }
    };
    if start < end {
        Verdict::Part(start..end)
    } else {
        Verdict::Unsatisfiable
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use axum::http::{HeaderName, HeaderValue};

    use super::{Verdict::*, *};

    const ETAG: &str = "\"abc\"";
    const BEFORE: &str = "Sun, 09 Sep 2001 01:46:39 GMT";
    const THEN: &str = "Sun, 09 Sep 2001 01:46:40 GMT";
    const AFTER: &str = "Sun, 09 Sep 2001 01:46:41 GMT";

    fn given(method: Method, lines: &[(HeaderName, &str)]) -> Verdict {
        let headers = lines
            .iter()
            .map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap()))
            .collect();
        let entity = Entity {
            etag: ETAG,
            last_modified: Some(UNIX_EPOCH + Duration::from_secs(1_000_000_000)),
            bytes: 100,
        };
        decide(&method, &headers, entity)
    }

    #[test]
    fn ranges() {
        for (range, verdict) in [
            ("bytes=0-9", Part(0..10)),
            ("bytes=10-", Part(10..100)),
            ("bytes=-10", Part(90..100)),
            ("bytes=-1000", Part(0..100)),
            ("bytes=99-99", Part(99..100)),
            ("bytes=50-1000", Part(50..100)),
            ("bytes=0-18446744073709551615", Part(0..100)),
            ("bytes=100-", Unsatisfiable),
            ("bytes=100-200", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=0-9,20-29", Whole),
            ("bytes=9-0", Whole),
            ("bytes=", Whole),
            ("bytes=x-y", Whole),
            ("bytes=99999999999999999999-", Whole),
            ("bytes 0-9", Whole),
            ("lines=0-9", Whole),
        ] {
            assert_eq!(
                given(Method::GET, &[(header::RANGE, range)]),
                verdict,
                "{range}"
            );
            assert_eq!(
                given(Method::HEAD, &[(header::RANGE, range)]),
                Whole,
                "HEAD {range}"
            );
        }
        let nothing = Entity {
            etag: ETAG,
            last_modified: None,
            bytes: 0,
        };
        let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static("bytes=0-"))]);
        assert_eq!(decide(&Method::GET, &headers, nothing), Unsatisfiable);
    }

    #[test]
    fn if_range() {
        for (condition, verdict) in [
            (ETAG, Part(0..10)),
            ("\"other\"", Whole),
            ("W/\"abc\"", Whole),
            (THEN, Part(0..10)),
            (BEFORE, Whole),
            (AFTER, Whole),
            ("nonsense", Whole),
        ] {
            let lines = [(header::RANGE, "bytes=0-9"), (header::IF_RANGE, condition)];
            assert_eq!(given(Method::GET, &lines), verdict, "{condition}");
        }
    }

    #[test]
    fn conditions() {
        for (name, value, verdict) in [
            (header::IF_NONE_MATCH, ETAG, NotModified),
            (header::IF_NONE_MATCH, "W/\"abc\"", NotModified),
            (header::IF_NONE_MATCH, "\"x\", \"abc\"", NotModified),
            (header::IF_NONE_MATCH, "*", NotModified),
            (header::IF_NONE_MATCH, "\"x\"", Whole),
            (header::IF_NONE_MATCH, "abc", Whole),
            (header::IF_MODIFIED_SINCE, THEN, NotModified),
            (header::IF_MODIFIED_SINCE, AFTER, NotModified),
            (header::IF_MODIFIED_SINCE, BEFORE, Whole),
            (header::IF_MODIFIED_SINCE, "yesterday", Whole),
            (header::IF_MATCH, ETAG, Whole),
            (header::IF_MATCH, "*", Whole),
            (header::IF_MATCH, "W/\"abc\"", Failed),
            (header::IF_MATCH, "\"x\"", Failed),
            (header::IF_UNMODIFIED_SINCE, THEN, Whole),
            (header::IF_UNMODIFIED_SINCE, BEFORE, Failed),
        ] {
            assert_eq!(
                given(Method::GET, &[(name.clone(), value)]),
                verdict,
                "{name}: {value}"
            );
        }
        // An ETag that differs speaks against a date that agrees.
        let both = [
            (header::IF_NONE_MATCH, "\"x\""),
            (header::IF_MODIFIED_SINCE, AFTER),
        ];
        assert_eq!(given(Method::GET, &both), Whole);
        // 304 comes before the range.
        let both = [(header::IF_NONE_MATCH, ETAG), (header::RANGE, "bytes=0-9")];
        assert_eq!(given(Method::GET, &both), NotModified);
    }
}
