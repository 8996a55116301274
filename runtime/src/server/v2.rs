//! The Open Inference Protocol, version 2, over REST, as KServe, Triton and their load balancers speak it: texts in as
//! `BYTES`, answers out as named tensors. Its errors are `{"error": "message"}`.

use super::ask::{Completion, Prompt, inputs_within};
use super::handlers::{Answered, Owner, answer_one, collect, generation, here, ids_of, prompts, read, serving, submit};
use super::queue::{Event, Work};
use super::reply;
use super::routes::App;
use super::schema::INFER;
use super::wire::{ApiError, ApiResult, Fields, wrong};
use crate::model::Task;
use crate::session::{Answer, Generation, LabelScore};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Value, json};

/// `POST /v2/models/{name}/infer`.
pub(super) struct Infer {
    pub id: Option<String>,
    /// Name and texts of each input.
    inputs: Vec<(String, Vec<String>)>,
    parameters: Value,
    outputs: Option<Vec<String>>,
}

impl Infer {
    pub fn read(body: &[u8]) -> ApiResult<Self> {
        let mut fields = Fields::known(body, INFER)?;
        let id = fields.string("id")?;
        let inputs = list(&mut fields, "inputs")?.ok_or_else(|| fields.missing("inputs"))?;
        let parameters = fields.take("parameters").unwrap_or_else(|| json!({}));
        if !parameters.is_object() {
            return Err(wrong("parameters", "an object", &parameters));
        }
        let outputs = list(&mut fields, "outputs")?.map(|all| {
            let name = |(i, value)| {
                let mut output = Fields::of(value, &format!("outputs[{i}]"))?;
                let name = output.required_string("name")?;
                output.finish()?;
                Ok(name)
            };
            all.into_iter().enumerate().map(name).collect::<ApiResult<Vec<_>>>()
        });
        fields.finish()?;
        let inputs = inputs.into_iter().enumerate().map(|(i, v)| read_input(v, &format!("inputs[{i}]")));
        Ok(Self { id, inputs: inputs.collect::<ApiResult<_>>()?, parameters, outputs: outputs.transpose()? })
    }

    /// The inputs of these names, and no others, all of one length.
    pub fn texts<const N: usize>(&mut self, names: [&str; N]) -> ApiResult<[Vec<String>; N]> {
        if let Some((other, _)) = self.inputs.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            let message = format!("no input `{other}`; this model takes {}", names.join(", "));
            return Err(ApiError::field("inputs", message));
        }
        let mut all = std::array::from_fn::<_, N, _>(|_| Vec::new());
        for (name, texts) in names.iter().zip(&mut all) {
            let at = self.inputs.iter().position(|(n, _)| n == name);
            let at = at.ok_or_else(|| ApiError::field("inputs", format!("`{name}` is missing")))?;
            *texts = self.inputs.swap_remove(at).1;
            inputs_within("inputs", texts.len())?;
        }
        if let Some((twice, _)) = self.inputs.first() {
            return Err(ApiError::field("inputs", format!("`{twice}` is given twice")));
        }
        match all.iter().find(|texts| texts.len() != all[0].len()) {
            Some(odd) => Err(ApiError::field("inputs", format!("{} texts beside {}", all[0].len(), odd.len()))),
            None => Ok(all),
        }
    }

    /// How to generate; the fields of a completion but those that make it several answers or a stream.
    pub fn generating(&self) -> ApiResult<Completion> {
        let fields = Fields::of(self.parameters.clone(), "parameters")?;
        let asked = Completion::rest(fields, Prompt::Text(String::new()), None, None)?;
        match (asked.stream, asked.n) {
            (false, 1) => Ok(asked),
            (true, _) => Err(ApiError::unsupported("parameters.stream")),
            _ => Err(ApiError::unsupported("parameters.n")),
        }
    }

    /// Refuses all parameters.
    pub fn no_parameters(&self) -> ApiResult<()> {
        Fields::of(self.parameters.clone(), "parameters")?.finish()
    }

    /// The answer, with the outputs that were asked for.
    pub fn reply(self, model: &str, outputs: Vec<Value>) -> ApiResult<Value> {
        let outputs = match &self.outputs {
            None => outputs,
            Some(names) => names
                .iter()
                .map(|name| {
                    let found = outputs.iter().find(|o| o["name"] == **name).cloned();
                    found.ok_or_else(|| ApiError::field("outputs", format!("no output `{name}`")))
                })
                .collect::<ApiResult<_>>()?,
        };
        let mut out = json!({"model_name": model, "outputs": outputs});
        if let Some(id) = self.id {
            out["id"] = id.into();
        }
        Ok(out)
    }
}

