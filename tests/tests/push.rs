//! `edge-node push` of whole files: what the hub serves is what the file held.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use system_tests::{
    Edge, Hub, audio_packets, decode_errors, fixture, frames, get, get_with, gstreamer_pictures,
    playlist,
};

const PUSH_LIMIT: Duration = Duration::from_secs(60);

struct Site {
    _dir: tempfile::TempDir,
    hub: Hub,
    edge: Edge,
}

fn site() -> Result<Site> {
    let dir = tempfile::tempdir()?;
    let hub = Hub::start(&dir.path().join("hub"))?;
    let edge = Edge::enrol(&dir.path().join("edge"), &hub, "pole-7")?;
    Ok(Site {
        _dir: dir,
        hub,
        edge,
    })
}

/// Pushes and expects exit code 0.
fn push(site: &Site, stream: &str, file: &Path) -> Result<()> {
    let file = file.to_str().context("path")?;
    let status = site
        .edge
        .push(&["--stream", stream, file], Stdio::null())?
        .wait(PUSH_LIMIT)?;
    ensure!(status.success(), "push of {file}: {status}");
    Ok(())
}

/// Same pictures, same times up to one offset.
fn assert_same_pictures(source: &str, served: &str, what: &str) -> Result<()> {
    let (source, served) = (frames(source)?, frames(served)?);
    ensure!(!source.is_empty(), "{what}: the source has no pictures");
    ensure!(
        source.len() == served.len(),
        "{what}: {} pictures, source {}",
        served.len(),
        source.len()
    );
    let offset = served[0].pts_90k - source[0].pts_90k;
    for (i, (a, b)) in source.iter().zip(&served).enumerate() {
        ensure!(a.hash == b.hash, "{what}: picture {i} differs");
        let drift = b.pts_90k - a.pts_90k - offset;
        ensure!(drift.abs() <= 1, "{what}: picture {i} is {drift} ticks off");
    }
    Ok(())
}

fn roundtrip(names: &[(&str, bool, bool)]) -> Result<()> {
    let site = site()?;
    for &(name, video, audio) in names {
        let stream = name.replace('.', "-");
        let file = fixture(name);
        push(&site, &stream, &file)?;
        let source = file.to_str().context("path")?;
        for list in ["rec.m3u8", "live.m3u8"] {
            let url = site.hub.url(&format!("/s/{stream}/{list}"));
            ensure!(playlist(&url)?.end_list, "{name}: {list} is not end-listed");
        }
        let url = site.hub.url(&format!("/s/{stream}/rec.m3u8"));
        if video {
            assert_same_pictures(source, &url, name)?;
        }
        if audio {
            let (source, served) = (audio_packets(source)?, audio_packets(&url)?);
            // Sound before the first picture can't be shown and may be left out, nothing else.
            let missing = source.len().saturating_sub(served.len());
            ensure!(
                missing <= 8,
                "{name}: {} of {} audio frames",
                served.len(),
                source.len()
            );
            let at = source.windows(served.len()).position(|w| w == served);
            ensure!(
                at.is_some(),
                "{name}: the sound differs ({} of {} frames)",
                served.len(),
                source.len()
            );
        }
        let errors = decode_errors(&url)?;
        ensure!(
            errors.trim().is_empty(),
            "{name}: ffmpeg complains: {errors}"
        );
        // The same segments, hash for hash, at both ends.
        let here = site.edge.segments(&stream)?;
        ensure!(!here.is_empty(), "{name}: nothing on the edge");
        for (number, hash) in here {
            let got = get(&site.hub.url(&format!("/s/{stream}/{number}.ts")))?;
            ensure!(
                blake3::hash(&got.body).to_string() == hash,
                "{name}: segment {number} differs"
            );
            ensure!(
                got.header("etag").is_some_and(|e| e.contains(&hash)),
                "{name}: etag is not the hash"
            );
        }
    }
    Ok(())
}

