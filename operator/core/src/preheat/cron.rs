//! When is it time? Cron expressions on somebody's clock.
//!
//! Five fields, as cron has them. A day has to fit both day fields, but where both are restricted one is
//! enough. A local time that a change of clocks leaves out is taken as much later as the clocks jump; of
//! one that comes twice the first counts.

use k8s_openapi::jiff::civil::{Date, Time};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Timestamp, ToSpan};

/// Looked at before it is said that a time never comes: a 29th of February on some weekday may be 28
/// years away, 40 around a century.
const MOST_DAYS: u32 = 366 * 41;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A parsed expression with its time zone.
#[derive(Clone, Debug)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both day fields are restricted: either is enough.
    either_day: bool,
    zone: TimeZone,
}

/// What one field may hold.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        name: "minute",
        least: 0,
        most: 59,
        names: &[],
    },
    Field {
        name: "hour",
        least: 0,
        most: 23,
        names: &[],
    },
    Field {
        name: "day of the month",
        least: 1,
        most: 31,
        names: &[],
    },
    Field {
        name: "month",
        least: 1,
        most: 12,
        names: &MONTHS,
    },
    Field {
        name: "day of the week",
        least: 0,
        most: 7,
        names: &DAYS,
    },
];

impl Schedule {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with which field.
    pub fn parse(expression: &str, zone: TimeZone) -> Result<Self, String> {
        let parts: Vec<_> = expression.split_ascii_whitespace().collect();
        if parts.len() != FIELDS.len() {
            return Err(format!(
                "`{expression}` has {} fields: minute, hour, day of the month, month, day of the week are 5",
                parts.len()
            ));
        }
        let mut sets = [0; 5];
        for ((set, field), part) in sets.iter_mut().zip(&FIELDS).zip(&parts) {
            *set = field.parse(part)?;
        }
        let [minutes, hours, days, months, weekdays] = sets;
        Ok(Self {
            minutes,
            hours,
            days,
            months,
            // 7 is Sunday too.
            weekdays: weekdays | (weekdays >> 7 & 1),
            either_day: !parts[2].starts_with('*') && !parts[4].starts_with('*'),
            zone,
        })
    }

    /// The first time after `after`; `None` where there is none.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let local = after.to_zoned(self.zone.clone()).datetime();
        let mut date = local.date();
        for _ in 0..MOST_DAYS {
            if self.fits(date) {
                let found = self.times().find_map(|time| {
                    let at = self.zone.to_timestamp(date.to_datetime(time)).ok()?;
                    (at > after).then_some(at)
                });
                if found.is_some() {
                    return found;
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    /// The last time at or before `now` and after `after`, when there is one.
    pub fn last(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let mut found = self.next(after).filter(|at| *at <= now)?;
        // Whoever was away for long is not to count every minute since.
        for hours in [366 * 24, 31 * 24, 24, 1] {
            let near = now.checked_sub(hours.hours()).ok();
            let later = near.filter(|near| *near > found);
            let later = later.and_then(|near| self.next(near));
            found = later.filter(|at| *at <= now).unwrap_or(found);
        }
        while let Some(later) = self.next(found).filter(|at| *at <= now) {
            found = later;
        }
        Some(found)
    }

    fn fits(&self, date: Date) -> bool {
        let has = |set: u64, n: i8| u32::try_from(n).is_ok_and(|n| set >> n & 1 == 1);
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month())
            && if self.either_day {
                day || weekday
            } else {
                day && weekday
            }
    }

    /// Of a day, in order.
    fn times(&self) -> impl Iterator<Item = Time> + '_ {
        let of = |set: u64, most: i8| (0..=most).filter(move |n| set >> n & 1 == 1);
        of(self.hours, 23).flat_map(move |hour| {
            of(self.minutes, 59).filter_map(move |minute| Time::new(hour, minute, 0, 0).ok())
        })
    }
}

impl Field {
    fn parse(&self, text: &str) -> Result<u64, String> {
        let mut set = 0;
        for item in text.split(',') {
            set |= self.item(item).ok_or_else(|| {
                format!(
                    "{}: `{item}` must be *, {}-{}, a range of these or one with a step after /",
                    self.name, self.least, self.most
                )
            })?;
        }
        Ok(set)
    }

