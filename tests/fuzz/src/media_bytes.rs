//! What cameras and files bring: transport streams, MP4, parameter sets, sound.

use bytes::Bytes;
use media::{
    aac::{AacConfig, AdtsHeader, MAX_ADTS_FRAME_BYTES},
    access_unit::{SourceEvent, TrackFormat},
    annexb, h264, h265,
    mp4::{Mp4Poll, Mp4Reader},
    sniff::Container,
    timeline::MAX_REORDER,
    ts::{
        demux::Demuxer,
        packet::{PACKET_BYTES, Packet, Packets},
        pes::{MAX_PES_BYTES, PesAssembler},
        psi::{Pat, Pmt, Sections},
    },
};

use crate::cutting;

/// A transport stream: in one piece as in many; what it gives obeys the rules and can be cut.
pub(crate) fn demux_ts(data: &[u8]) {
    let whole = demux([data]);
    let pieces = demux(pieces(data));
    assert_eq!(whole, pieces, "in one piece and in many");
    check_events(&whole, data.len());
    // An MP4's times are mended by the segmenter; those of a transport stream come mended.
    for event in &whole {
        if let SourceEvent::AccessUnit(unit) = event {
            let shown_after = (unit.pts - unit.dts).0;
            assert!((0..=MAX_REORDER.0).contains(&shown_after), "{shown_after}");
        }
    }
    cutting::cut_and_check(whole);
}

fn demux<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<SourceEvent> {
    let (mut demuxer, mut out) = (Demuxer::new(), Vec::new());
    for piece in pieces {
        demuxer.push(piece, &mut out);
    }
    demuxer.finish(&mut out);
    out
}

/// Pieces whose lengths come from the data itself, so that an input repeats.
fn pieces(mut data: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut state = data.iter().fold(data.len() as u32, |hash, &byte| {
        hash.rotate_left(5).wrapping_add(byte.into())
    });
    while !data.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let limit = [1, 7, PACKET_BYTES, 1_000, 5_000][state as usize >> 8 & 3];
        let (piece, rest) = data.split_at((1 + (state >> 16) as usize % limit).min(data.len()));
        pieces.push(piece);
        data = rest;
    }
    pieces
}

/// Tracks come before their access units, times make sense, and nothing is larger than what it came from.
pub(crate) fn check_events(events: &[SourceEvent], source_bytes: usize) {
    assert!(events.len() <= source_bytes + 64, "{} events", events.len());
    let (mut tracks, mut bytes) = (Vec::new(), 0);
    for event in events {
        match event {
            SourceEvent::Tracks(now) => {
                assert!(now.len() <= media::access_unit::MAX_TRACKS);
                now.iter().for_each(|track| check_format(&track.format));
                tracks = now.iter().map(|track| track.id).collect();
                let mut ids = tracks.clone();
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), tracks.len(), "a track twice");
            }
            SourceEvent::AccessUnit(unit) => {
                assert!(tracks.contains(&unit.track), "a unit of no track");
                assert!(!unit.data.is_empty(), "an empty unit");
                bytes += unit.data.len();
            }
            SourceEvent::Discontinuity => {}
            SourceEvent::Warning(warning) => {
                assert!(warning.what.len() < 1_000 && !warning.what.contains('\n'));
            }
        }
    }
    // A header of 7 bytes before a sample, a start code of 4 for a length of 1.
    assert!(
        bytes <= 12 * source_bytes,
        "{bytes} bytes of media from {source_bytes}"
    );
}

fn check_format(format: &TrackFormat) {
    match format {
        TrackFormat::H264 { sps, pps, info } => {
            assert!(!sps.is_empty() && !pps.is_empty() && info.codec.starts_with("avc1."));
        }
        TrackFormat::H265 {
            vps,
            sps,
            pps,
            info,
        } => {
            assert!(!vps.is_empty() && !sps.is_empty() && !pps.is_empty());
            assert!(info.codec.starts_with("hvc1."), "{}", info.codec);
        }
        TrackFormat::Aac { info } => {
            assert!((1..=8).contains(&info.channels), "{info:?}");
            assert!((7_350..=96_000).contains(&info.sample_rate), "{info:?}");
        }
    }
}

