//! Which path asks what, and what every request has in common: host, origin, key, count, log, JSON in every answer.

use super::accept::Activity;
use super::handlers as on;
use super::names::Target;
use super::schema::{ANSWER, CHAT, CLASSIFY, COMPLETION, DETOKENIZE, EMBEDDINGS, Field, INFER, TOKENIZE};
use super::wire::ApiError;
use super::{Shared, guard, reply, v2};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

pub(super) type App = Arc<Shared>;

/// How a path is asked.
#[derive(Clone, Copy)]
pub(super) enum Verb {
    Get,
    /// With a JSON body of these fields.
    Post(&'static [Field]),
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post(_) => "POST",
        }
    }
}

/// What an answer is.
#[derive(Clone, Copy)]
pub(super) enum Gives {
    Json,
    /// JSON, or server-sent events when a stream was asked for.
    JsonOrEvents,
    /// Text of this media type.
    Text(&'static str),
}

/// One path. What is served, what `/openapi.json` says and what `/metrics` counts all come from [`ROUTES`].
pub(super) struct Route {
    pub verb: Verb,
    pub path: &'static str,
    pub summary: &'static str,
    pub gives: Gives,
    /// Whether it is answered without a key, and to any `Host`: probes have neither.
    pub open: bool,
    handler: fn() -> MethodRouter<App>,
}

const fn asks(
    path: &'static str,
    body: &'static [Field],
    summary: &'static str,
    handler: fn() -> MethodRouter<App>,
) -> Route {
    Route { verb: Verb::Post(body), path, summary, gives: Gives::Json, open: false, handler }
}

const fn shows(path: &'static str, summary: &'static str, handler: fn() -> MethodRouter<App>) -> Route {
    Route { verb: Verb::Get, path, summary, gives: Gives::Json, open: false, handler }
}

const fn open(route: Route) -> Route {
    Route { open: true, ..route }
}

const fn gives(gives: Gives, route: Route) -> Route {
    Route { gives, ..route }
}

/// All paths.
pub(super) const ROUTES: &[Route] = &[
    gives(Gives::JsonOrEvents, asks("/v1/chat/completions", CHAT, "Continue a chat", || post(on::chat))),
    gives(Gives::JsonOrEvents, asks("/v1/completions", COMPLETION, "Continue a text", || post(on::completions))),
    asks("/v1/embeddings", EMBEDDINGS, "Vectors of texts", || post(on::embeddings)),
    asks("/v1/classify", CLASSIFY, "Label texts", || post(on::classify)),
    asks("/v1/answer", ANSWER, "Answer a question about a context", || post(on::answer)),
    shows("/v1/models", "The models that are served", || get(on::models)),
    asks("/tokenize", TOKENIZE, "Text to token ids", || post(on::tokenize)),
    asks("/detokenize", DETOKENIZE, "Token ids to text", || post(on::detokenize)),
    open(shows("/v2", "Open Inference Protocol: the server", || get(v2::server_here))),
    open(shows("/v2/health/live", "Open Inference Protocol: it lives", || get(v2::live))),
    open(shows("/v2/health/ready", "Open Inference Protocol: it answers", || get(v2::ready))),
    shows("/v2/models/{name}", "Open Inference Protocol: inputs and outputs", || get(v2::model_here)),
    open(shows("/v2/models/{name}/ready", "Open Inference Protocol: the model answers", || get(v2::model_ready))),
    asks("/v2/models/{name}/infer", INFER, "Open Inference Protocol: texts in, tensors out", || post(v2::infer)),
    open(shows("/healthz", "The process lives", || get(on::healthz))),
    open(shows("/readyz", "The model answers", || get(on::readyz))),
    gives(Gives::Text("text/plain"), shows("/metrics", "Counts and times, for Prometheus", || get(on::metrics))),
    shows("/openapi.json", "This description", || get(on::openapi)),
    open(gives(Gives::Text("text/html"), shows("/", "A page to try the model", || get(on::page)))),
];

/// Serves [`ROUTES`].
pub(super) fn router(shared: App) -> Router {
    let router = ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)()));
    router
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn(mark_busy))
        .layer(from_fn_with_state(shared.clone(), around))
        .with_state(shared)
}

/// The index in [`ROUTES`] of what is asked; a name in the path may be any but the empty one.
fn index_of(method: &Method, path: &str) -> Option<usize> {
    let verb = if method == Method::HEAD { "GET" } else { method.as_str() };
    let fits = |pattern: &str| {
        let same = |(p, part): (&str, &str)| p == part || (p == "{name}" && !part.is_empty());
        pattern.split('/').count() == path.split('/').count() && pattern.split('/').zip(path.split('/')).all(same)
    };
    ROUTES.iter().position(|r| r.verb.as_str() == verb && fits(r.path))
}

/// What surrounds every request.
async fn around(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let route = index_of(&method, uri.path());
    let mut response = match admit(&app, &mut request, route.map(|i| &ROUTES[i])) {
        Ok(None) => next.run(request).await,
        Ok(Some(answer)) => answer,
        Err(refused) => refused.into_response(),
    };
    guard::share(&app.config.access, origin, &mut response);
    app.metrics.answered(route, response.status().as_u16());
    let error = response.extensions().get::<ApiError>().cloned();
    if let Some(log) = &app.config.log {
        log.line(&json!({
            "time": reply::now(), "method": method.as_str(), "route": route.map(|i| ROUTES[i].path),
            "status": response.status().as_u16(), "ms": begun.elapsed().as_secs_f64() * 1e3,
            "error": error.as_ref().and_then(|e| e.code),
        }));
    }
    match error {
        Some(error) if uri.path() == "/v2" || uri.path().starts_with("/v2/") => spell_v2(&error, response),
        _ => response,
    }
}

/// Host, origin and key; an answer already for a browser that asks whether it may ask.
fn admit(app: &Shared, request: &mut Request, route: Option<&Route>) -> Result<Option<Response>, ApiError> {
    let open = route.is_some_and(|r| r.open);
    let probe = open && route.is_some_and(|r| r.path != "/");
    if !probe {
        guard::check(&app.config.access, app.config.addr, request.headers())?;
    }
    if let Some(answer) = guard::preflight(request) {
        return Ok(Some(answer));
    }
    let owner = if open || route.is_none() { 0 } else { app.keys.owner(request.headers())? };
    request.extensions_mut().insert(on::Owner(owner, Target::default()));
    Ok(None)
}

/// An error as the Open Inference Protocol has it, with the status and headers that it had.
fn spell_v2(error: &ApiError, response: Response) -> Response {
    let mut headers = response.headers().clone();
    headers.remove(header::CONTENT_LENGTH);
    (response.status(), headers, Json(json!({"error": error.message}))).into_response()
}

/// Stops the connection's clock for idle sockets while a request is answered.
async fn mark_busy(ConnectInfo(activity): ConnectInfo<Activity>, mut request: Request, next: Next) -> Response {
    let busy = Arc::new(activity.begin());
    request.extensions_mut().insert(busy.clone());
    let response = next.run(request).await;
    drop(busy);
    response
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    let message = format!("no {method} {}; see /openapi.json for what there is", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
