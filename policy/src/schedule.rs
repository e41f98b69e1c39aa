//! Instants in documents, and when a rule is in force.

use std::fmt;

use jiff::civil::Weekday;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;

use crate::json::quoted;

/// What is wrong with an instant in a document.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{} is not an instant; write it as RFC 3339 says, such as 2027-01-31T00:00:00Z", quoted(.0))]
pub struct TimestampError(String);

/// An instant as RFC 3339 section 5.6 writes it, with `T` and an offset.
///
/// # Errors
///
/// The text is anything else, or no such day or time exists.
pub fn parse_timestamp(text: &str) -> Result<Timestamp, TimestampError> {
    let wrong = || TimestampError(text.to_owned());
    let digits = |part: Option<&str>| {
        part.is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mark = |at: usize, marks: &[u8]| text.as_bytes().get(at).is_some_and(|byte| marks.contains(byte));
    let date =
        digits(text.get(..4)) && mark(4, b"-") && digits(text.get(5..7)) && mark(7, b"-") && digits(text.get(8..10));
    let time = mark(10, b"T") && digits(text.get(11..13)) && mark(13, b":") && digits(text.get(14..16));
    let seconds = mark(16, b":") && digits(text.get(17..19));
    let rest = text.get(19..).filter(|_| date && time && seconds).ok_or_else(wrong)?;
    let offset = match rest.strip_prefix('.') {
        None => rest,
        Some(fraction) => {
            let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
            if !(1..=9).contains(&end) {
                return Err(wrong());
            }
            fraction.get(end..).unwrap_or_default()
        }
    };
    let numeric = offset.strip_prefix(['+', '-']).and_then(|offset| offset.split_once(':'));
    let good = offset == "Z"
        || numeric.is_some_and(|(hours, minutes)| {
            hours.len() == 2 && minutes.len() == 2 && digits(Some(hours)) && digits(Some(minutes))
        });
    if good { text.parse().map_err(|_| wrong()) } else { Err(wrong()) }
}

/// What is wrong with the days, hours or zone of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ScheduleError {
    #[error("{} are not days; expected mon, tue, wed, thu, fri, sat, sun, a range such as mon-fri, or several with commas between", quoted(.0))]
    Days(String),
    #[error("{} are not hours; expected HH:MM-HH:MM between 00:00 and 24:00", quoted(.0))]
    Hours(String),
    #[error("the hours {} begin and end at the same time; leave them out for the whole day", quoted(.0))]
    NoHours(String),
    #[error("{} is not a time zone; expected a name of the IANA database, such as Europe/Berlin", quoted(.0))]
    Zone(String),
    #[error("{} is not how the time zone is spelt; write {canonical}", quoted(.text))]
    ZoneSpelling { text: String, canonical: String },
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const MINUTES_A_DAY: u16 = 24 * 60;

/// Days of the week; bit 0 is Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Days(u8);

impl Days {
    pub(crate) const ALL: Self = Self(0x7f);

    pub(crate) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let day = |text: &str| DAYS.iter().position(|day| *day == text);
        let mut days = 0;
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Some(first), Some(last)) = (day(first), day(last)) else {
                return Err(ScheduleError::Days(text.to_owned()));
            };
            let length = (last + 7 - first) % 7;
            days |= (0..=length).fold(0, |days, step| days | 1 << ((first + step) % 7));
        }
        Ok(Self(days))
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn contains(self, day: Weekday) -> bool {
        self.0 & 1 << day.to_monday_zero_offset() != 0
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chosen: Vec<&str> =
            DAYS.iter().enumerate().filter(|(index, _)| self.0 & 1 << index != 0).map(|(_, day)| *day).collect();
        f.write_str(&chosen.join(","))
    }
}

/// A window of the day in minutes since midnight, its end not included. It may go on past midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hours {
    start: u16,
    end: u16,
}

impl Hours {
    pub(crate) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let wrong = || ScheduleError::Hours(text.to_owned());
        let two = |text: &str| {
            Some(text).filter(|text| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
        };
        let minutes = |text: &str| {
            let (hour, minute) = text.split_once(':')?;
            let (hour, minute): (u16, u16) = (two(hour)?, two(minute)?);
            Some(hour * 60 + minute).filter(|minutes| minute < 60 && *minutes <= MINUTES_A_DAY)
        };
        let (start, end) = text.split_once('-').ok_or_else(wrong)?;
        let (start, end) = (minutes(start).ok_or_else(wrong)?, minutes(end).ok_or_else(wrong)?);
        if start == end || (start == MINUTES_A_DAY && end == 0) {
            return Err(ScheduleError::NoHours(text.to_owned()));
        }
        // 24:00 and 00:00 are one instant: as an end it belongs to the day before, as a start to the day after.
        if start == MINUTES_A_DAY {
            Err(wrong())
        } else {
            Ok(Self { start, end: if end == 0 { MINUTES_A_DAY } else { end } })
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", start / 60, start % 60, end / 60, end % 60)
    }
}

/// A time zone of the database built into the program, and never of the host's.
pub(crate) fn parse_zone(name: &str) -> Result<TimeZone, ScheduleError> {
    let zone = TimeZoneDatabase::bundled().get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?;
    match zone.iana_name() {
        Some(spelling) if spelling != name => {
            Err(ScheduleError::ZoneSpelling { text: name.to_owned(), canonical: spelling.to_owned() })
        }
        Some(_) | None => Ok(zone),
    }
}

/// A weekly window on the clock of a zone: it is open when a clock on the wall there shows a time within it, so that a
/// change to or from summer time moves it in UTC. A window past midnight belongs to the day on which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    days: Days,
    hours: Option<Hours>,
    zone: TimeZone,
}

