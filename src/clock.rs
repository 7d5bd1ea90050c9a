//! Time: the moment at which something happened, and the date that people write beside it.
//!
//! A [`Moment`] lies on the machine's monotonic clock (`CLOCK_MONOTONIC`), on which V4L2 stamps frames and the kernel stamps
//! GPIO edges: moments of all sources compare, and no change of the date moves them. The date is for people and may jump.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

/// Nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Self::at(now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned())
    }

    /// From what the kernel writes: seconds and nanoseconds.
    #[must_use]
    pub fn at(seconds: u64, nanoseconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
    }

    /// From nanoseconds of the monotonic clock.
    #[must_use]
    pub fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds of the monotonic clock.
    #[must_use]
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; none if that lies later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl std::ops::Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A date of the machine's clock in UTC, to the millisecond. Displays as in RFC 3339: `2026-01-31T23:59:59.123Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(u64);

impl Date {
    /// Now, as far as the machine knows.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The date at which a moment of the past was, by what the machine's clock says now.
    #[must_use]
    pub fn of(moment: Moment) -> Self {
        let ago = Moment::now().since(moment);
        Self(Self::now().0.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)))
    }

    /// From milliseconds since 1970.
    #[must_use]
    pub fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0 / 86_400_000, self.0 % 86_400_000);
        let (year, month, day) = civil(days);
        let (hour, minute, second, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

/// A text is no date as [`Date`] displays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a date must look like 2026-01-31T23:59:59.123Z")]
pub struct NoDate;

impl std::str::FromStr for Date {
    type Err = NoDate;

    fn from_str(text: &str) -> Result<Self, NoDate> {
        let b = text.as_bytes();
        let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')];
        if b.len() != 24 || marks.iter().any(|(at, mark)| b[*at] != *mark) {
            return Err(NoDate);
        }
        let number = |from: usize, to: usize, max: u64| {
            let digits = b[from..to].iter().all(u8::is_ascii_digit);
            let number = b[from..to].iter().fold(0, |n, digit| 10 * n + u64::from(digit & 15));
            if digits && number <= max { Ok(number) } else { Err(NoDate) }
        };
        let (year, month, day) = (number(0, 4, 9999)?, number(5, 7, 12)?, number(8, 10, 31)?);
        let days = days(year, month, day).filter(|days| civil(*days) == (year, month, day)).ok_or(NoDate)?;
        let (hour, minute, second) = (number(11, 13, 23)?, number(14, 16, 59)?, number(17, 19, 59)?);
        Ok(Self(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + number(20, 23, 999)?))
    }
}

/// The day counted from 1970-01-01, the way back of [`civil`]; none before that.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month + 2) / 5 + day.checked_sub(1)?;
    (year * 365 + year / 4 - year / 100 + year / 400 + day_of_year).checked_sub(719_468)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar (Howard Hinnant's `civil_from_days`).
#[must_use]
pub fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_follow_the_monotonic_clock_and_never_wrap() {
        let start = Moment::now();
        let later = Moment::now();
        assert!(later >= start && later.since(start) < Duration::from_secs(60));
        assert_eq!(start.since(later + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(Moment::at(u64::MAX, 5) + Duration::MAX, Moment::from_nanos(u64::MAX));
        assert_eq!(Moment::from_nanos(3) - Duration::from_secs(1), Moment::default());
    }

    #[test]
    fn dates_are_read_back_as_they_were_written_and_nothing_else_is() {
        for millis in (0..253_402_300_800_000).step_by(86_399_123_457).chain([951_782_400_000, 253_402_300_799_999]) {
            let date = Date::from_millis(millis);
            assert_eq!(date.to_string().parse(), Ok(date));
        }
        for bad in [
            "",
            "2026-01-31T23:59:59Z",
            "1969-12-31T23:59:59.999Z",
            "2026-02-29T00:00:00.000Z",
            "2026-00-01T00:00:00.000Z",
            "2026-01-00T00:00:00.000Z",
            "2026-01-31T24:00:00.000Z",
            "2026-01-31T23:59:5:.000Z",
            "0000-01-01T00:00:00.000Z",
            "2026-01-31T23:59:59.12éZ",
        ] {
            assert_eq!(bad.parse::<Date>(), Err(NoDate), "{bad}");
        }
    }

    #[test]
    fn dates_are_written_as_rfc_3339() {
        assert_eq!(Date::from_millis(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Date::from_millis(1_709_164_799_999).to_string(), "2024-02-28T23:59:59.999Z");
        assert_eq!(Date::from_millis(1_709_164_800_000).to_string(), "2024-02-29T00:00:00.000Z");
    }

    #[test]
    fn the_date_of_a_moment_lies_as_far_back_as_the_moment() {
        // The kernel moves the date beside the monotonic clock where it follows a time server: seconds are allowed for it.
        let ago = Date::now().as_millis().abs_diff(Date::of(Moment::now() - Duration::from_secs(1000)).as_millis());
        assert!(ago.abs_diff(1_000_000) < 60_000, "{ago} ms instead of 1,000 s");
    }
}
