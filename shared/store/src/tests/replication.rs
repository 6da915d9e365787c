//! What replication asks and tells.

use model::{HoleReason, RangeSet};

use super::*;
use crate::{Announced, Backlog, StoreError};

fn ranges(set: &RangeSet) -> Vec<(u64, u64)> {
    set.iter().map(|r| (r.start().0, r.end().0)).collect()
}

#[test]
fn settled_is_what_is_here_or_never_will_be() {
    let site = Site::hub();
    let announced = [1, 2, 3, 4, 5, 6].map(|number| Announced {
        info: info_of(number, 1),
    });
    site.store().announce(&gate(), &announced).unwrap();
    for number in [1, 2, 5] {
        put(site.store(), number, 1);
    }
    assert_eq!(
        ranges(&site.store().settled(&gate()).unwrap()),
        [(1, 2), (5, 5)]
    );
    site.store()
        .settle(&gate(), n(2)..=n(4), HoleReason::Evicted)
        .unwrap();
    assert_eq!(ranges(&site.store().settled(&gate()).unwrap()), [(1, 5)]);
    assert!(
        site.store().segment(&gate(), n(2)).unwrap().is_some(),
        "what is here stays"
    );
    // A buried number is not taken back, and that is said.
    let found = site
        .store()
        .announce(
            &gate(),
            &[Announced {
                info: info_of(3, 1),
            }],
        )
        .unwrap();
    assert_eq!(found.holes, [(n(3), HoleReason::Evicted)]);
    assert!(matches!(
        site.store().open_segment(&gate(), open(3, 1)),
        Err(StoreError::NumberUsed { .. })
    ));
    assert_eq!(site.store().floor(&gate()).unwrap(), n(7));
}

#[test]
fn a_backlog_is_what_was_announced_and_is_not_here() {
    let site = Site::hub();
    let store = site.store();
    assert_eq!(store.backlog(&gate()).unwrap(), Backlog::default());
    let announced = [2, 3, 4, 5].map(|number| Announced {
        info: info_of(number, 1),
    });
    store.announce(&gate(), &announced).unwrap();
    let of = |numbers: &[u64]| Backlog {
        segments: numbers.len() as u64,
        bytes: numbers.iter().map(|&n| info_of(n, 1).bytes).sum(),
        oldest: numbers.first().map(|&n| info_of(n, 1).wall_start),
    };
    assert_eq!(store.backlog(&gate()).unwrap(), of(&[2, 3, 4, 5]));
    put(store, 2, 1);
    // What is being written is missing still; what nobody announced is not.
    let writing = store.open_segment(&gate(), open(3, 1)).unwrap();
    let live = store.open_segment(&gate(), open(9, 1)).unwrap();
    assert_eq!(store.backlog(&gate()).unwrap(), of(&[3, 4, 5]));
    drop((writing, live));
    store
        .settle(&gate(), n(4)..=n(4), HoleReason::Evicted)
        .unwrap();
    assert_eq!(store.backlog(&gate()).unwrap(), of(&[3, 5]));
    let both = of(&[5]).and(of(&[3])).and(Backlog::default());
    assert_eq!(both, of(&[3, 5]));
}

#[test]
fn a_new_hole_takes_nothing_of_an_older_one() {
    let site = Site::hub();
    let (evicted, corrupt) = (HoleReason::Evicted, HoleReason::Corrupt);
    let settle = |range, reason| site.store().settle(&gate(), range, reason).unwrap();
    settle(n(5)..=n(9), evicted);
    site.store()
        .change_live(&gate(), |c, row| {
            let bury = |range| crate::catalog::holes::bury(c, row.id, &range, corrupt);
            bury(n(4)..=n(6))?;
            Ok(bury(n(12)..=n(13))?)
        })
        .unwrap();
    let holes = [
        (n(4)..=n(6), corrupt),
        (n(7)..=n(9), evicted),
        (n(12)..=n(13), corrupt),
    ];
    assert_eq!(site.store().holes(&gate()).unwrap(), holes);
}

#[test]
fn the_hub_is_compared_with_not_remembered() {
    let site = Site::edge();
    for number in 1..=4 {
        put(site.store(), number, 1);
    }
    let unshipped = |site: &Site| -> Vec<u64> {
        let all = site.store().unshipped(&gate(), n(0), 100).unwrap();
        all.iter().map(|info| info.number.0).collect()
    };
    assert_eq!(unshipped(&site), [1, 2, 3, 4]);
    for number in [1, 2, 4] {
        site.store().mark_stored(&gate(), n(number)).unwrap();
    }
    site.store()
        .set_settled(&gate(), &[n(1)..=n(2), n(4)..=n(4)].into_iter().collect())
        .unwrap();
    assert_eq!(unshipped(&site), [3]);
    let summary = site.store().stream(&gate()).unwrap().unwrap();
    assert_eq!((summary.unshipped, summary.unshipped_bytes), (1, 564));
    // That its number is settled there stores nothing.
    site.store()
        .set_settled(&gate(), &[n(1)..=n(4)].into_iter().collect())
        .unwrap();
    assert_eq!(unshipped(&site), [3]);
    // What the hub gave up is not shipped again, and not counted as stored.
    let reason = HoleReason::Corrupt;
    site.store().give_up(&gate(), n(3), reason).unwrap();
    assert_eq!(unshipped(&site), [0u64; 0]);
    assert_eq!(site.store().given_up(&gate()).unwrap(), [(reason, 1)]);
    // The hub lost everything: all of it is due again.
    site.store().set_settled(&gate(), &RangeSet::new()).unwrap();
    assert_eq!(unshipped(&site), [1, 2, 3, 4]);
}

