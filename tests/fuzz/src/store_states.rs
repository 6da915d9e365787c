//! The store in a temporary folder under operations, kills and damaged files. Slow: few operations each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use arbitrary::{Arbitrary, Unstructured};
use media::ts::demux::Demuxer;
use model::{HoleReason, MediaDuration, MediaTime, RunInfo, SegmentNumber, StreamName, WallTime};
use store::{OpenSegment, RetentionLimits, SegmentWriter, Store, StoreOptions};

use crate::live;

const MAX_OPERATIONS: usize = 24;
const START: WallTime = WallTime(1_777_622_400_000);
const DURATION: MediaDuration = MediaDuration(180_000);

#[derive(Debug, Arbitrary)]
enum Operation {
    Open {
        skip: u8,
    },
    Append {
        bytes: u8,
    },
    Part,
    Close,
    /// The writer is gone without a word, as after an error.
    Drop,
    Discard,
    Settle {
        number: u8,
        length: u8,
    },
    End,
    Janitor {
        hours: u8,
    },
    Reopen,
    /// A kill in the middle of writing: the end of the newest partial is missing, or is noise.
    Kill {
        lose: u8,
        noise: u8,
    },
    NewRun,
}

struct Site {
    dir: tempfile::TempDir,
    options: StoreOptions,
    store: Option<Store>,
    writer: Option<SegmentWriter>,
    gate: StreamName,
    next: u64,
    run: u64,
    /// Closed, with their bytes.
    closed: BTreeMap<u64, Vec<u8>>,
    written: Vec<u8>,
    used: BTreeSet<u64>,
    sequence: (u64, u64),
    seen: BTreeMap<u64, String>,
}

/// In memory where there is such a file system: the disk is not what is tried.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.expect("a temporary folder")
}

fn options(edge: bool) -> StoreOptions {
    StoreOptions {
        holder: "a fuzz target".into(),
        local_playlists: edge,
        live_window: Duration::from_secs(10),
        limits: RetentionLimits {
            max_age: Some(Duration::from_secs(7_200)),
            max_bytes: Some(20_000),
            ..RetentionLimits::default()
        },
        ..StoreOptions::default()
    }
}

impl Site {
    fn new(edge: bool) -> Self {
        let mut site = Self {
            dir: folder(),
            options: options(edge),
            store: None,
            writer: None,
            gate: "gate".parse().unwrap(),
            next: 1,
            run: 1,
            closed: BTreeMap::new(),
            written: Vec::new(),
            used: BTreeSet::new(),
            sequence: (0, 0),
            seen: BTreeMap::new(),
        };
        site.open_store();
        site.store().register_stream(&site.gate, None).unwrap();
        site.put_run();
        site
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("an open store")
    }

    fn open_store(&mut self) {
        self.writer = None;
        self.store = None;
        let (store, _) =
            Store::open(self.dir.path(), self.options.clone()).expect("it opens again");
        self.store = Some(store);
        self.written.clear();
    }

    fn put_run(&self) {
        let run = RunInfo {
            run: SegmentNumber(self.run),
            codecs: "avc1.64001f".into(),
            resolution: None,
            target_duration_s: 2,
        };
        self.store().put_run(&self.gate, &run).unwrap();
    }

    fn open_segment(&mut self, skip: u8) {
        self.writer = None;
        self.written.clear();
        self.next += u64::from(skip % 4);
        let number = self.next;
        self.next += 1;
        let since = MediaDuration(number as i64 * DURATION.0);
        let open = OpenSegment {
            number: SegmentNumber(number),
            run: SegmentNumber(self.run),
            wall_start: START.plus(since),
            media_start: MediaTime(since.0),
            independent: true,
        };
        // Numbers that were settled before are refused (invariant 2).
        if let Ok(writer) = self.store().open_segment(&self.gate, open) {
            assert!(self.used.insert(number), "number {number} was given twice");
            self.writer = Some(writer);
        }
    }

    fn perform(&mut self, operation: Operation) {
        match operation {
            Operation::Open { skip } => self.open_segment(skip),
            Operation::Append { bytes } => {
                if let Some(writer) = &mut self.writer {
                    let bytes = vec![0x47 ^ bytes; usize::from(bytes) * 4];
                    writer.append(&bytes).unwrap();
                    self.written.extend_from_slice(&bytes);
                }
            }
            Operation::Part => {
                if let Some(writer) = &mut self.writer {
                    let _ = writer.finish_part(DURATION, true);
                }
            }
            Operation::Close => {
                if let Some(writer) = self.writer.take() {
                    let number = writer.number().0;
                    if let Ok(info) = writer.close(DURATION, None) {
                        assert_eq!(info.bytes, self.written.len() as u64);
                        self.closed
                            .insert(number, std::mem::take(&mut self.written));
                    }
                }
            }
            Operation::Drop => self.writer = None,
            Operation::Discard => {
                if let Some(writer) = self.writer.take() {
                    writer.discard().unwrap();
                }
            }
            Operation::Settle { number, length } => {
                let first = u64::from(number % 32);
                let range = SegmentNumber(first)..=SegmentNumber(first + u64::from(length % 8));
                self.writer = None;
                self.store()
                    .settle(&self.gate, range, HoleReason::Evicted)
                    .unwrap();
            }
            Operation::End => {
                self.writer = None;
                let last = self.closed.keys().next_back().copied().map(SegmentNumber);
                self.store().end_stream(&self.gate, last).unwrap();
            }
            Operation::Janitor { hours } => {
                let now = WallTime(START.0 + i64::from(hours) * 3_600_000 / 8);
                self.store().run_janitor(now).unwrap();
            }
            Operation::Reopen => self.open_store(),
            Operation::Kill { lose, noise } => {
                self.writer = None;
                self.store = None;
                if let Some(partial) = partials(&self.dir.path().join("segments"))
                    .into_iter()
                    .next_back()
                {
                    damage(&partial, lose.into(), &[noise; 40]);
                }
                self.open_store();
            }
            Operation::NewRun => {
                self.run = self.next;
                self.put_run();
            }
        }
    }

