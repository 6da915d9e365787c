//! TS packets of one run: tables, PES, clock.
//!
//! `mpeg2ts` writes what has fields: PAT and PMT (once, then repeated with their counters moved), the
//! first packet of every PES, and packets that carry only a PCR. What follows in a PES is a four-byte
//! header and payload; that is nearly all of the bytes, and it is copied here once, without the crate's
//! 368-byte packet values in between.
//!
//! Two of the crate's habits are put right: a PCR's reserved bits are 1 (ISO 13818-1, 2.4.3.5), and tables
//! are padded behind their section, as hardware expects, not by an adaptation field.

use bytes::Bytes;
use model::{MediaDuration, MediaTime};
use mpeg2ts::{
    es::{StreamId, StreamType},
    pes::PesHeader,
    time::{ClockReference, Timestamp},
    ts::{
        AdaptationField, ContinuityCounter, Descriptor, EsInfo, ProgramAssociation,
        TransportScramblingControl, TsHeader, TsPacket, TsPacketWriter, TsPayload, VersionNumber,
        WriteTsPacket, payload,
    },
};

use crate::access_unit::TrackFormat;

const PMT_PID: u16 = 0x1000;
const PROGRAM: u16 = 1;

/// How far the PCR runs behind the decoding times: room for sound that comes behind its pictures.
pub(super) const PCR_LEAD: MediaDuration = MediaDuration::from_millis(500);
/// ISO 13818-1, 2.7.2.
const MAX_PCR_DISTANCE: MediaDuration = MediaDuration::from_millis(100);
/// Where pictures are further apart, packets with nothing but a PCR stand this far from each other.
const PCR_STEP: MediaDuration = MediaDuration::from_millis(90);
/// Most of those in a row: 63 s, more than a run goes on after.
const MAX_PCR_FILL: usize = 700;

const PACKET: usize = TsPacket::SIZE;
const HEADER: usize = 4;
const PAYLOAD: usize = PACKET - HEADER;
const TIMESTAMP_MASK: u64 = Timestamp::MAX;

/// Length and flags of an adaptation field, and the PCR in one.
const FIELD_BYTES: usize = 2;
const PCR_BYTES: usize = 6;
/// A PES header before its timestamps, and each of those.
const PES_HEADER_BYTES: usize = 9;
const PES_TIMESTAMP_BYTES: usize = 5;
/// PES_packet_length begins to count behind itself.
const PES_UNCOUNTED_BYTES: usize = 6;

/// A PID with the counter of its next packet that has payload.
#[derive(Debug)]
pub(super) struct Pid {
    pub(super) number: u16,
    counter: u8,
}

/// What the PMT says of a track.
pub(super) struct Carried {
    pid: u16,
    stream_type: StreamType,
    descriptors: Vec<Descriptor>,
}

/// What the head of a PES says.
pub(super) struct PesStart {
    pub(super) stream_id: u8,
    pub(super) pts: MediaTime,
    pub(super) dts: MediaTime,
    pub(super) random_access: bool,
}

/// The packets of the part being written.
#[derive(Debug)]
pub(super) struct Packets {
    pub(super) part: Vec<u8>,
    /// Of the longest part lately: what to set aside for the next.
    usual_bytes: usize,
    shift: MediaDuration,
    pat: Table,
    pmt: Table,
    pcr_pid: u16,
    /// Of the clock PID's last packet with payload: packets without do not count (2.4.3.3).
    clock_counter: u8,
    /// The decoding time that the newest PCR belongs to.
    last_pcr: Option<MediaTime>,
}

/// PAT or PMT in a packet of its own.
#[derive(Debug)]
struct Table {
    packet: [u8; PACKET],
    counter: u8,
}

impl Pid {
    pub(super) fn new(number: u16) -> Self {
        Self { number, counter: 0 }
    }

    fn count(&mut self) -> u8 {
        let counter = self.counter;
        self.counter = next_counter(counter);
        counter
    }
}

