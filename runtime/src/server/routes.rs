//! Which path asks what, and what every request has in common: key, size, time, JSON in every answer.

use super::accept::{Activity, Busy};
use super::ask::{self, Completion, Prompt};
use super::reply::{self, Chunks, Head, Logprobs};
use super::sse::SseStream;
use super::wire::{ApiError, ApiResult};
use super::worker::{Event, Job, Refused, Work};
use super::{Serving, Shared};
use crate::chat::Message;
use crate::model::Task;
use crate::session::{GenerateOptions, chat_ids};
use crate::tokenizer::Tokenizer;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

type App = Arc<Shared>;
type Answered<T = Response> = ApiResult<T>;

/// All paths.
pub(super) fn router(shared: App) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/classify", post(classify))
        .route("/v1/answer", post(answer))
        .route("/tokenize", post(tokenize))
        .route("/v1/models", get(models))
        .layer(from_fn_with_state(shared.clone(), need_key))
        .route("/healthz", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/readyz", get(readyz))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn(mark_busy))
        .with_state(shared)
}

/// Stops the connection's clock for idle sockets while a request is answered.
async fn mark_busy(ConnectInfo(activity): ConnectInfo<Activity>, mut request: Request, next: Next) -> Response {
    let busy = Arc::new(activity.begin());
    request.extensions_mut().insert(busy.clone());
    let response = next.run(request).await;
    drop(busy);
    response
}

async fn need_key(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(key) = &app.config.api_key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map(|v| v.as_bytes());
    let given = given.and_then(|v| v.split_at_checked(7)).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    if given.is_some_and(|(_, token)| same(token, key.as_bytes())) {
        return next.run(request).await;
    }
    let message = match given {
        None => "this server needs a key: send `Authorization: Bearer KEY`",
        Some(_) => "the key is not the one of this server",
    };
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

/// Equality in a time that depends on the length of `given` alone.
fn same(given: &[u8], key: &[u8]) -> bool {
    let mut differ = given.len() ^ key.len();
    for (i, &byte) in given.iter().enumerate() {
        let other = key.get(i % key.len().max(1)).copied().unwrap_or(0);
        differ = std::hint::black_box(differ | usize::from(byte ^ other));
    }
    differ == 0
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    let message = format!("no {method} {}; see /v1/models, /v1/chat/completions, /v1/completions", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

async fn readyz(State(app): State<App>) -> Answered<Json<Value>> {
    serving(&app).map(|_| Json(json!({"status": "ready"})))
}

async fn models(State(app): State<App>) -> Json<Value> {
    let model = json!({"id": &*app.model, "object": "model", "created": app.since, "owned_by": "edgeft"});
    Json(json!({"object": "list", "data": [model]}))
}

/// The model, once it is there and while the server is not about to stop.
fn serving(app: &Shared) -> ApiResult<&Serving> {
    let unavailable = |code, message| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
    if app.draining.load(Ordering::SeqCst) {
        return Err(unavailable("draining", "the server is about to stop"));
    }
    app.serving.get().ok_or_else(|| unavailable("model_loading", "the model is still being loaded; ask again soon"))
}

/// A request's whole body, within size and time.
async fn read(app: &Shared, body: Body) -> ApiResult<Bytes> {
    let limits = &app.config.limits;
    match tokio::time::timeout(limits.body, axum::body::to_bytes(body, limits.body_bytes)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let message = format!("the body is larger than {} bytes, or it was cut off", limits.body_bytes);
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        }
        Err(_) => {
            let message = format!("the body was not whole after {} s", limits.body.as_secs_f32());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
        }
    }
}

/// Runs what takes a while on a thread of its own, so that other connections are served meanwhile.
async fn aside<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&Serving, &Tokenizer) -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let app = app.clone();
    let outcome = tokio::task::spawn_blocking(move || {
        let serving = serving(&app)?;
        let tokenizer = serving.tokenizer.as_ref().ok_or_else(|| {
            let message = "the model carries no tokenizer, so it takes token ids and no text: send `prompt` as ids";
            ApiError::new(StatusCode::BAD_REQUEST, "unsupported_by_model", message)
        })?;
        work(serving, tokenizer)
    });
    outcome
        .await
        .unwrap_or_else(|_| Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "tokenizing failed")))
}

