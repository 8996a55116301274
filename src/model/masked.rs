//! The head that BERT, RoBERTa and DistilBERT learn their language with: it says which token stands behind a mask. Read for
//! audits alone; it is not trained here.

use super::Packed;
use super::config::{Config, Family};
use super::layers::Pass;
use super::layers::act::Act;
use super::layers::linear::Linear;
use super::layers::norm::Norm;
use super::load::Checkpoint;
use super::network::{Network, Task};
use super::trunk::Parts;
use candle_core::{Device, Result, Tensor};

/// An encoder with its masked-language head: decoder(norm(act(dense h))), the decoder tied to the word embedding.
pub struct Masked {
    network: Network,
    dense: Linear,
    act: Act,
    norm: Norm,
    decoder: Linear,
}

/// Names of dense layer, norm, decoder and the decoder's bias.
fn names(family: Family) -> Option<[&'static str; 4]> {
    Some(match family {
        Family::Bert => [
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder.weight",
            "cls.predictions.bias",
        ],
        Family::Roberta => ["lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", "lm_head.bias"],
        Family::DistilBert => ["vocab_transform", "vocab_layer_norm", "vocab_projector.weight", "vocab_projector.bias"],
        _ => return None,
    })
}

impl Masked {
    /// Whether a checkpoint holds such a head.
    pub fn is_in(config: &Config, weights: &Checkpoint) -> bool {
        names(config.family).is_some_and(|[dense, ..]| weights.contains(&format!("{dense}.weight")))
    }

    /// Reads trunk and head.
    ///
    /// # Errors
    /// A checkpoint without the head, a tensor that is missing or has another shape, by name.
    pub fn load(config: &Config, weights: &Checkpoint, device: &Device) -> anyhow::Result<Self> {
        let Some([dense, norm, decoder, bias]) = names(config.family).filter(|_| Self::is_in(config, weights)) else {
            crate::bad_input!(
                "{}: no masked-language head (such as `{}.weight`) in the checkpoint",
                config.family.model_type(),
                names(config.family).map_or("lm_head.dense", |n| n[0])
            );
        };
        let (c, v) = (config.hidden_size, config.vocab_size);
        let parts = Parts { config, weights, device };
        let words = format!("{}embeddings.word_embeddings.weight", config.family.prefix());
        let table = if weights.contains(decoder) { decoder } else { &words };
        let act = if config.family == Family::Roberta { Act::Gelu } else { config.activation };
        Ok(Self {
            dense: parts.linear(dense.into(), c, c, true)?,
            act,
            norm: parts.layer_norm(norm.into())?,
            decoder: Linear::new(decoder.into(), parts.matrix(table, [v, c])?, Some(parts.tensor(bias, &[v])?)),
            // The trunk comes with a head of its own, which is not asked.
            network: Network::load(config, weights, Task::Span, 0, device)?,
        })
    }

    /// Rows of logits, (N, V), of packed sequences.
    ///
    /// # Errors
    /// What candle reports.
    pub fn logits(&self, batch: &Packed) -> Result<Tensor> {
        let h = self.network.hidden(batch)?;
        let h = self.norm.forward(&self.act.forward(&self.dense.forward(&h, Pass::EVAL)?)?)?;
        self.decoder.forward(&h, Pass::EVAL)
    }
}
