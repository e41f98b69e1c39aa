//! The routes of policies that are applied, and of their history.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use similar::TextDiff;

use super::api::MAX_POLICY_BODY;
use super::changes;
use super::history::{
    ApplyReport, ApplyRequest, ConfirmReport, Diff, DiffQuery, History, RevisionText, RollbackRequest,
};
use super::peer::Admin;
use super::server::{ApiError, Body, Context};
use crate::rulesets::Cause;
use crate::rulesets::apply::{Apply, ApplyError};
use crate::state::DatabaseError;
use crate::state::revisions::Source;

/// Longest message and longest reason, in bytes.
const MAX_WORDS: usize = 1_000;
/// How long a policy may wait to be confirmed, in seconds.
const CONFIRM_WITHIN: std::ops::RangeInclusive<u64> = 1..=7 * 86_400;
/// Lines around a difference.
const DIFF_CONTEXT: usize = 3;
/// How long a difference may be looked for; what is found until then is right, but not the shortest.
const DIFF_TIME: Duration = Duration::from_secs(2);

/// Every route.
pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/v1/apply", post(apply).layer(DefaultBodyLimit::max(MAX_POLICY_BODY)))
        .route("/v1/confirm", post(confirm))
        .route("/v1/rollback", post(rollback))
        .route("/v1/history", get(history))
        .route("/v1/revisions/{revision}", get(revision))
        .route("/v1/diff", get(diff))
}

fn bounded(name: &str, words: &str) -> Result<(), ApiError> {
    if words.len() > MAX_WORDS {
        return Err(ApiError::BadRequest(format!("`{name}` is longer than {MAX_WORDS} bytes")));
    }
    Ok(())
}

async fn apply(
    Admin(peer): Admin,
    State(context): State<Context>,
    Body(request): Body<ApplyRequest>,
) -> Result<Json<ApplyReport>, ApiError> {
    let ApplyRequest { file, policy, message, confirm_within_s } = request;
    bounded("message", message.as_deref().unwrap_or_default())?;
    if confirm_within_s.is_some_and(|seconds| !CONFIRM_WITHIN.contains(&seconds)) {
        return Err(ApiError::BadRequest("`confirm_within_s` is not between a second and a week".to_owned()));
    }
    tracing::info!(uid = peer.uid, file, confirm_within_s, message, "policy to be applied");
    let cause = Cause { message, ..Cause::by(Source::Apply, peer.uid) };
    let confirm_within = confirm_within_s.map(Duration::from_secs);
    let applied = context.rulesets.apply(Apply { file, policy, cause, confirm_within }).await?;
    Ok(Json(ApplyReport { report: applied.report, confirm_until: applied.confirm_until }))
}

async fn rollback(
    Admin(peer): Admin,
    State(context): State<Context>,
    Body(RollbackRequest { revision, reason }): Body<RollbackRequest>,
) -> Result<Json<ApplyReport>, ApiError> {
    bounded("reason", &reason)?;
    if reason.trim().is_empty() {
        return Err(ApiError::BadRequest("`reason` is empty".to_owned()));
    }
    tracing::info!(uid = peer.uid, revision, reason, "policy to be rolled back");
    let cause = Cause { reason: Some(reason), ..Cause::by(Source::Rollback, peer.uid) };
    let applied = context.rulesets.roll_back(revision, cause).await?;
    Ok(Json(ApplyReport { report: applied.report, confirm_until: None }))
}

async fn confirm(Admin(peer): Admin, State(context): State<Context>) -> Result<Json<ConfirmReport>, ApiError> {
    let revision = context.rulesets.confirm().await?;
    tracing::info!(uid = peer.uid, revision, "policy confirmed");
    Ok(Json(ConfirmReport { revision }))
}

/// Runs what blocks on the disk elsewhere.
async fn read<R: Send + 'static>(
    context: &Context,
    work: impl FnOnce(&crate::state::Revisions) -> Result<R, DatabaseError> + Send + 'static,
) -> Result<R, ApiError> {
    let history = context.rulesets.history()?;
    Ok(tokio::task::spawn_blocking(move || work(&history)).await?.map_err(ApplyError::from)?)
}

async fn history(State(context): State<Context>) -> Result<Json<History>, ApiError> {
    let (revisions, pending) = read(&context, |history| Ok((history.list()?, history.pending()))).await?;
    Ok(Json(History { in_force: context.rulesets.current().ruleset.revision().0, pending, revisions }))
}

async fn text(context: &Context, revision: u64) -> Result<RevisionText, ApiError> {
    let found = read(context, move |history| history.find(revision)).await?;
    let (entry, policy) = found.ok_or(ApplyError::NoRevision(revision))?;
    let policy = policy.ok_or(ApplyError::NoText(revision))?;
    Ok(RevisionText { entry, policy })
}

async fn revision(State(context): State<Context>, Path(revision): Path<u64>) -> Result<Json<RevisionText>, ApiError> {
    Ok(Json(text(&context, revision).await?))
}

async fn diff(
    State(context): State<Context>,
    query: Result<Query<DiffQuery>, QueryRejection>,
) -> Result<Json<Diff>, ApiError> {
    let Query(DiffQuery { from, to }) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let (old, new) = (text(&context, from).await?.policy, text(&context, to).await?.policy);
    let compared = tokio::task::spawn_blocking(move || {
        let lines = TextDiff::configure().timeout(DIFF_TIME).diff_lines(old.as_str(), new.as_str());
        let names = (format!("revision {from}"), format!("revision {to}"));
        let unified = lines.unified_diff().context_radius(DIFF_CONTEXT).header(&names.0, &names.1).to_string();
        Diff { changes: changes::policy(&old, &new), unified }
    });
    Ok(Json(compared.await?))
}
