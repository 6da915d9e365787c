//! The TS demuxer over small real streams: whole, in pieces, joined, damaged.
//!
//! Counts and times are those of `ffprobe -show_packets` over the same files.

use media::{
    access_unit::{AccessUnit, SourceEvent, Track, TrackFormat, TrackId},
    ts::{
        demux::Demuxer,
        packet::{PACKET_BYTES, Packet},
    },
};
use proptest::prelude::*;

const H264_AAC: &[u8] = include_bytes!("../../../fixtures/media/demux-h264-aac.ts");
const H265: &[u8] = include_bytes!("../../../fixtures/media/demux-h265.ts");
const WRAP: &[u8] = include_bytes!("../../../fixtures/media/demux-wrap.ts");
const OPEN_GOP: &[u8] = include_bytes!("../../../fixtures/media/demux-opengop.ts");
const MP2: &[u8] = include_bytes!("../../../fixtures/media/demux-mp2.ts");

const VIDEO_PID: u16 = 0x100;
const AUDIO_PID: u16 = 0x101;

fn demux(bytes: &[u8]) -> Vec<SourceEvent> {
    demux_pieces([bytes])
}

fn demux_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<SourceEvent> {
    let (mut demuxer, mut out) = (Demuxer::new(), Vec::new());
    for piece in pieces {
        demuxer.push(piece, &mut out);
    }
    demuxer.finish(&mut out);
    out
}

fn units(events: &[SourceEvent], track: u8) -> Vec<&AccessUnit> {
    let units = events.iter().filter_map(|e| match e {
        SourceEvent::AccessUnit(unit) => Some(unit),
        _ => None,
    });
    units.filter(|u| u.track == TrackId(track)).collect()
}

fn key_places(units: &[&AccessUnit]) -> Vec<usize> {
    let places = units.iter().enumerate().filter(|(_, u)| u.key);
    places.map(|(i, _)| i).collect()
}

/// The events between access units, in a few letters, `.` for any number of units.
fn outline(events: &[SourceEvent]) -> String {
    let mut text = String::new();
    for event in events {
        match event {
            SourceEvent::Tracks(tracks) => text += &tracks.iter().map(letter).collect::<String>(),
            SourceEvent::Discontinuity => text.push('|'),
            SourceEvent::Warning(_) => text.push('!'),
            SourceEvent::AccessUnit(_) if text.ends_with('.') => {}
            SourceEvent::AccessUnit(_) => text.push('.'),
        }
    }
    text
}

fn letter(track: &Track) -> char {
    match track.format {
        TrackFormat::H264 { .. } => 'V',
        TrackFormat::H265 { .. } => 'H',
        TrackFormat::Aac { .. } => 'A',
    }
}

fn warnings(events: &[SourceEvent]) -> Vec<String> {
    let warnings = events.iter().filter_map(|e| match e {
        SourceEvent::Warning(w) => Some(format!("{:?} {}", w.pid, w.what)),
        _ => None,
    });
    warnings.collect()
}

fn pid(packet: &[u8]) -> u16 {
    Packet::parse(packet).map_or(0x1fff, |p| p.pid)
}

/// The packets of which `keep(pid, how many of the pid came before)` holds.
fn filtered(bytes: &[u8], mut keep: impl FnMut(u16, usize) -> bool) -> Vec<u8> {
    let mut counts = std::collections::HashMap::new();
    let packets = bytes.chunks(PACKET_BYTES).filter(|packet| {
        let pid = pid(packet);
        let count = counts.entry(pid).or_insert(0);
        *count += 1;
        keep(pid, *count - 1)
    });
    packets.flatten().copied().collect()
}

