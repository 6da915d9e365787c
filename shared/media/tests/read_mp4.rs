//! The MP4 reader over small real files: whole, cut short, lying.
//!
//! Counts and times are those of `ffprobe -show_packets` over the same files, moved so that the first
//! decoding time is 0.

use bytes::Bytes;
use media::{
    access_unit::{AccessUnit, SourceEvent, TrackFormat, TrackId},
    mp4::{Mp4Error, Mp4Info, Mp4Poll, Mp4Reader},
};
use proptest::prelude::*;

const BACK: &[u8] = include_bytes!("../../../fixtures/media/demux-h264-aac.mp4");
const FRONT: &[u8] = include_bytes!("../../../fixtures/media/demux-h265-front.mp4");
const FRAGMENTED: &[u8] = include_bytes!("../../../fixtures/media/demux-fragmented.mp4");
const FRAGMENTED_BASE: &[u8] = include_bytes!("../../../fixtures/media/demux-fragmented-base.mp4");

#[derive(Debug, Default, PartialEq)]
struct Seen {
    info: Option<Mp4Info>,
    events: Vec<SourceEvent>,
    reads: usize,
    read_bytes: usize,
}

fn read(bytes: &[u8]) -> Result<Seen, Mp4Error> {
    read_as(bytes, bytes.len() as u64)
}

/// Reads a file that is said to be `size` long.
fn read_as(bytes: &[u8], size: u64) -> Result<Seen, Mp4Error> {
    let file = Bytes::copy_from_slice(bytes);
    let (mut reader, mut seen) = (Mp4Reader::new(size), Seen::default());
    for _ in 0..1_000_000 {
        match reader.poll()? {
            Mp4Poll::Read { offset, len } => {
                assert!(len <= 128 << 20 && offset < size);
                let from = file.len().min(offset as usize);
                let to = file.len().min(from + len);
                seen.reads += 1;
                seen.read_bytes += to - from;
                reader.handle_read(offset, file.slice(from..to));
            }
            Mp4Poll::Ready(info) => assert_eq!(seen.info.replace(info), None),
            Mp4Poll::Event(event) => {
                assert!(seen.info.is_some());
                seen.events.push(event);
            }
            Mp4Poll::End => return Ok(seen),
        }
    }
    unreachable!("no end in a million steps");
}

fn units(events: &[SourceEvent], track: u8) -> Vec<&AccessUnit> {
    let units = events.iter().filter_map(|e| match e {
        SourceEvent::AccessUnit(unit) => Some(unit),
        _ => None,
    });
    units.filter(|u| u.track == TrackId(track)).collect()
}

fn warnings(events: &[SourceEvent]) -> Vec<&str> {
    let warnings = events.iter().filter_map(|e| match e {
        SourceEvent::Warning(w) => Some(w.what.as_str()),
        _ => None,
    });
    warnings.collect()
}

#[test]
fn b_frames_and_sound_in_step() {
    let seen = read(BACK).unwrap();
    let info = seen.info.unwrap();
    assert_eq!(info.duration.as_millis(), 3023); // the sound, with its priming
    assert_eq!(info.longest_key_distance.unwrap().as_millis(), 1000);
    assert_eq!(info.media_bytes, 19_792);
    assert_eq!(seen.events[0], SourceEvent::Tracks(info.tracks));
    assert_eq!(warnings(&seen.events), [""; 0]);

    let video = units(&seen.events, 0);
    let times: Vec<_> = video.iter().take(4).map(|u| (u.pts.0, u.dts.0)).collect();
    assert_eq!(
        times,
        [(7200, 0), (18_000, 3600), (10_800, 7200), (14_400, 10_800)]
    );
    assert!(video.windows(2).all(|w| w[1].dts.0 - w[0].dts.0 == 3600));
    let keys: Vec<usize> = (0..75).filter(|&i| video[i].key).collect();
    assert_eq!((video.len(), keys), (75, vec![0, 25, 50]));
    // Start codes where lengths were, and nothing else: the SEI that x264 signs with, then the picture.
    assert!(video[0].data.starts_with(&[0, 0, 0, 1, 6, 5]));

    // Sound begins with 1024 samples of priming before the first picture is shown.
    let audio = units(&seen.events, 1);
    assert_eq!(
        (audio.len(), audio[0].pts.0, audio[1].pts.0),
        (131, 7200 - 2090, 7200)
    );
    assert!(
        audio
            .iter()
            .all(|u| u.data.starts_with(&[0xff, 0xf1, 0x50, 0x80]))
    );
    // In the order of decoding over both tracks.
    let all: Vec<i64> = seen
        .events
        .iter()
        .filter_map(|e| match e {
            SourceEvent::AccessUnit(unit) => Some(unit.dts.0),
            _ => None,
        })
        .collect();
    assert!(all.is_sorted());
}