fn list(fields: &mut Fields, name: &str) -> ApiResult<Option<Vec<Value>>> {
    match fields.take(name) {
        None => Ok(None),
        Some(Value::Array(all)) => Ok(Some(all)),
        Some(other) => Err(wrong(name, "an array", &other)),
    }
}

fn read_input(value: Value, at: &str) -> ApiResult<(String, Vec<String>)> {
    let mut input = Fields::of(value, at)?;
    let name = input.required_string("name")?;
    let datatype = input.required_string("datatype")?;
    if datatype != "BYTES" {
        return Err(ApiError::field(&input.name("datatype"), format!("`{datatype}` is not supported; only BYTES is")));
    }
    let shape = list(&mut input, "shape")?.ok_or_else(|| input.missing("shape"))?;
    let elements = shape.iter().map(|n| n.as_u64()).try_fold(1u64, |product, n| product.checked_mul(n?));
    let data = list(&mut input, "data")?.ok_or_else(|| input.missing("data"))?;
    let texts = data.iter().enumerate().map(|(i, v)| match v {
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong(&format!("{}[{i}]", input.name("data")), "a string", other)),
    });
    let texts = texts.collect::<ApiResult<Vec<_>>>()?;
    if elements != Some(texts.len() as u64) {
        let message = format!("{} does not hold {} texts", Value::Array(shape), texts.len());
        return Err(ApiError::field(&input.name("shape"), message));
    }
    input.finish()?;
    Ok((name, texts))
}

fn tensor(name: &str, datatype: &str, shape: &[usize], data: Vec<Value>) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape, "data": data})
}

/// Labels and scores of each text, likeliest first.
fn classified(all: &[Vec<LabelScore>]) -> Vec<Value> {
    let (n, labels) = (all.len(), all.first().map_or(0, Vec::len));
    let flat = || all.iter().flatten();
    vec![
        tensor("label", "BYTES", &[n], all.iter().map(|s| json!(s.first().map(|s| &s.label))).collect()),
        tensor("labels", "BYTES", &[n, labels], flat().map(|s| json!(s.label)).collect()),
        tensor("scores", "FP32", &[n, labels], flat().map(|s| json!(s.score)).collect()),
    ]
}

/// Vectors.
fn embedded(all: &[Vec<f32>]) -> Vec<Value> {
    let shape = [all.len(), all.first().map_or(0, Vec::len)];
    vec![tensor("embedding", "FP32", &shape, all.iter().flatten().map(|x| json!(x)).collect())]
}

/// Answers; where they stand is -1 for a model that writes them.
fn answered(all: &[Answer]) -> Vec<Value> {
    let n = [all.len()];
    let place = |at: Option<usize>| at.map_or(json!(-1), Value::from);
    vec![
        tensor("answer", "BYTES", &n, all.iter().map(|a| json!(a.answer)).collect()),
        tensor("start", "INT64", &n, all.iter().map(|a| place(a.start)).collect()),
        tensor("end", "INT64", &n, all.iter().map(|a| place(a.end)).collect()),
        tensor("score", "FP32", &n, all.iter().map(|a| json!(a.score)).collect()),
    ]
}

/// Texts, and why each ended.
fn generated(all: &[Generation]) -> Vec<Value> {
    let n = [all.len()];
    vec![
        tensor("text", "BYTES", &n, all.iter().map(|g| json!(g.text)).collect()),
        tensor("finish_reason", "BYTES", &n, all.iter().map(|g| json!(g.finish_reason.as_str())).collect()),
    ]
}

/// `GET /v2`.
fn server() -> Value {
    json!({"name": "edgeft", "version": env!("CARGO_PKG_VERSION"), "extensions": []})
}