#[test]
fn mp4_files_arrive_whole() -> Result<()> {
    roundtrip(&[
        ("h264-25.mp4", true, true),
        ("h264-2997-bframes.mp4", true, true),
        ("aac51.mp4", true, true),
        ("video-only.mp4", true, false),
        ("audio-only.m4a", false, true),
        ("long-gop.mp4", true, true),
    ])
}

#[test]
fn ts_files_arrive_whole() -> Result<()> {
    roundtrip(&[
        ("h264-bframes.ts", true, true),
        ("h264-2997.ts", true, true),
        ("audio-only.ts", false, true),
        ("open-gop.ts", true, true),
        ("wrap.ts", true, true),
    ])
}

#[test]
fn h265_and_real_footage_arrive_whole() -> Result<()> {
    roundtrip(&[
        ("h265.mp4", true, true),
        ("h265.ts", true, true),
        ("footage.mp4", true, true),
    ])
}

#[test]
fn a_change_of_picture_size_starts_a_new_run() -> Result<()> {
    let site = site()?;
    let file = fixture("change.ts");
    push(&site, "change", &file)?;
    let list = playlist(&site.hub.url("/s/change/rec.m3u8"))?;
    assert_eq!(
        list.segments
            .iter()
            .skip(1)
            .filter(|s| s.discontinuity)
            .count(),
        1,
        "one discontinuity"
    );
    // Either run decodes alone.
    let pictures = [fixture("small.ts"), fixture("h264-bframes.ts")]
        .iter()
        .map(|f| Ok(frames(f.to_str().context("path")?)?.len()))
        .sum::<Result<usize>>()?;
    let url = site.hub.url("/s/change/rec.m3u8");
    let served = frames_any_size(&url)?;
    assert_eq!(served, pictures);
    Ok(())
}

/// Counts decoded pictures where their size changes, which framemd5 would rescale.
fn frames_any_size(url: &str) -> Result<usize> {
    let out = system_tests::tool("ffprobe")
        .args(["-v", "error", "-count_frames", "-select_streams", "v:0"])
        .args([
            "-show_entries",
            "stream=nb_read_frames",
            "-of",
            "csv=p=0",
            url,
        ])
        .output()?;
    let text = String::from_utf8(out.stdout)?;
    text.lines()
        .find_map(|l| l.trim().trim_end_matches(',').parse().ok())
        .context(text)
}

#[test]
fn several_files_follow_one_another() -> Result<()> {
    let site = site()?;
    let (a, b) = (fixture("h264-25.mp4"), fixture("video-only.mp4"));
    let args = [
        "--stream",
        "two",
        a.to_str().context("a")?,
        b.to_str().context("b")?,
    ];
    let status = site.edge.push(&args, Stdio::null())?.wait(PUSH_LIMIT)?;
    ensure!(status.success(), "{status}");
    let list = playlist(&site.hub.url("/s/two/rec.m3u8"))?;
    assert!(list.end_list);
    assert_eq!(
        list.segments
            .iter()
            .skip(1)
            .filter(|s| s.discontinuity)
            .count(),
        1
    );
    let seconds: f32 = list.segments.iter().map(|s| s.duration).sum();
    assert!((seconds - 30.0).abs() < 0.2, "{seconds} s of 30");
    Ok(())
}

#[test]
fn a_push_behind_an_ended_one_is_cut_to_its_own_key_frames() -> Result<()> {
    let site = site()?;
    push(&site, "gate", &fixture("h264-25.mp4"))?;
    let first = playlist(&site.hub.url("/s/gate/live.m3u8"))?;
    // Its key frames are twelve seconds apart: cut by force at six, not at the first list's two.
    push(&site, "gate", &fixture("long-gop.mp4"))?;
    let second = playlist(&site.hub.url("/s/gate/live.m3u8"))?;
    assert_eq!((first.target_duration, second.target_duration), (2, 6));
    assert!(second.media_sequence >= first.media_sequence + first.segments.len() as u64);
    assert_eq!(second.segments.len(), 4);
    // By default a recording is the newest stretch; both can be asked for.
    assert_eq!(
        playlist(&site.hub.url("/s/gate/rec.m3u8"))?.segments.len(),
        4
    );
    let all = playlist(&site.hub.url("/s/gate/rec.m3u8?from=0"))?;
    assert_eq!(all.segments.len(), first.segments.len() + 4);
    Ok(())
}

