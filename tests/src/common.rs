//! What several tests do and hold: a camera, what is listed, all at the hub.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

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
