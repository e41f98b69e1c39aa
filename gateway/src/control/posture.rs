//! The routes of posture facts: what is reported of devices, and what counts.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::peer::Admin;
use super::server::{ApiError, Body, Context};
use crate::config::parse_duration;
use crate::directory::Device;
use crate::explain::ExplainError;
use crate::posture::{Clear, Statement};

/// How long a report may count, where it does not count until the next.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// `POST /v1/posture`: what is said of devices, all of it taken or nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostureRequest {
    /// By name of the device.
    pub devices: BTreeMap<String, PostureStatement>,
}

/// What is said of one device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostureStatement {
    /// Facts and what they are: true, false, a number or a text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Value>,
    /// How long they count, such as `10m`; without it until the next report.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub counts_for: Option<String>,
    /// Facts whose earlier reports are taken back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clear: Vec<String>,
    /// Every earlier report is taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clear_all: bool,
}

/// Answer to `POST /v1/posture`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostureReport {
    /// The facts of each device that was spoken of.
    pub devices: BTreeMap<String, Vec<FactInForce>>,
    /// Whether every live flow has been judged again. `false`: a shard is slow, and will.
    pub judged: bool,
    /// Whether they outlive the process. `false`: the state database cannot be written.
    pub kept: bool,
}

/// Query of `GET /v1/posture`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostureQuery {
    /// Only this device.
    pub device: Option<String>,
}

/// `GET /v1/posture`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostureInForce {
    /// The facts of each device, by name.
    pub devices: BTreeMap<String, Vec<FactInForce>>,
}

/// A fact of a device that counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FactInForce {
    /// Its name.
    pub fact: String,
    /// What it is.
    pub value: Value,
    /// When it was reported; `None`: the directory has it.
    pub reported: Option<Timestamp>,
    /// When it counts no more.
    pub until: Option<Timestamp>,
}

/// Every route.
pub(super) fn routes() -> Router<Context> {
    Router::new().route("/v1/posture", get(posture).post(report))
}

fn facts(device: &Device, now: Timestamp) -> Vec<FactInForce> {
    let facts = &device.identity.posture;
    let fact = |(name, value): (&str, &Value)| {
        let report = facts.reported(name).filter(|report| report.counts_at(now));
        FactInForce {
            fact: name.to_owned(),
            value: value.clone(),
            reported: report.map(|report| report.at),
            until: report.and_then(|report| report.until),
        }
    };
    facts.iter_at(now).map(fact).collect()
}

async fn posture(
    State(context): State<Context>,
    query: Result<Query<PostureQuery>, QueryRejection>,
) -> Result<Json<PostureInForce>, ApiError> {
    let Query(PostureQuery { device }) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let (snapshot, now) = (context.rulesets.current(), Timestamp::now());
    let entry = |device: &Device| (device.identity.device.to_string(), facts(device, now));
    let devices = match device {
        Some(name) => {
            let device = snapshot.directory.device(&name).ok_or(ExplainError::UnknownDevice(name))?;
            [entry(device)].into()
        }
        None => snapshot.directory.devices().map(|device| entry(device)).collect(),
    };
    Ok(Json(PostureInForce { devices }))
}

async fn report(
    Admin(peer): Admin,
    State(context): State<Context>,
    Body(PostureRequest { devices }): Body<PostureRequest>,
) -> Result<Json<PostureReport>, ApiError> {
    let now = Timestamp::now();
    let statements = devices.iter().map(|(name, said)| Ok((name.clone(), statement(said, now)?)));
    let taken = context.rulesets.report(statements.collect::<Result<_, ApiError>>()?).await?;
    for (device, PostureStatement { facts, counts_for, clear, clear_all }) in &devices {
        tracing::debug!(uid = peer.uid, device, ?facts, counts_for, ?clear, clear_all, "posture reported");
    }
    let snapshot = context.rulesets.current();
    let now_in_force = |name: &String| Some((name.clone(), facts(snapshot.directory.device(name)?, Timestamp::now())));
    Ok(Json(PostureReport {
        devices: devices.keys().filter_map(now_in_force).collect(),
        judged: taken.judged,
        kept: taken.kept,
    }))
}

fn statement(said: &PostureStatement, now: Timestamp) -> Result<Statement, ApiError> {
    let until = said.counts_for.as_deref().map(|text| {
        let counts_for = parse_duration(text).filter(|counts_for| !counts_for.is_zero() && *counts_for <= LONGEST);
        let counts_for = counts_for.and_then(|counts_for| SignedDuration::try_from(counts_for).ok());
        let until = counts_for.and_then(|counts_for| now.checked_add(counts_for).ok());
        // As exact as the state database has it.
        let until = until.and_then(|until| Timestamp::from_microsecond(until.as_microsecond()).ok());
        until.ok_or_else(|| ApiError::BadRequest("`for` is not a duration like 10m of at most a year".to_owned()))
    });
    let until = until.transpose()?;
    Ok(Statement {
        clear: if said.clear_all { Clear::All } else { Clear::These(said.clear.clone()) },
        facts: said.facts.iter().map(|(fact, value)| (fact.clone(), (value.clone(), until))).collect(),
    })
}
