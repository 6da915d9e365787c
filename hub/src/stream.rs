//! `hub stream …`: the streams in the catalog, beside a running `hub serve`.

use anyhow::Result;
use bytesize::ByteSize;
use model::{DeviceName, StreamName, WallTime};
use program::output;
use serde::Serialize;
use store::{Store, StreamState, StreamSummary};

use crate::{
    beside::{SOON, time_cell},
    cli::StreamCommand,
    device,
    table::{self, UnknownName},
};

/// A stream as `--json` shows it.
#[derive(Debug, Serialize)]
struct StreamView {
    name: StreamName,
    title: Option<String>,
    device: Option<DeviceName>,
    state: &'static str,
    codecs: Option<String>,
    resolution: Option<(u32, u32)>,
    segments: u64,
    bytes: u64,
    /// Unix milliseconds of the newest recorded range's end and the oldest one's start.
    from_ms: Option<WallTime>,
    to_ms: Option<WallTime>,
}

/// Runs the subcommand.
pub(crate) fn run(command: StreamCommand, store: &Store) -> Result<()> {
    match command {
        StreamCommand::List { json } => list(store, json)?,
        StreamCommand::Move { name, device } => {
            give(store, &name, &device)?;
            output::line(&format!("{name} belongs to {device} ({SOON})"))?;
        }
        StreamCommand::End { name } => match end(store, &name)? {
            Ended::Now => output::line(&format!(
                "{name} ends; new segments begin it again ({SOON})"
            ))?,
            Ended::Before => output::line(&format!("{name} has ended already"))?,
        },
        StreamCommand::Remove { name } => {
            remove(store, &name)?;
            output::line(&format!("{name} is removed with all its segments ({SOON})"))?;
        }
    }
    Ok(())
}

/// Gives a stream to another device.
pub(crate) fn give(store: &Store, name: &StreamName, to: &DeviceName) -> Result<()> {
    device::known(store, to, store.devices()?.iter().any(|d| d.name == *to))?;
    known(store, name, store.move_stream(name, to)?)
}

/// Whether the stream had ended before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Now,
    Before,
}

/// Ends a stream after the newest segment that is here.
pub(crate) fn end(store: &Store, name: &StreamName) -> Result<Ended> {
    let summary = store.stream(name)?;
    known(store, name, summary.is_some())?;
    match summary {
        Some(StreamSummary {
            state: StreamState::Ended,
            ..
        }) => Ok(Ended::Before),
        summary => {
            store.end_stream(name, summary.and_then(|s| s.last_number))?;
            Ok(Ended::Now)
        }
    }
}

/// Removes a stream and what is recorded of it.
pub(crate) fn remove(store: &Store, name: &StreamName) -> Result<()> {
    known(store, name, store.remove_stream(name)?)
}

/// Fails with the names that are known if `found` is false.
fn known(store: &Store, name: &StreamName, found: bool) -> Result<()> {
    if !found {
        return Err(UnknownName::new("stream", name, store.stream_names()?).into());
    }
    Ok(())
}

fn list(store: &Store, json: bool) -> Result<()> {
    let streams: Vec<StreamView> = store.streams()?.into_iter().map(view).collect();
    if json {
        return Ok(output::line(&serde_json::to_string_pretty(&streams)?)?);
    }
    let rows: Vec<[String; 7]> = streams.iter().map(row).collect();
    output::print(&table::table(
        [
            "STREAM", "DEVICE", "STATE", "SEGMENTS", "SIZE", "FROM", "TO",
        ],
        &rows,
    ))?;
    if rows.is_empty() {
        output::error("no stream yet: a device's first segments make one");
    }
    Ok(())
}

fn view(summary: StreamSummary) -> StreamView {
    StreamView {
        from_ms: summary.ranges.last().map(|(from, _)| *from),
        to_ms: summary.ranges.first().map(|(_, to)| *to),
        name: summary.name,
        title: summary.title,
        device: summary.owner,
        state: match summary.state {
            StreamState::Live => "live",
            StreamState::Idle => "idle",
            StreamState::Ended => "ended",
        },
        codecs: summary.codecs,
        resolution: summary.resolution,
        segments: summary.segments,
        bytes: summary.bytes,
    }
}

fn row(stream: &StreamView) -> [String; 7] {
    [
        stream.name.to_string(),
        stream
            .device
            .as_ref()
            .map_or_else(|| "-".to_owned(), DeviceName::to_string),
        stream.state.to_owned(),
        stream.segments.to_string(),
        ByteSize(stream.bytes).to_string(),
        time_cell(stream.from_ms),
        time_cell(stream.to_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_spans_all_ranges() {
        let view = view(StreamSummary {
            name: "gate".parse().unwrap(),
            title: None,
            owner: Some("pole-7".parse().unwrap()),
            state: StreamState::Idle,
            codecs: Some("avc1.64001f".to_owned()),
            resolution: Some((640, 480)),
            segments: 3,
            bytes: 3 << 20,
            ranges: vec![
                (WallTime(60_000), WallTime(90_000)),
                (WallTime(0), WallTime(30_000)),
            ],
            first_number: None,
            last_number: None,
            unshipped: 0,
            unshipped_bytes: 0,
            given_up: 0,
        });
        let want = [
            "gate",
            "pole-7",
            "idle",
            "3",
            "3.0 MiB",
            "1970-01-01T00:00:00Z",
            "1970-01-01T00:01:30Z",
        ];
        assert_eq!(row(&view), want.map(str::to_owned));
    }
}
