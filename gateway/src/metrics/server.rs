//! `/metrics`, `/livez` and `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use super::exporter::Exporter;
use crate::control::shards::Shards;

/// What the gateway is doing, as `/readyz` and `portcullis status` say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Bound, not serving yet.
    Starting,
    /// Takes flows.
    Serving,
    /// Takes no new flows.
    Draining,
}

impl Phase {
    /// The word shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

#[derive(Clone)]
struct Context {
    exporter: Arc<Exporter>,
    shards: Shards,
    phase: watch::Receiver<Phase>,
}

/// The three pages.
pub fn router(exporter: Exporter, shards: Shards, phase: watch::Receiver<Phase>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Context { exporter: Arc::new(exporter), shards, phase })
}

async fn metrics(State(context): State<Context>) -> Response {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match context.exporter.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Alive: every shard's loop turns.
async fn livez(State(context): State<Context>) -> Response {
    match context.shards.ping().await {
        Ok(()) => "ok\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// Ready: new flows are taken.
async fn readyz(State(context): State<Context>) -> Response {
    match *context.phase.borrow() {
        Phase::Serving => "ok\n".into_response(),
        phase @ (Phase::Starting | Phase::Draining) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", phase.as_str())).into_response()
        }
    }
}
