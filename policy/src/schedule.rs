//! Instants and times of day in documents.

use jiff::Timestamp;
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
    let mark = |at: usize, marks: &[u8]| {
        text.as_bytes()
            .get(at)
            .is_some_and(|byte| marks.contains(byte))
    };
    let date = digits(text.get(..4))
        && mark(4, b"-")
        && digits(text.get(5..7))
        && mark(7, b"-")
        && digits(text.get(8..10));
    let time =
        mark(10, b"T") && digits(text.get(11..13)) && mark(13, b":") && digits(text.get(14..16));
    let seconds = mark(16, b":") && digits(text.get(17..19));
    let rest = text
        .get(19..)
        .filter(|_| date && time && seconds)
        .ok_or_else(wrong)?;
    let offset = match rest.strip_prefix('.') {
        None => rest,
        Some(fraction) => {
            let end = fraction
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(fraction.len());
            if !(1..=9).contains(&end) {
                return Err(wrong());
            }
            fraction.get(end..).unwrap_or_default()
        }
    };
    let numeric = offset
        .strip_prefix(['+', '-'])
        .and_then(|offset| offset.split_once(':'));
    let good = offset == "Z"
        || numeric.is_some_and(|(hours, minutes)| {
            hours.len() == 2 && minutes.len() == 2 && digits(Some(hours)) && digits(Some(minutes))
        });
    if good {
        text.parse().map_err(|_| wrong())
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_3339_and_nothing_else() {
        for text in [
            "2027-01-31T00:00:00Z",
            "2027-01-31T00:00:00.123456Z",
            "2027-01-31T00:00:00+05:30",
        ] {
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
}
