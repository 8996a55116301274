//! Where one generation stands in its grammar: which ids may come next, and what becomes of the one that came.

use llguidance::Matcher;

use super::{Grammar, one_line};
use crate::error::{Error, Kind, Result};

/// The logit of what may not come.
const NEVER: f32 = f32::NEG_INFINITY;

/// Where one generation stands in its grammar.
pub(crate) struct Held {
    pub(super) matcher: Matcher,
    /// What may end the text once it is whole.
    pub(super) stop_ids: Vec<u32>,
    pub(super) grammar: Grammar,
}

impl Held {
    /// Leaves of a row of logits `(V)` only what may come next: the rest becomes minus infinity, which no sampler draws.
    /// # Errors
    /// [`Kind::Input`] when the grammar is too ambiguous to say within its bounds.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let allowed = self.matcher.compute_mask().map_err(|e| self.lost(&e.to_string()))?;
        let whole = self.matcher.is_accepting().map_err(|e| self.lost(&e.to_string()))?;
        let ends: Vec<(usize, f32)> = match whole {
            true => self.stop_ids.iter().filter_map(|id| Some((*id as usize, *logits.get(*id as usize)?))).collect(),
            false => Vec::new(),
        };
        for (word, logits) in logits.chunks_mut(32).enumerate() {
            let bits = allowed.as_slice().get(word).copied().unwrap_or(0);
            logits.iter_mut().enumerate().filter(|(bit, _)| bits >> bit & 1 == 0).for_each(|(_, x)| *x = NEVER);
        }
        // The library knows the vocabulary's ends; this generation may have its own.
        for id in &*self.grammar.ends {
            if let Some(x) = logits.get_mut(*id as usize) {
                *x = NEVER;
            }
        }
        ends.into_iter().for_each(|(id, x)| logits[id] = x);
        Ok(())
    }

    /// Goes on by an id; whether the text is whole and nothing can follow.
    pub fn take(&mut self, id: u32) -> Result<bool> {
        self.matcher.consume_token(id).map_err(|e| self.lost(&e.to_string()))?;
        Ok(self.matcher.is_stopped())
    }

    fn lost(&self, why: &str) -> Error {
        let message = format!("the next tokens cannot be told within its bounds ({}); make it simpler", one_line(why));
        Error::new(Kind::Input, self.grammar.place(), message)
    }
}