impl Carried {
    pub(super) fn of(format: &TrackFormat, pid: u16) -> Self {
        let (stream_type, descriptors) = match format {
            TrackFormat::H264 { .. } => (StreamType::H264, Vec::new()),
            TrackFormat::H265 { .. } => {
                // registration_descriptor (ISO 13818-1, 2.6.8)
                let registration = Descriptor {
                    tag: 0x05,
                    data: b"HEVC".to_vec(),
                };
                (StreamType::H265, vec![registration])
            }
            TrackFormat::Aac { .. } => (StreamType::AdtsAac, Vec::new()),
        };
        Self {
            pid,
            stream_type,
            descriptors,
        }
    }
}

impl Packets {
    pub(super) fn new(carried: &[Carried], shift: MediaDuration) -> Self {
        let pcr_pid = carried
            .iter()
            .map(|c| c.pid)
            .min()
            .unwrap_or(super::VIDEO_PID);
        Self {
            part: Vec::new(),
            usual_bytes: 0,
            shift,
            pat: Table::pat(),
            pmt: Table::pmt(carried, pcr_pid),
            pcr_pid,
            clock_counter: 0,
            last_pcr: None,
        }
    }

    /// Whether the PCRs come on this PID.
    pub(super) fn is_clock(&self, pid: &Pid) -> bool {
        pid.number == self.pcr_pid
    }

    pub(super) fn begin_part(&mut self) {
        self.part.reserve(self.usual_bytes);
        self.pat.write(&mut self.part);
        self.pmt.write(&mut self.part);
    }

    pub(super) fn finish_part(&mut self) -> Bytes {
        let bytes = self.part.len();
        // A quarter more than usual saves most parts from growing; a single huge one is forgotten soon.
        self.usual_bytes = bytes.saturating_add(bytes / 4).max(self.usual_bytes / 2);
        Bytes::from(std::mem::take(&mut self.part))
    }

    /// Writes one PES whose payload is `pieces`, one behind the other.
    pub(super) fn write_pes(&mut self, pid: &mut Pid, start: &PesStart, pieces: &[&[u8]]) {
        self.fill_clock(start.dts);
        let mut payload = Payload::new(pieces);
        let header = self.pes_header(start);
        let with_pcr = self.is_clock(pid) && self.last_pcr.is_none_or(|last| last < start.dts);
        if with_pcr {
            self.last_pcr = Some(start.dts);
        }
        let field = (with_pcr || start.random_access).then(|| AdaptationField {
            random_access_indicator: start.random_access,
            ..self.adaptation_field(with_pcr.then_some(start.dts))
        });
        let field_bytes = match (&field, with_pcr) {
            (None, _) => 0,
            (Some(_), false) => FIELD_BYTES,
            (Some(_), true) => FIELD_BYTES + PCR_BYTES,
        };
        let header_bytes =
            PES_HEADER_BYTES + PES_TIMESTAMP_BYTES * (1 + usize::from(header.dts.is_some()));
        let pes_bytes = header_bytes - PES_UNCOUNTED_BYTES + payload.left;

        let mut first = [0; PAYLOAD];
        let room = first
            .get_mut(..PAYLOAD - field_bytes - header_bytes)
            .unwrap_or_default();
        let taken = payload.take(room);
        let data = room.get(..taken).unwrap_or_default();
        let packet = TsPacket {
            header: ts_header(pid.number, pid.count()),
            adaptation_field: field,
            payload: Some(TsPayload::PesStart(payload::Pes {
                header,
                // Video whose length the field can't hold says nothing (2.4.3.7).
                pes_packet_len: u16::try_from(pes_bytes).unwrap_or(0),
                data: written(payload::Bytes::new(data)),
            })),
        };
        self.write_packet(&packet);
        payload.packetise(pid, &mut self.part);
        if self.is_clock(pid) {
            self.clock_counter = previous_counter(pid.counter);
        }
    }

