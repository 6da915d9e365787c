//! `/s/{stream}/…`: which playlist or segment a path means, and the CORS rules that hold for all of them.
//!
//! Paths and names are judged here, once; what is at them is in [`crate::playlists`] and [`crate::segments`].

use std::{borrow::Cow, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::Response,
};
use model::{SegmentNumber, StreamName, WallTime};
use percent_encoding::percent_decode_str;
use store::Store;

use crate::{
    Role,
    answer::{Refusal, shortened},
    disk::Disk,
    playlists::{Playlists, Span},
    segments::Segments,
};

/// What a script of another origin may read of an answer beside its body.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("Age, Content-Length, Content-Range, Date, ETag, Retry-After");
const ANY_ORIGIN: HeaderValue = HeaderValue::from_static("*");

/// Playlists and segments of one store.
pub(crate) struct Media {
    playlists: Playlists,
    segments: Segments,
}

/// What a path under `/s/` means.
#[derive(Debug, PartialEq, Eq)]
enum File {
    Live,
    Recording,
    Segment(SegmentNumber),
    /// An EXT-X-GAP's URI: there is nothing at it, ever.
    Gap,
}

impl Media {
    pub(crate) fn new(store: Store, role: Role, disk: Disk) -> Self {
        Self {
            playlists: Playlists::new(store.clone(), role, disk.clone()),
            segments: Segments::new(store, role, disk),
        }
    }

    async fn answer(&self, request: &Parts) -> Result<Response, Refusal> {
        let (stream, file) = parse(request.uri.path())?;
        let (method, headers) = (&request.method, &request.headers);
        match file {
            File::Live => self.playlists.live(stream, headers).await,
            File::Recording => {
                let span = parse_span(request.uri.query().unwrap_or_default())?;
                self.playlists.recording(stream, span, headers).await
            }
            File::Segment(number) => self.segments.get(stream, number, method, headers).await,
            File::Gap => Err(Refusal::not_found(
                "this is a gap: the playlist lists it because there is no segment for that time",
            )),
        }
    }
}

/// The route.
pub(crate) async fn serve(State(media): State<Arc<Media>>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    let mut response = match request.method {
        Method::GET | Method::HEAD => match media.answer(&request).await {
            Ok(response) => response,
            Err(refusal) => with_cors(refusal.respond()),
        },
        Method::OPTIONS => preflight(),
        _ => Refusal::wrong_method().respond(),
    };
    if request.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

/// The headers that let players of any origin read an answer.
pub(crate) fn add_cors(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY_ORIGIN);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("cross-origin"),
    );
}

fn with_cors(mut response: Response) -> Response {
    add_cors(response.headers_mut());
    response
}

