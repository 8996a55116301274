//! What each path does: its body -> ids -> a job of the engine -> its answer.

use super::accept::Busy;
use super::ask::{self, Completion, Embeddings, Prompt};
use super::messages::render;
use super::names::Target;
use super::queue::{Event, Job, Refused, Work};
use super::reply::{self, Chunks, Head, Logprobs};
use super::routes::App;
#[cfg(feature = "constrain")]
use super::shape::Ready;
use super::sse::SseStream;
#[cfg(feature = "constrain")]
use super::tools::Offer;
use super::wire::{ApiError, ApiResult};
use super::{Serving, Shared, openapi};
use crate::model::Task;
use crate::session::{Answer, GenerateOptions, Generation, TokenLogprobs};
use crate::tokenizer::Tokenizer;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

pub(super) type Answered<T = Response> = ApiResult<T>;

/// Whose key opened the request (see [`super::guard::Keys::owner`]), and the model that it names.
#[derive(Clone, Copy)]
pub(super) struct Owner(pub u64, pub Target);

pub(super) async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

pub(super) async fn readyz(State(app): State<App>) -> Answered<Json<Value>> {
    here(&app).map(|()| Json(json!({"status": "ready"})))
}

pub(super) async fn page() -> Response {
    super::page::page()
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    let text = app.metrics.text(&app.queue, here(&app).is_ok());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

pub(super) async fn openapi(State(app): State<App>) -> Json<Value> {
    Json(openapi::document(&app.names, app.keys.needed()))
}

pub(super) async fn models(State(app): State<App>) -> Json<Value> {
    let one = |(name, target): &(Arc<str>, Target)| {
        let mut model = json!({"id": &**name, "object": "model", "created": app.since, "owned_by": "edgeft"});
        if let Some(serving) = app.serving[target.model].get() {
            model["task"] = serving.purpose().into();
            model["context_length"] = serving.capacity.into();
            model["chat"] = serving.chat.is_some().into();
        }
        if target.adapter.is_some() {
            model["parent"] = (**app.names.model(*target)).into();
        }
        model
    };
    let all: Vec<Value> = app.names.all().iter().map(one).collect();
    Json(json!({"object": "list", "data": all}))
}

/// Whether the models are there and the server is not about to stop.
pub(super) fn here(app: &Shared) -> ApiResult<()> {
    serving(app, Target::default()).map(|_| ()) // the first is loaded last
}

/// What is known of a model, once it has been there and while the server is not about to stop.
pub(super) fn serving(app: &Shared, target: Target) -> ApiResult<&Serving> {
    let unavailable = |code, message| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
    if app.draining.load(Ordering::SeqCst) {
        return Err(unavailable("draining", "the server is about to stop"));
    }
    app.serving[target.model]
        .get()
        .ok_or_else(|| unavailable("model_loading", "the model is still being loaded; ask again soon"))
}

/// A request's whole body, within size and time.
pub(super) async fn read(app: &Shared, body: Body) -> ApiResult<Bytes> {
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
    target: Target,
    work: impl FnOnce(&Serving, &Tokenizer) -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let app = app.clone();
    let outcome = tokio::task::spawn_blocking(move || {
        let serving = serving(&app, target)?;
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
pub(super) fn submit(app: &Shared, owner: Owner, work: Work) -> ApiResult<UnboundedReceiver<Event>> {
    let (reply, events) = unbounded_channel();
    match app.queue.push(Job::new(work, owner.0, reply).to(owner.1)) {
        Ok(()) => Ok(events),
        Err(Refused::Full(waiting)) => {
            let message = format!("{waiting} requests wait already; ask again later");
            Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message))
        }
        Err(Refused::Closed) => Err(ApiError::broken_off()),
    }
}

/// 400 for what this model is not for, with the way out.
fn not_for(app: &Shared, target: Target, what: &str, instead: &str) -> ApiError {
    let message = format!("`{}` does not {what}; {instead}", app.names.model(target));
    ApiError::new(StatusCode::BAD_REQUEST, "unsupported_by_model", message)
}

fn instead(serving: &Serving) -> &'static str {
    match serving.task {
        Task::Classify => "it labels texts: use /v1/classify",
        Task::Answer => "it answers questions about a context: use /v1/answer",
        Task::Generate => "it continues texts: use /v1/completions",
        Task::Embed => "it gives vectors of texts: use /v1/embeddings",
    }
}

impl Serving {
    /// Spans come in two numbers a position; a vocabulary has more.
    fn finds_spans(&self) -> bool {
        self.task == Task::Answer && self.output_dim == 2
    }

    /// What it does, in a word.
    fn purpose(&self) -> &'static str {
        match self.task {
            Task::Classify => "classify",
            Task::Embed => "embed",
            Task::Answer => "answer",
            Task::Generate => "generate",
        }
    }

    fn generates(&self) -> bool {
        self.task == Task::Generate || (self.task == Task::Answer && !self.finds_spans())
    }
}

