//! From bytes to source events: packets to their PIDs, tables to programs, PES packets to tracks.
//!
//! What is damaged is dropped and told with its PID and offset; reading goes on at the next good one.

use super::{
    packet::{Found, Packet, Packets, Pid},
    pes::{Pes, PesAssembler, PesError},
    psi::{ElementaryStream, PAT_PID, Pat, Pmt, Program, Sections},
    streams::{Kind, kind},
    tracks::{Report, Tracks},
};
use crate::{
    access_unit::{SourceEvent, TrackId},
    timeline::{Placed, Timeline},
    warnings::{Fault, Warnings},
};

/// How many packets (2 MB) may come before a program table; then that is told.
const PATIENCE_PACKETS: u64 = 10_000;

/// A transport stream being read, pushed in pieces of any size.
#[derive(Debug, Default)]
pub struct Demuxer {
    packets: Packets,
    program: ProgramReader,
}

impl Demuxer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the source and appends what they complete to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<SourceEvent>) {
        let Self { packets, program } = self;
        packets.push(bytes, |found| program.take(found, out));
    }

    /// The source has ended: appends what was still being put together. Another source may be pushed
    /// afterwards and is read as its continuation, on the same timeline.
    pub fn finish(&mut self, out: &mut Vec<SourceEvent>) {
        let Self { packets, program } = self;
        packets.finish(|found| program.take(found, out));
        program.finish(out);
    }
}

/// Reads the first program of what is in the packets.
#[derive(Debug, Default)]
struct ProgramReader {
    /// Offset of the packet being read.
    offset: u64,
    packets_read: u64,
    pat: TableReader,
    pmt: TableReader,
    program: Option<Program>,
    /// The streams of the table that is in force.
    declared: Vec<ElementaryStream>,
    /// One for each carried stream: at most `MAX_TRACKS`.
    streams: Vec<StreamReader>,
    /// PES packets on their way, with the track that they are of.
    timeline: Timeline<Pes>,
    tracks: Tracks,
    warnings: Warnings,
    told_no_program: bool,
}

#[derive(Debug, Default)]
struct TableReader {
    continuity: Continuity,
    sections: Sections,
    /// When the table's packets last did not follow each other, counted in packets of the stream.
    broken_at: u64,
}

#[derive(Debug)]
struct StreamReader {
    pid: Pid,
    track: TrackId,
    continuity: Continuity,
    assembler: PesAssembler,
    /// When its last packet came, counted in packets of the stream.
    last_packet: u64,
}

/// The continuity counter of a PID (2.4.3.3).
#[derive(Debug, Default)]
struct Continuity {
    last: Option<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Next,
    /// The same counter again: a repetition, if the payload is the same too.
    Again,
    /// So many packets are missing, give or take sixteens.
    Gap(u8),
}

impl Continuity {
    /// Takes the counter of a packet with payload.
    fn step(&mut self, packet: &Packet<'_>) -> Step {
        let last = self.last.replace(packet.continuity);
        match last {
            Some(last) if !packet.discontinuity => {
                match packet.continuity.wrapping_sub(last) & 0x0f {
                    1 => Step::Next,
                    0 => Step::Again,
                    more => Step::Gap(more - 1),
                }
            }
            _ => Step::Next,
        }
    }
}

impl ProgramReader {
    fn take(&mut self, found: Found<'_>, out: &mut Vec<SourceEvent>) {
        match found {
            Found::Packet { offset, packet } => {
                self.offset = offset;
                self.packets_read += 1;
                self.packet(packet, out);
            }
            Found::Skipped { offset, bytes } => {
                self.offset = offset;
                self.warn(Fault::Sync, None, out, || {
                    format!("{bytes} bytes are not MPEG-TS: passed over")
                });
            }
        }
    }

    fn packet(&mut self, bytes: &[u8], out: &mut Vec<SourceEvent>) {
        let Some(packet) = Packet::parse(bytes) else {
            self.warn(Fault::Packet, None, out, || {
                "a packet's adaptation field is longer than the packet: dropped".to_owned()
            });
            return;
        };
        if packet.damaged {
            self.warn(Fault::Packet, Some(packet.pid), out, || {
                "a packet is marked as damaged: dropped".to_owned()
            });
            return;
        }
        if packet.payload.is_empty() {
            return;
        }
        if packet.pid == PAT_PID {
            self.pat(&packet, out);
        } else if self.program.is_some_and(|p| p.pmt_pid == packet.pid) {
            self.pmt(&packet, out);
        } else if let Some(at) = self.streams.iter().position(|s| s.pid == packet.pid) {
            self.stream(at, &packet, out);
        } else if self.program.is_none() && self.packets_read > PATIENCE_PACKETS {
            self.tell_no_program(out);
        }
    }