#[test]
fn h265_with_the_index_in_front() {
    let seen = read(FRONT).unwrap();
    assert!(seen.reads <= 4, "{}", seen.reads);
    let SourceEvent::Tracks(tracks) = &seen.events[0] else {
        panic!("{:?}", seen.events[0]);
    };
    let TrackFormat::H265 {
        vps,
        sps,
        pps,
        info,
    } = &tracks[0].format
    else {
        panic!("{tracks:?}");
    };
    assert_eq!(
        (vps.len(), sps.len(), pps.len(), info.width, info.height),
        (1, 1, 1, 96, 64)
    );
    assert_eq!(info.codec, "hvc1.1.6.L30.90");
    let video = units(&seen.events, 0);
    assert_eq!(
        (video.len(), video[0].pts.0, video[59].dts.0),
        (60, 6006, 59 * 3003)
    );
    assert_eq!(video.iter().filter(|u| u.key).count(), 2);
    assert_eq!(units(&seen.events, 1).len(), 88);
}

#[test]
fn fragments_in_either_form() {
    let (a, b) = (read(FRAGMENTED).unwrap(), read(FRAGMENTED_BASE).unwrap());
    assert_eq!(a.events, b.events);
    let (video, audio) = (units(&a.events, 0), units(&a.events, 1));
    assert_eq!((video.len(), audio.len()), (50, 88));
    assert_eq!(video.iter().filter(|u| u.key).count(), 2);
    assert!(video.windows(2).all(|w| w[1].dts.0 - w[0].dts.0 == 3600));
    assert_eq!(warnings(&a.events), [""; 0]);
}

#[test]
fn a_file_cut_short_gives_what_is_there() {
    let whole = read(FRONT).unwrap();
    for len in [FRONT.len() - 1, FRONT.len() * 6 / 10] {
        // Known to be short, or found to be when it is read.
        for size in [len, FRONT.len()] {
            let seen = read_as(&FRONT[..len], size as u64).unwrap();
            let told = warnings(&seen.events);
            assert!(told[0].contains("is not in the file"), "{told:?}");
            assert!(told.len() <= 2, "{told:?}");
            for track in [0, 1] {
                let (some, all) = (units(&seen.events, track), units(&whole.events, track));
                assert!(!some.is_empty() && some[..] == all[..some.len()]);
            }
        }
    }
    let in_fragments = read(&FRAGMENTED[..FRAGMENTED.len() * 6 / 10]).unwrap();
    assert_eq!(units(&in_fragments.events, 0).len(), 25);
}

#[test]
fn what_can_not_be_read_says_why() {
    let text = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert_eq!(read(&[]), Err(Mp4Error::Empty));
    assert_eq!(read(b"not a video"), Err(Mp4Error::NotMp4 { offset: 0 }));
    assert_eq!(read(&[0, 0]), Err(Mp4Error::NotMp4 { offset: 0 }));
    let cut = text(&BACK[..9000]);
    assert!(
        cut.contains("no index (moov)") && cut.contains("\"mdat\" at 40"),
        "{cut}"
    );
    assert!(text(b"\0\0\0\x08ftyp\0\0\0\0mdat").contains("never closed"));
    assert!(text(b"\0\0\0\x08ftyp\0\0\0\x08moov").contains("it has none"));
    let huge = b"\0\0\0\x01moov\0\0\0\x01\0\0\0\0";
    let error = read_as(huge, 1 << 40).unwrap_err().to_string();
    assert!(error.contains("more than the 134217728"), "{error}");
}

/// Where the last box of a kind has its content.
fn place(file: &[u8], kind: &[u8; 4]) -> usize {
    file.windows(4)
        .rposition(|w| w == kind)
        .map_or(0, |at| at + 4)
}

