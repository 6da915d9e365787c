//! Real players and what they saw: decoded pictures, their times, the errors they printed.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

/// A clip that `scripts/make-fixtures` made.
pub fn fixture(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let cache =
        std::env::var_os("PENSTOCK_CACHE").map_or_else(|| root.join(".cache"), PathBuf::from);
    let path = cache.join("fixtures").join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/make-fixtures",
        path.display()
    );
    path
}

/// A command that must be installed; scripts/test installs it.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.stdin(std::process::Stdio::null());
    command
}

/// One decoded picture: when it is shown, in 90 kHz ticks, and the hash of its pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub pts_90k: i64,
    pub hash: String,
}

/// Decodes all pictures of a file or playlist URL with ffmpeg.
pub fn frames(input: &str) -> Result<Vec<Frame>> {
    let out = run(tool("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-copyts", "-i", input])
        .args([
            "-map",
            "0:v:0",
            "-fps_mode",
            "passthrough",
            "-enc_time_base",
            "1:90000",
            "-f",
            "framemd5",
            "-",
        ]))?;
    out.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.split(',').map(str::trim);
            let pts = fields.nth(2).context("no pts")?.parse()?;
            let hash = fields.nth(2).context("no hash")?.to_owned();
            Ok(Frame { pts_90k: pts, hash })
        })
        .collect()
}

/// Raw AAC packets in order, by hash, without their containers' framing.
pub fn audio_packets(input: &str) -> Result<Vec<String>> {
    let out = run(tool("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-i", input])
        .args([
            "-map",
            "0:a:0",
            "-c",
            "copy",
            "-bsf:a",
            "aac_adtstoasc",
            "-f",
            "framemd5",
            "-",
        ]))?;
    Ok(out
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(',').nth(5).map(|hash| hash.trim().to_owned()))
        .collect())
}

/// What ffmpeg complains about when it decodes everything; empty is good.
pub fn decode_errors(input: &str) -> Result<String> {
    let out = tool("ffmpeg")
        .args([
            "-hide_banner",
            "-nostats",
            "-loglevel",
            "warning",
            "-i",
            input,
            "-f",
            "null",
            "-",
        ])
        .output()
        .context("ffmpeg")?;
    Ok(String::from_utf8_lossy(&out.stderr).into_owned())
}

/// How many pictures GStreamer decodes of an HLS URL, at most `limit`.
pub fn gstreamer_pictures(url: &str, limit: u32) -> Result<usize> {
    let out = tool("gst-launch-1.0")
        .args(["-v", "souphttpsrc", &format!("location={url}")])
        .args("! hlsdemux ! tsdemux ! h264parse ! avdec_h264 !".split(' '))
        .args([
            "fakesink",
            "sync=false",
            "silent=false",
            &format!("num-buffers={limit}"),
        ])
        .output()
        .context("gst-launch-1.0")?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(
        out.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(text.matches("last-message = chain").count())
}

fn run(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let errors = String::from_utf8_lossy(&out.stderr);
    ensure!(errors.trim().is_empty(), "{command:?} complains: {errors}");
    Ok(String::from_utf8(out.stdout)?)
}