/// `GET /v2/models/{name}`.
fn model(name: &str, task: Task) -> Value {
    let one = |name: &str, datatype: &str, shape: &[i64]| json!({"name": name, "datatype": datatype, "shape": shape});
    let text = one("text", "BYTES", &[-1]);
    let (inputs, outputs) = match task {
        Task::Classify => (
            vec![text],
            vec![one("label", "BYTES", &[-1]), one("labels", "BYTES", &[-1, -1]), one("scores", "FP32", &[-1, -1])],
        ),
        Task::Embed => (vec![text], vec![one("embedding", "FP32", &[-1, -1])]),
        Task::Generate => (vec![text.clone()], vec![text, one("finish_reason", "BYTES", &[-1])]),
        Task::Answer => (
            vec![one("question", "BYTES", &[-1]), one("context", "BYTES", &[-1])],
            vec![
                one("answer", "BYTES", &[-1]),
                one("start", "INT64", &[-1]),
                one("end", "INT64", &[-1]),
                one("score", "FP32", &[-1]),
            ],
        ),
    };
    json!({"name": name, "versions": [], "platform": "edgeft", "inputs": inputs, "outputs": outputs})
}

pub(super) async fn server_here() -> Json<Value> {
    Json(server())
}

pub(super) async fn live() -> Json<Value> {
    Json(json!({"live": true}))
}

pub(super) async fn ready(State(app): State<App>) -> Answered<Json<Value>> {
    here(&app).map(|()| Json(json!({"ready": true})))
}

pub(super) async fn model_here(State(app): State<App>, Path(name): Path<String>) -> Answered<Json<Value>> {
    let target = app.names.find(&name)?;
    Ok(Json(model(&name, serving(&app, target)?.task)))
}

pub(super) async fn model_ready(State(app): State<App>, Path(name): Path<String>) -> Answered<Json<Value>> {
    let target = app.names.find(&name)?;
    serving(&app, target).map(|_| Json(json!({"name": name, "ready": true})))
}

pub(super) async fn infer(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    Path(name): Path<String>,
    body: Body,
) -> Answered<Json<Value>> {
    let target = app.names.find(&name)?;
    let owner = Owner(owner.0, target);
    let model = serving(&app, target)?;
    let body = read(&app, body).await?;
    let mut asked = Infer::read(&body)?;
    let outputs = match model.task {
        Task::Classify => {
            asked.no_parameters()?;
            let [texts] = asked.texts(["text"])?;
            let inputs = ids_of(&app, target, "text", prompts(texts)).await?;
            match submit(&app, owner, Work::Classify { inputs })?.recv().await {
                Some(Event::Classified(all)) => classified(&all),
                Some(Event::Failed(e)) => return Err(e),
                _ => return Err(ApiError::broken_off()),
            }
        }
        Task::Embed => {
            asked.no_parameters()?;
            let [texts] = asked.texts(["text"])?;
            let inputs = ids_of(&app, target, "text", prompts(texts)).await?;
            match submit(&app, owner, Work::Embed { inputs })?.recv().await {
                Some(Event::Embedded(all)) => embedded(&all),
                Some(Event::Failed(e)) => return Err(e),
                _ => return Err(ApiError::broken_off()),
            }
        }
        Task::Answer => {
            asked.no_parameters()?;
            let [questions, contexts] = asked.texts(["question", "context"])?;
            let mut all = Vec::with_capacity(questions.len());
            for (question, context) in questions.into_iter().zip(contexts) {
                all.push(answer_one(&app, owner, question, context).await?);
            }
            answered(&all)
        }
        Task::Generate => {
            let how = asked.generating()?;
            let [texts] = asked.texts(["text"])?;
            let mut all = Vec::with_capacity(texts.len());
            // One after another, so that a long list leaves room in the queue for others.
            for prompt in prompts(texts) {
                let work = generation(&app, Completion { prompt, target, ..how.clone() }).await?;
                let found = collect(submit(&app, owner, work)?, 1).await?;
                for (generation, _) in found {
                    reply::finish_reason(&generation)?;
                    all.push(generation);
                }
            }
            generated(&all)
        }
    };
    Ok(Json(asked.reply(&name, outputs)?))
}
