//! The routes of the control socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};

use super::api::{
    BarReport, BarRequest, DeviceInForce, ErrorBody, ExplainRequest, Explanation, FlowList, FlowsQuery, KillReport,
    KillRequest, MAX_FLOWS_LISTED, MAX_POLICY_BODY, OfframpStatus, Onramp, Peer, Problem, ReloadReport, ShardStatus,
    Status,
};
use super::peer::Admin;
use super::plan::{PlanReport, PlanRequest};
use super::shards::{Shards, Unanswered};
use super::{posture, revisions};
use crate::config::Config;
use crate::denied::Denied;
use crate::explain::{self, ExplainError};
use crate::flow_record::FlowLine;
use crate::keys::encode_key;
use crate::metrics::server::Phase;
use crate::offramp::{Offramp, Offramps};
use crate::plan;
use crate::rulesets::apply::ApplyError;
use crate::rulesets::reporting::StatementError;
use crate::rulesets::{Cause, ReloadError, Rulesets};
use crate::shard::link::FlowFilter;
use crate::state::revisions::Source;

/// Largest request body in bytes.
const MAX_BODY: usize = 1 << 20;
/// Plans are worked on one at a time, however many are asked for.
static PLANNING: Semaphore = Semaphore::const_new(1);
/// How long a request may take, its body included. More than a reload waits for its shards.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// What the routes work with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The static configuration.
    pub config: Arc<Config>,
    /// Policy and directory.
    pub rulesets: Arc<Rulesets>,
    /// The data plane.
    pub shards: Shards,
    /// The ways out.
    pub offramps: Arc<Offramps>,
    /// The last refusals.
    pub denied: Arc<Denied>,
    /// What the process is doing.
    pub phase: watch::Receiver<Phase>,
    /// When it started.
    pub since: (Timestamp, Instant),
    /// The user the gateway runs as.
    pub own_uid: u32,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The peer may only read.
    #[error("only root and the gateway's own user may change anything")]
    Forbidden,
    /// No such thing.
    #[error("there is nothing at this path")]
    NotFound,
    /// It has ended, or never was.
    #[error("there is no live flow {0}")]
    NoFlow(u64),
    /// The path takes another method.
    #[error("this path takes another method")]
    Method,
    /// It took too long.
    #[error("the request took longer than {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// The question cannot be answered.
    #[error(transparent)]
    Explain(#[from] ExplainError),
    /// A file is bad; what was in force stays in force.
    #[error("reload refused, revision {revision} stays in force")]
    Refused {
        /// What stays in force.
        revision: u64,
        /// What is wrong.
        problems: Vec<Problem>,
        /// Devices barred all the same.
        barred: Vec<String>,
    },
    /// A policy that is asked about is bad.
    #[error("this policy would be refused")]
    BadPolicy(Vec<Problem>),
    /// A task of the gateway did not come to its end.
    #[error("the gateway could not finish this: {0}")]
    Unfinished(#[from] tokio::task::JoinError),
    /// A policy was not put in force, or what is asked of the history is not there.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// What is said of devices is not taken.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// The data plane did not answer.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::BadRequest(_)
            | Self::Explain(ExplainError::Target(_) | ExplainError::Who)
            | Self::Statement(StatementError::Report(_)) => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound
            | Self::NoFlow(_)
            | Self::Statement(StatementError::UnknownDevice(_))
            | Self::Explain(
                ExplainError::UnknownDevice(_) | ExplainError::UnknownUser(_) | ExplainError::NoDevice(_),
            ) => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Refused { .. } | Self::BadPolicy(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Apply(ApplyError::Bad(..)) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Apply(ApplyError::NoRevision(_) | ApplyError::NoText(_)) => StatusCode::NOT_FOUND,
            Self::Apply(ApplyError::Pending { .. } | ApplyError::NothingPending | ApplyError::Edited(_)) => {
                StatusCode::CONFLICT
            }
            Self::Unanswered(_) | Self::Apply(ApplyError::NoHistory(_) | ApplyError::History(_)) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Apply(ApplyError::File { .. } | ApplyError::Unfinished(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unfinished(_) | Self::Statement(StatementError::Unfinished(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let error = self.to_string();
        let (problems, barred) = if let Self::Refused { problems, barred, .. } = self {
            (problems, barred)
        } else if let Self::BadPolicy(problems) | Self::Apply(ApplyError::Bad(_, problems)) = self {
            (problems, Vec::new())
        } else {
            Default::default()
        };
        (status, Json(ErrorBody { error, problems, barred })).into_response()
    }
}

/// `axum::Json` and `axum::extract::Query` with our error body.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Context> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, context: &Context) -> Result<Self, ApiError> {
        let parsed: Result<Json<T>, JsonRejection> = Json::from_request(request, context).await;
        parsed.map(|Json(value)| Self(value)).map_err(|error| ApiError::BadRequest(error.body_text()))
    }
}

/// Every route.
pub fn router(context: Context) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/devices", get(devices))
        .route("/v1/flows", get(flows))
        .route("/v1/reload", post(reload))
        .route("/v1/bar", post(bar))
        .route("/v1/kill", post(kill))
        .route("/v1/explain", post(explain))
        .route("/v1/plan", post(plan).layer(DefaultBodyLimit::max(MAX_POLICY_BODY)))
        .merge(revisions::routes())
        .merge(posture::routes())
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(bound))
        .with_state(context)
}

async fn bound(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::Timeout.into_response(),
    }
}