    fn pat(&mut self, packet: &Packet<'_>, out: &mut Vec<SourceEvent>) {
        let mut found = Vec::new();
        let at = self.packets_read;
        self.pat
            .push(packet, at, |section| found.push(Pat::parse(section)));
        for pat in found {
            match pat {
                Ok(Some(Pat {
                    first: Some(program),
                    programs,
                })) => {
                    if self.program != Some(program) {
                        self.program = Some(program);
                        self.pmt = TableReader::default();
                        if programs > 1 {
                            self.warn(Fault::Program, None, out, || {
                                format!(
                                    "{programs} programs: only program {} is read",
                                    program.number
                                )
                            });
                        }
                    }
                }
                Ok(_) => {}
                Err(error) => self.warn(Fault::Table, Some(PAT_PID), out, || error.to_string()),
            }
        }
    }

    fn pmt(&mut self, packet: &Packet<'_>, out: &mut Vec<SourceEvent>) {
        let mut found = Vec::new();
        let at = self.packets_read;
        self.pmt
            .push(packet, at, |section| found.push(Pmt::parse(section)));
        for pmt in found {
            match pmt {
                // Several programs may share a PID for their tables.
                Ok(Some(pmt)) if self.program.is_some_and(|p| p.number == pmt.number) => {
                    if pmt.streams != self.declared {
                        self.declare(pmt, out);
                    }
                }
                Ok(_) => {}
                Err(error) => self.warn(Fault::Table, Some(packet.pid), out, || error.to_string()),
            }
        }
    }

    /// Another table is in force: what was under way is complete, and the streams are these.
    fn declare(&mut self, pmt: Pmt, out: &mut Vec<SourceEvent>) {
        self.complete_all(out);
        let kinds: Vec<(Pid, Kind)> = pmt.streams.iter().map(|s| (s.pid, kind(s))).collect();
        let ids = self.tracks.declare(&kinds);
        let mut old = std::mem::take(&mut self.streams);
        for ((pid, kind), id) in kinds.iter().zip(ids) {
            let what = match (kind, id) {
                (Kind::Other(what), _) => what,
                (_, Some(track)) => {
                    let kept = old.iter().position(|s| s.pid == *pid && s.track == track);
                    let stream = kept.map(|i| old.remove(i));
                    self.streams.push(stream.unwrap_or_else(|| StreamReader {
                        pid: *pid,
                        track,
                        continuity: Continuity::default(),
                        assembler: PesAssembler::default(),
                        last_packet: 0,
                    }));
                    continue;
                }
                (Kind::Video(_), None) => {
                    "a second picture is not carried: give it a stream of its own"
                }
                (_, None) => "more tracks than can be carried: left out",
            };
            self.warn(Fault::Track, Some(*pid), out, || what.to_owned());
        }
        if self.streams.is_empty() {
            self.warn(Fault::Program, None, out, || {
                "the program has no track that can be carried".to_owned()
            });
        }
        let streams = &self.streams;
        let stays = |track| streams.iter().any(|s| s.track == track);
        // Nothing is held any more.
        self.timeline.flush(stays, &mut Vec::new());
        self.declared = pmt.streams;
    }