pub(super) async fn chat(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    Extension(busy): Extension<Arc<Busy>>,
    body: Body,
) -> Answered {
    here(&app)?;
    let body = read(&app, body).await?;
    complete(app.clone(), owner, busy, Completion::chat(&body, &app.names)?).await
}

pub(super) async fn completions(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    Extension(busy): Extension<Arc<Busy>>,
    body: Body,
) -> Answered {
    here(&app)?;
    let body = read(&app, body).await?;
    complete(app.clone(), owner, busy, Completion::text(&body, &app.names)?).await
}

async fn complete(app: App, owner: Owner, busy: Arc<Busy>, asked: Completion) -> Answered {
    let target = asked.target;
    let model = serving(&app, target)?;
    if !model.generates() {
        return Err(not_for(&app, target, "generate text", instead(model)));
    }
    let (chat, n, stream, usage) = (asked.is_chat(), asked.n, asked.stream, asked.include_usage);
    #[cfg(feature = "constrain")]
    let reader = asked.shape.reader(model)?;
    let work = generation(&app, asked).await?;
    let head = Head::new(chat, app.names.of(target).clone());
    let events = submit(&app, Owner(owner.0, target), work)?;
    if stream {
        let chunks = Chunks::new(head, model.tokenizer.as_ref(), n, usage);
        #[cfg(feature = "constrain")]
        let chunks = chunks.reading(reader);
        return Ok(SseStream::new(events, chunks, busy).into_response());
    }
    let with_logprobs = |(generation, tokens): (Generation, Tokens)| {
        let logprobs = Logprobs::new(model.tokenizer.clone(), chat).json(&tokens);
        (generation, logprobs)
    };
    let all: Vec<_> = collect(events, n).await?.into_iter().map(with_logprobs).collect();
    #[cfg(feature = "constrain")]
    let message = |text: &str| reader.as_ref().map_or_else(|| reply::said(text), |reader| reader.clone().message(text));
    #[cfg(not(feature = "constrain"))]
    let message = reply::said;
    Ok(Json(reply::whole(&head, &all, message)?).into_response())
}

/// Tokens with their log-probabilities, where these were asked for.
pub(super) type Tokens = Vec<(u32, TokenLogprobs)>;

/// All choices of an answer, in order.
pub(super) async fn collect(mut events: UnboundedReceiver<Event>, n: usize) -> ApiResult<Vec<(Generation, Tokens)>> {
    let mut tokens: Vec<Tokens> = vec![Vec::new(); n];
    let mut ended: Vec<Option<Generation>> = vec![None; n];
    loop {
        match events.recv().await {
            Some(Event::Piece { index, token, logprobs, .. }) => tokens[index].extend(token.zip(logprobs)),
            Some(Event::Generated { index, generation }) => {
                ended[index] = Some(generation);
                if ended.iter().all(Option::is_some) {
                    return Ok(ended.into_iter().flatten().zip(tokens).collect());
                }
            }
            Some(Event::Failed(e)) => return Err(e),
            _ => return Err(ApiError::broken_off()),
        }
    }
}

