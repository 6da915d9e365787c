//! `ledger`: a text file in each segment folder with a line for every segment that was closed there, and for
//! its run. The catalog is the authority; this only lets a lost one be rebuilt exactly.
//!
//! Appended after the commit, never synced: it costs one small write a segment and no fsync. A loss of power
//! may take its last lines or tear one: each line ends in a checksum, and a line that is not whole is passed
//! over. A later line for the same number wins.
//!
//! `run RUN TARGET_S WIDTHxHEIGHT CODECS #CHECK` and
//! `seg NUMBER RUN WALL_MS MEDIA_90K DURATION_90K BYTES INDEPENDENT HASH #CHECK`; `0x0` and `-` say none.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Write},
    path::Path,
};

use model::{
    MediaDuration, MediaTime, RunInfo, SegmentHash, SegmentInfo, SegmentNumber, StreamName,
    WallTime,
};

use crate::{
    Store,
    error::{AtPath, Result},
    files::{self, SEGMENTS_PER_FOLDER},
};

/// Its name in a segment folder.
pub(crate) const FILE: &str = "ledger";
/// Longest ledger that is read: a folder's 4,096 segments written twenty times over.
const MAX_BYTES: u64 = 16 << 20;
/// Hexadecimal digits of a line's checksum (BLAKE3, cut short).
const CHECK_DIGITS: usize = 8;

/// What the ledger of one folder tells.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) segments: HashMap<SegmentNumber, SegmentInfo>,
    pub(crate) runs: HashMap<SegmentNumber, RunInfo>,
}

impl Ledger {
    /// Reads what is whole of a folder's ledger; none is an empty one.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut text = Vec::new();
        // What can't be read tells nothing: the segments themselves do.
        if let Ok(file) = File::open(folder.join(FILE)) {
            let _ = file.take(MAX_BYTES).read_to_end(&mut text);
        }
        let mut ledger = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(line).unwrap_or_default();
            match checked(line).and_then(parse) {
                Some(Line::Segment(info)) => {
                    ledger.segments.insert(info.number, info);
                }
                Some(Line::Run(run)) => {
                    ledger.runs.insert(run.run, run);
                }
                None => {}
            }
        }
        ledger
    }
}

enum Line {
    Segment(SegmentInfo),
    Run(RunInfo),
}

fn checksum(text: &str) -> String {
    let mut hex = blake3::hash(text.as_bytes()).to_hex().to_string();
    hex.truncate(CHECK_DIGITS);
    hex
}

fn with_check(text: &str) -> String {
    format!("{text} #{}\n", checksum(text))
}

/// The line without its checksum, if that is right.
fn checked(line: &str) -> Option<&str> {
    let (text, check) = line.rsplit_once(" #")?;
    (check == checksum(text)).then_some(text)
}

fn segment_line(info: &SegmentInfo) -> String {
    with_check(&format!(
        "seg {} {} {} {} {} {} {} {}",
        info.number,
        info.run,
        info.wall_start.0,
        info.media_start.0,
        info.duration.0,
        info.bytes,
        u8::from(info.independent),
        info.hash
    ))
}

fn run_line(run: &RunInfo) -> String {
    let (width, height) = run.resolution.unwrap_or_default();
    let codecs = if run.codecs.is_empty() || run.codecs.contains(char::is_whitespace) {
        "-"
    } else {
        &run.codecs
    };
    with_check(&format!(
        "run {} {} {width}x{height} {codecs}",
        run.run, run.target_duration_s
    ))
}

fn parse(text: &str) -> Option<Line> {
    let mut words = text.split(' ');
    match words.next()? {
        "seg" => {
            let mut next = || words.next();
            Some(Line::Segment(SegmentInfo {
                number: next()?.parse().ok()?,
                run: next()?.parse().ok()?,
                wall_start: WallTime(next()?.parse().ok()?),
                media_start: MediaTime(next()?.parse().ok()?),
                duration: MediaDuration(next()?.parse().ok()?),
                bytes: next()?.parse().ok()?,
                independent: next()? == "1",
                hash: hash(next()?)?,
            }))
        }
        "run" => {
            let run = words.next()?.parse().ok()?;
            let target_duration_s = words.next()?.parse().ok()?;
            let (width, height) = words.next()?.split_once('x')?;
            let resolution: (u32, u32) = (width.parse().ok()?, height.parse().ok()?);
            let codecs = words.next()?;
            Some(Line::Run(RunInfo {
                run,
                codecs: if codecs == "-" { "" } else { codecs }.to_owned(),
                resolution: (resolution != (0, 0)).then_some(resolution),
                target_duration_s,
            }))
        }
        _ => None,
    }
}