/// Sections from payloads; a section and its tables.
pub(crate) fn ts_tables(data: &[u8]) {
    let _ = Pat::parse(data);
    let _ = Pmt::parse(data);
    let mut sections = Sections::default();
    let mut given = 0;
    for (at, payload) in data.chunks(184).enumerate() {
        // The first byte's bits say which payloads begin a section.
        let starts = data[0] >> (at % 8) & 1 == 1;
        sections.push(starts, payload, |section| {
            given += section.len();
            assert!(section.len() >= 3 && section.len() <= 3 + 0xfff);
            if let Ok(Some(pat)) = Pat::parse(section) {
                assert!(pat.programs * 4 <= section.len());
                assert_eq!(pat.first.is_some(), pat.programs > 0);
                assert!(pat.first.is_none_or(|first| first.pmt_pid < 0x2000));
            }
            if let Ok(Some(pmt)) = Pmt::parse(section) {
                assert!(pmt.streams.len() * 5 <= section.len());
                for stream in &pmt.streams {
                    assert!(stream.pid < 0x2000 && stream.descriptors.len() <= 16);
                }
            }
        });
        if at % 5 == 4 && data[0] & 2 == 0 {
            sections.reset();
        }
    }
    assert!(given <= data.len());
}

/// PES packets from payloads of any length.
pub(crate) fn pes(data: &[u8]) {
    let mut assembler = PesAssembler::default();
    let mut rest = data;
    let (mut pushed, mut given) = (0usize, 0usize);
    while let [how, length, behind @ ..] = rest {
        let (payload, behind) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = behind;
        let got = match how % 8 {
            0 | 1 => {
                let before = assembler.take();
                if let Some(Ok(pes)) = before {
                    given += pes.payload.len();
                }
                pushed += payload.len();
                assembler.start(pushed as u64, *how & 8 != 0, payload)
            }
            2 => {
                let busy = assembler.is_busy();
                assert_eq!(assembler.drop_current(), busy);
                None
            }
            3 => {
                let _ = assembler.ends_with(payload);
                assembler.take()
            }
            _ => {
                pushed += payload.len();
                assembler.extend(payload)
            }
        };
        if let Some(Ok(pes)) = got {
            assert!(pes.offset <= pushed as u64 && pes.payload.len() <= MAX_PES_BYTES);
            if let Some(stamp) = pes.stamp {
                assert!(stamp.pts < 1 << 33 && stamp.dts.is_none_or(|dts| dts < 1 << 33));
            }
            given += pes.payload.len();
        }
    }
    assert!(given <= pushed, "{given} bytes from {pushed}");
}

/// AudioSpecificConfig and ADTS: a frame with a header says what its configuration said.
pub(crate) fn aac(data: &[u8]) {
    if let Some(header) = AdtsHeader::parse(data) {
        assert!(header.frame_bytes <= MAX_ADTS_FRAME_BYTES && header.frame_bytes > 7);
        assert!((1..=4).contains(&header.blocks) && (1..=4).contains(&header.object_type));
        assert!(header.same_format(&header));
        let frame = data.get(..header.frame_bytes).unwrap_or(data);
        if let Ok(info) = header.info(frame) {
            assert!((1..=8).contains(&info.channels));
            assert_eq!(info.sample_rate, header.sample_rate());
        }
    }
    let split = data
        .first()
        .map_or(0, |&first| usize::from(first % 64) + 1)
        .min(data.len());
    let (config, raw) = data
        .get(1..)
        .unwrap_or_default()
        .split_at(split.saturating_sub(1).min(data.len().saturating_sub(1)));
    let Ok(config) = AacConfig::parse(config) else {
        return;
    };
    let info = config.info();
    assert!((1..=8).contains(&info.channels));
    if let Ok(frame) = config.to_adts(raw)
        && !raw.is_empty()
    {
        let header = AdtsHeader::parse(&frame).expect("a header of our own");
        assert_eq!(header.frame_bytes, frame.len());
        let read = header.info(&frame).expect("channels of our own");
        assert_eq!(
            (read.channels, read.sample_rate),
            (info.channels, info.sample_rate)
        );
    }
}

