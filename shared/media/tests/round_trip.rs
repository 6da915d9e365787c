//! Real streams through demuxer, segmenter and mux, and back through the demuxer: the same access units.

// What helps a test may fail like one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use media::{
    access_unit::{AccessUnit, SourceEvent, Track},
    segmenter::{Cut, Segmenter, SegmenterConfig},
    ts::demux::Demuxer,
};
use model::MediaDuration;

const STREAMS: [(&str, &[u8]); 4] = [
    (
        "H.264 and AAC",
        include_bytes!("../../../fixtures/media/demux-h264-aac.ts"),
    ),
    (
        "H.265",
        include_bytes!("../../../fixtures/media/demux-h265.ts"),
    ),
    (
        "a clock that wraps",
        include_bytes!("../../../fixtures/media/demux-wrap.ts"),
    ),
    (
        "open GOPs",
        include_bytes!("../../../fixtures/media/demux-opengop.ts"),
    ),
];

fn demux(bytes: &[u8]) -> Vec<SourceEvent> {
    let (mut demuxer, mut out) = (Demuxer::new(), Vec::new());
    demuxer.push(bytes, &mut out);
    demuxer.finish(&mut out);
    out
}

fn cut(events: Vec<SourceEvent>) -> Vec<Cut> {
    let config = SegmenterConfig {
        target_duration: MediaDuration::from_millis(500),
        list_target_s: Some(1),
        ..SegmenterConfig::default()
    };
    let (mut segmenter, mut out) = (Segmenter::new(config), Vec::new());
    for event in events {
        segmenter.push(event, &mut out);
    }
    segmenter.finish(&mut out);
    assert_eq!(segmenter.counters().repaired, 0);
    out
}

fn joined(cuts: &[Cut]) -> Vec<u8> {
    let parts = cuts.iter().filter_map(|cut| match cut {
        Cut::Part { bytes, .. } => Some(bytes.as_ref()),
        _ => None,
    });
    parts.collect::<Vec<_>>().concat()
}

fn tracks(events: &[SourceEvent]) -> Vec<Track> {
    let mut all = events.iter().filter_map(|event| match event {
        SourceEvent::Tracks(tracks) => Some(tracks.clone()),
        _ => None,
    });
    let first = all.next().expect("tracks");
    assert_eq!(all.next(), None, "one run");
    first
}

/// By track, in order.
fn units(events: &[SourceEvent]) -> Vec<&AccessUnit> {
    let mut units: Vec<&AccessUnit> = events
        .iter()
        .filter_map(|event| match event {
            SourceEvent::AccessUnit(unit) => Some(unit),
            _ => None,
        })
        .collect();
    units.sort_by_key(|unit| (unit.track, unit.dts));
    units
}

#[test]
fn the_same_access_units_come_back() {
    for (what, stream) in STREAMS {
        let given = demux(stream);
        let cuts = cut(given.clone());
        let back = demux(&joined(&cuts));
        assert!(
            !back
                .iter()
                .any(|e| matches!(e, SourceEvent::Warning(_) | SourceEvent::Discontinuity)),
            "{what}: {back:?}"
        );
        assert_eq!(tracks(&back), tracks(&given), "{what}");
        let (given, back) = (units(&given), units(&back));
        assert!(given.len() > 20, "{what}");
        assert_eq!(back.len(), given.len(), "{what}");
        for (given, back) in given.into_iter().zip(back) {
            assert_eq!((back.track, back.key), (given.track, given.key), "{what}");
            // The times of a PES's second and later sounds are counted on from its first: a tick's rounding.
            let ticks = (back.pts - given.pts)
                .0
                .abs()
                .max((back.dts - given.dts).0.abs());
            assert!(
                ticks <= i64::from(given.pts == given.dts),
                "{what}: {ticks}"
            );
            // What the source lacked before a picture came in front; nothing else changed.
            assert!(back.data.ends_with(&given.data), "{what}");
        }
    }
}

#[test]
fn cutting_what_was_cut_changes_no_byte_of_it() {
    for (what, stream) in STREAMS {
        let once = joined(&cut(demux(stream)));
        let twice = joined(&cut(demux(&once)));
        assert_eq!(once, twice, "{what}");
    }
}