fn hash(hex: &str) -> Option<SegmentHash> {
    let hash = blake3::Hash::from_hex(hex).ok()?;
    Some(SegmentHash(*hash.as_bytes()))
}

impl Store {
    /// After a segment's commit: its line, and before it its run's where the folder has not got that. A
    /// failure costs exactness later, nothing now.
    pub(crate) fn write_journal(&self, stream: &StreamName, info: &SegmentInfo) {
        if let Err(error) = self.append_to_journal(stream, info) {
            tracing::warn!(%stream, number = info.number.0, %error, "failed to append to the folder's ledger");
        }
    }

    fn append_to_journal(&self, stream: &StreamName, info: &SegmentInfo) -> Result<()> {
        let place = (info.number.0 / SEGMENTS_PER_FOLDER, info.run);
        let known = self.with_memory(stream, |memory| memory.journaled == Some(place));
        let mut text = String::new();
        if !known && let Some(run) = self.run(stream, info.run)? {
            text += &run_line(&run);
        }
        text += &segment_line(info);
        let path = self.inner().layout.folder(stream, info.number).join(FILE);
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .at(&path)?;
        if !known && file.metadata().at(&path)?.len() > 0 {
            // A line that a loss of power tore must not take this one with it.
            text.insert(0, '\n');
        }
        file.write_all(text.as_bytes()).at(&path)?;
        self.with_memory(stream, |memory| memory.journaled = Some(place));
        Ok(())
    }
}

/// Removes a folder's ledger and the folder with it, where nothing else is in it.
pub(crate) fn remove_with_folder(folder: &Path) -> Result<()> {
    let only = |entry: fs::DirEntry| entry.file_name() == FILE;
    if fs::read_dir(folder).at(folder)?.flatten().all(only) {
        files::remove(&folder.join(FILE))?;
        // Nobody misses an empty folder.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(number: u64) -> SegmentInfo {
        SegmentInfo {
            number: SegmentNumber(number),
            run: SegmentNumber(1),
            wall_start: WallTime(-5),
            media_start: MediaTime(7),
            duration: MediaDuration(180_000),
            bytes: 564,
            hash: SegmentHash::of(&number.to_be_bytes()),
            independent: number.is_multiple_of(2),
        }
    }

    #[test]
    fn what_is_whole_is_read_and_the_last_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunInfo {
            run: SegmentNumber(1),
            codecs: "avc1.64001f,mp4a.40.2".to_owned(),
            resolution: Some((1280, 720)),
            target_duration_s: 2,
        };
        let sound = RunInfo {
            run: SegmentNumber(2),
            codecs: String::new(),
            resolution: None,
            target_duration_s: 6,
        };
        let restamped = SegmentInfo {
            wall_start: WallTime(1_000),
            ..info(1)
        };
        let flipped = segment_line(&info(9)).replace("564", "565");
        let torn = segment_line(&info(10));
        let text = [
            run_line(&run),
            segment_line(&info(1)),
            flipped,
            torn[..40].to_owned() + "\0\0\0\n",
            segment_line(&info(2)),
            segment_line(&restamped),
            run_line(&sound),
            segment_line(&info(3))[..70].to_owned(),
        ]
        .concat();
        fs::write(dir.path().join(FILE), text).unwrap();
        let ledger = Ledger::read(dir.path());
        assert_eq!(ledger.segments.len(), 2, "{ledger:?}");
        assert_eq!(ledger.segments[&SegmentNumber(1)], restamped);
        assert_eq!(ledger.segments[&SegmentNumber(2)], info(2));
        assert_eq!(ledger.runs[&SegmentNumber(1)], run);
        assert_eq!(ledger.runs[&SegmentNumber(2)], sound);
        assert!(Ledger::read(&dir.path().join("none")).segments.is_empty());
    }
}
