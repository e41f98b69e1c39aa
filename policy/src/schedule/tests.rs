use super::*;

#[test]
fn rfc_3339_and_nothing_else() {
    for text in ["2027-01-31T00:00:00Z", "2027-01-31T00:00:00.123456Z", "2027-01-31T00:00:00+05:30"] {
        assert!(parse_timestamp(text).is_ok(), "{text}");
    }
    for text in [
        "",
        "2027-01-31",
        "2027-01-31 00:00:00Z",
        "2027-01-31T00:00:00",
        "2027-01-31T00:00Z",
        "2027-02-30T00:00:00Z",
        "2027-01-31T24:00:00Z",
        "2027-01-31T00:00:00.Z",
        "2027-01-31T00:00:00+0530",
        "2027-01-31T00:00:00Z[UTC]",
        "20270131T000000Z",
        "+002027-01-31T00:00:00Z",
    ] {
        assert!(parse_timestamp(text).is_err(), "{text}");
    }
}

fn schedule(days: &str, hours: &str, zone: &str) -> Schedule {
    let hours = (!hours.is_empty()).then(|| Hours::parse(hours).unwrap());
    Schedule::new(Days::parse(days).unwrap(), hours, parse_zone(zone).unwrap()).unwrap()
}

/// Follows the edges from `from` and writes each as it is in UTC.
fn edges(schedule: &Schedule, from: &str, count: usize) -> (bool, Vec<String>) {
    let mut at: Timestamp = from.parse().unwrap();
    let first = schedule.at(at).0;
    let mut edges = Vec::new();
    for _ in 0..count {
        let (open, until) = schedule.at(at);
        let until = until.unwrap();
        assert!(until > at);
        let before = until.checked_sub(SignedDuration::from_nanos(1)).unwrap();
        assert_eq!(schedule.look(before).0, open, "{at} {until}");
        assert_ne!(schedule.look(until).0, open, "{at} {until}");
        edges.push(until.to_string());
        at = until;
    }
    (first, edges)
}

#[test]
fn days_and_hours_are_read_strictly() {
    for (text, canonical) in [
        ("mon-fri", "mon,tue,wed,thu,fri"),
        ("sat,sun", "sat,sun"),
        ("fri-mon", "mon,fri,sat,sun"),
        ("wed", "wed"),
        ("mon,wed-thu", "mon,wed,thu"),
    ] {
        assert_eq!(Days::parse(text).unwrap().to_string(), canonical);
    }
    for text in ["", "Mon", "monday", "mon-", "mon,", "mon, tue", "mon-fri-sun", "0-4", "*"] {
        assert!(Days::parse(text).is_err(), "{text}");
    }
    for text in ["08:00-18:00", "22:00-06:00", "00:00-24:00", "23:59-00:01"] {
        assert_eq!(Hours::parse(text).unwrap().to_string(), text);
    }
    assert_eq!(Hours::parse("22:00-00:00").unwrap().to_string(), "22:00-24:00");
    for text in [
        "",
        "08:00",
        "8:00-18:00",
        "08:00-18:0",
        "08:60-09:00",
        "08:00-24:01",
        "24:00-08:00",
        "08:00-08:00",
        "08:00 - 18:00",
        "08-18",
        "-",
        "+8:00-18:00",
        "25:00-26:00",
    ] {
        assert!(Hours::parse(text).is_err(), "{text}");
    }
    assert!(parse_zone("europe/berlin").unwrap_err().to_string().ends_with("write Europe/Berlin"));
    assert!(parse_zone("Europe/Atlantis").is_err() && parse_zone("").is_err() && parse_zone("UTC").is_ok());
    assert!(Schedule::new(Days::ALL, Some(Hours::parse("00:00-24:00").unwrap()), TimeZone::UTC).is_none());
}