#[test]
fn pictures_and_sound_with_their_times() {
    let events = demux(H264_AAC);
    assert_eq!(outline(&events), "VA.");
    let SourceEvent::Tracks(tracks) = &events[0] else {
        panic!("{:?}", events[0]);
    };
    let [
        Track {
            format: TrackFormat::H264 { sps, pps, info },
            ..
        },
        Track {
            format: TrackFormat::Aac { info: sound },
            ..
        },
    ] = tracks.as_slice()
    else {
        panic!("{tracks:?}");
    };
    assert_eq!(
        (sps.len(), pps.len(), sps[0][0], pps[0][0]),
        (1, 1, 0x67, 0x68)
    );
    assert_eq!(
        (info.width, info.height, info.codec.as_str()),
        (96, 64, "avc1.64000a")
    );
    assert_eq!(
        (sound.sample_rate, sound.channels, sound.codec.as_str()),
        (44_100, 2, "mp4a.40.2")
    );

    let video = units(&events, 0);
    assert_eq!((video.len(), key_places(&video)), (75, vec![0, 25, 50]));
    let first: Vec<_> = video.iter().take(5).map(|u| (u.pts.0, u.dts.0)).collect();
    assert_eq!(
        first,
        [
            (133_200, 126_000),
            (144_000, 129_600),
            (136_800, 133_200),
            (140_400, 136_800),
            (147_600, 140_400)
        ]
    );
    assert!(video.windows(2).all(|w| w[1].dts.0 - w[0].dts.0 == 3600));
    assert!(video.iter().all(|u| u.data.starts_with(&[0, 0, 0, 1, 9])));

    let audio = units(&events, 1);
    assert_eq!(
        (audio.len(), audio[0].pts.0, audio[130].pts.0),
        (131, 131_110, 402_784)
    );
    assert!(
        audio
            .iter()
            .all(|u| u.key && u.data.starts_with(&[0xff, 0xf1]))
    );
    assert!(
        audio
            .windows(2)
            .all(|w| (2089..=2091).contains(&(w[1].pts.0 - w[0].pts.0)))
    );
}

