//! Playlists over HTTP: rendered by the store, compressed once per change, kept until the next one.
//!
//! What a playlist says is decided in the store and below; here are its headers and its life in caches.

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use model::{StreamName, WallTime};
use quick_cache::{OptionsBuilder, Weighter, sync::Cache};
use store::{Playlist, Store, StoreError};
use tokio::sync::watch;

use crate::{
    Role,
    answer::{NOSNIFF, Refusal, http_date, takes_gzip},
    disk::Disk,
    known::known,
    media::add_cors,
    preconditions::none_match_names,
    watched::{Made, Watched},
};

/// Live lists kept in memory: more streams than one machine takes in; each is some tens of kilobytes.
const MAX_LIVE_LISTS: usize = 1_024;
/// Bytes of recordings' playlists kept in memory: a day in 2 s segments is some 4 MB.
const MAX_RECORDINGS_BYTES_HUB: u64 = 16 << 20;
const MAX_RECORDINGS_BYTES_EDGE: u64 = 4 << 20;
/// What an entry costs beside its text.
const ENTRY_OVERHEAD_BYTES: u64 = 1_024;
/// A playlist shorter than this fits a packet anyway.
const MIN_GZIP_BYTES: usize = 512;
/// A playlist longer than this is compressed in a hurry: a day's takes a tenth of a second otherwise.
const HURRY_BYTES: usize = 256 << 10;
/// How long an end-listed recording is served without looking whether retention has shortened it.
const RECHECK_ENDED: Duration = Duration::from_secs(5);
/// How long others may keep an end-listed recording of a given range; its segments may expire meanwhile.
const CACHE_ENDED_RECORDING: HeaderValue = HeaderValue::from_static("max-age=300");

/// A recording's bounds; None is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Span {
    pub(crate) from: Option<WallTime>,
    pub(crate) to: Option<WallTime>,
}

impl Span {
    fn is_bounded(self) -> bool {
        self.from.is_some() && self.to.is_some()
    }
}

/// The playlists of one store.
pub(crate) struct Playlists {
    store: Store,
    disk: Disk,
    changes: watch::Receiver<u64>,
    live: Cache<StreamName, Arc<Watched<Rendered>>>,
    recordings: Cache<(StreamName, Span), Arc<Recording>, ByBytes>,
}

/// A playlist with everything that its answers need.
struct Rendered {
    text: Bytes,
    gzip: Option<Bytes>,
    ended: bool,
    /// Quoted.
    etag: String,
    gzip_etag: String,
    /// Of the 200 answer, plain and compressed.
    headers: HeaderMap,
    gzip_headers: HeaderMap,
}

struct Recording {
    rendered: Arc<Rendered>,
    made: Made,
    bounded: bool,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(StreamName, Span), Arc<Recording>> for ByBytes {
    fn weight(&self, _: &(StreamName, Span), recording: &Arc<Recording>) -> u64 {
        let rendered = &recording.rendered;
        let gzip = rendered.gzip.as_ref().map_or(0, Bytes::len);
        (rendered.text.len() + gzip) as u64 + ENTRY_OVERHEAD_BYTES
    }
}

impl Playlists {
    pub(crate) fn new(store: Store, role: Role, disk: Disk) -> Self {
        let bytes = match role {
            Role::Hub => MAX_RECORDINGS_BYTES_HUB,
            Role::Edge => MAX_RECORDINGS_BYTES_EDGE,
        };
        Self {
            changes: store.changes(),
            store,
            disk,
            live: Cache::new(MAX_LIVE_LISTS),
            recordings: cache_of_bytes(bytes, 64 << 10, 1, ByBytes),
        }
    }

    /// The rolling playlist.
    pub(crate) async fn live(
        &self,
        stream: StreamName,
        headers: &HeaderMap,
    ) -> Result<Response, Refusal> {
        let slot = match self.live.get(&stream) {
            Some(slot) => slot,
            None => {
                let slot = Arc::new(Watched::new());
                self.live.insert(stream.clone(), slot.clone());
                slot
            }
        };
        if let Some(rendered) = slot.fresh(&self.changes) {
            return Ok(rendered.respond(headers));
        }
        let (store, name) = (self.store.clone(), stream.clone());
        let made = slot.get(&self.changes, |last| {
            self.disk.run(move || load_live(&store, &name, last))
        });
        match made.await {
            Ok(rendered) => Ok(rendered.respond(headers)),
            Err(refusal) => {
                // Names that are not streams must not push out those that are.
                self.live.remove(&stream);
                Err(refusal)
            }
        }
    }