#[test]
fn parts_can_be_read_before_their_segment_is_closed() {
    let site = Site::edge();
    let mut changes = site.store().changes();
    let mut writer = site.store().open_segment(&gate(), open(1, 1)).unwrap();
    writer.append(b"one").unwrap();
    assert_eq!(site.store().open_view(&gate()).unwrap().unwrap().bytes, 0);
    changes.mark_unchanged();
    writer.finish_part(MediaDuration(30_000), true).unwrap();
    assert!(changes.has_changed().unwrap());
    writer.append(b"two").unwrap();
    writer.finish_part(MediaDuration(30_000), false).unwrap();
    let view = site.store().open_view(&gate()).unwrap().unwrap();
    assert_eq!(view.bytes, 6);
    assert_eq!((view.parts[1].offset, view.parts[1].bytes), (3, 3));
    assert_eq!(
        &site.store().read(&gate(), n(1), 1..5).unwrap()[..],
        b"netw"
    );
    let info = writer.close(MediaDuration(60_000), None).unwrap();
    assert_eq!(info.hash, SegmentHash::of(b"onetwo"));
    assert!(site.store().open_view(&gate()).unwrap().is_none());
    assert_eq!(
        &site.store().read(&gate(), n(1), 0..100).unwrap()[..],
        b"onetwo"
    );
}

#[test]
fn a_partial_is_resumed_where_it_stopped() {
    let mut site = Site::hub();
    let bytes = bytes_of(1);
    let mut writer = site.store().open_segment(&gate(), open(1, 1)).unwrap();
    writer.append(&bytes[..200]).unwrap();
    drop(writer);
    let report = site.restart();
    assert_eq!(report.partials_kept, 1);
    let partials = site.store().partials(&gate()).unwrap();
    assert_eq!(
        partials,
        [(open(1, 1), 200, SegmentHash::of(&bytes[..200]))]
    );
    let mut writer = site.store().resume_segment(&gate(), n(1)).unwrap().unwrap();
    assert_eq!(writer.bytes(), 200);
    writer.append(&bytes[200..]).unwrap();
    let expected = (564, SegmentHash::of(&bytes));
    let info = writer
        .close(MediaDuration(180_000), Some(expected))
        .unwrap();
    assert_eq!(info, info_of(1, 1));
    assert!(
        site.store()
            .resume_segment(&gate(), n(1))
            .unwrap()
            .is_none()
    );
}

#[test]
fn bytes_that_fail_their_hash_twice_become_a_hole() {
    let site = Site::hub();
    site.store()
        .announce(
            &gate(),
            &[Announced {
                info: info_of(1, 1),
            }],
        )
        .unwrap();
    for (failed, hole) in [(1, false), (2, true)] {
        let mut writer = site.store().open_segment(&gate(), open(1, 1)).unwrap();
        writer.append(b"something else").unwrap();
        let info = info_of(1, 1);
        let error = writer
            .close(info.duration, Some((info.bytes, info.hash)))
            .unwrap_err();
        assert!(error.to_string().contains("fail"), "{error}");
        assert_eq!(site.store().partials(&gate()).unwrap(), []);
        let settled = site.store().settled(&gate()).unwrap().contains(n(1));
        assert_eq!(settled, hole, "after {failed} failures");
    }
    assert_eq!(
        site.store().holes(&gate()).unwrap(),
        [(n(1)..=n(1), HoleReason::Corrupt)]
    );
}

#[test]
fn a_number_is_used_once() {
    let mut site = Site::edge();
    put(site.store(), 5, 1);
    let writer = site.store().open_segment(&gate(), open(6, 1)).unwrap();
    drop(writer);
    for number in [5, 6] {
        assert!(matches!(
            site.store().open_segment(&gate(), open(number, 1)),
            Err(StoreError::NumberUsed { .. })
        ));
    }
    site.restart();
    assert_eq!(site.store().floor(&gate()).unwrap(), n(7));
}

#[test]
fn an_end_is_told_until_the_hub_confirms_it() {
    let site = Site::edge();
    put(site.store(), 1, 1);
    assert!(!site.store().ended_on_hub(&gate()).unwrap());
    site.store().end_stream(&gate(), Some(n(1))).unwrap();
    assert!(!site.store().ended_on_hub(&gate()).unwrap());
    site.store().mark_ended_on_hub(&gate()).unwrap();
    assert!(site.store().ended_on_hub(&gate()).unwrap());
    put(site.store(), 2, 1);
    assert!(!site.store().ended_on_hub(&gate()).unwrap());
}