#[test]
fn h265_and_open_gops() {
    let events = demux(H265);
    assert_eq!(outline(&events), "H.");
    let SourceEvent::Tracks(tracks) = &events[0] else {
        panic!("{:?}", events[0]);
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
    assert_eq!((vps.len(), sps.len(), pps.len()), (1, 1, 1));
    assert_eq!(
        (info.width, info.height, info.codec.as_str()),
        (96, 64, "hvc1.1.6.L30.90")
    );
    let video = units(&events, 0);
    assert_eq!((video.len(), key_places(&video)), (50, vec![0, 25]));

    // Recovery points stand in for all IDR pictures but the first.
    let events = demux(OPEN_GOP);
    let video = units(&events, 0);
    let key_places = key_places(&video);
    assert_eq!((video.len(), key_places.len(), key_places[0]), (75, 3, 0));
}

#[test]
fn times_go_on_over_the_wrap() {
    let events = demux(WRAP);
    assert_eq!(outline(&events), "VA.");
    for (track, count) in [(0, 75), (1, 131)] {
        let units = units(&events, track);
        assert_eq!(units.len(), count);
        assert!(units[0].dts.0 < 1 << 33 && units[count - 1].dts.0 > 1 << 33);
        assert!(
            units
                .windows(2)
                .all(|w| (2089..=3600).contains(&(w[1].dts.0 - w[0].dts.0)))
        );
    }
}

#[test]
fn what_is_not_carried_is_named_and_the_rest_goes_on() {
    let events = demux(MP2);
    assert_eq!(outline(&events), "!V.");
    assert_eq!(units(&events, 0).len(), 25);
    let told = warnings(&events);
    assert!(
        told[0].starts_with("Some(257) MPEG audio (MP2 or MP3)"),
        "{told:?}"
    );
    assert!(told[0].contains("ffmpeg -c:v copy -c:a aac"), "{told:?}");
}

#[test]
fn other_strides_give_the_same() {
    let whole = demux(H264_AAC);
    let packets = || H264_AAC.chunks(PACKET_BYTES);
    let m2ts: Vec<u8> = packets()
        .flat_map(|p| [&[1, 2, 3, 4][..], p].concat())
        .collect();
    let long: Vec<u8> = packets()
        .flat_map(|p| [p, &[0x47; 16][..]].concat())
        .collect();
    assert_eq!(demux(&m2ts), whole);
    assert_eq!(demux(&long), whole);
}

#[test]
fn a_lost_packet_costs_its_picture_only() {
    let whole = demux(H264_AAC);
    // The second packet of the first picture.
    let events = demux(&filtered(H264_AAC, |pid, n| !(pid == VIDEO_PID && n == 1)));
    assert_eq!(warnings(&events).len(), 2, "{:?}", warnings(&events));
    assert!(warnings(&events)[0].starts_with("Some(256) 1 or more packets are missing"));
    // It was the first key frame: what can't be decoded without it is left out as well.
    assert_eq!(
        (units(&events, 0).len(), units(&events, 1)),
        (50, units(&whole, 1))
    );

    let second_key = units(&whole, 0)[25].pts;
    let at = H264_AAC
        .chunks(PACKET_BYTES)
        .filter(|p| pid(p) == VIDEO_PID);
    let starts: Vec<usize> = at
        .enumerate()
        .filter(|(_, p)| p[1] & 0x40 != 0)
        .map(|(i, _)| i)
        .collect();
    let events = demux(&filtered(H264_AAC, |pid, n| {
        !(pid == VIDEO_PID && n == starts[25] + 1)
    }));
    let video = units(&events, 0);
    assert_eq!((outline(&events).as_str(), video.len()), ("VA.!.", 74));
    assert!(video.iter().all(|u| u.pts != second_key));
}

#[test]
fn a_repeated_packet_changes_nothing() {
    let twice: Vec<u8> = H264_AAC
        .chunks(PACKET_BYTES)
        .flat_map(|p| [p, p].concat())
        .collect();
    assert_eq!(demux(&twice), demux(H264_AAC));
}

#[test]
fn joined_in_mid_stream_it_begins_at_a_key_frame() {
    // From the middle of a packet on, behind the first tables.
    let events = demux(&H264_AAC[PACKET_BYTES * 12 + 77..]);
    let video = units(&events, 0);
    assert!(
        video[0].key && key_places(&video).contains(&25),
        "{:?}",
        key_places(&video)
    );
    let told = warnings(&events).join("\n");
    assert!(told.contains("111 bytes are not MPEG-TS"), "{told}");
    assert!(
        told.contains("pictures before the first key frame"),
        "{told}"
    );
}

#[test]
fn streams_put_behind_each_other_lose_nothing() {
    let (a, b) = (demux(H264_AAC), demux(OPEN_GOP));
    // Sound leaves with the second stream.
    let events = demux(&[H264_AAC, OPEN_GOP].concat());
    assert_eq!(outline(&events), "VA.|V.");
    assert_eq!(units(&events, 0), [units(&a, 0), units(&b, 0)].concat());
    assert_eq!(units(&events, 1), units(&a, 1));
    // The same stream again: only the time base breaks.
    let events = demux(&[H264_AAC, H264_AAC].concat());
    assert_eq!(outline(&events), "VA.|.");
    assert_eq!(units(&events, 0), [units(&a, 0), units(&a, 0)].concat());
    assert_eq!(units(&events, 1), [units(&a, 1), units(&a, 1)].concat());
    // A stream type changes: the sound comes in at the next key frame.
    let events = demux(&[MP2, H264_AAC].concat());
    assert_eq!(outline(&events), "!V.|.VA.");
    assert_eq!(units(&events, 0).len(), 25 + 75);
}

#[test]
fn sources_one_after_another_share_a_timeline() {
    let (mut demuxer, mut out) = (Demuxer::new(), Vec::new());
    for source in [H264_AAC, WRAP] {
        demuxer.push(source, &mut out);
        demuxer.finish(&mut out);
    }
    assert_eq!(outline(&out), "VA.|.");
    assert_eq!((units(&out, 0).len(), units(&out, 1).len()), (150, 262));
}

#[test]
fn declared_sound_that_never_comes_is_not_waited_for() {
    let silent = filtered(H264_AAC, |pid, _| pid != AUDIO_PID);
    let events = demux(&silent);
    assert_eq!(outline(&events), "!V.");
    assert!(warnings(&events)[0].contains("sound is declared but none has come"));
    assert_eq!(units(&events, 0).len(), 75);
    // It comes later: from the key frame after that on, it is there.
    let events = demux(&[&silent, H264_AAC].concat());
    assert_eq!(outline(&events), "!V.|.VA.");
    let (video, audio) = (units(&events, 0), units(&events, 1));
    assert_eq!(video.len(), 150);
    assert!((80..110).contains(&audio.len()), "{}", audio.len());
}

#[test]
fn scrambled_and_damaged_packets_are_told() {
    let mut bytes = H264_AAC.to_vec();
    for packet in bytes.chunks_mut(PACKET_BYTES) {
        match pid(packet) {
            VIDEO_PID => packet[3] |= 0x80,
            AUDIO_PID => packet[1] |= 0x80,
            _ => {}
        }
    }
    let told = warnings(&demux(&bytes));
    assert!(
        told.iter().any(|w| w.contains("Some(256) scrambled")),
        "{told:?}"
    );
    assert!(
        told.iter()
            .any(|w| w.contains("Some(257) a packet is marked as damaged")),
        "{told:?}"
    );
    assert!(told.len() < 30, "{}", told.len());
}

#[test]
fn what_is_no_stream_gives_nothing_but_a_word() {
    assert_eq!(demux(&[]), []);
    assert_eq!(outline(&demux(&[0x11; 10_000])), "!");
    let no_tables = filtered(H264_AAC, |pid, _| pid == VIDEO_PID || pid == AUDIO_PID);
    let told = warnings(&demux(&no_tables));
    assert!(told[0].contains("no program table"), "{told:?}");
}

#[test]
fn a_table_that_is_damaged_once_is_passed_over() {
    let mut bytes = H264_AAC.to_vec();
    let pmts: Vec<usize> = (0..bytes.len())
        .step_by(PACKET_BYTES)
        .filter(|&at| pid(&bytes[at..at + PACKET_BYTES]) == 0x1000)
        .collect();
    bytes[pmts[pmts.len() - 1] + 15] ^= 0xff;
    let events = demux(&bytes);
    assert_eq!(outline(&events), "VA.!.");
    assert!(warnings(&events)[0].contains("Some(4096) a table's checksum is wrong"));
}

/// Every decoding time of a track is after the last, but for discontinuities.
fn check_order(events: &[SourceEvent]) {
    let mut last = std::collections::HashMap::new();
    let mut announced = false;
    for event in events {
        match event {
            SourceEvent::AccessUnit(unit) => {
                assert!(announced && unit.dts <= unit.pts);
                let before = last.insert(unit.track, unit.dts);
                assert!(before.is_none_or(|before| before < unit.dts));
            }
            SourceEvent::Discontinuity => last.clear(),
            SourceEvent::Tracks(_) => announced = true,
            SourceEvent::Warning(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_chunking_gives_the_same_events(
        which in 0usize..5,
        cut_front in 0usize..3000,
        cuts in prop::collection::vec(1usize..2000, 1..40),
    ) {
        let bytes = &[H264_AAC, H265, WRAP, OPEN_GOP, MP2][which][cut_front..];
        let (mut pieces, mut rest) = (Vec::new(), bytes);
        for &cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        prop_assert_eq!(demux_pieces(pieces), demux(bytes));
    }

    #[test]
    fn damage_of_any_kind_is_survived(
        which in 0usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..60),
    ) {
        let mut bytes = [H264_AAC, H265, WRAP, OPEN_GOP, MP2][which].to_vec();
        for (at, value, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value & 7),
                2 => { bytes.drain(at..(at + usize::from(value)).min(bytes.len())); }
                _ => {
                    // In a header, where it hurts.
                    let at = at / PACKET_BYTES * PACKET_BYTES + usize::from(value % 20);
                    if let Some(byte) = bytes.get_mut(at) { *byte = value; }
                }
            }
        }
        let events = demux(&bytes);
        check_order(&events);
        let carried: usize = events.iter().map(|e| match e {
            SourceEvent::AccessUnit(unit) => unit.data.len(),
            _ => 0,
        }).sum();
        prop_assert!(carried <= bytes.len());
    }

    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(0x47u8)], 0..4000)) {
        check_order(&demux(&bytes));
    }
}