    /// The playlist of a time range.
    pub(crate) async fn recording(
        &self,
        stream: StreamName,
        span: Span,
        headers: &HeaderMap,
    ) -> Result<Response, Refusal> {
        let key = (stream, span);
        let stale = match self.recordings.get(&key) {
            Some(recording) if recording.holds(&self.changes) => {
                return Ok(recording.rendered.respond(headers));
            }
            stale => stale,
        };
        if let Some(stale) = &stale {
            self.recordings
                .remove_if(&key, |kept| Arc::ptr_eq(kept, stale));
        }
        let recording = match self.recordings.get_value_or_guard_async(&key).await {
            Ok(recording) => recording,
            Err(guard) => {
                let made = Made::begin(&self.changes);
                let (store, (stream, span)) = (self.store.clone(), key.clone());
                let last = stale.map(|stale| stale.rendered.clone());
                let rendered = self
                    .disk
                    .run(move || load_recording(&store, &stream, span, last))
                    .await?;
                let recording = Arc::new(Recording {
                    rendered,
                    made,
                    bounded: span.is_bounded(),
                });
                // Refused only if somebody emptied the cache meanwhile: then it is just not kept.
                let _ = guard.insert(recording.clone());
                recording
            }
        };
        Ok(recording.rendered.respond(headers))
    }
}

impl Recording {
    fn holds(&self, changes: &watch::Receiver<u64>) -> bool {
        let settled = self.bounded && self.rendered.ended && self.made.age() < RECHECK_ENDED;
        settled || self.made.holds(changes)
    }
}

/// A cache limited by bytes. Few shards, each of which gets its share: many would each be too small for
/// the larger entries.
pub(crate) fn cache_of_bytes<K, V, W>(
    bytes: u64,
    typical: u64,
    shards: usize,
    weighter: W,
) -> Cache<K, V, W>
where
    K: Eq + std::hash::Hash,
    V: Clone,
    W: Weighter<K, V> + Clone,
{
    let items = usize::try_from(bytes / typical.max(1)).unwrap_or(1).max(1);
    let options = OptionsBuilder::new()
        .shards(shards)
        .estimated_items_capacity(items)
        .weight_capacity(bytes)
        .build();
    match options {
        Ok(options) => {
            Cache::with_options(options, weighter, Default::default(), Default::default())
        }
        // Only a missing option can be wrong and none is; this is the same cache with default shards.
        Err(_) => Cache::with_weighter(items, bytes, weighter),
    }
}

fn load_live(
    store: &Store,
    stream: &StreamName,
    last: Option<Arc<Rendered>>,
) -> Result<Arc<Rendered>, Refusal> {
    match store.live_playlist(stream) {
        Ok(Some(playlist)) => Ok(Rendered::anew(&playlist, last, Kind::Live)),
        Ok(None) | Err(StoreError::NoSuchStream(_)) => Err(no_playlist(store, stream, None)),
        Err(error) => Err(Refusal::internal("read the live playlist", &error)),
    }
}

fn load_recording(
    store: &Store,
    stream: &StreamName,
    span: Span,
    last: Option<Arc<Rendered>>,
) -> Result<Arc<Rendered>, Refusal> {
    // What is still on its device comes ahead of the rest while somebody watches.
    match store.want_recording(stream, span.from, span.to) {
        Ok(_) | Err(StoreError::NoSuchStream(_)) => {}
        Err(error) => return Err(Refusal::internal("read what is still to come", &error)),
    }
    match store.recording(stream, span.from, span.to) {
        Ok(Some(playlist)) => Ok(Rendered::anew(&playlist, last, Kind::Recording(span))),
        Ok(None) | Err(StoreError::NoSuchStream(_)) => Err(no_playlist(store, stream, Some(span))),
        Err(error) => Err(Refusal::internal("read the recording", &error)),
    }
}

/// Why a stream has no playlist: it isn't there, it has no segment yet, or none in the range.
fn no_playlist(store: &Store, stream: &StreamName, span: Option<Span>) -> Refusal {
    let summary = match known(store, stream) {
        Ok(summary) => summary,
        Err(refusal) => return refusal,
    };
    let recorded = summary.ranges.last().zip(summary.ranges.first());
    match (span, recorded) {
        (Some(span), Some(((first, _), (_, last)))) => {
            let bound = |t: Option<WallTime>, open: &str| t.map_or(open.into(), |t| t.to_string());
            Refusal::not_found(format!(
                "stream {stream} has nothing recorded from {} to {}; it has recordings between {first} and {last}",
                bound(span.from, "its beginning"),
                bound(span.to, "now"),
            ))
        }
        _ => Refusal::not_yet(stream),
    }
}

enum Kind {
    Live,
    Recording(Span),
}

impl Rendered {
    /// Takes a playlist over from the store, or keeps the last one if nothing in it has changed.
    fn anew(playlist: &Playlist, last: Option<Arc<Self>>, kind: Kind) -> Arc<Self> {
        match last {
            Some(last) if last.text == playlist.text && last.ended == playlist.ended => last,
            _ => Arc::new(Self::new(playlist, kind)),
        }
    }

