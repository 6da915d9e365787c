//! The classes by which the link is shared, and bytes counted by them. Which goes before which is `schedule`'s
//! business.

/// What a byte is for; in the order in which classes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Messages about streams and segments.
    Control,
    /// Segments that an event marks.
    Event,
    /// What a source that can't wait records, while it is younger than the deadline.
    Live,
    /// What a viewer waits for.
    Want,
    /// All the rest.
    Backfill,
}

impl Class {
    pub const ALL: [Self; 5] = [
        Self::Control,
        Self::Event,
        Self::Live,
        Self::Want,
        Self::Backfill,
    ];

    /// The word on pages, in metrics and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Event => "event",
            Self::Live => "live",
            Self::Want => "want",
            Self::Backfill => "backfill",
        }
    }
}

/// A count for each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByClass {
    control: u64,
    event: u64,
    live: u64,
    want: u64,
    backfill: u64,
}

impl ByClass {
    pub fn get(&self, class: Class) -> u64 {
        match class {
            Class::Control => self.control,
            Class::Event => self.event,
            Class::Live => self.live,
            Class::Want => self.want,
            Class::Backfill => self.backfill,
        }
    }

    pub fn add(&mut self, class: Class, count: u64) {
        let held = self.of(class);
        *held = held.saturating_add(count);
    }

    /// What came on top of an earlier count.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = Self::default();
        for (class, count) in self.iter() {
            since.add(class, count.saturating_sub(earlier.get(class)));
        }
        since
    }

    /// Counts that never go back: of each class the higher one.
    pub fn raise(&mut self, to: &Self) {
        for (class, count) in to.iter() {
            let held = self.of(class);
            *held = count.max(*held);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Class, u64)> + use<> {
        let all = *self;
        Class::ALL
            .into_iter()
            .map(move |class| (class, all.get(class)))
    }

    pub fn total(&self) -> u64 {
        self.iter()
            .fold(0, |sum, (_, count)| sum.saturating_add(count))
    }

    /// All but control: bytes of segments.
    pub fn media(&self) -> u64 {
        self.total().saturating_sub(self.control)
    }

    fn of(&mut self, class: Class) -> &mut u64 {
        match class {
            Class::Control => &mut self.control,
            Class::Event => &mut self.event,
            Class::Live => &mut self.live,
            Class::Want => &mut self.want,
            Class::Backfill => &mut self.backfill,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_is_counted_for_itself() {
        let mut counts = ByClass::default();
        for (n, class) in (1..).zip(Class::ALL) {
            counts.add(class, n);
        }
        let told: Vec<_> = counts.iter().map(|(class, n)| (class.name(), n)).collect();
        assert_eq!(
            told,
            [
                ("control", 1),
                ("event", 2),
                ("live", 3),
                ("want", 4),
                ("backfill", 5)
            ]
        );
        assert_eq!((counts.total(), counts.media()), (15, 14));
        let before = counts;
        counts.add(Class::Live, u64::MAX);
        assert_eq!(counts.total(), u64::MAX, "no overflow");
        assert_eq!(counts.since(&before).get(Class::Live), u64::MAX - 3);
        assert_eq!(before.since(&counts), ByClass::default());
        let mut raised = before;
        raised.raise(&ByClass::default());
        assert_eq!(raised, before);
        raised.raise(&counts);
        assert_eq!(raised, counts);
    }
}
