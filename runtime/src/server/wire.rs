//! What goes over the wire besides answers: errors in OpenAI's shape, and request fields read strictly.
//!
//! A field that is unknown, or of the wrong type, is an error that names it: a parameter that is ignored in silence gives
//! answers that nobody asked for. `null` is the same as absent, since clients send it for what they leave open.

use super::schema::Field;
use crate::error::{Error, Kind};
use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// An answer that is an error: a status, and `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    pub status: StatusCode,
    pub code: Option<&'static str>,
    pub param: Option<String>,
    pub message: String,
}

impl ApiError {
    pub fn new(status: StatusCode, code: impl Into<Option<&'static str>>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), param: None, message: message.into() }
    }

    /// 400 for one field.
    pub fn field(param: &str, message: impl std::fmt::Display) -> Self {
        let message = format!("`{param}`: {message}");
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// 400 for a field that is not known here.
    pub fn unsupported(param: &str) -> Self {
        let message = format!("`{param}` is not supported; leave it out");
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message) }
    }

    /// 400 for a prompt that does not fit, with both numbers.
    pub fn too_long(param: &str, tokens: usize, capacity: usize) -> Self {
        let message = format!(
            "`{param}` is {tokens} tokens and the answer needs room too, but the context holds {capacity}; \
             shorten it, or start the server with a larger --ctx"
        );
        let param = Some(param.to_owned());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message) }
    }

    /// `{"error": ...}`.
    pub fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        response.extensions_mut().insert(self.clone()); // for the log, and for protocols that spell errors otherwise
        let mut put = |name: HeaderName, value: &'static str| {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        };
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => put(header::RETRY_AFTER, "1"),
            StatusCode::UNAUTHORIZED => put(header::WWW_AUTHENTICATE, "Bearer"),
            // What is left of such a body is not read, so the connection cannot be used again.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => put(header::CONNECTION, "close"),
            _ => {}
        }
        response
    }
}

impl From<Error> for ApiError {
    fn from(e: Error) -> Self {
        let (status, code) = match e.kind() {
            Kind::Limit => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
            Kind::Input => (StatusCode::BAD_REQUEST, "invalid_value"),
            Kind::Missing => (StatusCode::BAD_REQUEST, "unsupported_by_model"),
            Kind::Io | Kind::Shape => (StatusCode::INTERNAL_SERVER_ERROR, "engine_failed"),
        };
        Self::new(status, code, e.to_string())
    }
}

/// Shorthand.
pub(super) type ApiResult<T> = std::result::Result<T, ApiError>;

/// The fields of one JSON object, taken out one by one; [`Fields::finish`] refuses what is left.
pub(super) struct Fields {
    map: Map<String, Value>,
    /// Stands before names in messages: `messages[0].`.
    within: String,
}

impl Fields {
    /// A request's body, of these fields; the same table is what `/openapi.json` says.
    pub fn known(body: &[u8], table: &[Field]) -> ApiResult<Self> {
        let fields = Self::parse(body)?;
        match fields.map.iter().find(|(name, v)| !v.is_null() && !table.iter().any(|f| f.name == **name)) {
            Some((name, _)) => Err(ApiError::unsupported(name)),
            None => Ok(fields),
        }
    }

