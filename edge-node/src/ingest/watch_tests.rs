//! A watched folder beside a hub that the test plays: what is held back, what goes away, what stays.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use model::{SegmentNumber, StreamName};
use store::{Store, StoreOptions, TakenState};
use tokio_util::sync::CancellationToken;

use super::{Gate, Standing, Watch, watch};
use crate::{
    config::Done,
    inputs::{Count, Input},
    numbers::Numbers,
    recorder::{RecordError, RecorderConfig},
};

fn gate() -> StreamName {
    "gate".parse().unwrap()
}

fn clip() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/media/demux-h264-aac.ts")
}

struct Site {
    dir: tempfile::TempDir,
    store: Store,
    numbers: Numbers,
    gate: Gate,
    input: std::sync::Arc<Input>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            local_playlists: true,
            ..StoreOptions::default()
        };
        fs::create_dir(dir.path().join("in")).unwrap();
        let (store, _) = Store::open(&dir.path().join("data"), options).unwrap();
        let numbers = Numbers::open(dir.path()).unwrap();
        Self {
            dir,
            store,
            numbers,
            gate: Gate::default(),
            input: Input::new(gate(), String::new()),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("in").join(name)
    }

    fn start(&self, done: Done) -> (CancellationToken, JoinHandle<Result<(), RecordError>>) {
        let config = Watch {
            folder: self.dir.path().join("in"),
            scan_interval: Duration::from_millis(20),
            settle: Duration::from_millis(20),
            done,
            config: RecorderConfig::new(gate()),
            store: self.store.clone(),
            numbers: self.numbers.clone(),
            clock: crate::clock::Clock::start(self.store.clone()).unwrap(),
        };
        let stop = CancellationToken::new();
        let (input, gate) = (self.input.clone(), self.gate.clone());
        let until = stop.clone();
        let thread = thread::spawn(move || watch(&config, &input, &gate, &until));
        (stop, thread)
    }

    fn wait(&self, what: &str, is: impl Fn() -> bool) {
        let start = Instant::now();
        while !is() {
            assert!(start.elapsed() < Duration::from_secs(30), "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn numbers_here(&self) -> Vec<SegmentNumber> {
        let all = self.store.list(&gate(), SegmentNumber(0), 1_000);
        all.unwrap_or_default().iter().map(|s| s.number).collect()
    }
}

#[test]
fn a_file_goes_only_once_the_hub_has_all_of_it() {
    let site = Site::new();
    fs::copy(clip(), site.file("a.ts")).unwrap();
    fs::write(site.file("b.ts"), vec![1; 100_000]).unwrap();
    let (stop, thread) = site.start(Done::Delete);
    site.wait("taken", || site.input.count(Count::FilesTaken) == 1);
    site.wait("refused", || site.input.count(Count::FilesRefused) == 1);
    let numbers = site.numbers_here();
    for number in &numbers[..numbers.len() - 1] {
        site.store.mark_stored(&gate(), *number).unwrap();
    }
    thread::sleep(Duration::from_millis(300));
    assert!(site.file("a.ts").exists(), "one segment is not there yet");
    site.store
        .mark_stored(&gate(), *numbers.last().unwrap())
        .unwrap();
    site.wait("deleted", || !site.file("a.ts").exists());
    assert!(site.file("b.ts").exists(), "the only copy of what is in it");
    site.wait("forgotten", || {
        site.store.taken(&gate()).unwrap().len() == 1
    });
    let refused = &site.store.taken(&gate()).unwrap()[0];
    assert_eq!(refused.state, TakenState::Refused);
    assert!(refused.reason.as_ref().is_some_and(|r| !r.is_empty()));
    stop.cancel();
    thread.join().unwrap().unwrap();
}

#[test]
fn files_wait_while_the_disk_is_full() {
    let site = Site::new();
    let full = |disk_full| {
        site.gate.set(&Standing {
            disk_full,
            ..Standing::default()
        });
    };
    full(true);
    fs::copy(clip(), site.file("a.ts")).unwrap();
    let (stop, thread) = site.start(Done::Keep);
    thread::sleep(Duration::from_millis(300));
    assert!(site.numbers_here().is_empty());
    full(false);
    site.wait("taken", || site.input.count(Count::FilesTaken) == 1);
    assert!(!site.numbers_here().is_empty() && site.file("a.ts").exists());
    stop.cancel();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_move_never_writes_over_another_file() {
    let site = Site::new();
    let done = site.dir.path().join("done");
    fs::create_dir(&done).unwrap();
    fs::write(done.join("a.ts"), b"older").unwrap();
    fs::copy(clip(), site.file("a.ts")).unwrap();
    let (stop, thread) = site.start(Done::Move(done.clone()));
    site.wait("taken", || site.input.count(Count::FilesTaken) == 1);
    for number in site.numbers_here() {
        site.store.mark_stored(&gate(), number).unwrap();
    }
    site.wait("moved", || done.join("a.ts.1").exists());
    assert_eq!(fs::read(done.join("a.ts")).unwrap(), b"older");
    assert_eq!(
        fs::read(done.join("a.ts.1")).unwrap(),
        fs::read(clip()).unwrap()
    );
    stop.cancel();
    thread.join().unwrap().unwrap();
}
