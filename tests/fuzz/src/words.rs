//! Small texts and values from outside: names, times, the enrolment line, config files, sets of numbers.

use std::{collections::BTreeSet, path::Path};

use arbitrary::{Arbitrary, Unstructured};
use link::EnrolUrl;
use model::{DeviceName, RangeSet, SegmentNumber, StreamName, WallTime};

/// What reads, writes and reads again is the same.
pub(crate) fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(name) = text.parse::<StreamName>() {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains("..") && !text.contains('/') && text.len() <= model::MAX_NAME_BYTES);
        assert!(text.parse::<DeviceName>().is_ok());
    }
    if let Ok(time) = text.parse::<WallTime>() {
        let again: WallTime = time.to_string().parse().expect("a time of our own");
        assert_eq!(again, time, "{text:?}");
        assert!((0..=WallTime::LATEST.0).contains(&time.in_calendar().0));
    }
    if let Ok(url) = text.parse::<EnrolUrl>() {
        let again: EnrolUrl = url.to_string().parse().expect("a line of our own");
        assert_eq!(again, url);
        assert!(!url.token.is_empty() && url.token.len() <= 64);
    }
    if let Ok(number) = text.parse::<SegmentNumber>() {
        assert_eq!(number.to_string().parse(), Ok(number));
    }
}

/// A config file that is no TOML, or of another shape, is refused with a place in it.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let path = Path::new("test.toml");
    let lines = text.matches('\n').count() + 1;
    let errors = [
        program::config::parse::<toml::Table>(path, text).err(),
        program::config::parse::<std::collections::BTreeMap<String, u32>>(path, text).err(),
    ];
    for error in errors.into_iter().flatten() {
        let said = error.to_string();
        assert!(said.starts_with("config test.toml"), "{said}");
        let line = said.split_once(", line ").map(|(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<usize>().unwrap_or(0)
        });
        assert!(line.is_none_or(|line| line >= 1 && line <= lines), "{said}");
    }
}

#[derive(Debug, Arbitrary)]
struct Change {
    add: bool,
    /// Far ends of the number line too.
    high: bool,
    first: u8,
    length: u8,
}

/// A set of ranges is a set of numbers.
pub(crate) fn range_set(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let (mut set, mut naive) = (RangeSet::new(), BTreeSet::<u64>::new());
    while !u.is_empty() {
        let Ok(Change {
            add,
            high,
            first,
            length,
        }) = u.arbitrary()
        else {
            break;
        };
        let base = if high { u64::MAX - 255 } else { 0 };
        let first = base + u64::from(first);
        let last = first.saturating_add(u64::from(length) % 70);
        let range = SegmentNumber(first)..=SegmentNumber(last);
        for number in first..=last {
            if add {
                naive.insert(number);
            } else {
                naive.remove(&number);
            }
        }
        if add {
            set.insert_range(range);
        } else {
            set.remove_range(range);
        }
        assert_eq!(set.count(), naive.len() as u64);
        assert_eq!(set.is_empty(), naive.is_empty());
    }
    let listed: Vec<u64> = set.iter().flat_map(|r| r.start().0..=r.end().0).collect();
    assert!(listed.iter().eq(naive.iter()));
    let ranges: Vec<_> = set.iter().collect();
    assert_eq!(ranges.len(), set.range_count());
    assert!(
        ranges.windows(2).all(|w| w[0].end().0 + 1 < w[1].start().0),
        "adjacent"
    );
    assert_eq!(RangeSet::from_iter(ranges), set);
    for number in (0..256).chain(u64::MAX - 255..=u64::MAX) {
        assert_eq!(set.contains(SegmentNumber(number)), naive.contains(&number));
    }
    let missing = (0..=600)
        .find(|number| !naive.contains(number))
        .map(SegmentNumber);
    assert_eq!(set.first_missing_from(SegmentNumber(0)), missing);
}
