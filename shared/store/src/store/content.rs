//! Segments of a store: opening and resuming, reading, and the one path by which a live list changes.

use super::*;
use crate::catalog::holes;

/// Writing.
impl Store {
    /// Opens a segment. Its number is burnt, durably, before this returns (invariant 2). The stream must be
    /// registered and its run put.
    pub fn open_segment(&self, stream: &StreamName, open: OpenSegment) -> Result<SegmentWriter> {
        self.open_at(stream, open, None)
    }

    /// Opens a segment of a live source, which began at `at` by the clock of this boot. Where that clock was
    /// corrected ([`Store::correct_boot`]) its wall time follows from it, else it is `open`'s until then.
    pub fn open_live_segment(
        &self,
        stream: &StreamName,
        open: OpenSegment,
        at: BootTime,
    ) -> Result<SegmentWriter> {
        self.open_at(stream, open, Some(at))
    }

    fn open_at(
        &self,
        stream: &StreamName,
        mut open: OpenSegment,
        at: Option<BootTime>,
    ) -> Result<SegmentWriter> {
        self.inner.catalog.present()?;
        self.inner.layout.make_folder(stream, open.number)?;
        if self.inner.options.local_playlists {
            self.close_left_open(stream)?;
            // Its run may have got another number since it began.
            open.run = self.inner.catalog.read(|c| {
                let row = streams::get(c, stream)?;
                Ok(renumber::run_now(c, row.id, open.run)?)
            })?;
        } else {
            self.forget_left_open(stream, open.number)?;
        }
        self.inner.catalog.write(|c| {
            let row = streams::get(c, stream)?;
            // In this transaction: a correction finds the row, or the row finds the correction.
            let corrected = at.map(|at| boots::wall(c, at)).transpose()?.flatten();
            open.wall_start = corrected.unwrap_or(open.wall_start);
            let buried =
                holes::next_tombstone(c, row.id, open.number.0.checked_sub(1).map(SegmentNumber))?
                    .is_some_and(|range| range.contains(&open.number));
            if buried || !segments::open(c, row.id, &open)? {
                return Err(StoreError::NumberUsed {
                    stream: stream.clone(),
                    number: open.number,
                }
                .into());
            }
            if let Some(at) = at {
                segments::set_boot(c, row.id, open.number, at)?;
            }
            if row.told_to_end && row.ending.is_none_or(|ending| open.number > ending) {
                streams::begin_anew(c, row.id, open.number)?;
            }
            Ok(streams::raise_floor(c, row.id, open.number)?)
        })?;
        let path = self.inner.layout.partial(stream, open.number);
        let file = match File::create(&path).at(&path) {
            Ok(file) => file,
            Err(error) => {
                self.abandon(stream, open.number)?;
                return Err(error);
            }
        };
        let writer = SegmentWriter::new(
            self.clone(),
            stream.clone(),
            open,
            path,
            file,
            (blake3::Hasher::new(), 0),
        );
        self.tick();
        Ok(writer)
    }

    /// Goes on with a partial that a restart or a lost session left (hub).
    pub fn resume_segment(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<Option<SegmentWriter>> {
        // Asked before the row: a writer is gone only after its row has said *here*.
        let has_writer = self.has_writer(stream, number);
        let row = self.row(stream, number)?;
        let Some(row) = row.filter(|row| row.state == State::Open) else {
            return Ok(None);
        };
        if !has_writer {
            self.take_back(stream, number)?;
        }
        let path = self.inner.layout.partial(stream, number);
        if !path.exists() {
            return Ok(None);
        }
        let written = files::hash_file(&path)?;
        let file = File::options().append(true).open(&path).at(&path)?;
        Ok(Some(SegmentWriter::new(
            self.clone(),
            stream.clone(),
            row.open(),
            path,
            file,
            written,
        )))
    }

    /// Partials of a stream that wait to be resumed: what opened them, length, BLAKE3 of those bytes (hub).
    pub fn partials(&self, stream: &StreamName) -> Result<Vec<(OpenSegment, u64, SegmentHash)>> {
        let rows = self.inner.catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::list_not_here(c, row.id)?)
        })?;
        let mut partials = Vec::new();
        for row in rows.iter().filter(|row| row.state == State::Open) {
            let path = self.inner.layout.partial(stream, row.info.number);
            if path.exists() {
                let (hasher, bytes) = files::hash_file(&path)?;
                partials.push((row.open(), bytes, files::hash_of(&hasher)));
            }
        }
        Ok(partials)
    }
}