    /// What is listed is here, whole, and as it was; the list never went back or changed.
    fn check(&mut self) {
        let store = self.store().clone();
        for info in store.list(&self.gate, SegmentNumber(0), 1_000).unwrap() {
            let (again, file) = store
                .open_file(&self.gate, info.number)
                .unwrap()
                .expect("listed, so here");
            assert_eq!((again, file.metadata().unwrap().len()), (info, info.bytes));
            let bytes = store.read(&self.gate, info.number, 0..info.bytes).unwrap();
            assert_eq!(model::SegmentHash::of(&bytes), info.hash, "{}", info.number);
            if let Some(written) = self.closed.get(&info.number.0) {
                assert_eq!(&bytes, written);
            }
        }
        let floor = store.floor(&self.gate).unwrap();
        assert!(
            self.used.last().is_none_or(|last| floor.0 > *last),
            "the floor is {floor}"
        );
        let Some(playlist) = store.live_playlist(&self.gate).unwrap() else {
            return;
        };
        let read = live::read(std::str::from_utf8(&playlist.text).unwrap());
        let sequence = (read.media_sequence, read.discontinuity_sequence);
        assert!(
            sequence.0 >= self.sequence.0 && sequence.1 >= self.sequence.1,
            "{sequence:?} after {:?}",
            self.sequence
        );
        self.sequence = sequence;
        for (msn, segment) in (read.media_sequence..).zip(read.segments) {
            if let Some(number) = segment
                .uri
                .strip_suffix(".ts")
                .and_then(|number| number.parse().ok())
            {
                let here = store.segment(&self.gate, SegmentNumber(number)).unwrap();
                assert!(here.is_some(), "{number} is listed and not here");
            }
            let known = self.seen.entry(msn).or_insert_with(|| segment.uri.clone());
            assert_eq!(*known, segment.uri, "sequence {msn} was rewritten");
        }
    }
}

/// Operations and kills on an edge's or a hub's store.
pub(crate) fn store(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut site = Site::new(u.arbitrary().unwrap_or(false));
    for _ in 0..MAX_OPERATIONS {
        if u.is_empty() {
            break;
        }
        let Ok(operation) = u.arbitrary::<Operation>() else {
            break;
        };
        site.perform(operation);
        site.check();
    }
    site.open_store();
    site.check();
}

/// An edge killed with any bytes in its open segment: what is closed afterwards is a beginning of them, whole
/// packets that can be read, or there is nothing.
pub(crate) fn recover(data: &[u8]) {
    let mut site = Site::new(true);
    site.open_segment(0);
    let writer = site.writer.as_mut().expect("open");
    writer.append(data).unwrap();
    site.open_store();
    match site.store().segment(&site.gate, SegmentNumber(1)).unwrap() {
        Some(info) => {
            let bytes = site
                .store()
                .read(&site.gate, info.number, 0..info.bytes)
                .unwrap();
            assert!(data.starts_with(&bytes) && !bytes.is_empty());
            assert!(info.duration.0 > 0, "{info:?}");
            let (mut demuxer, mut out) = (Demuxer::new(), Vec::new());
            demuxer.push(&bytes, &mut out);
            demuxer.finish(&mut out);
            let units = out
                .iter()
                .filter(|event| matches!(event, media::access_unit::SourceEvent::AccessUnit(_)));
            assert!(units.count() > 0, "closed without an access unit");
        }
        None => assert!(
            partials(&site.dir.path().join("segments")).is_empty(),
            "a partial is left"
        ),
    }
    site.closed.clear();
    site.check();
    // And recording goes on.
    site.perform(Operation::Open { skip: 0 });
    site.perform(Operation::Append { bytes: 9 });
    site.perform(Operation::Part);
    site.perform(Operation::Close);
    assert!(site.closed.contains_key(&2));
    site.check();
}

/// Files of open segments, in the order of their names.
fn partials(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(partials(&path));
        } else if path
            .extension()
            .is_some_and(|extension| extension == "partial")
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn damage(path: &Path, lose: u64, noise: &[u8]) {
    let mut file = fs::File::options().append(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(lose)).unwrap();
    file.write_all(noise).unwrap();
}
