//! AAC as far as carrying and naming need it: ADTS headers, AudioSpecificConfig, and one from the other.
//!
//! Clauses are of ISO/IEC 14496-3. Sound is not decoded.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    access_unit::AudioInfo,
    bits::{BitReader, BitWriter},
};

/// Samples that one raw data block codes; HE-AAC counts them at the core's rate.
pub const SAMPLES_PER_BLOCK: u32 = 1024;

/// Length of an ADTS header without its checksum.
pub const ADTS_HEADER_BYTES: usize = 7;

/// frame_length has 13 bits.
pub const MAX_ADTS_FRAME_BYTES: usize = (1 << 13) - 1;

/// samplingFrequencyIndex (Table 1.18).
const SAMPLE_RATES: [u32; 13] = [
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000,
    7_350,
];

/// Sound that can't be carried. The camera, or whoever made the file, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AacError {
    #[error("the AAC configuration is cut short")]
    CutShort,
    #[error(
        "the AAC configuration says object type 0, which is no codec: the file is damaged or its writer is at fault; encode the sound again with ffmpeg -c:v copy -c:a aac"
    )]
    NullObject,
    #[error(
        "AAC object type {0} can't be carried in MPEG-TS with ADTS (types 1 to 4 can); transcode it with ffmpeg -c:v copy -c:a aac"
    )]
    ObjectType(u32),
    #[error(
        "an AAC sample rate of {0} Hz is not one that ADTS can carry; transcode it with ffmpeg -c:v copy -c:a aac -ar 48000"
    )]
    SampleRate(u32),
    #[error("AAC sampling frequency index {0} is reserved")]
    SampleRateIndex(u32),
    #[error(
        "AAC channel configuration {0} is more than 7.1 or reserved; transcode it with ffmpeg -c:v copy -c:a aac -ac 2"
    )]
    Channels(u32),
    #[error(
        "AAC with frames of 960 samples can't be carried with ADTS; transcode it with ffmpeg -c:v copy -c:a aac"
    )]
    ShortFrames,
    #[error("AAC frame of {0} bytes is longer than ADTS can carry (8191 with its header)")]
    FrameTooLong(usize),
}

/// How a track's AAC frames are coded: what an ADTS header repeats before each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AacConfig {
    /// 1 to 4: Main, LC, SSR, LTP; of HE-AAC the core's.
    object_type: u8,
    /// The core's.
    rate_index: u8,
    /// 0 to 7; with 0 the channels are in `pce`.
    channel_config: u8,
    channels: u8,
    /// A program config element as a raw data block begins with it, whole bytes.
    pce: Bytes,
    /// The object type that is signalled: 5 or 29 for HE-AAC, else as `object_type`.
    signalled: u8,
}

impl AacConfig {
    /// Reads an AudioSpecificConfig (1.6.2.1), as MP4 and RTP carry it.
    pub fn parse(asc: &[u8]) -> Result<Self, AacError> {
        let mut bits = BitReader::new(asc);
        let mut object_type = read_object_type(&mut bits)?;
        let signalled = object_type;
        let rate_index = read_rate_index(&mut bits)?;
        let channel_config = bits.bits(4).ok_or(AacError::CutShort)?;
        if object_type == 5 || object_type == 29 {
            // Explicit SBR or PS: the extension's rate, then what the core is.
            read_rate_index(&mut bits)?;
            object_type = read_object_type(&mut bits)?;
        }
        match object_type {
            0 => return Err(AacError::NullObject),
            1..=4 => {}
            other => return Err(AacError::ObjectType(other)),
        }
        // GASpecificConfig (4.4.1).
        let short_frames = bits.bit().ok_or(AacError::CutShort)?;
        if short_frames {
            return Err(AacError::ShortFrames);
        }
        if bits.bit().ok_or(AacError::CutShort)? {
            bits.skip(14).ok_or(AacError::CutShort)?; // coreCoderDelay
        }
        bits.skip(1).ok_or(AacError::CutShort)?; // extensionFlag
        let (channels, pce) = match channel_config {
            0 => copy_pce(&mut bits).ok_or(AacError::CutShort)?,
            _ => (channels_of(channel_config)?, Bytes::new()),
        };
        if channels == 0 || channels > MAX_CHANNELS {
            return Err(AacError::Channels(channels.into()));
        }
        Ok(Self {
            object_type: object_type as u8,
            rate_index,
            channel_config: channel_config as u8,
            channels,
            pce,
            signalled: signalled as u8,
        })
    }

