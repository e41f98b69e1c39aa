//! `portcullis device posture`: what is reported of a device, and what counts.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};

use jiff::Timestamp;
use serde_json::Value;

use super::Done;
use crate::cli::output::{load_config, print, table};
use crate::cli::{DevicePostureArgs, ExitStatus, client};
use crate::config::format_duration;
use crate::control::posture::{FactInForce, PostureInForce, PostureReport, PostureRequest, PostureStatement};

/// What one argument says.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    fact: String,
    /// `None`: the argument is a name alone.
    value: Option<Value>,
}

/// Reads `FACT=VALUE`, `FACT:=JSON`, or `FACT` alone.
///
/// `true`, `false` and whole numbers are what they look like, anything else is text: `15.10` is a version, and as a number it
/// would be 15.1.
pub fn parse_fact(text: &str) -> Result<Said, FactError> {
    let Some((fact, written)) = text.split_once('=') else { return Ok(Said { fact: text.to_owned(), value: None }) };
    let (fact, value) = match fact.strip_suffix(':') {
        Some(fact) => (fact, serde_json::from_str(written).map_err(FactError::Json)?),
        None => (fact, plain(written)),
    };
    if fact.is_empty() {
        return Err(FactError::NoName);
    }
    Ok(Said { fact: fact.to_owned(), value: Some(value) })
}

fn plain(written: &str) -> Value {
    match written {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        // A number that JSON would write in the same way; 007 is none.
        _ => match written.parse::<i64>() {
            Ok(number) if number.to_string() == written => number.into(),
            Ok(_) | Err(_) => written.into(),
        },
    }
}

/// Why an argument is no fact.
#[derive(Debug, thiserror::Error)]
pub enum FactError {
    /// Nothing before the sign.
    #[error("the name of the fact is missing")]
    NoName,
    /// `:=` is followed by no JSON.
    #[error("no JSON after `:=`: {0}")]
    Json(serde_json::Error),
}

/// Runs the verb.
pub(super) fn run(args: DevicePostureArgs) -> Done {
    let DevicePostureArgs { config, name, facts, counts_for, clear, json } = args;
    let (named, valued): (Vec<Said>, Vec<Said>) = facts.into_iter().partition(|said| said.value.is_none());
    let misuse = |what: fmt::Arguments<'_>| {
        // Nobody reads standard error: the exit status still tells.
        let _ = writeln!(io::stderr(), "portcullis: {what}");
        Err(ExitStatus::Usage)
    };
    match named.first() {
        Some(Said { fact, .. }) if !clear => {
            return misuse(format_args!(
                "{fact:?} has no value; write {fact}=VALUE, or --clear {fact} to take its report back"
            ));
        }
        Some(_) | None => {}
    }
    if clear && !valued.is_empty() {
        return misuse(format_args!("--clear takes names of facts, not values"));
    }
    if counts_for.is_some() && valued.is_empty() {
        return misuse(format_args!("--for is about facts that are reported; there is none"));
    }
    let config = load_config(&config.path)?;
    if !clear && valued.is_empty() {
        let path = format!("/v1/posture?device={}", client::query_value(&name));
        let answer = client::get::<PostureInForce>(&config.control, &path).map_err(|error| error.report())?;
        return Ok(print(&if json { answer.text } else { page(&answer.value.devices) }));
    }
    let statement = PostureStatement {
        facts: valued.into_iter().filter_map(|said| Some((said.fact, said.value?))).collect(),
        counts_for: counts_for.map(format_duration),
        clear_all: clear && named.is_empty(),
        clear: named.into_iter().map(|said| said.fact).collect(),
    };
    let request = PostureRequest { devices: [(name, statement)].into() };
    let answer =
        client::post::<PostureReport>(&config.control, "/v1/posture", &request).map_err(|error| error.report())?;
    if !answer.value.kept {
        super::say("it counts now, but a restart forgets it: the state database cannot be written");
    }
    if !answer.value.judged {
        super::say("not every live flow has been judged again yet");
    }
    Ok(print(&if json { answer.text } else { page(&answer.value.devices) }))
}

fn page(devices: &BTreeMap<String, Vec<FactInForce>>) -> String {
    let time = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"));
    let row = |fact: &FactInForce| {
        let reported = fact.reported.map_or_else(|| "in the directory".to_owned(), |at| format!("{at:.0}"));
        [fact.fact.clone(), fact.value.to_string(), reported, time(fact.until)]
    };
    table(["FACT", "VALUE", "REPORTED", "UNTIL"], devices.values().flatten().map(row))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn facts_are_what_they_look_like() {
        for (text, fact, value) in [
            ("disk=true", "disk", Some(json!(true))),
            ("disk=False", "disk", Some(json!("False"))),
            ("build=14", "build", Some(json!(14))),
            ("build=-1", "build", Some(json!(-1))),
            ("build=014", "build", Some(json!("014"))),
            ("os_version=15.10", "os_version", Some(json!("15.10"))),
            ("os=mac os", "os", Some(json!("mac os"))),
            ("note=a=b", "note", Some(json!("a=b"))),
            ("note=", "note", Some(json!(""))),
            ("load:=0.5", "load", Some(json!(0.5))),
            ("build:=\"14\"", "build", Some(json!("14"))),
            ("disk", "disk", None),
        ] {
            assert_eq!(parse_fact(text).unwrap(), Said { fact: fact.to_owned(), value }, "{text}");
        }
        for text in ["=true", ":=1", "a:=x", "a:="] {
            assert!(parse_fact(text).is_err(), "{text}");
        }
    }
}