    /// Keeps PCRs close where nothing that could carry one has come for a while.
    fn fill_clock(&mut self, dts: MediaTime) {
        let Some(mut last) = self.last_pcr else {
            return;
        };
        let mut room = MAX_PCR_FILL;
        while dts - last > MAX_PCR_DISTANCE && room > 0 {
            last = last + PCR_STEP;
            room -= 1;
            let packet = TsPacket {
                header: ts_header(self.pcr_pid, self.clock_counter),
                adaptation_field: Some(self.adaptation_field(Some(last))),
                payload: None,
            };
            self.write_packet(&packet);
            self.last_pcr = Some(last);
        }
    }

    fn pes_header(&self, start: &PesStart) -> PesHeader {
        PesHeader {
            stream_id: StreamId::new(start.stream_id),
            priority: false,
            data_alignment_indicator: true,
            copyright: false,
            original_or_copy: false,
            pts: Some(self.timestamp(start.pts)),
            dts: (start.dts != start.pts).then(|| self.timestamp(start.dts)),
            escr: None,
        }
    }

    fn adaptation_field(&self, pcr: Option<MediaTime>) -> AdaptationField {
        AdaptationField {
            discontinuity_indicator: false,
            random_access_indicator: false,
            es_priority_indicator: false,
            pcr: pcr.map(|dts| ClockReference::from(self.timestamp(dts - PCR_LEAD))),
            opcr: None,
            splice_countdown: None,
            transport_private_data: Vec::new(),
            extension: None,
        }
    }

    fn timestamp(&self, time: MediaTime) -> Timestamp {
        written(Timestamp::new(
            (time + self.shift).0 as u64 & TIMESTAMP_MASK,
        ))
    }

    fn write_packet(&mut self, packet: &TsPacket) {
        let at = self.part.len();
        written(TsPacketWriter::new(&mut self.part).write_ts_packet(packet));
        let has_pcr = packet
            .adaptation_field
            .as_ref()
            .is_some_and(|field| field.pcr.is_some());
        // Bits 33 to 38 of the PCR, which begins behind header, length and flags.
        if let (true, Some(byte)) = (has_pcr, self.part.get_mut(at + HEADER + FIELD_BYTES + 4)) {
            *byte |= 0x7e;
        }
    }
}

impl Table {
    fn pat() -> Self {
        Self::new(
            0,
            TsPayload::Pat(payload::Pat {
                transport_stream_id: 1,
                version_number: VersionNumber::new(),
                table: vec![ProgramAssociation {
                    program_num: PROGRAM,
                    program_map_pid: ts_pid(PMT_PID),
                }],
            }),
        )
    }

    fn pmt(carried: &[Carried], pcr_pid: u16) -> Self {
        let es_info = carried.iter().map(|c| EsInfo {
            stream_type: c.stream_type,
            elementary_pid: ts_pid(c.pid),
            descriptors: c.descriptors.clone(),
        });
        Self::new(
            PMT_PID,
            TsPayload::Pmt(payload::Pmt {
                program_num: PROGRAM,
                pcr_pid: Some(ts_pid(pcr_pid)),
                version_number: VersionNumber::new(),
                program_info: Vec::new(),
                es_info: es_info.collect(),
            }),
        )
    }

    /// The section at the front of the payload, 0xff behind it (2.4.4).
    fn new(pid: u16, table: TsPayload) -> Self {
        let padded = TsPacket {
            header: ts_header(pid, 0),
            adaptation_field: None,
            payload: Some(table),
        };
        let mut writer = TsPacketWriter::new(Vec::with_capacity(PACKET));
        written(writer.write_ts_packet(&padded));
        let padded = writer.into_stream();
        let field = padded.get(HEADER).map_or(0, |&length| usize::from(length));
        let section = padded.get(HEADER + 1 + field..).unwrap_or_default();
        let mut packet = [0xff; PACKET];
        for (to, &from) in packet.iter_mut().zip(padded.iter().take(HEADER)) {
            *to = from;
        }
        packet[3] = 0x10;
        for (to, &from) in packet.iter_mut().skip(HEADER).zip(section) {
            *to = from;
        }
        Self { packet, counter: 0 }
    }