impl Schedule {
    /// `None` when the window is always open.
    pub(crate) fn new(days: Days, hours: Option<Hours>, zone: TimeZone) -> Option<Self> {
        let hours = hours.filter(|hours| (hours.start, hours.end) != (0, MINUTES_A_DAY));
        (days != Days::ALL || hours.is_some()).then_some(Self { days, hours, zone })
    }

    fn open_on(&self, day: Weekday, minute: u16) -> bool {
        match self.hours {
            None => self.days.contains(day),
            Some(Hours { start, end }) if start < end => self.days.contains(day) && (start..end).contains(&minute),
            Some(Hours { start, end }) => {
                (minute >= start && self.days.contains(day)) || (minute < end && self.days.contains(day.previous()))
            }
        }
    }

    /// Whether it is open at `now`, and when that is over.
    fn at(&self, now: Timestamp) -> (bool, Option<Timestamp>) {
        /// Every window opens or closes within a fortnight, with at most three edges a day; more steps end early, which is
        /// merely a question asked again sooner than needed.
        const STEPS: usize = 64;
        let mut at = now;
        let mut shift = self.following_shift(now);
        let (open, mut edge) = self.look(at);
        for _ in 0..STEPS {
            let Some(next) = earliest(edge, shift) else {
                return (open, None);
            };
            at = next;
            if shift.is_some_and(|shift| shift <= at) {
                shift = self.following_shift(at);
            }
            let (still, next_edge) = self.look(at);
            if still != open {
                return (open, Some(at));
            }
            edge = next_edge;
        }
        (open, Some(at))
    }

    /// Whether it is open at an instant, and when the clock would show the next edge if it were never put forward or back.
    fn look(&self, at: Timestamp) -> (bool, Option<Timestamp>) {
        const MINUTE: i64 = 60_000_000_000;
        let local = self.zone.to_datetime(at);
        let minute = i64::from(local.hour()) * 60 + i64::from(local.minute());
        let beyond = i64::from(local.second()) * 1_000_000_000 + i64::from(local.subsec_nanosecond());
        let minute_of_day = u16::try_from(minute).unwrap_or_default();
        let edges = self.hours.map_or([MINUTES_A_DAY; 2], |hours| [hours.start, hours.end]);
        let next = edges.into_iter().filter(|edge| *edge > minute_of_day).min().unwrap_or(MINUTES_A_DAY);
        let wait = SignedDuration::from_nanos((i64::from(next) - minute) * MINUTE - beyond);
        (self.open_on(local.weekday(), minute_of_day), at.checked_add(wait).ok())
    }

    /// The next instant at which clocks in the zone are put forward or back.
    fn following_shift(&self, at: Timestamp) -> Option<Timestamp> {
        self.zone.following(at).next().map(|transition| transition.timestamp())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != Days::ALL {
            write!(f, "{} ", self.days)?;
        }
        if let Some(hours) = self.hours {
            write!(f, "{hours} ")?;
        }
        f.write_str(self.zone.iana_name().unwrap_or("UTC"))
    }
}

/// Every condition of a rule on the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) schedule: Option<Schedule>,
    /// Included.
    pub(crate) not_before: Option<Timestamp>,
    /// Not included.
    pub(crate) not_after: Option<Timestamp>,
}

/// The condition on the time that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Untimely {
    Early,
    Late,
    Closed,
}

impl Times {
    /// Whether there is no condition.
    pub(crate) fn is_always(&self) -> bool {
        *self == Self::default()
    }

    /// Which condition does not hold at `now`, if any, and an instant before which the answer stays the same.
    pub(crate) fn at(&self, now: Timestamp) -> (Option<Untimely>, Option<Timestamp>) {
        if self.not_after.is_some_and(|end| end <= now) {
            return (Some(Untimely::Late), None);
        }
        if let Some(start) = self.not_before.filter(|start| now < *start) {
            return (Some(Untimely::Early), Some(start));
        }
        let (open, change) = self.schedule.as_ref().map_or((true, None), |schedule| schedule.at(now));
        ((!open).then_some(Untimely::Closed), earliest(change, self.not_after))
    }

    /// Whether these surely hold whenever `other` does: its bounds lie within these, and its window is the same or on fewer days.
    pub(crate) fn hold_whenever(&self, other: &Self) -> bool {
        let start = self.not_before.is_none_or(|start| other.not_before.is_some_and(|other| start <= other));
        let end = self.not_after.is_none_or(|end| other.not_after.is_some_and(|other| other <= end));
        let open = match (&self.schedule, &other.schedule) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(this), Some(other)) => {
                this.zone == other.zone && this.hours == other.hours && this.days.union(other.days) == this.days
            }
        };
        start && end && open
    }

    /// What the clock says to the condition, and what it would have to say.
    pub(crate) fn sentence(&self, untimely: Untimely, now: Timestamp) -> (String, String) {
        let instant = |edge: Option<Timestamp>| edge.map(|edge| edge.to_string()).unwrap_or_default();
        match (untimely, &self.schedule) {
            (Untimely::Closed, Some(schedule)) => {
                let local = schedule.zone.to_datetime(now);
                let zone = schedule.zone.iana_name().unwrap_or("UTC");
                let day = DAYS
                    .get(usize::from(local.weekday().to_monday_zero_offset().unsigned_abs()))
                    .copied()
                    .unwrap_or_default();
                (format!("{day} {:02}:{:02} {zone}", local.hour(), local.minute()), schedule.to_string())
            }
            (Untimely::Late, _) => (now.to_string(), format!("before {}", instant(self.not_after))),
            (Untimely::Early | Untimely::Closed, _) => {
                (now.to_string(), format!("{} or later", instant(self.not_before)))
            }
        }
    }
}

/// The earlier of two instants, an absent one being never.
pub(crate) fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests;
