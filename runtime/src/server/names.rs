//! What clients may call the model: its own name, or `name:adapter` for the model with one of its adapters.

use super::wire::{ApiError, ApiResult, Fields};
use axum::http::StatusCode;
use std::sync::Arc;

/// The model's name, then those with an adapter, in the order of their numbers.
pub(super) struct Names(Vec<Arc<str>>);

impl Names {
    pub fn new(model: &str, adapters: &[String]) -> Self {
        let adapted = adapters.iter().map(|a| format!("{model}:{a}").into());
        Self(std::iter::once(model.into()).chain(adapted).collect())
    }

    /// The name of the model alone, or with an adapter.
    pub fn of(&self, adapter: Option<usize>) -> &Arc<str> {
        &self.0[adapter.map_or(0, |a| a + 1)]
    }

    /// All of them, the model's own first.
    pub fn all(&self) -> &[Arc<str>] {
        &self.0
    }

    /// The adapter that a name asks for; 404 for a name that is not here.
    pub fn find(&self, name: &str) -> ApiResult<Option<usize>> {
        if let Some(at) = self.0.iter().position(|n| **n == *name) {
            return Ok(at.checked_sub(1));
        }
        let message = format!("no model `{name}` here; this server has `{}`", self.0.join("`, `"));
        let error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message);
        Err(ApiError { param: Some("model".into()), ..error })
    }

    /// What a request's `model` asks for; the model alone where it says nothing.
    pub fn asked(&self, fields: &mut Fields) -> ApiResult<Option<usize>> {
        fields.string("model")?.map_or(Ok(None), |name| self.find(&name))
    }
}