async fn status(State(context): State<Context>) -> Result<Json<Status>, ApiError> {
    let peers = context.shards.peers().await?;
    let Context { config, rulesets, .. } = &context;
    let snapshot = rulesets.current();
    let wireguard = config.wireguard.as_ref().map(|w| Onramp {
        kind: "wireguard".to_owned(),
        at: w.listen.to_string(),
        addresses: w.addresses.clone(),
        public_key: rulesets.own_key().map(|key| encode_key(&key)),
    });
    let tun = config.tun.as_ref().map(|t| Onramp {
        kind: "tun".to_owned(),
        at: t.name.clone(),
        addresses: t.addresses.clone(),
        public_key: None,
    });
    let rules = Arc::clone(rulesets);
    let config_warning = tokio::task::spawn_blocking(move || rules.config_warning()).await?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        phase: context.phase.borrow().as_str().to_owned(),
        since: context.since.0,
        uptime_s: context.since.1.elapsed().as_secs(),
        revision: snapshot.ruleset.revision().0,
        flows_open: context.shards.counters().map(|c| c.flows_open.value()).sum(),
        shards: (0..)
            .zip(context.shards.counters())
            .map(|(shard, c)| ShardStatus { shard, flows_open: c.flows_open.value(), revision: c.revision.value() })
            .collect(),
        onramps: wireguard.into_iter().chain(tun).collect(),
        config: config.source.display().to_string(),
        config_warning,
        policy: config.policy.display().to_string(),
        directory: config.directory.display().to_string(),
        users: snapshot.directory.users().count(),
        devices: snapshot.directory.devices().count(),
        offramps: context.offramps.all().map(|offramp| offramp_status(offramp)).collect(),
        last_reload: rulesets.last_reload(),
        pending: rulesets.pending(),
        peers: peers
            .into_iter()
            .map(|p| Peer {
                device: p.device.to_string(),
                endpoint: p.endpoint,
                last_handshake: p.last_handshake,
                bytes_received: p.bytes_received,
                bytes_sent: p.bytes_sent,
                flows: p.flows,
            })
            .collect(),
    }))
}

fn offramp_status(offramp: &Offramp) -> OfframpStatus {
    let report = offramp.report();
    OfframpStatus {
        name: offramp.name().to_string(),
        up: report.as_ref().map(|report| report.up),
        since: report.as_ref().map(|report| report.since),
        error: report.and_then(|report| report.error),
    }
}

async fn devices(State(context): State<Context>) -> Json<Vec<DeviceInForce>> {
    let (snapshot, now) = (context.rulesets.current(), Timestamp::now());
    let in_force = |device: &Arc<crate::directory::Device>| DeviceInForce {
        device: device.identity.device.to_string(),
        admitted: device.usable_at(now),
    };
    let mut devices: Vec<_> = snapshot.directory.devices().map(in_force).collect();
    devices.sort_by(|a, b| a.device.cmp(&b.device));
    Json(devices)
}