/// NAL units, both ways of carrying them, and what parameter sets say.
pub(crate) fn nal(data: &[u8]) {
    for unit in annexb::nal_units(data) {
        assert!(!unit.is_empty() && unit.len() <= data.len());
        assert!(
            !unit.windows(3).any(|w| w == [0, 0, 1]),
            "a start code inside"
        );
        check_sets(unit);
    }
    check_sets(data);
    let head = h264::head(data);
    assert!(head.picture || !head.key, "a key frame without a picture");
    let head = h265::head(data);
    assert!(head.picture || !head.key, "a key frame without a picture");
    for length_size in 1..=4 {
        let (stream, wrong) = annexb::from_length_prefixed(data, length_size);
        assert!(
            stream.len() <= 4 * data.len(),
            "{} from {}",
            stream.len(),
            data.len()
        );
        assert!(wrong.is_none_or(|at| at < data.len()));
        assert!(stream.is_empty() || stream.starts_with(&annexb::START_CODE));
    }
}

fn check_sets(unit: &[u8]) {
    for info in [h264::video_info(unit).ok(), h265::video_info(unit).ok()] {
        let Some(info) = info else { continue };
        assert!(
            info.codec.len() < 64 && info.codec.is_ascii(),
            "{}",
            info.codec
        );
        assert!(!info.codec.contains([',', '"', '\n']), "{}", info.codec);
    }
    let _ = (h264::sps_id(unit), h264::pps_id(unit));
    let _ = (h265::vps_id(unit), h265::sps_id(unit), h265::pps_id(unit));
}

/// An MP4 file that may lie about anything: it ends in time, and gives no more than it has.
pub(crate) fn mp4(data: &[u8]) {
    let file = Bytes::copy_from_slice(data);
    // Some files are longer than what can be read of them.
    let said = data.len() as u64
        + data
            .last()
            .map_or(0, |&last| u64::from(last / 250) * 10_000);
    let mut reader = Mp4Reader::new(said);
    let (mut events, mut ready, mut read_bytes) = (Vec::new(), 0, 0usize);
    for step in 0.. {
        assert!(step < 1_000 + 64 * data.len(), "no end in {step} steps");
        match reader.poll() {
            Ok(Mp4Poll::Read { offset, len }) => {
                assert!(offset < said && len > 0 && len <= 128 << 20);
                let from = file.len().min(offset as usize);
                let to = file.len().min(from + len);
                read_bytes += to - from;
                reader.handle_read(offset, file.slice(from..to));
            }
            Ok(Mp4Poll::Ready(info)) => {
                ready += 1;
                assert!(ready == 1 && events.is_empty());
                assert!(info.duration.0 >= 0, "{:?}", info.duration);
            }
            Ok(Mp4Poll::Event(event)) => {
                assert_eq!(ready, 1);
                events.push(event);
            }
            Ok(Mp4Poll::End) => break,
            Err(error) => {
                assert_eq!(reader.poll(), Err(error), "an error is final");
                break;
            }
        }
    }
    assert!(
        read_bytes <= 64 * data.len() + (1 << 20),
        "{read_bytes} bytes read"
    );
    check_events(&events, said as usize);
    cutting::cut_and_check(events);
}

/// What is taken for MPEG-TS has packets.
pub(crate) fn sniff(data: &[u8]) {
    match media::sniff::sniff(data) {
        Ok(Container::Ts) => {
            let (mut packets, mut found) = (Packets::default(), 0);
            packets.push(data, |_| found += 1);
            packets.finish(|_| found += 1);
            assert!(found > 0, "nothing found");
        }
        Ok(Container::Mp4) => assert!(data.len() >= 8),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Some(packet) = data.get(..PACKET_BYTES)
        && let Some(packet) = Packet::parse(packet)
    {
        assert!(packet.payload.len() <= PACKET_BYTES - 4 && packet.pid < 0x2000);
    }
}
