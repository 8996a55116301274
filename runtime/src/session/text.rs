//! What a session does with ids, for those who have text.

use std::ops::ControlFlow;

use super::{GenerateOptions, Generation, LabelScore, Piece, Session};
use crate::error::Result;

impl Session {
    /// Continues a text; in all else as [`Session::generate`].
    /// # Errors
    /// As [`Session::generate`]; [`crate::Kind::Missing`] without a tokenizer.
    pub fn generate_text(
        &mut self,
        prompt: &str,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let ids = self.tokenizer()?.encode(prompt, true)?;
        self.generate(&ids, options, on_piece)
    }

    /// Labels of a text, likeliest first.
    /// # Errors
    /// As [`Session::classify`]; [`crate::Kind::Missing`] without a tokenizer.
    pub fn classify_text(&mut self, text: &str) -> Result<Vec<LabelScore>> {
        let ids = self.tokenizer()?.encode(text, true)?;
        self.classify(&ids)
    }

    /// The vector of a text, of length 1.
    /// # Errors
    /// As [`Session::embed`]; [`crate::Kind::Missing`] without a tokenizer.
    pub fn embed_text(&mut self, text: &str) -> Result<Vec<f32>> {
        let ids = self.tokenizer()?.encode(text, true)?;
        self.embed(&ids)
    }
}