    pub fn info(&self) -> AudioInfo {
        AudioInfo {
            sample_rate: rate_of(self.rate_index),
            channels: self.channels,
            codec: format!("mp4a.40.{}", self.signalled),
        }
    }

    /// A raw frame with an ADTS header before it, in one copy.
    pub fn to_adts(&self, raw: &[u8]) -> Result<Bytes, AacError> {
        let len = ADTS_HEADER_BYTES + self.pce.len() + raw.len();
        if len > MAX_ADTS_FRAME_BYTES {
            return Err(AacError::FrameTooLong(raw.len()));
        }
        let mut out = BytesMut::with_capacity(len);
        out.put_slice(&self.header(len));
        out.put_slice(&self.pce);
        out.put_slice(raw);
        Ok(out.freeze())
    }

    /// MPEG-4, no checksum, one raw data block, variable rate (1.A.2.2).
    fn header(&self, len: usize) -> [u8; ADTS_HEADER_BYTES] {
        let [_, _, len_high, len_low] = (len as u32).to_be_bytes();
        [
            0xff,
            0xf1,
            (self.object_type - 1) << 6 | self.rate_index << 2 | self.channel_config >> 2,
            self.channel_config << 6 | len_high >> 3,
            len_high << 5 | len_low >> 3,
            len_low << 5 | 0x1f,
            0xfc,
        ]
    }
}

/// 7.1.
const MAX_CHANNELS: u8 = 8;

fn read_object_type(bits: &mut BitReader<'_>) -> Result<u32, AacError> {
    match bits.bits(5).ok_or(AacError::CutShort)? {
        31 => Ok(32 + bits.bits(6).ok_or(AacError::CutShort)?),
        other => Ok(other),
    }
}

/// The index, also of a rate that is written out.
fn read_rate_index(bits: &mut BitReader<'_>) -> Result<u8, AacError> {
    let index = bits.bits(4).ok_or(AacError::CutShort)?;
    if index < SAMPLE_RATES.len() as u32 {
        return Ok(index as u8);
    }
    if index != 15 {
        return Err(AacError::SampleRateIndex(index));
    }
    let rate = bits.bits(24).ok_or(AacError::CutShort)?;
    let index = SAMPLE_RATES.iter().position(|&r| r == rate);
    index.map(|i| i as u8).ok_or(AacError::SampleRate(rate))
}

fn rate_of(index: u8) -> u32 {
    // The index was checked when it was read.
    SAMPLE_RATES
        .get(usize::from(index))
        .copied()
        .unwrap_or(48_000)
}

/// channelConfiguration 1 to 7 (Table 1.19).
fn channels_of(config: u32) -> Result<u8, AacError> {
    match config {
        1..=6 => Ok(config as u8),
        7 => Ok(MAX_CHANNELS),
        _ => Err(AacError::Channels(config)),
    }
}

/// id_syn_ele of a program config element (Table 4.85).
const ID_PCE: u32 = 5;

/// Copies a program_config_element (4.4.1.1) into a raw data block's syntax: how many channels it has, and
/// its bytes with the element's id before it. It ends on a byte boundary in either place.
fn copy_pce(from: &mut BitReader<'_>) -> Option<(u8, Bytes)> {
    let mut to = BitWriter::default();
    to.bits(3, ID_PCE);
    let channels = walk_pce(from, &mut |count, value| to.bits(count, value))?;
    to.align();
    from.align();
    let comment = from.bits(8)?;
    to.bits(8, comment);
    for _ in 0..comment {
        to.bits(8, from.bits(8)?);
    }
    Some((channels, to.into_bytes().into()))
}

/// Reads a program_config_element up to its byte alignment; `seen` gets each field. Channels, saturating.
fn walk_pce(bits: &mut BitReader<'_>, seen: &mut dyn FnMut(u32, u32)) -> Option<u8> {
    let mut take = |count: u32| {
        let value = bits.bits(count)?;
        seen(count, value);
        Some(value)
    };
    take(4 + 2 + 4)?; // element_instance_tag, object_type, sampling_frequency_index
    let [front, side, back] = [take(4)?, take(4)?, take(4)?];
    let lfe = take(2)?;
    let data = take(3)?;
    let coupling = take(4)?;
    if take(1)? == 1 {
        take(4)?; // mono_mixdown_element_number
    }
    if take(1)? == 1 {
        take(4)?; // stereo_mixdown_element_number
    }
    if take(1)? == 1 {
        take(3)?; // matrix_mixdown_idx, pseudo_surround_enable
    }
    let mut channels = lfe;
    for _ in 0..front + side + back {
        channels += 1 + take(1)?; // is_cpe
        take(4)?;
    }
    for _ in 0..lfe + data {
        take(4)?;
    }
    for _ in 0..coupling {
        take(1 + 4)?;
    }
    Some(channels.min(255) as u8)
}

