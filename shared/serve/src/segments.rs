//! Segments over HTTP: immutable bytes with their hash as ETag, ranges, and a cache in memory.
//!
//! A segment that many viewers want is read from disk once. Memory is bounded twice: the cache by bytes,
//! and what requests in flight still hold of it by [`Segments::room`]; beyond that, and for large segments,
//! the file is sent piece by piece.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use model::{SegmentHash, SegmentInfo, SegmentNumber, StreamName};
use quick_cache::{Weighter, sync::Cache};
use store::{Store, StoreError};
use tokio::{
    io::AsyncReadExt,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::io::ReaderStream;

use crate::{
    Role,
    answer::{NOSNIFF, Refusal, http_date},
    disk::Disk,
    known::known,
    media::add_cors,
    playlists::cache_of_bytes,
    preconditions::{Entity, Verdict, decide},
};

/// Bytes of segments kept in memory. A hub's viewers watch the last segments of many streams; an edge has
/// a few viewers and little memory.
const MAX_CACHE_BYTES_HUB: u64 = 64 << 20;
const MAX_CACHE_BYTES_EDGE: u64 = 16 << 20;
/// The largest segment that is kept in memory: 2 s of 16 Mbit/s. Larger ones would push out too many.
const MAX_CACHED_SEGMENT_BYTES: u64 = 4 << 20;
/// What memory may hold of segments in all, cached or still being sent to slow viewers, in caches.
const MAX_HELD_CACHES: u64 = 2;
/// Unit of [`Segments::room`].
const ROOM_UNIT_BYTES: u64 = 1 << 10;
/// Piece in which a file is sent; each such request holds two of them.
const FILE_CHUNK_BYTES: usize = 64 << 10;
/// How long a cached segment is served without asking the catalog whether it is still here.
const RECHECK: Duration = Duration::from_secs(5);
/// Others may keep a segment for an hour: it never changes, but it may be deleted for a reason.
const CACHE_IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=3600, immutable");

type Key = (StreamName, SegmentNumber);

/// The segments of one store.
pub(crate) struct Segments {
    store: Store,
    disk: Disk,
    cache: Cache<Key, Arc<Held>, ByBytes>,
    /// Memory for segments' bytes; they give it back when the last request is done with them.
    room: Arc<Semaphore>,
    started: Instant,
}

/// A segment in memory.
struct Held {
    head: Head,
    bytes: Bytes,
    /// Milliseconds since `started` when the catalog last had it.
    checked_ms: AtomicU64,
}

/// What answers about a segment need beside its bytes.
struct Head {
    hash: SegmentHash,
    bytes: u64,
    /// Quoted.
    etag: String,
    last_modified: Option<SystemTime>,
    /// Of the 200 answer.
    headers: HeaderMap,
}

/// Bytes with the room they take.
struct Roomed {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Roomed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A segment that the cache did not have.
enum Loaded {
    Held(Arc<Held>),
    /// Too large, or no room now.
    OnDisk(Head, File),
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<Held>> for ByBytes {
    fn weight(&self, _: &Key, held: &Arc<Held>) -> u64 {
        held.head.bytes + ROOM_UNIT_BYTES
    }
}

impl Segments {
    pub(crate) fn new(store: Store, role: Role, disk: Disk) -> Self {
        let (bytes, shards) = match role {
            Role::Hub => (MAX_CACHE_BYTES_HUB, 4),
            Role::Edge => (MAX_CACHE_BYTES_EDGE, 1),
        };
        let room = bytes * MAX_HELD_CACHES / ROOM_UNIT_BYTES;
        Self {
            store,
            disk,
            cache: cache_of_bytes(bytes, 256 << 10, shards, ByBytes),
            room: Arc::new(Semaphore::new(usize::try_from(room).unwrap_or(usize::MAX))),
            started: Instant::now(),
        }
    }

    /// Answers GET and HEAD.
    pub(crate) async fn get(
        &self,
        stream: StreamName,
        number: SegmentNumber,
        method: &Method,
        request: &HeaderMap,
    ) -> Result<Response, Refusal> {
        let key = (stream, number);
        if let Some(held) = self.cache.get(&key) {
            self.check(&key, &held).await?;
            return held.respond(method, request);
        }
        if method == Method::HEAD {
            let head = self.head(key).await?;
            let verdict = decide(method, request, head.entity());
            return head.respond(verdict, |_| Body::empty());
        }
        match self.cache.get_value_or_guard_async(&key).await {
            Ok(held) => held.respond(method, request),
            Err(guard) => match self.load(key.clone()).await? {
                Loaded::Held(held) => {
                    // Refused only if somebody emptied the cache meanwhile: then it is just not kept.
                    let _ = guard.insert(held.clone());
                    held.respond(method, request)
                }
                Loaded::OnDisk(head, file) => {
                    drop(guard);
                    let verdict = decide(method, request, head.entity());
                    self.send_file(head, verdict, file).await
                }
            },
        }
    }

    /// Asks the catalog now and then whether a cached segment is still here: one request does, the others
    /// meanwhile get what memory has.
    async fn check(&self, key: &Key, held: &Arc<Held>) -> Result<(), Refusal> {
        let now_ms = self.elapsed_ms();
        let checked_ms = held.checked_ms.load(Ordering::Relaxed);
        let due = now_ms.saturating_sub(checked_ms) >= RECHECK.as_millis() as u64;
        if !due
            || held
                .checked_ms
                .compare_exchange(checked_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return Ok(());
        }
        match self.head(key.clone()).await {
            Ok(head) if head.hash == held.head.hash => Ok(()),
            Ok(_) => {
                self.cache.remove(key);
                Err(Refusal::internal(
                    "serve a segment",
                    &format!("{} {} changed, which no segment may", key.0, key.1),
                ))
            }
            Err(refusal) if refusal.status() == StatusCode::NOT_FOUND => {
                self.cache.remove(key);
                Err(refusal)
            }
            // The catalog can't tell now; what memory has is right all the same.
            Err(_) => Ok(()),
        }
    }

    async fn head(&self, key: Key) -> Result<Head, Refusal> {
        let store = self.store.clone();
        self.disk
            .run(move || match store.segment(&key.0, key.1) {
                Ok(Some(info)) => Ok(Head::new(&info)),
                Ok(None) | Err(StoreError::NoSuchStream(_)) => Err(missing(&store, &key)),
                Err(error) => Err(Refusal::internal("read the catalog", &error)),
            })
            .await
    }

    /// Reads a segment, or opens its file.
    async fn load(&self, key: Key) -> Result<Loaded, Refusal> {
        let (store, room, checked_ms) = (self.store.clone(), self.room.clone(), self.elapsed_ms());
        self.disk
            .run(move || {
                let (info, file) = match store.open_file(&key.0, key.1) {
                    Ok(Some(opened)) => opened,
                    Ok(None) | Err(StoreError::NoSuchStream(_)) => {
                        return Err(missing(&store, &key));
                    }
                    Err(error) => return Err(Refusal::internal("open a segment", &error)),
                };
                let head = Head::new(&info);
                let Some(room) = take_room(room, info.bytes) else {
                    return Ok(Loaded::OnDisk(head, file));
                };
                let bytes = read_whole(file, info.bytes)
                    .map_err(|error| Refusal::internal("read a segment", &error))?;
                let bytes = Bytes::from_owner(Roomed { bytes, _room: room });
                Ok(Loaded::Held(Arc::new(Held {
                    head,
                    bytes,
                    checked_ms: checked_ms.into(),
                })))
            })
            .await
    }

    /// Sends a file piece by piece: a fixed amount of memory, however large it is and however slow the viewer.
    async fn send_file(
        &self,
        head: Head,
        verdict: Verdict,
        mut file: File,
    ) -> Result<Response, Refusal> {
        let range = match &verdict {
            Verdict::Whole => 0..head.bytes,
            Verdict::Part(range) => range.clone(),
            _ => return head.respond(verdict, |_| Body::empty()),
        };
        let start = range.start;
        let file = self
            .disk
            .run(move || {
                file.seek(SeekFrom::Start(start))
                    .map_err(|error| Refusal::internal("read a segment", &error))?;
                Ok(file)
            })
            .await?;
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(FILE_CHUNK_BYTES);
        let pieces = ReaderStream::with_capacity(
            file.take(range.end.saturating_sub(range.start)),
            FILE_CHUNK_BYTES,
        );
        head.respond(verdict, |_| Body::from_stream(pieces))
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn take_room(room: Arc<Semaphore>, bytes: u64) -> Option<OwnedSemaphorePermit> {
    if bytes > MAX_CACHED_SEGMENT_BYTES {
        return None;
    }
    let units = u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES)).ok()?;
    room.try_acquire_many_owned(units).ok()
}

fn read_whole(file: File, bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut whole = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    let read = file.take(bytes).read_to_end(&mut whole)?;
    if read as u64 == bytes {
        Ok(whole)
    } else {
        Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            format!("the file has {read} bytes, the catalog says {bytes}"),
        ))
    }
}

fn missing(store: &Store, (stream, number): &Key) -> Refusal {
    if let Err(refusal) = known(store, stream) {
        return refusal;
    }
    match store.want(stream, *number..=*number) {
        Ok(true) => Refusal::not_found(format!(
            "segment {number} of stream {stream} is still on its device, which is asked for it ahead of its backlog: try again in some seconds"
        )),
        Ok(false) | Err(StoreError::NoSuchStream(_)) => Refusal::not_found(format!(
            "stream {stream} has no segment {number} here: it was deleted, or never came"
        )),
        Err(error) => Refusal::internal("read the catalog", &error),
    }
}

impl Head {
    fn new(info: &SegmentInfo) -> Self {
        let etag = format!("\"{}\"", info.hash);
        let date = http_date(info.wall_start.plus(info.duration), SystemTime::now());
        let mut headers = HeaderMap::with_capacity(16);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("video/mp2t"));
        headers.insert(header::CONTENT_LENGTH, info.bytes.into());
        headers.insert(header::CACHE_CONTROL, CACHE_IMMUTABLE);
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        // 64 hex digits in quotes are a header value.
        if let Ok(etag) = HeaderValue::try_from(&etag) {
            headers.insert(header::ETAG, etag);
        }
        if let Some((date, _)) = &date {
            headers.insert(header::LAST_MODIFIED, date.clone());
        }
        add_cors(&mut headers);
        Self {
            hash: info.hash,
            bytes: info.bytes,
            etag,
            last_modified: date.map(|(_, time)| time),
            headers,
        }
    }

    fn entity(&self) -> Entity<'_> {
        Entity {
            etag: &self.etag,
            last_modified: self.last_modified,
            bytes: self.bytes,
        }
    }

    /// The answer of a verdict; `body` gives the bytes of a range.
    fn respond(
        &self,
        verdict: Verdict,
        body: impl FnOnce(Range<u64>) -> Body,
    ) -> Result<Response, Refusal> {
        let mut headers = self.headers.clone();
        let (status, body) = match verdict {
            Verdict::Whole => (StatusCode::OK, body(0..self.bytes)),
            Verdict::Part(range) => {
                let Range { start, end } = range;
                headers.insert(header::CONTENT_LENGTH, end.saturating_sub(start).into());
                let part = format!("bytes {start}-{}/{}", end.saturating_sub(1), self.bytes);
                if let Ok(part) = HeaderValue::try_from(part) {
                    headers.insert(header::CONTENT_RANGE, part);
                }
                (StatusCode::PARTIAL_CONTENT, body(start..end))
            }
            Verdict::NotModified => {
                // Content-Length stays: it is the 200 answer's (RFC 9110 8.6), and the router would write 0.
                headers.remove(header::CONTENT_TYPE);
                (StatusCode::NOT_MODIFIED, Body::empty())
            }
            Verdict::Failed => return Err(Refusal::precondition_failed()),
            Verdict::Unsatisfiable => return Err(Refusal::unsatisfiable(self.bytes)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

impl Held {
    fn respond(&self, method: &Method, request: &HeaderMap) -> Result<Response, Refusal> {
        let verdict = decide(method, request, self.head.entity());
        self.head.respond(verdict, |range| {
            // A verdict's range lies within the bytes, which are as many as the head says.
            Body::from(self.bytes.slice(range.start as usize..range.end as usize))
        })
    }
}