    fn stream(&mut self, at: usize, packet: &Packet<'_>, out: &mut Vec<SourceEvent>) {
        let Some(stream) = self.streams.get_mut(at) else {
            return;
        };
        let (pid, track) = (stream.pid, stream.track);
        let before = std::mem::replace(&mut stream.last_packet, self.packets_read);
        let step = stream.continuity.step(packet);
        if packet.scrambled {
            stream.assembler.drop_current();
            self.tracks.lost(track);
            self.warn(Fault::Scrambled, Some(pid), out, || {
                PesError::Scrambled.to_string()
            });
            return;
        }
        match step {
            Step::Next => {}
            Step::Again if stream.assembler.ends_with(packet.payload) => return,
            // Where one stream ends and another begins, the tables' counters break as well, and nothing
            // was lost of the picture before.
            _ if packet.starts_unit && before < self.pat.broken_at.max(self.pmt.broken_at) => {}
            step => {
                let dropped = stream.assembler.drop_current() | self.tracks.lost(track);
                let effect = if dropped {
                    ": what they were part of is dropped"
                } else {
                    ""
                };
                self.warn(Fault::Continuity, Some(pid), out, || match step {
                    Step::Gap(missing) => format!("{missing} or more packets are missing{effect}"),
                    _ => format!("15 or more packets are missing, or one came twice{effect}"),
                });
            }
        }
        let Some(stream) = self.streams.get_mut(at) else {
            return;
        };
        if packet.starts_unit {
            let last = stream.assembler.take();
            let offset = self.offset;
            let whole = stream
                .assembler
                .start(offset, packet.random_access, packet.payload);
            self.pes(pid, track, last, out);
            self.pes(pid, track, whole, out);
        } else {
            let whole = stream.assembler.extend(packet.payload);
            self.pes(pid, track, whole, out);
        }
    }

    /// A PES packet is whole, or was dropped.
    fn pes(
        &mut self,
        pid: Pid,
        track: TrackId,
        pes: Option<Result<Pes, PesError>>,
        out: &mut Vec<SourceEvent>,
    ) {
        match pes {
            None => {}
            Some(Ok(pes)) => {
                let mut placed = Vec::new();
                self.timeline.push(track, pes.stamp, pes, &mut placed);
                self.place(placed, out);
            }
            Some(Err(error)) => {
                self.tracks.lost(track);
                let fault = match error {
                    PesError::Scrambled => Fault::Scrambled,
                    _ => Fault::Pes,
                };
                self.warn(fault, Some(pid), out, || error.to_string());
            }
        }
    }

    fn place(&mut self, placed: Vec<Placed<Pes>>, out: &mut Vec<SourceEvent>) {
        for placed in placed {
            let mut report = Report {
                warnings: &mut self.warnings,
                out,
            };
            match placed {
                Placed::Item { track, times, item } => {
                    self.tracks.take(track, times, item, &mut report);
                }
                Placed::Discontinuity => self.tracks.discontinuity(self.offset, &mut report),
                Placed::Dropped { track, item } => {
                    let pid = self
                        .streams
                        .iter()
                        .find(|s| s.track == track)
                        .map(|s| s.pid);
                    report.warn(Fault::Times, pid, item.offset, || {
                        "timestamps jump away and back: what lies between is dropped".to_owned()
                    });
                }
            }
        }
    }

    /// Takes every PES packet under way as it is.
    fn complete_all(&mut self, out: &mut Vec<SourceEvent>) {
        let last: Vec<_> = self
            .streams
            .iter_mut()
            .map(|s| (s.pid, s.track, s.assembler.take()))
            .collect();
        for (pid, track, pes) in last {
            self.pes(pid, track, pes, out);
        }
        let mut placed = Vec::new();
        self.timeline.flush(|_| true, &mut placed);
        self.place(placed, out);
    }

    fn finish(&mut self, out: &mut Vec<SourceEvent>) {
        self.complete_all(out);
        if self.program.is_none() && self.packets_read > 0 {
            self.tell_no_program(out);
        }
        let mut report = Report {
            warnings: &mut self.warnings,
            out,
        };
        self.tracks.finish(self.offset, &mut report);
        // Another source has counters of its own.
        for stream in &mut self.streams {
            stream.continuity = Continuity::default();
        }
        self.pat.continuity = Continuity::default();
        self.pmt.continuity = Continuity::default();
    }

    fn tell_no_program(&mut self, out: &mut Vec<SourceEvent>) {
        if !std::mem::replace(&mut self.told_no_program, true) {
            self.warn(Fault::Program, None, out, || {
                "no program table has come: without one nothing can be read".to_owned()
            });
        }
    }

    fn warn(
        &mut self,
        fault: Fault,
        pid: Option<Pid>,
        out: &mut Vec<SourceEvent>,
        what: impl FnOnce() -> String,
    ) {
        self.warnings.tell(fault, pid, self.offset, out, what);
    }
}

impl TableReader {
    fn push(&mut self, packet: &Packet<'_>, at: u64, give: impl FnMut(&[u8])) {
        if self.continuity.step(packet) != Step::Next {
            // Repeated packets come here too: tables are repeated often enough to begin again.
            self.broken_at = at;
            self.sections.reset();
        }
        self.sections.push(packet.starts_unit, packet.payload, give);
    }
}
