//! What several tests do and hold: a camera, what is listed, all at the hub, the rules of a live list.

use std::{
    collections::HashMap,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, FixedOffset};

use crate::{Edge, Hub, get, playlist};

/// ffmpeg that plays a clip at its own pace as MPEG-TS on its standard output.
pub fn camera(clip: &Path, seconds: u32) -> Result<(Child, Stdio)> {
    let mut ffmpeg = Command::new("ffmpeg")
        .args([
            "-hide_banner",
            "-loglevel",
            "error",
            "-nostdin",
            "-re",
            "-i",
        ])
        .arg(clip)
        .args([
            "-t",
            &seconds.to_string(),
            "-c",
            "copy",
            "-f",
            "mpegts",
            "-flush_packets",
            "1",
            "-",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("ffmpeg")?;
    let out = ffmpeg.stdout.take().context("stdout")?;
    Ok((ffmpeg, Stdio::from(out)))
}

/// The numbers of the segments that a playlist lists.
pub fn numbers(url: &str) -> Vec<u64> {
    let Ok(list) = playlist(url) else {
        return Vec::new();
    };
    list.segments
        .iter()
        .filter_map(|s| s.uri.strip_suffix(".ts")?.parse().ok())
        .collect()
}

/// Every closed segment on the edge's disk is at the hub, byte for byte; how many there are.
pub fn assert_all_at_hub(edge: &Edge, hub: &Hub, stream: &str) -> Result<usize> {
    let here = edge.segments(stream)?;
    for (number, hash) in &here {
        let got = get(&hub.url(&format!("/s/{stream}/{number}.ts")))?;
        ensure!(
            got.status == 200,
            "segment {number} is not at the hub: {}",
            got.text()
        );
        ensure!(
            blake3::hash(&got.body).to_string() == *hash,
            "segment {number} differs"
        );
    }
    Ok(here.len())
}

/// Media and discontinuity sequences of a live list never go back; the same number is the same segment at the
/// same time.
pub struct ListRules {
    sequence: u64,
    discontinuities: u64,
    known: HashMap<u64, (String, Option<DateTime<FixedOffset>>)>,
    target: Option<u64>,
}

impl Default for ListRules {
    fn default() -> Self {
        Self::new()
    }
}

impl ListRules {
    pub fn new() -> Self {
        Self {
            sequence: 0,
            discontinuities: 0,
            known: HashMap::new(),
            target: None,
        }
    }

    /// Looks at the list as it is now.
    pub fn check(&mut self, url: &str) -> Result<()> {
        let Ok(answer) = get(url) else { return Ok(()) };
        if answer.status != 200 {
            return Ok(());
        }
        let list = playlist(url)?;
        ensure!(
            list.media_sequence >= self.sequence,
            "{} after {}",
            list.media_sequence,
            self.sequence
        );
        ensure!(
            list.discontinuity_sequence >= self.discontinuities,
            "discontinuity sequence went back"
        );
        let target = *self.target.get_or_insert(list.target_duration);
        ensure!(target == list.target_duration, "target duration changed");
        (self.sequence, self.discontinuities) = (list.media_sequence, list.discontinuity_sequence);
        for (i, segment) in list.segments.iter().enumerate() {
            ensure!(
                segment.duration.round() as u64 <= target,
                "{} s over {target}",
                segment.duration
            );
            let sequence = list.media_sequence + i as u64;
            let known = self
                .known
                .entry(sequence)
                .or_insert_with(|| (segment.uri.clone(), segment.program_date_time));
            let now = (segment.uri.clone(), segment.program_date_time);
            ensure!(*known == now, "number {sequence} was {known:?}, is {now:?}");
        }
        Ok(())
    }
}