async fn flows(
    State(context): State<Context>,
    query: Result<Query<FlowsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let to = query.to.as_deref().map(parse_prefix).transpose()?;
    let filter = FlowFilter { id: None, device: query.device, user: query.user, to };
    let denied = query.denied.unwrap_or_default();
    let records = if denied {
        context.denied.list(|record| filter.matches(record))
    } else {
        context.shards.flows(&filter).await?
    };
    if records.is_empty() {
        known(&context, &filter)?;
    }
    let limit = query.limit.unwrap_or(MAX_FLOWS_LISTED).min(MAX_FLOWS_LISTED);
    // Of refusals the last are of interest, of live flows the oldest.
    let left_out = if denied { records.len().saturating_sub(limit) } else { 0 };
    let listed = records.iter().skip(left_out).take(limit);
    Ok(json(&FlowList { total: records.len(), flows: listed.map(FlowLine).collect() }))
}

fn json(value: &impl Serialize) -> Response {
    Json(value).into_response()
}

fn parse_prefix(text: &str) -> Result<IpNet, ApiError> {
    text.parse()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| ApiError::BadRequest("`to` is neither an address nor a prefix".to_owned()))
}

async fn reload(Admin(peer): Admin, State(context): State<Context>) -> Result<Json<ReloadReport>, ApiError> {
    tracing::info!(uid = peer.uid, "reload asked for over the control socket");
    match context.rulesets.reload(Cause::by(Source::Reload, peer.uid)).await {
        Ok(report) => Ok(Json(report)),
        Err(ReloadError { revision, problems, barred }) => Err(ApiError::Refused { revision, problems, barred }),
    }
}

async fn bar(
    Admin(peer): Admin,
    State(context): State<Context>,
    Body(BarRequest { device }): Body<BarRequest>,
) -> Result<Json<BarReport>, ApiError> {
    let report = context.rulesets.bar(device).await?;
    tracing::info!(
        uid = peer.uid,
        device = report.device,
        known = report.known,
        judged = report.judged,
        "device barred"
    );
    Ok(Json(report))
}

/// A misspelt name must not look like one that has no flows.
fn known(context: &Context, filter: &FlowFilter) -> Result<(), ApiError> {
    let directory = &context.rulesets.current().directory;
    if let Some(name) = filter.device.as_ref().filter(|name| directory.device(name).is_none()) {
        return Err(ExplainError::UnknownDevice(name.clone()).into());
    }
    if let Some(name) = filter.user.as_ref().filter(|name| directory.user(name).is_none()) {
        return Err(ExplainError::UnknownUser(name.clone()).into());
    }
    Ok(())
}

async fn kill(
    Admin(peer): Admin,
    State(context): State<Context>,
    Body(request): Body<KillRequest>,
) -> Result<Json<KillReport>, ApiError> {
    let chosen =
        [request.flow.is_some(), request.device.is_some(), request.user.is_some()].into_iter().filter(|c| *c).count();
    if chosen != 1 {
        // An empty filter means every flow, which nobody asks for by leaving everything out.
        return Err(ApiError::BadRequest("give one of `flow`, `device` and `user`".to_owned()));
    }
    let filter = FlowFilter { id: request.flow, device: request.device, user: request.user, to: None };
    let killed = context.shards.kill(&filter).await?;
    if killed == 0 {
        known(&context, &filter)?;
        if let Some(id) = filter.id {
            return Err(ApiError::NoFlow(id));
        }
    }
    tracing::info!(
        uid = peer.uid,
        flow = filter.id,
        device = filter.device,
        user = filter.user,
        killed,
        "flows killed"
    );
    Ok(Json(KillReport { killed }))
}

async fn explain(
    State(context): State<Context>,
    Body(request): Body<ExplainRequest>,
) -> Result<Json<Explanation>, ApiError> {
    let now = Timestamp::now();
    let around = (&*context.config, &*context.offramps);
    Ok(Json(explain::explain(&context.rulesets.current(), around, &request, now, true)?))
}

async fn plan(State(context): State<Context>, Body(request): Body<PlanRequest>) -> Result<Json<PlanReport>, ApiError> {
    // The semaphore is never closed; without a permit the plan would merely not be alone.
    let alone = PLANNING.acquire().await.ok();
    let flows = context.shards.flows(&FlowFilter::default()).await?;
    let (snapshot, config) = (context.rulesets.current(), Arc::clone(&context.config));
    let planned = tokio::task::spawn_blocking(move || {
        let _alone = alone;
        plan::plan(&snapshot, &config, &request, Some(&flows), Timestamp::now())
    });
    planned.await?.map(Json).map_err(ApiError::BadPolicy)
}