/// What the engine is asked for a completion, once its prompt is ids and fits.
pub(super) async fn generation(app: &App, asked: Completion) -> ApiResult<Work> {
    let target = asked.target;
    let model = serving(app, target)?;
    let chat = asked.is_chat();
    let param = if chat { "messages" } else { "prompt" };
    #[cfg(feature = "constrain")]
    let shape = asked.shape.clone();
    #[cfg(feature = "constrain")]
    let ready = match shape.is_free() {
        true => Ready::default(),
        false if model.tokenizer.is_none() => {
            let asked = if shape.offer.is_some() { "tools" } else { "response_format" };
            return Err(ApiError::field(asked, "the model carries no tokenizer, so no text can be held to it"));
        }
        false => aside(app, target, move |serving, tokenizer| shape.ready(serving, tokenizer)).await?,
    };
    let prompt = match asked.prompt {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text) => aside(app, target, move |_, tokenizer| Ok(tokenizer.encode(&text, true)?)).await?,
        Prompt::Messages(messages) => {
            #[cfg(feature = "constrain")]
            let tools = asked.shape.offer.map(Offer::into_tools);
            #[cfg(not(feature = "constrain"))]
            let tools: Option<Vec<Value>> = None;
            aside(app, target, move |serving, tokenizer| render(serving, tokenizer, &messages, tools.as_deref()))
                .await?
        }
    };
    #[cfg(feature = "constrain")]
    let prompt = [prompt, ready.forced].concat();
    if prompt.is_empty() {
        return Err(ApiError::field(param, "it has no tokens"));
    }
    let outside = |id: u32| format!("token {id} is outside the vocabulary of {}", model.output_dim);
    if let Some(id) = prompt.iter().find(|id| **id as usize >= model.output_dim) {
        return Err(ApiError::field(param, outside(*id)));
    }
    if let Some((id, _)) = asked.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= model.output_dim) {
        return Err(ApiError::field("logit_bias", outside(*id)));
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
        #[cfg(feature = "constrain")]
        grammar: ready.grammar,
        #[cfg(feature = "constrain")]
        show: ready.show,
    };
    Ok(Work::Generate { prompt, options, n: asked.n })
}

/// Ids of texts, each of which must fit.
pub(super) async fn ids_of(
    app: &App,
    target: Target,
    name: &'static str,
    inputs: Vec<Prompt>,
) -> ApiResult<Vec<Vec<u32>>> {
    let check = move |i: usize, ids: Vec<u32>, capacity: usize| {
        let name = format!("{name}[{i}]");
        match ids.len() {
            0 => Err(ApiError::field(&name, "it has no tokens")),
            n if n > capacity => Err(ApiError::too_long(&name, n, capacity)),
            _ => Ok(ids),
        }
    };
    let capacity = serving(app, target)?.capacity;
    if inputs.iter().all(|input| matches!(input, Prompt::Ids(_))) {
        let ids = |(i, input)| check(i, if let Prompt::Ids(ids) = input { ids } else { Vec::new() }, capacity);
        return inputs.into_iter().enumerate().map(ids).collect();
    }
    let encode = move |_: &Serving, tokenizer: &Tokenizer| {
        let encode = |(i, input)| match input {
            Prompt::Text(text) => check(i, tokenizer.encode(&text, true)?, capacity),
            Prompt::Ids(ids) => check(i, ids, capacity),
            Prompt::Messages(_) => Err(ApiError::field(name, "a chat is no text")),
        };
        inputs.into_iter().enumerate().map(encode).collect::<ApiResult<Vec<_>>>()
    };
    aside(app, target, encode).await
}