    fn new(playlist: &Playlist, kind: Kind) -> Self {
        let text = playlist.text.clone();
        let gzip = gzip(&text);
        let tag = playlist.etag.trim_matches('"');
        let (etag, gzip_etag) = (format!("\"{tag}\""), format!("\"{tag}-gzip\""));
        let mut headers = HeaderMap::with_capacity(16);
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/vnd.apple.mpegurl"),
        );
        headers.insert(header::CACHE_CONTROL, cache_control(playlist, kind));
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        if let Some((date, _)) = http_date(playlist.last_modified, SystemTime::now()) {
            headers.insert(header::LAST_MODIFIED, date);
        }
        add_cors(&mut headers);
        let mut gzip_headers = headers.clone();
        gzip_headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        set_body_headers(&mut headers, text.len(), &etag);
        set_body_headers(
            &mut gzip_headers,
            gzip.as_ref().map_or(0, Bytes::len),
            &gzip_etag,
        );
        Self {
            text,
            gzip,
            ended: playlist.ended,
            etag,
            gzip_etag,
            headers,
            gzip_headers,
        }
    }

    /// The playlist as this request takes it. If-Modified-Since is left alone: its seconds are too coarse
    /// for a list that may change twice in one.
    fn respond(&self, request: &HeaderMap) -> Response {
        let (body, headers) = match &self.gzip {
            Some(gzip) if takes_gzip(request) => (gzip, &self.gzip_headers),
            _ => (&self.text, &self.headers),
        };
        let mut headers = headers.clone();
        let mut response = if request.contains_key(header::IF_NONE_MATCH)
            && none_match_names(request, &[&self.etag, &self.gzip_etag])
        {
            // Content-Length stays: it is the 200 answer's (RFC 9110 8.6), and the router would write 0.
            headers.remove(header::CONTENT_TYPE);
            headers.remove(header::CONTENT_ENCODING);
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            Response::new(Body::from(body.clone()))
        };
        *response.headers_mut() = headers;
        response
    }
}

fn set_body_headers(headers: &mut HeaderMap, bytes: usize, etag: &str) {
    headers.insert(header::CONTENT_LENGTH, bytes.into());
    // The store's tag is a hash in hex; should it ever be more than a header can say, there is none.
    if let Ok(etag) = HeaderValue::try_from(etag) {
        headers.insert(header::ETAG, etag);
    }
}

/// Half a target for what still grows (RFC 8216bis appendix B.1); a second for an ended live list, which
/// a new run may follow; minutes for an end-listed recording whose bounds were both given.
fn cache_control(playlist: &Playlist, kind: Kind) -> HeaderValue {
    match kind {
        Kind::Recording(span) if playlist.ended && span.is_bounded() => CACHE_ENDED_RECORDING,
        _ if playlist.ended => HeaderValue::from_static("max-age=1"),
        _ => {
            let seconds = (playlist.target_duration_s / 2).max(1);
            HeaderValue::try_from(format!("max-age={seconds}"))
                .unwrap_or(HeaderValue::from_static("max-age=1"))
        }
    }
}

/// Compressed, if that is worth it.
fn gzip(text: &[u8]) -> Option<Bytes> {
    if text.len() < MIN_GZIP_BYTES {
        return None;
    }
    let effort = if text.len() > HURRY_BYTES {
        Compression::fast()
    } else {
        Compression::default()
    };
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 4), effort);
    // Writing to memory doesn't fail.
    encoder.write_all(text).ok()?;
    let packed = encoder.finish().ok()?;
    (packed.len() < text.len()).then(|| packed.into())
}
