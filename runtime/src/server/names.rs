//! What clients may call a model: its own name, or `name:adapter` for the model with one of its adapters.

use super::config::Served;
use super::wire::{ApiError, ApiResult, Fields};
use axum::http::StatusCode;
use std::sync::Arc;

/// What a name means: a model by its number, and the number of one of its adapters. Without a name it is the first model alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub model: usize,
    pub adapter: Option<usize>,
}

/// Each model's name, and behind it those with an adapter, in the order of their numbers.
pub(super) struct Names(Vec<(Arc<str>, Target)>);

impl Names {
    pub fn new(models: &[Served]) -> Self {
        let of = |(model, served): (usize, &Served)| {
            let own = (served.name.as_str().into(), Target { model, adapter: None });
            let adapted = served.adapters.iter().enumerate().map(|(i, adapter)| {
                let name = format!("{}:{adapter}", served.name);
                (name.into(), Target { model, adapter: Some(i) })
            });
            std::iter::once(own).chain(adapted).collect::<Vec<_>>()
        };
        Self(models.iter().enumerate().flat_map(of).collect())
    }

    /// The name of a model alone, or with an adapter.
    pub fn of(&self, target: Target) -> &Arc<str> {
        let (name, _) = self.0.iter().find(|(_, t)| *t == target).unwrap_or(&self.0[0]);
        name
    }

    /// The name of a model alone.
    pub fn model(&self, target: Target) -> &Arc<str> {
        self.of(Target { adapter: None, ..target })
    }

    /// All of them and what they mean, the first model's own first.
    pub fn all(&self) -> &[(Arc<str>, Target)] {
        &self.0
    }

    /// What a name asks for; 404 for a name that is not here.
    pub fn find(&self, name: &str) -> ApiResult<Target> {
        if let Some((_, target)) = self.0.iter().find(|(n, _)| **n == *name) {
            return Ok(*target);
        }
        let known: Vec<&str> = self.0.iter().map(|(name, _)| &**name).collect();
        let message = format!("no model `{name}` here; this server has `{}`", known.join("`, `"));
        let error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message);
        Err(ApiError { param: Some("model".into()), ..error })
    }

    /// What a request's `model` asks for; the first model alone where it says nothing.
    pub fn asked(&self, fields: &mut Fields) -> ApiResult<Target> {
        fields.string("model")?.map_or(Ok(Target::default()), |name| self.find(&name))
    }
}