fn preflight() -> Response {
    let mut response = with_cors(Response::new(Body::empty()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Range, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since, If-Range",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

fn parse(path: &str) -> Result<(StreamName, File), Refusal> {
    let rest = path.strip_prefix("/s/").unwrap_or(path);
    let (stream, file) = rest.split_once('/').unwrap_or((rest, ""));
    let stream: StreamName = decode(stream)
        .parse()
        .map_err(|error: model::NameError| Refusal::bad_request(error.to_string()))?;
    let file = match decode(file).as_ref() {
        "live.m3u8" => File::Live,
        "rec.m3u8" => File::Recording,
        other => parse_ts(other).ok_or_else(|| {
            Refusal::not_found(format!(
                "nothing at {}: a stream has live.m3u8, rec.m3u8 and NUMBER.ts",
                shortened(path)
            ))
        })?,
    };
    Ok((stream, file))
}

/// `17.ts` or `gap-17.ts`. A number has one spelling, so that a segment has one URL for caches.
fn parse_ts(file: &str) -> Option<File> {
    let stem = file.strip_suffix(".ts")?;
    let (digits, gap) = match stem.strip_prefix("gap-") {
        Some(digits) => (digits, true),
        None => (stem, false),
    };
    let plain =
        digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let number = digits.parse().ok().filter(|_| plain)?;
    Some(if gap {
        File::Gap
    } else {
        File::Segment(number)
    })
}

/// `from` and `to` of a query; others are left alone (players and proxies add their own). A `+` stays a
/// `+`: it is what a time zone begins with when somebody types the URL.
fn parse_span(query: &str) -> Result<Span, Refusal> {
    let mut span = Span::default();
    for (name, value) in query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    {
        let side = match name {
            "from" => &mut span.from,
            "to" => &mut span.to,
            _ => continue,
        };
        let time = decode(value)
            .parse::<WallTime>()
            .map_err(|error| Refusal::bad_request(format!("{name}: {error}")))?;
        *side = Some(time);
    }
    if let Span {
        from: Some(from),
        to: Some(to),
    } = span
        && from >= to
    {
        return Err(Refusal::bad_request(format!(
            "from ({from}) is not before to ({to})"
        )));
    }
    Ok(span)
}

fn decode(text: &str) -> Cow<'_, str> {
    if text.contains('%') {
        percent_decode_str(text).decode_utf8_lossy()
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let gate: StreamName = "gate".parse().unwrap();
        for (path, file) in [
            ("/s/gate/live.m3u8", File::Live),
            ("/s/g%61te/live.m3u8", File::Live),
            ("/s/gate/rec.m3u8", File::Recording),
            ("/s/gate/0.ts", File::Segment(SegmentNumber(0))),
            ("/s/gate/17.ts", File::Segment(SegmentNumber(17))),
            (
                "/s/gate/18446744073709551615.ts",
                File::Segment(SegmentNumber(u64::MAX)),
            ),
            ("/s/gate/gap-17.ts", File::Gap),
        ] {
            assert_eq!(parse(path).unwrap(), (gate.clone(), file), "{path}");
        }
    }

    #[test]
    fn what_is_not_a_path() {
        for (path, status) in [
            ("/s/gate", 404),
            ("/s/gate/", 404),
            ("/s/gate/LIVE.m3u8", 404),
            ("/s/gate/live.m3u8/", 404),
            ("/s/gate/x/live.m3u8", 404),
            ("/s/gate/007.ts", 404),
            ("/s/gate/+7.ts", 404),
            ("/s/gate/-7.ts", 404),
            ("/s/gate/.ts", 404),
            ("/s/gate/gap-.ts", 404),
            ("/s/gate/18446744073709551616.ts", 404),
            ("/s/gate/1.ts.tmp", 404),
            ("/s/gate/..%2f1.ts", 404),
            ("/s//live.m3u8", 400),
            ("/s/Gate/live.m3u8", 400),
            ("/s/../live.m3u8", 400),
            ("/s/%2e%2e/live.m3u8", 400),
            ("/s/a%2fb/live.m3u8", 400),
            ("/s/%F0%9F%8E%A5/live.m3u8", 400),
            ("/s/%ff/live.m3u8", 400),
            ("/s/gate%00/live.m3u8", 400),
        ] {
            assert_eq!(parse(path).unwrap_err().status(), status, "{path}");
        }
    }

    #[test]
    fn spans() {
        let at = |text: &str| Some(text.parse::<WallTime>().unwrap());
        for (query, from, to) in [
            ("", None, None),
            ("x=1&_HLS_msn=4", None, None),
            ("from=1000", at("1000"), None),
            ("to=2000&from=1000", at("1000"), at("2000")),
            (
                "from=2026-05-01T08:00:00%2B02:00&to=2026-05-01T08:00:00+01:00",
                at("2026-05-01T06:00:00Z"),
                at("2026-05-01T07:00:00Z"),
            ),
        ] {
            assert_eq!(parse_span(query).unwrap(), Span { from, to }, "{query}");
        }
        for query in [
            "from=",
            "from",
            "to=yesterday",
            "from=2&to=1",
            "from=1&to=1",
        ] {
            assert_eq!(parse_span(query).unwrap_err().status(), 400, "{query}");
        }
    }
}
