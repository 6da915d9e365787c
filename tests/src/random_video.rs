//! Clips with random pictures, rates, key-frame distances, codecs and containers, from a seed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use crate::tool;

/// The seed of a test's random choices: `PENSTOCK_SEED`, or `default`. Printed, so that a run can be repeated.
pub fn seeded(default: u64) -> Rng {
    let seed = std::env::var("PENSTOCK_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(default);
    println!("PENSTOCK_SEED={seed}");
    Rng::with_seed(seed)
}

/// A number that a soak run sets, such as `PENSTOCK_KILL_ROUNDS`.
pub fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn one_of<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

/// Encodes a random clip of 3 to 20 seconds into `dir`.
pub fn random_clip(dir: &Path, rng: &mut Rng) -> Result<PathBuf> {
    let (width, height) = one_of(rng, &[(160, 120), (320, 180), (352, 288), (640, 360)]);
    let rate = one_of(
        rng,
        &["5", "10", "12.5", "15", "25", "30000/1001", "30", "50"],
    );
    let seconds = rng.u32(3..=20);
    let source = format!("testsrc2=size={width}x{height}:rate={rate}:duration={seconds}");
    let noise = format!("noise=alls={}:allf=t", rng.u32(0..60));
    let video = if rng.u32(..4) == 0 {
        "libx265"
    } else {
        "libx264"
    };
    let (container, flags) = one_of(
        rng,
        &[
            ("ts", ""),
            ("mp4", ""),
            ("mp4", "+faststart"),
            ("mp4", "frag_keyframe+empty_moov"),
        ],
    );
    let path = dir.join(format!("random-{:08x}.{container}", rng.u32(..)));
    let mut ffmpeg = tool("ffmpeg");
    ffmpeg.args([
        "-hide_banner",
        "-loglevel",
        "error",
        "-f",
        "lavfi",
        "-i",
        &source,
    ]);
    let sound = rng.u32(..3) > 0;
    if sound {
        let rate = one_of(rng, &[16_000, 44_100, 48_000]);
        let tone = format!("sine=frequency=440:sample_rate={rate}:duration={seconds}");
        ffmpeg.args(["-f", "lavfi", "-i", &tone]);
    }
    ffmpeg
        .args(["-vf", &noise, "-pix_fmt", "yuv420p", "-c:v", video])
        .args(["-preset", "ultrafast", "-crf", &rng.u32(20..40).to_string()])
        .args(["-g", &rng.u32(5..200).to_string()])
        .args(["-bf", &rng.u32(0..=3).to_string()]);
    if video == "libx265" {
        ffmpeg.args(["-x265-params", "log-level=error:pools=1"]);
    }
    if sound {
        ffmpeg.args(["-c:a", "aac", "-ac", &rng.u32(1..=2).to_string()]);
    }
    if !flags.is_empty() {
        ffmpeg.args(["-movflags", flags]);
    }
    let out = ffmpeg.arg(&path).output().context("ffmpeg")?;
    ensure!(
        out.status.success(),
        "{ffmpeg:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(path)
}
