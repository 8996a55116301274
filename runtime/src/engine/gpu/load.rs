//! Tensors of a model, put on a device.

use super::device::Gpu;
use super::weights::{Linear, Weight, vector};
use crate::engine::cpu::Finder;
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use wgpu::Buffer;

/// Finds tensors and hands them over.
pub struct Loader<'a> {
    /// The file.
    pub model: &'a Model,
    /// Where they go.
    pub gpu: &'a Gpu,
}

impl Loader<'_> {
    /// The matrix `name`.
    ///
    /// # Errors
    /// `Input` when it is missing; as [`Weight::load`].
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let index = Finder(self.model)
            .index(name)
            .ok_or_else(|| Error::new(Kind::Input, format!("tensor `{name}`"), "is missing"))?;
        Weight::load(self.gpu, name, &self.model.matrix(index))
    }

    /// The matrix `{name}.weight` with `{name}.bias` if there is one.
    ///
    /// # Errors
    /// As [`Loader::weight`].
    pub fn linear(&self, name: &str) -> Result<Linear> {
        let bias = format!("{name}.bias");
        let numbers = Finder(self.model).maybe(&bias);
        let bias = numbers.map(|b| vector(self.gpu, &bias, &b)).transpose()?;
        Ok(Linear { weight: self.weight(&format!("{name}.weight"))?, bias })
    }

    /// A small tensor.
    ///
    /// # Errors
    /// `Input` when it is missing.
    pub fn vector(&self, name: &str) -> Result<Buffer> {
        vector(self.gpu, name, &Finder(self.model).vector(name)?)
    }

    /// A head that travels as an f32 array, as a matrix of `cols` columns.
    ///
    /// # Errors
    /// `Input` when there is no such array of f32.
    pub fn array(&self, key: &str, cols: usize) -> Result<Weight> {
        Weight::of_numbers(self.gpu, key, &Finder(self.model).array(key)?, cols)
    }
}