#[test]
fn office_hours_move_with_summer_time() {
    let office = schedule("mon-fri", "08:00-18:00", "Europe/Berlin");
    // Clocks go forward on Sunday 2027-03-28: 08:00 is 07:00Z before and 06:00Z after.
    let (open, found) = edges(&office, "2027-03-26T06:59:59Z", 4);
    assert!(!open);
    assert_eq!(found, ["2027-03-26T07:00:00Z", "2027-03-26T17:00:00Z", "2027-03-29T06:00:00Z", "2027-03-29T16:00:00Z"]);
    // They go back on Sunday 2027-10-31.
    let (open, found) = edges(&office, "2027-10-29T15:00:00Z", 3);
    assert!(open);
    assert_eq!(found, ["2027-10-29T16:00:00Z", "2027-11-01T07:00:00Z", "2027-11-01T17:00:00Z"]);
}

#[test]
fn a_night_belongs_to_the_day_it_begins_on() {
    let night = schedule("fri", "22:00-06:00", "UTC");
    let (open, found) = edges(&night, "2027-01-01T00:00:00Z", 3);
    assert!(!open, "2027-01-01 is a Friday; the night before was Thursday's");
    assert_eq!(found, ["2027-01-01T22:00:00Z", "2027-01-02T06:00:00Z", "2027-01-08T22:00:00Z"]);
}

#[test]
fn nights_of_both_clock_changes() {
    let night = schedule("sat", "22:00-06:00", "Europe/Berlin");
    let (_, found) = edges(&night, "2027-03-27T12:00:00Z", 2);
    assert_eq!(found, ["2027-03-27T21:00:00Z", "2027-03-28T04:00:00Z"], "seven hours long");
    let (_, found) = edges(&night, "2027-10-30T12:00:00Z", 2);
    assert_eq!(found, ["2027-10-30T20:00:00Z", "2027-10-31T05:00:00Z"], "nine hours long");
}

#[test]
fn an_hour_that_is_skipped_or_repeated() {
    let hour = schedule("sun", "02:00-03:00", "Europe/Berlin");
    // 02:00 to 03:00 does not exist on 2027-03-28; the window opens a week later.
    let (_, found) = edges(&hour, "2027-03-22T00:00:00Z", 1);
    assert_eq!(found, ["2027-04-04T00:00:00Z"]);
    // It happens twice on 2027-10-31: two hours without a break.
    let (_, found) = edges(&hour, "2027-10-30T00:00:00Z", 2);
    assert_eq!(found, ["2027-10-31T00:00:00Z", "2027-10-31T02:00:00Z"]);
    // A window that closes inside the repeated hour opens twice.
    let early = schedule("sun", "01:30-02:30", "Europe/Berlin");
    let (_, found) = edges(&early, "2027-10-30T00:00:00Z", 4);
    assert_eq!(found, ["2027-10-30T23:30:00Z", "2027-10-31T00:30:00Z", "2027-10-31T01:00:00Z", "2027-10-31T01:30:00Z"]);
    // A window into the skipped hour closes when the clock jumps over its end.
    let (_, found) = edges(&early, "2027-03-27T12:00:00Z", 2);
    assert_eq!(found, ["2027-03-28T00:30:00Z", "2027-03-28T01:00:00Z"]);
}

#[test]
fn bounds_are_half_open() {
    let instant = |text: &str| text.parse::<Timestamp>().unwrap();
    let (start, end) = (instant("2027-01-01T00:00:00Z"), instant("2027-02-01T00:00:00Z"));
    let times = Times { schedule: None, not_before: Some(start), not_after: Some(end) };
    let nano = SignedDuration::from_nanos(1);
    assert_eq!(times.at(start - nano), (Some(Untimely::Early), Some(start)));
    assert_eq!(times.at(start), (None, Some(end)));
    assert_eq!(times.at(end - nano), (None, Some(end)));
    assert_eq!(times.at(end), (Some(Untimely::Late), None));
    assert_eq!(Times::default().at(start), (None, None));
}

#[test]
fn the_end_of_time_is_no_panic() {
    let office = schedule("mon-fri", "08:00-18:00", "Europe/Berlin");
    for at in [Timestamp::MIN, Timestamp::MAX] {
        let _ = office.at(at);
    }
}