fn first_place(file: &[u8], kind: &[u8; 4]) -> usize {
    file.windows(4)
        .position(|w| w == kind)
        .map_or(0, |at| at + 4)
}

#[test]
fn a_lying_size_costs_its_samples() {
    let whole = read(BACK).unwrap();
    let mut lying = BACK.to_vec();
    // The eleventh picture claims 2 GB.
    let at = first_place(&lying, b"stsz") + 12 + 10 * 4;
    lying[at..at + 4].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
    let seen = read(&lying).unwrap();
    let (some, all) = (units(&seen.events, 0), units(&whole.events, 0));
    assert_eq!(some[..10], all[..10]);
    assert_eq!(units(&seen.events, 1), units(&whole.events, 1));
    // Chunks say where they begin, so what comes behind the chunk is good again.
    assert_eq!(some.last(), all.last());
    let told = warnings(&seen.events);
    assert!(
        told[0].starts_with("sample 10 of track 1 (2147483647 bytes at"),
        "{told:?}"
    );
    assert!(
        told[0].contains("longer than the 16777216 bytes"),
        "{told:?}"
    );
}

#[test]
fn sound_of_type_0_is_refused_and_the_picture_goes_on() {
    let mut null = BACK.to_vec();
    // DecoderSpecificInfo: object type 2 at 44.1 kHz.
    let at = null.windows(2).rposition(|w| w == [0x12, 0x10]).unwrap();
    null[at] = 0x02;
    let seen = read(&null).unwrap();
    assert_eq!(seen.info.unwrap().tracks.len(), 1);
    assert_eq!(units(&seen.events, 0).len(), 75);
    let told = warnings(&seen.events);
    assert!(
        told[0].contains("track 2: the AAC configuration says object type 0"),
        "{told:?}"
    );
}

#[test]
fn other_codecs_are_named() {
    let mut other = BACK.to_vec();
    let at = place(&other, b"avc1") - 4;
    other[at..at + 4].copy_from_slice(b"mjpa");
    let seen = read(&other).unwrap();
    assert!(warnings(&seen.events)[0].contains("\"mjpa\" is not carried"));
    assert_eq!(
        (
            units(&seen.events, 0).len(),
            seen.info.unwrap().longest_key_distance
        ),
        (131, None)
    );
    // avc3 is avc1 in all that matters here.
    other[at..at + 4].copy_from_slice(b"avc3");
    assert_eq!(read(&other).unwrap().events, read(BACK).unwrap().events);
    // Nothing left: an error.
    let at = place(&other, b"mp4a") - 4;
    other[at..at + 4].copy_from_slice(b"alac");
    let at = place(&other, b"avc3") - 4;
    other[at..at + 4].copy_from_slice(b"mjpa");
    let error = read(&other).unwrap_err().to_string();
    assert!(
        error.contains("no track can be carried") && error.contains("alac"),
        "{error}"
    );
}

#[test]
fn reads_each_byte_about_once() {
    for file in [BACK, FRONT] {
        let seen = read(file).unwrap();
        assert!(
            seen.read_bytes < file.len() * 2,
            "{} of {}",
            seen.read_bytes,
            file.len()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damage_of_any_kind_is_survived(
        which in 0usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..24),
        cut in any::<prop::sample::Index>(),
        is_cut in prop::bool::weighted(0.2),
    ) {
        let mut bytes = [BACK, FRONT, FRAGMENTED, FRAGMENTED_BASE][which].to_vec();
        let moov = place(&bytes, b"moov");
        for (at, value, in_index) in changes {
            // Most of what can go wrong is in the index.
            let at = if in_index { moov + at.index((bytes.len() - moov).min(2500)) } else { at.index(bytes.len()) };
            bytes[at] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(seen) = read(&bytes) {
            let carried: usize = seen.events.iter().map(|e| match e {
                SourceEvent::AccessUnit(unit) => {
                    assert!(unit.dts <= unit.pts);
                    unit.data.len()
                }
                _ => 0,
            }).sum();
            // What was in the file, and a header for each frame of sound.
            prop_assert!(carried <= bytes.len() * 9);
            prop_assert!(seen.events.len() < bytes.len());
        }
    }
}