pub(super) fn prompts(texts: Vec<String>) -> Vec<Prompt> {
    texts.into_iter().map(Prompt::Text).collect()
}

pub(super) async fn classify(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    body: Body,
) -> Answered<Json<Value>> {
    here(&app)?;
    let body = read(&app, body).await?;
    let (target, inputs) = ask::classify(&body, &app.names)?;
    let model = serving(&app, target)?;
    if model.task != Task::Classify {
        return Err(not_for(&app, target, "classify", instead(model)));
    }
    let inputs = ids_of(&app, target, "input", prompts(inputs)).await?;
    let tokens = inputs.iter().map(Vec::len).sum();
    match submit(&app, Owner(owner.0, target), Work::Classify { inputs })?.recv().await {
        Some(Event::Classified(all)) => Ok(Json(reply::classified(app.names.of(target), &all, tokens))),
        Some(Event::Failed(e)) => Err(e),
        _ => Err(ApiError::broken_off()),
    }
}

pub(super) async fn embeddings(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    body: Body,
) -> Answered<Json<Value>> {
    here(&app)?;
    let body = read(&app, body).await?;
    let asked = Embeddings::read(&body, &app.names)?;
    let target = asked.target;
    let model = serving(&app, target)?;
    if model.task != Task::Embed {
        return Err(not_for(&app, target, "give vectors", instead(model)));
    }
    let inputs = ids_of(&app, target, "input", asked.inputs).await?;
    let tokens = inputs.iter().map(Vec::len).sum();
    match submit(&app, Owner(owner.0, target), Work::Embed { inputs })?.recv().await {
        Some(Event::Embedded(all)) => Ok(Json(reply::embedded(app.names.of(target), &all, asked.base64, tokens))),
        Some(Event::Failed(e)) => Err(e),
        _ => Err(ApiError::broken_off()),
    }
}

pub(super) async fn answer(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    body: Body,
) -> Answered<Json<Value>> {
    here(&app)?;
    let body = read(&app, body).await?;
    let (target, question, context) = ask::answer(&body, &app.names)?;
    let model = serving(&app, target)?;
    if !model.generates() && !model.finds_spans() {
        return Err(not_for(&app, target, "answer questions", instead(model)));
    }
    let found = answer_one(&app, Owner(owner.0, target), question, context).await?;
    Ok(Json(reply::answered(app.names.of(target), &found)))
}

pub(super) async fn answer_one(app: &App, owner: Owner, question: String, context: String) -> ApiResult<Answer> {
    match submit(app, owner, Work::Answer { question, context })?.recv().await {
        Some(Event::Answered(answer)) => Ok(answer),
        Some(Event::Failed(e)) => Err(e),
        _ => Err(ApiError::broken_off()),
    }
}

pub(super) async fn tokenize(State(app): State<App>, body: Body) -> Answered<Json<Value>> {
    here(&app)?;
    let body = read(&app, body).await?;
    let (target, text) = ask::tokenize(&body, &app.names)?;
    let ids = aside(&app, target, move |_, tokenizer| {
        let ids = tokenizer.encode(&text, true)?;
        let tokens: Vec<&str> = ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap_or_default()).collect();
        Ok(json!({"ids": ids, "tokens": tokens}))
    });
    Ok(Json(ids.await?))
}

pub(super) async fn detokenize(State(app): State<App>, body: Body) -> Answered<Json<Value>> {
    here(&app)?;
    let body = read(&app, body).await?;
    let (target, ids) = ask::detokenize(&body, &app.names)?;
    let text =
        aside(&app, target, move |_, tokenizer| match ids.iter().find(|id| tokenizer.id_to_token(**id).is_none()) {
            Some(id) => {
                let message = format!("token {id} is outside the vocabulary of {}", tokenizer.vocab_size());
                Err(ApiError::field("ids", message))
            }
            None => Ok(json!({"text": tokenizer.decode(&ids, false)})),
        });
    Ok(Json(text.await?))
}