/// Puts work into the queue, or refuses at once.
fn submit(app: &Shared, work: Work) -> ApiResult<UnboundedReceiver<Event>> {
    let (reply, events) = unbounded_channel();
    match app.queue.push(Job { work, reply }) {
        Ok(()) => Ok(events),
        Err(Refused::Full(waiting)) => {
            let message = format!("{waiting} requests wait already; ask again later");
            Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message))
        }
        Err(Refused::Closed) => Err(ApiError::broken_off()),
    }
}

/// 400 for what this model is not for, with the way out.
fn not_for(app: &Shared, what: &str, instead: &str) -> ApiError {
    let message = format!("`{}` does not {what}; {instead}", app.model);
    ApiError::new(StatusCode::BAD_REQUEST, "unsupported_by_model", message)
}

fn instead(serving: &Serving) -> &'static str {
    match serving.task {
        Task::Classify => "it labels texts: use /v1/classify",
        Task::Answer => "it answers questions about a context: use /v1/answer",
        Task::Generate => "it continues texts: use /v1/completions",
        Task::Embed => "it gives vectors, which this server does not offer",
    }
}

impl Serving {
    /// Spans come in two numbers a position; a vocabulary has more.
    fn finds_spans(&self) -> bool {
        self.task == Task::Answer && self.output_dim == 2
    }

    fn generates(&self) -> bool {
        self.task == Task::Generate || (self.task == Task::Answer && !self.finds_spans())
    }
}

async fn chat(State(app): State<App>, Extension(busy): Extension<Arc<Busy>>, body: Body) -> Answered {
    serving(&app)?;
    let body = read(&app, body).await?;
    complete(app.clone(), busy, Completion::chat(&body, &app.model)?).await
}

async fn completions(State(app): State<App>, Extension(busy): Extension<Arc<Busy>>, body: Body) -> Answered {
    serving(&app)?;
    let body = read(&app, body).await?;
    complete(app.clone(), busy, Completion::text(&body, &app.model)?).await
}

async fn complete(app: App, busy: Arc<Busy>, asked: Completion) -> Answered {
    let model = serving(&app)?;
    if !model.generates() {
        return Err(not_for(&app, "generate text", instead(model)));
    }
    let chat = asked.is_chat();
    let param = if chat { "messages" } else { "prompt" };
    let prompt = match asked.prompt {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text) => aside(&app, move |_, tokenizer| Ok(tokenizer.encode(&text, true)?)).await?,
        Prompt::Messages(messages) => {
            aside(&app, move |serving, tokenizer| render(serving, tokenizer, &messages)).await?
        }
    };
    if prompt.is_empty() {
        return Err(ApiError::field(param, "it has no tokens"));
    }
    if let Some(id) = prompt.iter().find(|id| **id as usize >= model.output_dim) {
        return Err(ApiError::field(param, format!("token {id} is outside the vocabulary of {}", model.output_dim)));
    }
    if prompt.len() >= model.capacity {
        return Err(ApiError::too_long(param, prompt.len(), model.capacity));
    }
    let options = GenerateOptions {
        max_tokens: asked.max_tokens.unwrap_or(model.capacity),
        sampling: asked.sampling,
        stop: asked.stop,
        stop_ids: None,
        logprobs: asked.logprobs,
        own_text: chat,
    };
    let head = Head::new(chat, app.model.clone());
    let mut logprobs = Logprobs::new(model.tokenizer.clone(), chat);
    let mut events = submit(&app, Work::Generate { prompt, options })?;
    if asked.stream {
        let chunks = Chunks::new(head, logprobs, asked.include_usage);
        return Ok(SseStream::new(events, chunks, busy).into_response());
    }
    let mut tokens = Vec::new();
    loop {
        match events.recv().await {
            Some(Event::Piece { token, logprobs, .. }) => tokens.extend(token.zip(logprobs)),
            Some(Event::Generated(generation)) => {
                let whole = reply::whole(&head, &generation, logprobs.json(&tokens))?;
                return Ok(Json(whole).into_response());
            }
            Some(Event::Failed(e)) => return Err(e.into()),
            _ => return Err(ApiError::broken_off()),
        }
    }
}

