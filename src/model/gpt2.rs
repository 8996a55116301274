//! GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners"): learned positions, pre-norm blocks
//! with biases everywhere, q, k and v in one matrix, GELU by tanh. Its matrices lie as (in, out) in files.

use super::layers::attention::Attention;
use super::layers::feed_forward::FeedForward;
use super::layers::projections::Projections;
use super::layers::self_attention::SelfAttention;
use super::llama::PreNorm;
use super::trunk::{Embeddings, Parts, Stack};

/// Reads the trunk from a checkpoint, whose names may lack the `transformer.` in front.
pub fn load(parts: &Parts) -> anyhow::Result<Stack<PreNorm>> {
    let config = parts.config;
    let (c, f) = (config.hidden_size, config.intermediate_size);
    let blocks = (0..config.num_hidden_layers).map(|i| {
        let at = |part: &str| format!("transformer.h.{i}.{part}");
        Ok(PreNorm {
            input_norm: parts.layer_norm(at("ln_1"))?,
            attention: SelfAttention {
                qkv: Projections::Joined(parts.linear(at("attn.c_attn"), 3 * c, c, true)?, vec![c; 3]),
                qk_norms: None,
                attention: Attention::of(config, i),
                out: parts.linear(at("attn.c_proj"), c, c, true)?,
            },
            post_attention_norm: parts.layer_norm(at("ln_2"))?,
            mlp: FeedForward {
                up: Projections::Apart(vec![parts.linear(at("mlp.c_fc"), f, c, true)?]),
                act: config.activation,
                down: parts.linear(at("mlp.c_proj"), c, f, true)?,
            },
        })
    });
    Ok(Stack {
        blocks: blocks.collect::<anyhow::Result<_>>()?,
        embeddings: Embeddings {
            words: parts.embedding("transformer.wte".into(), config.vocab_size, None)?,
            scale: 1.0,
            positions: Some(parts.embedding("transformer.wpe".into(), config.max_position_embeddings, None)?),
            types: None,
            norm: None,
        },
        norm: Some(parts.layer_norm("transformer.ln_f".into())?),
        ropes: Vec::new(),
        lowest: 0,
        whole: false,
    })
}
