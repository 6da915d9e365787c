//! The samples of a movie fragment (`moof`; ISO/IEC 14496-12, 8.8).

use shiguredo_mp4::{
    Decode,
    boxes::{MoofBox, TrafBox},
};

use super::{
    boxes::{body, boxes},
    samples::Sample,
};

/// Most samples of a fragment: ten minutes of eight tracks at 60 a second, far more than any live packager.
const MAX_FRAGMENT_SAMPLES: u64 = 1 << 18;

/// What a track's fragments leave out, and where they have got to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TrackDefaults {
    pub(super) duration: u32,
    pub(super) size: u32,
    pub(super) non_sync: bool,
    /// Where the next fragment begins if it doesn't say.
    pub(super) decoding: u64,
    /// Samples so far.
    pub(super) count: u32,
}

/// The samples of a track in a fragment.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) track_number: u32,
    pub(super) samples: Vec<Sample>,
}

/// Reads a whole `moof` box that stands at `offset` in the file; `defaults` gives the state of a track by
/// its track_ID, None for one that is not carried.
pub(super) fn parse(
    moof: &[u8],
    offset: u64,
    mut defaults: impl FnMut(u32) -> Option<TrackDefaults>,
) -> Result<Vec<Run>, String> {
    check_counts(moof)?;
    let (moof, _) = MoofBox::decode(moof)
        .map_err(|error| format!("a fragment can't be read ({})", error.reason))?;
    let runs = moof.traf_boxes.iter().filter_map(|traf| {
        let track_number = traf.tfhd_box.track_id;
        let samples = samples(traf, offset, defaults(track_number)?);
        Some(Run {
            track_number,
            samples,
        })
    });
    Ok(runs.collect())
}

/// A `trun` may claim any number of samples without a byte for each: refused before it is unfolded.
fn check_counts(moof: &[u8]) -> Result<(), String> {
    let inside = |boxes_of: &[u8], kind: &[u8; 4]| -> u64 {
        boxes(boxes_of)
            .filter(|(header, _)| header.kind == *kind)
            .filter_map(|found| body(&found).get(4..)?.first_chunk().copied())
            .map(|count| u64::from(u32::from_be_bytes(count)))
            .sum()
    };
    let moof = boxes(moof).next().as_ref().map(body).unwrap_or_default();
    let trafs = boxes(moof).filter(|(header, _)| header.kind == *b"traf");
    let count: u64 = trafs.map(|traf| inside(body(&traf), b"trun")).sum();
    if count > MAX_FRAGMENT_SAMPLES {
        return Err(format!(
            "a fragment claims {count} samples, more than the {MAX_FRAGMENT_SAMPLES} that are taken"
        ));
    }
    Ok(())
}

fn samples(traf: &TrafBox, moof_offset: u64, defaults: TrackDefaults) -> Vec<Sample> {
    let tfhd = &traf.tfhd_box;
    let base = tfhd.base_data_offset.unwrap_or(moof_offset);
    let duration = tfhd.default_sample_duration.unwrap_or(defaults.duration);
    let size = tfhd.default_sample_size.unwrap_or(defaults.size);
    let non_sync = tfhd
        .default_sample_flags
        .map_or(defaults.non_sync, |f| f.sample_is_non_sync_sample());
    let described = tfhd.sample_description_index.unwrap_or(1);
    let tfdt = traf.tfdt_box.as_ref();
    let mut decoding = tfdt.map_or(defaults.decoding, |t| t.base_media_decode_time);
    let mut at = base;
    let mut out = Vec::new();
    for trun in &traf.trun_boxes {
        if let Some(from) = trun.data_offset {
            at = base.saturating_add_signed(from.into());
        }
        for (i, sample) in trun.samples.iter().enumerate() {
            let first = trun.first_sample_flags.filter(|_| i == 0);
            let flags = first.or(sample.flags);
            let non_sync = flags.map_or(non_sync, |f| f.sample_is_non_sync_sample());
            let (size, duration) = (
                sample.size.unwrap_or(size),
                sample.duration.unwrap_or(duration),
            );
            out.push(Sample {
                index: defaults.count.saturating_add(out.len() as u32),
                offset: at,
                size,
                decoding,
                composition: sample.composition_time_offset.unwrap_or(0),
                duration,
                sync: Some(!non_sync),
                description: described.saturating_sub(1),
            });
            at = at.saturating_add(size.into());
            decoding = decoding.saturating_add(duration.into());
        }
    }
    out
}
