//! The committed corpora, input by input: what fuzzing found worth keeping, and every finding.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use fuzz_targets::TARGETS;

/// All corpora together stay below this, so that a clone stays small.
const MAX_CORPORA_BYTES: u64 = 2 << 20;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/corpora")
}

fn inputs(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_input_of_every_corpus_passes() {
    for target in TARGETS {
        let paths = inputs(&corpora().join(target.name));
        assert!(!paths.is_empty(), "{} has no corpus", target.name);
        for path in paths {
            let input = fs::read(&path).unwrap();
            let passed = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(
                passed.is_ok(),
                "finding in {}: {}",
                target.name,
                path.display()
            );
        }
    }
}

#[test]
fn seeds_and_clips_pass() {
    let mut failed = Vec::new();
    for target in TARGETS {
        for seed in fuzz_targets::seeds(target.name)
            .into_iter()
            .chain([Vec::new()])
        {
            if std::panic::catch_unwind(|| (target.run)(&seed)).is_err() {
                failed.push(target.name);
            }
        }
    }
    assert_eq!(failed, [""; 0]);
    let media = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/media");
    let run = |name: &str, input: &[u8]| (fuzz_targets::find(name).unwrap().run)(input);
    for path in inputs(&media) {
        let input = fs::read(&path).unwrap();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("ts") => ["demux_ts", "sniff", "recover"]
                .iter()
                .for_each(|name| run(name, &input)),
            Some("mp4") => ["mp4", "sniff"].iter().for_each(|name| run(name, &input)),
            other => panic!("{other:?}: what reads it?"),
        }
    }
}

#[test]
fn corpora_are_small_and_belong_to_a_target() {
    let mut bytes = 0;
    for folder in inputs(&corpora()) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(fuzz_targets::find(name).is_some(), "no target {name}");
        bytes += inputs(&folder)
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum::<u64>();
    }
    assert!(bytes < MAX_CORPORA_BYTES, "{bytes} bytes of corpora");
}
