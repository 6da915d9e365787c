//! The pages and their files, built into the program: streams, and how links do.
//!
//! A page asks the API and the media routes like any other client; nothing is rendered here. Their files
//! carry their hash in the URL, so caches may keep them while the page itself is always checked.

use std::{io::Read, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use flate2::{Compression, read::GzEncoder};
use model::SegmentHash;
use tokio::sync::OnceCell;

use crate::{
    answer::{NOSNIFF, Refusal, shortened, takes_gzip},
    preconditions::none_match_names,
};

/// Stands in `index.html` for the hash of all files.
const HASH_MARK: &str = "{{hash}}";
/// Digits of that hash in URLs and ETags.
const HASH_DIGITS: usize = 16;

/// Only what the page itself brings: its scripts and styles, blobs for hls.js' worker and media source,
/// and playlists and segments of the same origin.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     media-src 'self' blob:; connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
);
const CACHE_CHECKED: HeaderValue = HeaderValue::from_static("max-age=0, must-revalidate");
const CACHE_FOREVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

const STREAMS: &str = include_str!("../assets/index.html");
const LINKS: &str = include_str!("../assets/link.html");
const FILES: [(&str, &str, &[u8]); 8] = [
    (
        "app.js",
        "text/javascript; charset=utf-8",
        include_bytes!("../assets/app.js"),
    ),
    (
        "app.css",
        "text/css; charset=utf-8",
        include_bytes!("../assets/app.css"),
    ),
    (
        "common.js",
        "text/javascript; charset=utf-8",
        include_bytes!("../assets/common.js"),
    ),
    (
        "link.js",
        "text/javascript; charset=utf-8",
        include_bytes!("../assets/link.js"),
    ),
    (
        "link.css",
        "text/css; charset=utf-8",
        include_bytes!("../assets/link.css"),
    ),
    (
        "icon.svg",
        "image/svg+xml",
        include_bytes!("../assets/icon.svg"),
    ),
    (
        "hls.min.js",
        "text/javascript; charset=utf-8",
        include_bytes!("../assets/hls.min.js"),
    ),
    (
        "hls.LICENSE.txt",
        "text/plain; charset=utf-8",
        include_bytes!("../assets/hls.LICENSE.txt"),
    ),
];

/// The pages, ready to be sent.
pub(crate) struct Page {
    streams: File,
    links: File,
    files: Vec<(&'static str, File)>,
}

struct File {
    bytes: Bytes,
    /// Compressed when first asked for.
    gzip: OnceCell<Bytes>,
    etag: String,
    headers: HeaderMap,
}

impl Page {
    pub(crate) fn new() -> Self {
        let mut everything = [STREAMS, LINKS].concat().into_bytes();
        for (_, _, bytes) in FILES {
            everything.extend_from_slice(bytes);
        }
        let mut hash = SegmentHash::of(&everything).to_string();
        hash.truncate(HASH_DIGITS);
        let file = |bytes, content_type, cache| File::new(bytes, &hash, content_type, cache);
        let html = |text: &str| {
            let text = text.replace(HASH_MARK, &hash).into();
            file(text, "text/html; charset=utf-8", CACHE_CHECKED)
        };
        Self {
            streams: html(STREAMS),
            links: html(LINKS),
            files: FILES
                .map(|(name, content_type, bytes)| {
                    (
                        name,
                        file(Bytes::from_static(bytes), content_type, CACHE_FOREVER),
                    )
                })
                .into(),
        }
    }
}

/// `GET /`: streams, and a player.
pub(crate) async fn streams(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    page.streams.respond(&headers).await
}

/// `GET /link`: the last hour of links.
pub(crate) async fn links(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    page.links.respond(&headers).await
}

/// `GET /assets/{file}`
pub(crate) async fn asset(
    State(page): State<Arc<Page>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    match page.files.iter().find(|(known, _)| *known == name) {
        Some((_, file)) => file.respond(&headers).await,
        None => Refusal::not_found(format!("the page has no file {}", shortened(&name))).respond(),
    }
}

impl File {
    fn new(bytes: Bytes, hash: &str, content_type: &'static str, cache: HeaderValue) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (header::CACHE_CONTROL, cache),
            (header::VARY, HeaderValue::from_static("accept-encoding")),
            (header::X_CONTENT_TYPE_OPTIONS, NOSNIFF),
            (
                header::REFERRER_POLICY,
                HeaderValue::from_static("no-referrer"),
            ),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        ] {
            headers.insert(name, value);
        }
        Self {
            bytes,
            gzip: OnceCell::new(),
            etag: hash.to_owned(),
            headers,
        }
    }

    async fn respond(&self, request: &HeaderMap) -> Response {
        let packed = takes_gzip(request);
        let etag = |suffix: &str| format!("\"{}{suffix}\"", self.etag);
        let (plain_tag, gzip_tag) = (etag(""), etag("-gzip"));
        let mut headers = self.headers.clone();
        let known = none_match_names(request, &[&plain_tag, &gzip_tag]);
        let gzip = if packed { self.packed().await } else { None };
        if gzip.is_some() {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let tag = if gzip.is_some() {
            &gzip_tag
        } else {
            &plain_tag
        };
        if let Ok(tag) = HeaderValue::try_from(tag) {
            headers.insert(header::ETAG, tag);
        }
        let body = gzip.unwrap_or_else(|| self.bytes.clone());
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        let mut response = Response::new(if known {
            Body::empty()
        } else {
            Body::from(body)
        });
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        *response.headers_mut() = headers;
        response
    }

    async fn packed(&self) -> Option<Bytes> {
        let bytes = self.bytes.clone();
        let pack = || async {
            tokio::task::spawn_blocking(move || {
                let mut packed = Vec::new();
                GzEncoder::new(bytes.as_ref(), Compression::best()).read_to_end(&mut packed)?;
                std::io::Result::Ok(Bytes::from(packed))
            })
            .await?
        };
        self.gzip.get_or_try_init(pack).await.ok().cloned()
    }
}