/// Reading.
impl Store {
    pub(crate) fn row(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<Option<SegmentRow>> {
        self.inner.catalog.read(|c| {
            let Some(row) = streams::find(c, stream)? else {
                return Ok(None);
            };
            Ok(segments::find(c, row.id, number)?)
        })
    }

    /// A segment that is here.
    pub fn segment(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<Option<SegmentInfo>> {
        let row = self.row(stream, number)?;
        Ok(row
            .filter(|row| row.state == State::Here)
            .map(|row| row.info))
    }

    /// The file of a closed segment, opened, with what is known of it.
    pub fn open_file(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
    ) -> Result<Option<(SegmentInfo, File)>> {
        let Some(info) = self.segment(stream, number)? else {
            return Ok(None);
        };
        let path = self.inner.layout.segment(stream, number);
        match File::open(&path) {
            Ok(file) => Ok(Some((info, file))),
            // Retention came between row and file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Or the whole disk has gone.
                self.inner.catalog.present()?;
                Ok(None)
            }
            Err(error) => Err(error).at(&path),
        }
    }

    /// Bytes of a closed segment, or of the open one up to what is written; fewer where it ends before.
    pub fn read(
        &self,
        stream: &StreamName,
        number: SegmentNumber,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let held = self.in_tier(stream, |held| {
            held.segments
                .get(&number)
                .map(|held| held.read(range.clone()))
        });
        if let Some(bytes) = held.flatten().filter(|bytes| !bytes.is_empty()) {
            return Ok(bytes);
        }
        let missing = || StoreError::Segment {
            stream: stream.clone(),
            number,
            what: "it is not here (any more)".to_owned(),
        };
        let (partial, whole) = (
            self.inner.layout.partial(stream, number),
            self.inner.layout.segment(stream, number),
        );
        // It may be closed, and so renamed, between two looks.
        let mut found = None;
        for path in [&whole, &partial, &whole] {
            match File::open(path) {
                Ok(file) => {
                    found = Some((file, path));
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).at(path),
            }
        }
        let (file, path) = found.ok_or_else(missing)?;
        let end = range.end.min(file.metadata().at(path)?.len());
        let length = end.saturating_sub(range.start).min(MAX_SEGMENT_BYTES);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut bytes, range.start).at(path)?;
        Ok(Bytes::from(bytes))
    }

    /// The newest segment being written, as far as it is readable.
    pub fn open_view(&self, stream: &StreamName) -> Result<Option<OpenView>> {
        if let Some(view) = self.in_tier(stream, TierStream::open_view).flatten() {
            return Ok(Some(view));
        }
        let view = self.look_at(stream, |memory| {
            memory
                .open
                .last_key_value()
                .map(|(_, opened)| opened.view.clone())
        });
        Ok(view.flatten())
    }

    /// Closed segments here from `from` on, ascending.
    pub fn list(
        &self,
        stream: &StreamName,
        from: SegmentNumber,
        limit: usize,
    ) -> Result<Vec<SegmentInfo>> {
        let rows = self.inner.catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(segments::list_here(c, row.id, from, limit)?)
        })?;
        Ok(rows.into_iter().map(|row| row.info).collect())
    }

    /// The live playlist as committed, rendered once per change. None: no segment yet.
    pub fn live_playlist(&self, stream: &StreamName) -> Result<Option<Arc<Playlist>>> {
        let cached = self.look_at(stream, |memory| {
            memory.playlist_loaded.then(|| memory.playlist.clone())
        });
        if let Some(playlist) = cached.flatten() {
            return Ok(playlist);
        }
        self.inner.catalog.read(|c| streams::get(c, stream))?;
        // Once after a start: not between another's commit and its publication.
        let order = self.with_memory(stream, |memory| memory.order.clone());
        let _in_order = order.lock().unwrap_or_else(PoisonError::into_inner);
        let row = self.inner.catalog.read(|c| {
            let row = streams::get(c, stream)?;
            Ok(crate::catalog::live::load(c, row.id, self.inner.window())?)
        })?;
        let playlist = row.and_then(|row| live::render(&row, UriForm::Http));
        self.with_memory(stream, |memory| {
            if !memory.playlist_loaded {
                memory.playlist_loaded = true;
                memory.playlist = playlist;
            }
            Ok(memory.playlist.clone())
        })
    }

    /// Changes the ledger of a stream and brings its live list up to it, in one commit; then publishes.
    pub(crate) fn change_live<T>(
        &self,
        stream: &StreamName,
        work: impl FnOnce(&Connection, &StreamRow) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let order = self.with_memory(stream, |memory| memory.order.clone());
        let in_order = order.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Times {
            wall: wall_now(),
            steady: self.steady_now(),
        };
        let (done, advanced) = self.inner.catalog.write(|c| {
            let row = streams::get(c, stream)?;
            let done = work(c, &row)?;
            // What was done may have changed it.
            let row = streams::get(c, stream)?;
            Ok((done, live::advance(c, &row, self.inner.window(), &now)?))
        })?;
        self.publish_live(stream, &advanced);
        drop(in_order);
        self.tick();
        Ok(done)
    }

    /// After the commit: what viewers see.
    fn publish_live(&self, stream: &StreamName, advanced: &Advanced) {
        if advanced.changed
            && let Some(row) = &advanced.row
        {
            let playlist = live::render(row, UriForm::Http);
            self.with_memory(stream, |memory| {
                memory.playlist_loaded = true;
                memory.playlist = playlist;
            });
            if self.inner.options.local_playlists {
                self.write_local_live(stream, row);
            }
        }
        for info in &advanced.listed {
            tracing::debug!(%stream, number = info.number.0, "segment listed");
        }
    }

    /// Forgets the rendered list: its rows were changed otherwise.
    pub(crate) fn forget_playlist(&self, stream: &StreamName) {
        self.with_memory(stream, |memory| {
            memory.playlist_loaded = false;
            memory.playlist = None;
        });
    }

    /// The same for all streams, also those that are gone.
    pub(super) fn forget_playlists(&self) {
        let known: Vec<StreamName> = {
            let streams = self.inner.streams.lock();
            let streams = streams.unwrap_or_else(PoisonError::into_inner);
            streams.keys().cloned().collect()
        };
        for stream in known {
            self.forget_playlist(&stream);
        }
    }
}