    /// A request's body.
    pub fn parse(body: &[u8]) -> ApiResult<Self> {
        // serde_json refuses more than 128 levels, so a hostile body cannot exhaust the stack.
        let value: Value = serde_json::from_slice(body).map_err(|e| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not valid JSON: {e}"))
        })?;
        match value {
            Value::Object(map) => Ok(Self { map, within: String::new() }),
            other => {
                let message = format!("the body is {}; it must be a JSON object", type_of(&other));
                Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message))
            }
        }
    }

    /// An object inside another.
    pub fn of(value: Value, name: &str) -> ApiResult<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, within: format!("{name}.") }),
            other => Err(wrong(name, "an object", &other)),
        }
    }

    /// A field as it is.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    /// A field's full name.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.within)
    }

    fn typed<T>(&mut self, name: &str, want: &str, read: impl Fn(&Value) -> Option<T>) -> ApiResult<Option<T>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| wrong(&self.name(name), want, &value))
    }

    pub fn string(&mut self, name: &str) -> ApiResult<Option<String>> {
        self.typed(name, "a string", |v| v.as_str().map(str::to_owned))
    }

    pub fn required_string(&mut self, name: &str) -> ApiResult<String> {
        self.string(name)?.ok_or_else(|| self.missing(name))
    }

    pub fn bool(&mut self, name: &str) -> ApiResult<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn number(&mut self, name: &str) -> ApiResult<Option<f32>> {
        self.typed(name, "a number", |v| v.as_f64().map(|x| x as f32))
    }

    /// An integer from `least` on.
    pub fn count(&mut self, name: &str, least: usize) -> ApiResult<Option<usize>> {
        let want = format!("an integer from {least} on");
        self.typed(name, &want, |v| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n >= least))
    }

    /// Any integer of 64 bits; a negative one counts by its bits.
    pub fn seed(&mut self, name: &str) -> ApiResult<Option<u64>> {
        self.typed(name, "an integer", |v| v.as_u64().or_else(|| v.as_i64().map(i64::cast_unsigned)))
    }

    pub fn missing(&self, name: &str) -> ApiError {
        let name = self.name(name);
        let message = format!("`{name}` is missing");
        ApiError { param: Some(name), ..ApiError::new(StatusCode::BAD_REQUEST, "missing_parameter", message) }
    }

    /// Refuses the first field that nobody took.
    pub fn finish(self) -> ApiResult<()> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(ApiError::unsupported(&self.name(name))),
            None => Ok(()),
        }
    }
}

/// 400 for a value of the wrong type.
pub(super) fn wrong(name: &str, want: &str, found: &Value) -> ApiError {
    let shown = match found {
        Value::Number(n) => format!("{n}"),
        other => type_of(other).to_owned(),
    };
    let mut error = ApiError::field(name, format!("expected {want}, found {shown}"));
    error.code = Some("invalid_type");
    error
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_wrong_type_is_named_with_what_was_found() {
        let mut fields = Fields::parse(br#"{"top_k": -1, "stream": "yes", "temperature": null}"#).unwrap();
        let e = fields.count("top_k", 0).unwrap_err();
        assert_eq!(e.message, "`top_k`: expected an integer from 0 on, found -1");
        assert_eq!((e.param.as_deref(), e.code), (Some("top_k"), Some("invalid_type")));
        assert_eq!(fields.bool("stream").unwrap_err().message, "`stream`: expected true or false, found a string");
        assert_eq!(fields.number("temperature").unwrap(), None);
        fields.finish().unwrap();
    }

    #[test]
    fn what_nobody_took_is_refused_by_its_full_name() {
        let fields = Fields::of(json!({"audio": 1, "name": null}), "messages[2]").unwrap();
        let e = fields.finish().unwrap_err();
        assert_eq!((e.param.as_deref(), e.code), (Some("messages[2].audio"), Some("unsupported_parameter")));
    }

    #[test]
    fn a_body_nested_too_deeply_is_an_error_and_no_crash() {
        let deep = "[".repeat(100_000);
        assert_eq!(Fields::parse(deep.as_bytes()).err().and_then(|e| e.code), Some("invalid_json"));
        assert_eq!(
            Fields::parse(b"[1]").err().map(|e| e.message).unwrap(),
            "the body is an array; it must be a JSON object"
        );
    }

    #[test]
    fn the_type_of_an_error_follows_from_its_status() {
        let kind = |status| ApiError::new(status, None, "x").body()["error"]["type"].as_str().unwrap().to_owned();
        assert_eq!(kind(StatusCode::TOO_MANY_REQUESTS), "rate_limit_error");
        assert_eq!(kind(StatusCode::UNAUTHORIZED), "authentication_error");
        assert_eq!(kind(StatusCode::SERVICE_UNAVAILABLE), "server_error");
        assert_eq!(kind(StatusCode::NOT_FOUND), "invalid_request_error");
    }
}
