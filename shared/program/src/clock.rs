//! The wall clock, read in one place; everything below takes the time as an argument (invariant 8).

use std::time::{SystemTime, UNIX_EPOCH};

use model::WallTime;

/// Now, by this machine's clock. A clock before 1970 reads as 1970.
pub fn wall_now() -> WallTime {
    wall_time(SystemTime::now())
}

/// A file's time, or any other of this machine's clock.
pub fn wall_time(at: SystemTime) -> WallTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn milliseconds_since_1970() {
        assert_eq!(
            wall_time(UNIX_EPOCH + Duration::from_micros(1_500)),
            WallTime(1)
        );
        assert_eq!(wall_time(UNIX_EPOCH - Duration::from_secs(9)), WallTime(0));
        assert!(wall_now() > WallTime(1_700_000_000_000));
    }
}