/// Ids of a chat. A message that spells a control token could forge a turn, so it is refused.
fn render(serving: &Serving, tokenizer: &Tokenizer, messages: &[Message]) -> ApiResult<Vec<u32>> {
    if serving.chat.is_none() {
        let message = "the model has no chat template, and a guessed one would answer badly; send a plain prompt to \
                       /v1/completions, or serve a model that was tuned on chats";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "no_chat_template", message));
    }
    for (i, message) in messages.iter().enumerate() {
        if let Some(token) =
            [&message.role, &message.content].into_iter().find_map(|text| tokenizer.control_token_in(text))
        {
            let param = format!("messages[{i}]");
            return Err(ApiError::field(
                &param,
                format!("it spells the control token {token}, which only the template may"),
            ));
        }
    }
    Ok(chat_ids(serving.chat.as_ref(), tokenizer, messages, None)?)
}

async fn classify(State(app): State<App>, body: Body) -> Answered<Json<Value>> {
    let model = serving(&app)?;
    let body = read(&app, body).await?;
    let inputs = ask::classify(&body, &app.model)?;
    if model.task != Task::Classify {
        return Err(not_for(&app, "classify", instead(model)));
    }
    let inputs = aside(&app, move |serving, tokenizer| {
        let encode = |(i, text): (usize, &String)| {
            let ids = tokenizer.encode(text, true)?;
            let name = format!("input[{i}]");
            match ids.len() {
                0 => Err(ApiError::field(&name, "it has no tokens")),
                n if n > serving.capacity => Err(ApiError::too_long(&name, n, serving.capacity)),
                _ => Ok(ids),
            }
        };
        inputs.iter().enumerate().map(encode).collect::<ApiResult<Vec<_>>>()
    });
    let inputs = inputs.await?;
    let tokens = inputs.iter().map(Vec::len).sum();
    match submit(&app, Work::Classify { inputs })?.recv().await {
        Some(Event::Classified(all)) => Ok(Json(reply::classified(&app.model, &all, tokens))),
        Some(Event::Failed(e)) => Err(e.into()),
        _ => Err(ApiError::broken_off()),
    }
}

async fn answer(State(app): State<App>, body: Body) -> Answered<Json<Value>> {
    let model = serving(&app)?;
    let body = read(&app, body).await?;
    let (question, context) = ask::answer(&body, &app.model)?;
    if !model.generates() && !model.finds_spans() {
        return Err(not_for(&app, "answer questions", instead(model)));
    }
    match submit(&app, Work::Answer { question, context })?.recv().await {
        Some(Event::Answered(answer)) => Ok(Json(reply::answered(&app.model, &answer))),
        Some(Event::Failed(e)) => Err(e.into()),
        _ => Err(ApiError::broken_off()),
    }
}

async fn tokenize(State(app): State<App>, body: Body) -> Answered<Json<Value>> {
    serving(&app)?;
    let body = read(&app, body).await?;
    let text = ask::tokenize(&body, &app.model)?;
    let ids = aside(&app, move |_, tokenizer| {
        let ids = tokenizer.encode(&text, true)?;
        let tokens: Vec<&str> = ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap_or_default()).collect();
        Ok(json!({"ids": ids, "tokens": tokens}))
    });
    Ok(Json(ids.await?))
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn a_key_matches_only_itself() {
        assert!(same(b"secret", b"secret"));
        for wrong in [&b""[..], b"secre", b"secrets", b"secretsecret", b"Secret", b"\0secre"] {
            assert!(!same(wrong, b"secret"), "{wrong:?}");
        }
        assert!(!same(b"x", b""));
    }
}