    fn item(&self, text: &str) -> Option<u64> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, step.parse().ok().filter(|step| *step > 0)?),
            None => (text, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (self.least, self.most),
            Some((from, to)) => (self.number(from)?, self.number(to)?),
            None => {
                let from = self.number(range)?;
                // `5/15`: from there to the end.
                (from, if text.contains('/') { self.most } else { from })
            }
        };
        let numbers = (from..=to).step_by(usize::try_from(step).ok()?);
        (from <= to).then(|| numbers.fold(0, |set, n| set | 1 << n))
    }

    fn number(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().position(|n| n.eq_ignore_ascii_case(text));
        let number = match named {
            Some(at) => u32::try_from(at).ok()? + self.least,
            None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok()?,
            None => return None,
        };
        (self.least..=self.most).contains(&number).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(expression: &str, zone_name: &str, after: &str) -> String {
        let schedule = Schedule::parse(expression, zone(zone_name)).unwrap();
        schedule.next(at(after)).unwrap().to_string()
    }

    #[test]
    fn the_next_time_is_after_now_and_fits_every_field() {
        for (expression, after, expected) in [
            ("* * * * *", "2026-11-26T10:00:00Z", "2026-11-26T10:01:00Z"),
            (
                "*/15 * * * *",
                "2026-11-26T10:14:59Z",
                "2026-11-26T10:15:00Z",
            ),
            ("0 3 * * *", "2026-11-26T03:00:00Z", "2026-11-27T03:00:00Z"),
            (
                "5,35 9-17 * * mon-fri",
                "2026-11-27T17:35:00Z",
                "2026-11-30T09:05:00Z",
            ),
            ("0 0 29 2 *", "2026-11-26T00:00:00Z", "2028-02-29T00:00:00Z"),
            (
                "0 0 1 jan 7",
                "2026-12-31T00:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
            (
                "10/20 0 * * *",
                "2026-11-26T00:00:00Z",
                "2026-11-26T00:10:00Z",
            ),
            (
                "30/1 0 * * *",
                "2026-11-26T00:30:00Z",
                "2026-11-26T00:31:00Z",
            ),
            // Either of two restricted day fields.
            (
                "0 0 13 * fri",
                "2026-11-26T00:00:00Z",
                "2026-11-27T00:00:00Z",
            ),
        ] {
            assert_eq!(next(expression, "UTC", after), expected, "{expression}");
        }
    }

    #[test]
    fn a_time_that_clocks_leave_out_runs_late_and_one_that_comes_twice_runs_once() {
        let berlin = "Europe/Berlin";
        // 2026-03-29 02:00 to 03:00 does not exist there.
        assert_eq!(
            next("30 2 * * *", berlin, "2026-03-28T12:00:00Z"),
            "2026-03-29T01:30:00Z"
        );
        // 2026-10-25 02:30 comes at 00:30 and 01:30 UTC.
        assert_eq!(
            next("30 2 * * *", berlin, "2026-10-24T12:00:00Z"),
            "2026-10-25T00:30:00Z"
        );
        assert_eq!(
            next("30 2 * * *", berlin, "2026-10-25T00:30:00Z"),
            "2026-10-26T01:30:00Z"
        );
        // Within the second pass of the hour.
        assert_eq!(
            next("30 2 * * *", berlin, "2026-10-25T01:10:00Z"),
            "2026-10-26T01:30:00Z"
        );
    }

    #[test]
    fn the_last_time_missed_is_found_however_long_one_was_away() {
        let every = Schedule::parse("* * * * *", zone("UTC")).unwrap();
        let now = at("2026-11-26T10:00:30Z");
        assert_eq!(
            every.last(at("2020-01-01T00:00:00Z"), now),
            Some(at("2026-11-26T10:00:00Z"))
        );
        assert_eq!(every.last(at("2026-11-26T10:00:00Z"), now), None);
        let yearly = Schedule::parse("0 0 1 1 *", zone("UTC")).unwrap();
        assert_eq!(
            yearly.last(at("2020-06-01T00:00:00Z"), now),
            Some(at("2026-01-01T00:00:00Z"))
        );
    }

    #[test]
    fn mistakes_name_their_field() {
        for (expression, says) in [
            ("* * * *", "4 fields"),
            ("60 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* * 0 * *", "day of the month"),
            ("* * * foo *", "month"),
            ("* * * * 8", "day of the week"),
            ("*/0 * * * *", "minute"),
            ("5-1 * * * *", "minute"),
            ("1,,2 * * * *", "minute"),
            ("+1 * * * *", "minute"),
        ] {
            let error = Schedule::parse(expression, zone("UTC")).unwrap_err();
            assert!(error.contains(says), "{expression}: {error}");
        }
        let never = Schedule::parse("0 0 31 2 *", zone("UTC")).unwrap();
        assert_eq!(never.next(at("2026-01-01T00:00:00Z")), None);
    }
}
