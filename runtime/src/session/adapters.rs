//! Which adapter a session computes with.

use super::Session;
use crate::error::{Error, Kind, Result};
use crate::model::adapter::Adapter;

impl Session {
    /// Takes an adapter beside the model and gives its number for [`Session::use_adapter`].
    /// - `scale`: 1 is as it was tuned, 0 is the model alone
    /// # Errors
    /// [`Kind::Input`] or [`Kind::Shape`] naming what does not fit the model; [`Kind::Input`] from an engine that applies none.
    pub fn add_adapter(&mut self, adapter: &Adapter, scale: f32) -> Result<usize> {
        let number = self.engine.add_adapter(adapter, scale)?;
        self.n_adapters = number + 1;
        Ok(number)
    }

    /// What follows is computed with the adapter of a number, or with the model alone, until told otherwise. A cache that
    /// another one filled is not gone on with. A generation that has begun beside others keeps the one that it began with.
    /// # Errors
    /// [`Kind::Input`] for a number that there is not.
    pub fn use_adapter(&mut self, adapter: Option<usize>) -> Result<()> {
        if let Some(number) = adapter.filter(|a| *a >= self.n_adapters) {
            let message = format!("there is no number {number}; the session has {}", self.n_adapters);
            return Err(Error::new(Kind::Input, "adapter", message));
        }
        self.slots.adapter = adapter;
        Ok(())
    }

    /// A sequence computes with this adapter from here on, and holds nothing that another one computed.
    pub(super) fn settle(&mut self, seq: usize, adapter: Option<usize>) -> Result<()> {
        self.engine.choose(seq, adapter)?;
        self.slots.settle(seq, adapter);
        Ok(())
    }
}