/// An ADTS frame's header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdtsHeader {
    /// 1 to 4.
    pub object_type: u8,
    rate_index: u8,
    /// 0 to 7; 0 leaves it to a program config element in the frame.
    pub channel_config: u8,
    /// Header included.
    pub frame_bytes: usize,
    header_bytes: usize,
    /// Raw data blocks, 1 to 4.
    pub blocks: u8,
}

impl AdtsHeader {
    /// Reads the header that `bytes` begin with; None if they are no such header or too few.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let &[0xff, b1, b2, b3, b4, b5, b6, ..] = bytes else {
            return None;
        };
        // The rest of the sync word, and layer, which is always 0.
        if b1 & 0xf6 != 0xf0 {
            return None;
        }
        let blocks = (b6 & 3) + 1;
        let checksums = if b1 & 1 == 1 {
            0
        } else {
            2 * usize::from(blocks)
        };
        let header = Self {
            object_type: (b2 >> 6) + 1,
            rate_index: b2 >> 2 & 0xf,
            channel_config: (b2 & 1) << 2 | b3 >> 6,
            frame_bytes: usize::from(b3 & 3) << 11 | usize::from(b4) << 3 | usize::from(b5 >> 5),
            header_bytes: ADTS_HEADER_BYTES + checksums,
            blocks,
        };
        let sane = usize::from(header.rate_index) < SAMPLE_RATES.len()
            && header.frame_bytes > header.header_bytes;
        sane.then_some(header)
    }

    pub fn sample_rate(&self) -> u32 {
        rate_of(self.rate_index)
    }

    /// Samples that the frame codes, per channel.
    pub fn samples(&self) -> u32 {
        SAMPLES_PER_BLOCK * u32::from(self.blocks)
    }

    /// Whether the next frame of the same sound could have this header.
    pub fn same_format(&self, other: &Self) -> bool {
        (self.object_type, self.rate_index, self.channel_config)
            == (other.object_type, other.rate_index, other.channel_config)
    }

    /// What the header says of the sound; `frame` is the whole frame, for channels that only a program
    /// config element at its start tells.
    pub fn info(&self, frame: &[u8]) -> Result<AudioInfo, AacError> {
        let channels = match self.channel_config {
            0 => {
                let mut bits = BitReader::new(frame.get(self.header_bytes..).unwrap_or_default());
                let channels = (bits.bits(3) == Some(ID_PCE))
                    .then(|| walk_pce(&mut bits, &mut |_, _| {}))
                    .flatten();
                channels
                    .filter(|n| (1..=MAX_CHANNELS).contains(n))
                    .ok_or(AacError::Channels(0))?
            }
            config => channels_of(config.into())?,
        };
        Ok(AudioInfo {
            sample_rate: self.sample_rate(),
            channels,
            codec: format!("mp4a.40.{}", self.object_type),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(sample_rate: u32, channels: u8, codec: &str) -> AudioInfo {
        AudioInfo {
            sample_rate,
            channels,
            codec: codec.to_owned(),
        }
    }

    #[test]
    fn audio_specific_configs() {
        for (asc, wanted) in [
            (&[0x12, 0x10][..], info(44_100, 2, "mp4a.40.2")),
            (&[0x11, 0x90], info(48_000, 2, "mp4a.40.2")),
            (&[0x15, 0x88], info(8_000, 1, "mp4a.40.2")),
            (&[0x11, 0xb0], info(48_000, 6, "mp4a.40.2")),
            (&[0x11, 0xb8], info(48_000, 8, "mp4a.40.2")),
            // LC with backward compatible SBR signalling behind it.
            (
                &[0x13, 0x10, 0x56, 0xe5, 0x98],
                info(24_000, 2, "mp4a.40.2"),
            ),
            // Explicit SBR over LC: 24 kHz core, 48 kHz out.
            (&[0x2b, 0x11, 0x88, 0x00], info(24_000, 2, "mp4a.40.5")),
            // 48 kHz written out.
            (
                &[0x17, 0x80, 0x5d, 0xc0, 0x10],
                info(48_000, 2, "mp4a.40.2"),
            ),
        ] {
            let config = AacConfig::parse(asc).unwrap();
            assert_eq!(config.info(), wanted, "{asc:02x?}");
        }
    }

    #[test]
    fn refused_configs_say_why() {
        for (asc, wanted) in [
            (&[][..], AacError::CutShort),
            (&[0x11], AacError::CutShort),
            (&[0x01, 0x90], AacError::NullObject),
            (&[0xf9, 0x46, 0x40], AacError::ObjectType(42)),
            (&[0x16, 0x90], AacError::SampleRateIndex(13)),
            (&[0x17, 0x80, 0x00, 0x00, 0x90], AacError::SampleRate(1)),
            (&[0x11, 0xc0], AacError::Channels(8)),
            (&[0x11, 0x94], AacError::ShortFrames),
            (&[0x11, 0x80], AacError::CutShort),
        ] {
            assert_eq!(AacConfig::parse(asc), Err(wanted), "{asc:02x?}");
        }
        let text = AacConfig::parse(&[0x01, 0x90]).unwrap_err().to_string();
        assert!(
            text.contains("object type 0") && text.contains("ffmpeg"),
            "{text}"
        );
    }

    #[test]
    fn writes_the_header_it_reads() {
        let config = AacConfig::parse(&[0x11, 0x90]).unwrap();
        let frame = config.to_adts(&[0x21, 0x10, 0x05]).unwrap();
        assert_eq!(
            frame[..],
            [0xff, 0xf1, 0x4c, 0x80, 0x01, 0x5f, 0xfc, 0x21, 0x10, 0x05]
        );
        let header = AdtsHeader::parse(&frame).unwrap();
        assert_eq!((header.frame_bytes, header.samples()), (10, 1024));
        assert_eq!(header.info(&frame).unwrap(), config.info());
        assert_eq!(
            config.to_adts(&[0; MAX_ADTS_FRAME_BYTES]),
            Err(AacError::FrameTooLong(MAX_ADTS_FRAME_BYTES))
        );
    }

    #[test]
    fn channels_of_a_program_config_element_go_before_each_frame() {
        // What ffmpeg's encoder writes for eight channels in an octagon: configuration 0, and an element.
        let asc = [
            0x11, 0x80, 0x04, 0xc8, 0x48, 0x00, 0x20, 0x08, 0xc8, 0x20, 0x0d, 0x4c, 0x61, 0x76,
            0x63, 0x35, 0x39, 0x2e, 0x33, 0x37, 0x2e, 0x31, 0x30, 0x30, 0x56, 0xe5, 0x00,
        ];
        let config = AacConfig::parse(&asc).unwrap();
        assert_eq!(config.info(), info(48_000, 8, "mp4a.40.2"));
        let frame = config.to_adts(&[1, 2, 3]).unwrap();
        // As its own ADTS writer puts it.
        let element = [
            0xa0, 0x99, 0x09, 0x00, 0x04, 0x01, 0x19, 0x04, 0x0d, 0x4c, 0x61, 0x76, 0x63, 0x35,
            0x39, 0x2e, 0x33, 0x37, 0x2e, 0x31, 0x30, 0x30,
        ];
        assert_eq!(
            frame[ADTS_HEADER_BYTES..],
            [&element[..], &[1, 2, 3]].concat()
        );
        let header = AdtsHeader::parse(&frame).unwrap();
        assert_eq!(header.channel_config, 0);
        assert_eq!(header.frame_bytes, frame.len());
        assert_eq!(header.info(&frame).unwrap().channels, 8);
    }

    #[test]
    fn what_is_no_adts_header() {
        let good = [0xff, 0xf1, 0x4c, 0x80, 0x01, 0x5f, 0xfc];
        assert!(AdtsHeader::parse(&good).is_some());
        for (at, with) in [(0, 0xfe), (1, 0xe1), (1, 0xf3), (2, 0x7c)] {
            let mut bad = good;
            bad[at] = with;
            assert_eq!(AdtsHeader::parse(&bad), None, "{at}");
        }
        assert_eq!(AdtsHeader::parse(&good[..6]), None);
        // A frame shorter than its header.
        assert_eq!(
            AdtsHeader::parse(&[0xff, 0xf1, 0x4c, 0x80, 0x00, 0xdf, 0xfc]),
            None
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(config) = AacConfig::parse(&bytes) {
                let frame = config.to_adts(&[9; 20]).unwrap();
                let header = AdtsHeader::parse(&frame).unwrap();
                prop_assert_eq!(header.info(&frame).unwrap().channels, config.info().channels);
            }
            if let Some(header) = AdtsHeader::parse(&bytes) {
                let _ = header.info(&bytes);
            }
        }
    }
}
