//! Random operations, restarts among them, against the rules.

use std::collections::BTreeSet;

use model::HoleReason;
use proptest::prelude::*;

use super::*;
use crate::Announced;

#[derive(Debug, Clone)]
enum Op {
    Announce(u64),
    Put(u64),
    LeaveOpen(u64),
    Settle(u64),
    End,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1..4u64).prop_map(Op::Announce),
        6 => (0..4u64).prop_map(Op::Put),
        1 => (0..4u64).prop_map(Op::LeaveOpen),
        1 => (0..4u64).prop_map(Op::Settle),
        1 => Just(Op::End),
        1 => Just(Op::Restart),
    ]
}

/// A live playlist, read as a player does.
struct Read {
    first: u64,
    discontinuities: u64,
    /// URIs by sequence number.
    entries: Vec<(u64, String)>,
}

fn read_list(site: &Site) -> Option<Read> {
    let playlist = site.store().live_playlist(&gate()).unwrap()?;
    let text = String::from_utf8(playlist.text.to_vec()).unwrap();
    let number = |tag: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(tag));
        line.map_or(0, |value| value.parse().unwrap())
    };
    let first = number("#EXT-X-MEDIA-SEQUENCE:");
    let uris = text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .map(str::to_owned);
    Some(Read {
        first,
        discontinuities: number("#EXT-X-DISCONTINUITY-SEQUENCE:"),
        entries: (first..).zip(uris).collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_whatever_happens(ops in prop::collection::vec(op(), 1..40)) {
        let mut site = Site::hub();
        let mut announced = 0u64;
        let (mut here, mut buried) = (BTreeSet::new(), BTreeSet::new());
        let mut known = std::collections::HashMap::new();
        let mut last = (0, 0);
        for op in ops {
            // The k-th lowest number that is announced and not settled.
            let pick = |k: u64| (1..=announced)
                .filter(|number| !here.contains(number) && !buried.contains(number))
                .nth(k as usize);
            match op {
                Op::Announce(count) => {
                    let new: Vec<_> = (announced + 1..=announced + count)
                        .map(|number| Announced { info: info_of(number, 1) })
                        .collect();
                    site.store().announce(&gate(), &new).unwrap();
                    announced += count;
                }
                Op::Put(k) => if let Some(number) = pick(k) {
                    let mut writer = match site.store().resume_segment(&gate(), n(number)).unwrap() {
                        Some(writer) => writer,
                        None => site.store().open_segment(&gate(), open(number, 1)).unwrap(),
                    };
                    let bytes = bytes_of(number);
                    writer.append(&bytes[writer.bytes() as usize..]).unwrap();
                    let info = info_of(number, 1);
                    writer.close(info.duration, Some((info.bytes, info.hash))).unwrap();
                    here.insert(number);
                },
                Op::LeaveOpen(k) => if let Some(number) = pick(k)
                    && site.store().resume_segment(&gate(), n(number)).unwrap().is_none()
                {
                    let mut writer = site.store().open_segment(&gate(), open(number, 1)).unwrap();
                    writer.append(&bytes_of(number)[..100]).unwrap();
                },
                Op::Settle(k) => if let Some(number) = pick(k) {
                    site.store().settle(&gate(), n(number)..=n(number), HoleReason::Evicted).unwrap();
                    buried.insert(number);
                },
                Op::End => site.store().end_stream(&gate(), (announced > 0).then_some(n(announced))).unwrap(),
                Op::Restart => { site.restart(); }
            }
            let settled: BTreeSet<u64> = here.union(&buried).copied().collect();
            let told: BTreeSet<u64> = site.store().settled(&gate()).unwrap()
                .iter().flat_map(|r| r.start().0..=r.end().0).collect();
            prop_assert_eq!(&told, &settled);
            let Some(Read { first, discontinuities, entries }) = read_list(&site) else { continue };
            prop_assert!((first, discontinuities) >= last && discontinuities >= last.1);
            last = (first, discontinuities);
            let mut newest = 0;
            for (msn, uri) in entries {
                prop_assert_eq!(known.entry(msn).or_insert_with(|| uri.clone()), &uri, "sequence {}", msn);
                if let Some(number) = uri.strip_suffix(".ts").and_then(|u| u.parse::<u64>().ok()) {
                    prop_assert!(number > newest, "ascending");
                    newest = number;
                    let (info, file) = site.store().open_file(&gate(), n(number)).unwrap().expect("listed, so here");
                    prop_assert_eq!(file.metadata().unwrap().len(), info.bytes);
                }
            }
        }
    }
}
