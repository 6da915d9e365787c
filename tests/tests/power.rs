//! Power cuts: what was promised is there, whatever part of the unsynced writes a disk kept.
//!
//! `scripts/soak power` runs more points; PENSTOCK_SEED repeats a run's choice of points and of what survives.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::time::Instant;

use anyhow::{Context, Result};
use rusqlite::Connection;
use system_tests::power::{
    Checker, CutOf, Disk, Log, Mode, Mount, Op, Ports, Promise, ROOT, Random, Recording, Side, cut,
    hub, record,
};

/// Points in CI; `scripts/soak power --points` says otherwise.
const POINTS: u64 = 40;
/// Of so many points one lies in the enrolment, which has few writes.
const ENROLMENT: u64 = 8;
/// Of so many points one has the power go again while the program starts.
const AGAIN: u64 = 4;
/// Of so many points one has both programs run on to the end.
const PAIR: u64 = 5;

fn number(variable: &str, default: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[test]
fn what_was_stored_survives_power_cuts() -> Result<()> {
    let (points, seed) = (
        number("PENSTOCK_POWER_POINTS", POINTS),
        number("PENSTOCK_SEED", 1),
    );
    println!("{points} points, PENSTOCK_SEED={seed}");
    let dir = tempfile::tempdir()?;
    let recording = record(dir.path())?;
    let (at_hub, at_edge) = (recording.points(Side::Hub), recording.points(Side::Edge));
    println!(
        "recorded {} changes at the hub, {} at the edge; {} segments, {} removed by retention",
        at_hub.len(),
        at_edge.len(),
        recording.truth.len(),
        recording.removed.len()
    );
    assert!(
        recording.removed.iter().any(|key| key.0 == Side::Hub),
        "retention removed nothing at the hub"
    );
    let mut checker = Checker::new(&recording, dir.path());
    let mut random = Random::new(seed);
    let since = Instant::now();
    let mut failures = Vec::new();
    for index in 0..points {
        let side = [Side::Hub, Side::Edge][index as usize % 2];
        let all = if side == Side::Hub { &at_hub } else { &at_edge };
        let point = choose(&recording, all, &mut random);
        let mode = Mode::ALL[random.below(4) as usize];
        if let Err(error) = check(&mut checker, side, point, mode, &mut random) {
            let failure = format!("point {index}, {side:?} at {point}, {mode:?}: {error:#}");
            println!("{failure}");
            failures.push(failure);
        }
    }
    println!(
        "{points} points in {:.0} s, {:.0} a minute; longest to open a store {} ms",
        since.elapsed().as_secs_f64(),
        points as f64 * 60.0 / since.elapsed().as_secs_f64(),
        checker.longest_open_ms
    );
    assert!(
        failures.is_empty(),
        "{} of {points} points fail",
        failures.len()
    );
    Ok(())
}

fn choose(recording: &Recording, all: &[usize], random: &mut Random) -> usize {
    let enrolled = recording
        .entries
        .iter()
        .position(|e| matches!(e, system_tests::power::Entry::Promise(Promise::Enrolled)));
    let early = all.partition_point(|&at| enrolled.is_some_and(|end| at <= end + 20));
    match random.chance(ENROLMENT) {
        true => all[random.below(early.max(1) as u64) as usize],
        false => all[random.below(all.len() as u64) as usize],
    }
}

fn check(
    checker: &mut Checker<'_>,
    side: Side,
    point: usize,
    mode: Mode,
    random: &mut Random,
) -> Result<()> {
    if random.chance(PAIR) {
        let of = match (random.chance(2), side) {
            (true, _) => CutOf::Both,
            (false, Side::Hub) => CutOf::Hub,
            (false, Side::Edge) => CutOf::Edge,
        };
        let mode_of = |cut: bool| if cut { mode } else { Mode::Keep };
        let hub_disk = checker.cut(Side::Hub, point, mode_of(of != CutOf::Edge), random);
        let edge_disk = checker.cut(Side::Edge, point, mode_of(of != CutOf::Hub), random);
        return checker
            .pair(hub_disk, edge_disk, point)
            .with_context(|| format!("pair, cut of {of:?}"));
    }
    let mut disk = checker.cut(side, point, mode, random);
    let again = random.chance(AGAIN);
    if again {
        let mode = Mode::ALL[random.below(4) as usize];
        disk = checker.cut_again(side, disk, mode, random)?;
    }
    match side {
        Side::Hub => checker.hub(disk, point),
        Side::Edge => checker.edge(disk, point),
    }
    .with_context(|| format!("cut again in start-up: {again}"))
}

/// A disk with one file in `data/`, all of it durable.
fn disk_with(name: &str, bytes: &[u8]) -> Disk {
    let mut disk = Disk::default();
    let (folder, file) = (2, 3);
    for op in [
        Op::Create {
            parent: ROOT,
            name: "data".to_owned(),
            ino: folder,
            mode: 0o755,
            folder: true,
        },
        Op::Create {
            parent: folder,
            name: name.to_owned(),
            ino: file,
            mode: 0o644,
            folder: false,
        },
        Op::Write {
            ino: file,
            offset: 0,
            data: bytes.into(),
        },
    ] {
        disk.apply(&op);
    }
    disk
}

#[test]
fn a_cut_in_a_catalog_migration_leaves_a_catalog() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("v1.db");
    let v1 = Connection::open(&path)?;
    v1.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    v1.execute_batch(include_str!("../../shared/store/src/catalog/v1.sql"))?;
    v1.execute_batch(
        "PRAGMA user_version = 1;
         INSERT INTO device (name, enabled) VALUES ('pole-7', 1);
         INSERT INTO stream (name, owner, created_ms) VALUES ('cam', 'pole-7', 1000);",
    )?;
    drop(v1);
    let base = disk_with("catalog.db", &std::fs::read(&path)?);

    let log = Log::default();
    let mount = Mount::new(
        &dir.path().join("first"),
        Side::Hub,
        base.clone(),
        log.clone(),
    )?;
    let data_dir = mount.path().join("data");
    hub(&data_dir, Ports::free()?, &[], Log::default())?.kill();
    mount.end()?;
    let entries = log.snapshot();
    assert!(
        entries.len() > 10,
        "the migration wrote {} times",
        entries.len()
    );

    let mut random = Random::new(number("PENSTOCK_SEED", 1));
    let step = entries.len().div_ceil(24);
    for point in (0..=entries.len()).step_by(step) {
        for mode in [Mode::Vanish, Mode::Torn] {
            let disk = cut(&base, &entries, Side::Hub, point, mode, &mut random);
            let mount = Mount::new(&dir.path().join("then"), Side::Hub, disk, Log::default())?;
            let data_dir = mount.path().join("data");
            let started = hub(&data_dir, Ports::free()?, &[], Log::default());
            let text = started
                .with_context(|| format!("at {point}, {mode:?}"))?
                .kill();
            assert!(
                !text.contains("\"level\":\"ERROR\""),
                "at {point}, {mode:?}: {text}"
            );
            let copy = dir.path().join("copy");
            let _ = std::fs::remove_dir_all(&copy);
            std::fs::create_dir_all(&copy)?;
            for (name, bytes) in mount.end()?.files() {
                if let Some(name) = name.strip_prefix("/data/catalog.db") {
                    std::fs::write(copy.join(format!("c{name}")), bytes)?;
                }
            }
            let after = Connection::open(copy.join("c"))?;
            let found: (i64, i64, String) = after.query_row(
                "SELECT (SELECT user_version FROM pragma_user_version), COUNT(*), MAX(owner) FROM stream",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            assert!(found.0 >= 2, "at {point}, {mode:?}: version {}", found.0);
            assert_eq!(
                (found.1, found.2.as_str()),
                (1, "pole-7"),
                "at {point}, {mode:?}"
            );
        }
    }
    Ok(())
}
