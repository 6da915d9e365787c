//! A set of segment numbers kept as disjoint, inclusive ranges.
//!
//! Pure set arithmetic; what the numbers mean (settled, announced, kept) is the caller's business.

use std::{collections::BTreeMap, ops::RangeInclusive};

use crate::SegmentNumber;

/// Segment numbers as sorted, disjoint, non-adjacent inclusive ranges.
///
/// Its memory grows with the number of ranges, not of numbers: callers bound [`RangeSet::range_count`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet {
    /// first → last
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many disjoint ranges there are.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// How many numbers are in the set, saturating.
    pub fn count(&self) -> u64 {
        self.ranges.iter().fold(0u64, |sum, (first, last)| {
            sum.saturating_add((last - first).saturating_add(1))
        })
    }

    /// Adds one number.
    pub fn insert(&mut self, number: SegmentNumber) {
        self.insert_range(number..=number);
    }

    /// Adds a range, merging what it touches; an empty range adds nothing.
    pub fn insert_range(&mut self, range: RangeInclusive<SegmentNumber>) {
        let (mut first, mut last) = (range.start().0, range.end().0);
        if first > last {
            return;
        }
        if let Some((&f, &l)) = self.ranges.range(..=first).next_back()
            && l.saturating_add(1) >= first
        {
            first = f;
            last = last.max(l);
        }
        while let Some((&f, &l)) = self.ranges.range(first..).next() {
            if f > last.saturating_add(1) {
                break;
            }
            last = last.max(l);
            self.ranges.remove(&f);
        }
        self.ranges.insert(first, last);
    }

    /// Takes a range out; an empty range takes nothing.
    pub fn remove_range(&mut self, range: RangeInclusive<SegmentNumber>) {
        let (first, last) = (range.start().0, range.end().0);
        if first > last {
            return;
        }
        if let Some((&f, &l)) = self.ranges.range(..first).next_back()
            && l >= first
        {
            self.ranges.insert(f, first - 1);
            if l > last {
                self.ranges.insert(last + 1, l);
            }
        }
        while let Some((&f, &l)) = self.ranges.range(first..=last).next() {
            self.ranges.remove(&f);
            if l > last {
                self.ranges.insert(last + 1, l);
            }
        }
    }

    pub fn contains(&self, number: SegmentNumber) -> bool {
        self.ranges
            .range(..=number.0)
            .next_back()
            .is_some_and(|(_, &last)| last >= number.0)
    }

    /// The smallest number at or above `number` that is not in the set; None above the last number.
    pub fn first_missing_from(&self, number: SegmentNumber) -> Option<SegmentNumber> {
        match self.ranges.range(..=number.0).next_back() {
            Some((_, &last)) if last >= number.0 => last.checked_add(1).map(SegmentNumber),
            _ => Some(number),
        }
    }

    /// The highest number in the set.
    pub fn last(&self) -> Option<SegmentNumber> {
        self.ranges
            .last_key_value()
            .map(|(_, &last)| SegmentNumber(last))
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = RangeInclusive<SegmentNumber>> + '_ {
        self.ranges
            .iter()
            .map(|(&f, &l)| SegmentNumber(f)..=SegmentNumber(l))
    }
}

impl FromIterator<RangeInclusive<SegmentNumber>> for RangeSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<SegmentNumber>>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert_range(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(ops in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..40)) {
            let (mut set, mut model) = (RangeSet::new(), BTreeSet::new());
            for (add, first, len) in ops {
                let range = SegmentNumber(first)..=SegmentNumber(first + len);
                for n in first..=first + len {
                    if add { model.insert(n); } else { model.remove(&n); }
                }
                if add { set.insert_range(range) } else { set.remove_range(range) }
                let listed: Vec<u64> = set.iter().flat_map(|r| r.start().0..=r.end().0).collect();
                prop_assert_eq!(&listed, &model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.count(), model.len() as u64);
                // Disjoint and not adjacent.
                let ends: Vec<_> = set.iter().collect();
                prop_assert!(ends.windows(2).all(|w| w[0].end().0 + 1 < w[1].start().0));
                for n in 0..75 {
                    prop_assert_eq!(set.contains(SegmentNumber(n)), model.contains(&n));
                    let missing = (n..).find(|m| !model.contains(m)).map(SegmentNumber);
                    prop_assert_eq!(set.first_missing_from(SegmentNumber(n)), missing);
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_number_line() {
        let all = SegmentNumber(0)..=SegmentNumber(u64::MAX);
        let mut set = RangeSet::from_iter([all.clone()]);
        assert_eq!(set.first_missing_from(SegmentNumber(5)), None);
        set.remove_range(SegmentNumber(u64::MAX)..=SegmentNumber(u64::MAX));
        assert_eq!(
            set.first_missing_from(SegmentNumber(5)),
            Some(SegmentNumber(u64::MAX))
        );
        set.remove_range(all);
        assert!(set.is_empty());
    }
}