    fn write(&mut self, part: &mut Vec<u8>) {
        self.packet[3] = 0x10 | self.counter;
        self.counter = next_counter(self.counter);
        part.extend_from_slice(&self.packet);
    }
}

/// The payload of a PES, being taken from its pieces.
struct Payload<'a> {
    current: &'a [u8],
    rest: std::slice::Iter<'a, &'a [u8]>,
    left: usize,
}

impl<'a> Payload<'a> {
    fn new(pieces: &'a [&'a [u8]]) -> Self {
        Self {
            current: &[],
            rest: pieces.iter(),
            left: pieces.iter().map(|piece| piece.len()).sum(),
        }
    }

    /// Takes as much as fits: how much that was.
    fn take(&mut self, mut room: &mut [u8]) -> usize {
        let wanted = room.len();
        while !room.is_empty() {
            if self.current.is_empty() {
                match self.rest.next() {
                    Some(piece) => self.current = piece,
                    None => break,
                }
            }
            let count = room.len().min(self.current.len());
            let (now, later) = self.current.split_at(count);
            let (to, behind) = room.split_at_mut(count);
            to.copy_from_slice(now);
            (self.current, room) = (later, behind);
        }
        let taken = wanted - room.len();
        self.left -= taken;
        taken
    }

    /// All that is left, in packets of their own; the last is stuffed by an adaptation field.
    fn packetise(mut self, pid: &mut Pid, part: &mut Vec<u8>) {
        part.reserve(self.left.div_ceil(PAYLOAD) * PACKET);
        let [high, low] = pid.number.to_be_bytes();
        while self.left > 0 {
            if self.current.len() >= PAYLOAD {
                let whole = self.current.len() / PAYLOAD * PAYLOAD;
                let (blocks, rest) = self.current.split_at(whole);
                for block in blocks.chunks_exact(PAYLOAD) {
                    part.extend_from_slice(&[TsPacket::SYNC_BYTE, high, low, 0x10 | pid.count()]);
                    part.extend_from_slice(block);
                }
                self.current = rest;
                self.left -= whole;
                continue;
            }
            let mut packet = [0xff; PACKET];
            let stuffing = PAYLOAD.saturating_sub(self.left);
            packet[0] = TsPacket::SYNC_BYTE;
            packet[1] = high;
            packet[2] = low;
            packet[3] = if stuffing > 0 { 0x30 } else { 0x10 } | pid.count();
            if stuffing > 0 {
                // Field length, then flags if it has any bytes, then stuffing.
                packet[4] = (stuffing - 1) as u8;
            }
            if stuffing > 1 {
                packet[5] = 0;
            }
            self.take(packet.get_mut(HEADER + stuffing..).unwrap_or_default());
            part.extend_from_slice(&packet);
        }
    }
}

fn ts_header(pid: u16, counter: u8) -> TsHeader {
    TsHeader {
        transport_error_indicator: false,
        transport_priority: false,
        pid: ts_pid(pid),
        transport_scrambling_control: TransportScramblingControl::NotScrambled,
        continuity_counter: written(ContinuityCounter::from_u8(counter & 0x0f)),
    }
}

fn ts_pid(number: u16) -> mpeg2ts::ts::Pid {
    written(mpeg2ts::ts::Pid::new(number))
}

fn next_counter(counter: u8) -> u8 {
    counter.wrapping_add(1) & 0x0f
}

fn previous_counter(counter: u8) -> u8 {
    counter.wrapping_sub(1) & 0x0f
}

/// `mpeg2ts` refuses values out of range, of which none are made here, and a writer's errors, which
/// memory has none of.
fn written<T>(result: mpeg2ts::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("{error}"),
    }
}