#[test]
fn a_box_that_lost_everything_uses_no_number_twice() -> Result<()> {
    let site = site()?;
    push(&site, "gate", &fixture("h264-25.mp4"))?;
    let before = playlist(&site.hub.url("/s/gate/live.m3u8"))?.segments.len();
    let anew = Edge::enrol(&site._dir.path().join("anew"), &site.hub, "pole-7")?;
    let clip = fixture("small.ts");
    let args = ["--stream", "gate", clip.to_str().context("path")?];
    let status = anew.push(&args, Stdio::null())?.wait(PUSH_LIMIT)?;
    ensure!(status.success(), "{status}");
    let here = anew.segments("gate")?;
    ensure!(
        here.iter().all(|(number, _)| *number >= before as u64),
        "{here:?}"
    );
    for (number, hash) in here {
        let got = get(&site.hub.url(&format!("/s/gate/{number}.ts")))?;
        ensure!(
            blake3::hash(&got.body).to_string() == hash,
            "segment {number} differs"
        );
    }
    Ok(())
}

#[test]
fn playlists_keep_the_rules_and_segments_stand_alone() -> Result<()> {
    let site = site()?;
    push(&site, "gate", &fixture("h264-2997-bframes.mp4"))?;
    let answer = get(&site.hub.url("/s/gate/live.m3u8"))?;
    assert_eq!(
        answer.header("content-type"),
        Some("application/vnd.apple.mpegurl")
    );
    let list = playlist(&site.hub.url("/s/gate/live.m3u8"))?;
    let longest = list
        .segments
        .iter()
        .map(|s| s.duration.round() as u64)
        .max()
        .context("no segment")?;
    assert!(
        longest <= list.target_duration,
        "{longest} over {}",
        list.target_duration
    );
    for segment in &list.segments {
        assert!(
            !segment.uri.contains('/'),
            "{}: URIs are relative",
            segment.uri
        );
        let url = site.hub.url(&format!("/s/gate/{}", segment.uri));
        // Alone: PAT and PMT first, decodable without its predecessor.
        let bytes = get(&url)?.body;
        assert_eq!(bytes.len() % 188, 0);
        assert_eq!(
            &bytes[..3],
            [0x47, 0x40, 0x00],
            "the first packet is the PAT"
        );
        let errors = decode_errors(&url)?;
        assert!(errors.trim().is_empty(), "{}: {errors}", segment.uri);
        let part = get_with(&url, &[("range", "bytes=188-375")])?;
        assert_eq!((part.status, part.body.as_slice()), (206, &bytes[188..376]));
    }
    let gz = get_with(
        &site.hub.url("/s/gate/live.m3u8"),
        &[("accept-encoding", "gzip")],
    )?;
    assert_eq!(gz.header("content-encoding"), Some("gzip"));
    let none = get(&site.hub.url("/s/nothing/live.m3u8"))?;
    assert_eq!(none.status, 404);
    let reason: serde_json::Value = serde_json::from_slice(&none.body)?;
    assert!(
        reason["reason"]
            .as_str()
            .is_some_and(|r| r.contains("nothing")),
        "{reason}"
    );
    Ok(())
}

#[test]
fn gstreamer_plays_a_recording() -> Result<()> {
    let site = site()?;
    push(&site, "gst", &fixture("h264-25.mp4"))?;
    let shown = gstreamer_pictures(&site.hub.url("/s/gst/rec.m3u8"), 1_000)?;
    assert!(shown >= 490, "{shown} of 500 pictures");
    Ok(())
}
