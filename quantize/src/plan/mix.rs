//! llama.cpp's named mixes, and its rule for each tensor (`llama_tensor_get_type_impl` in `llama-quant.cpp`).

use crate::{
    error::Error,
    source::{Arch, ModelSpec},
};
use edgeft_runtime::format::GgmlType::{self, *};
use std::{fmt, str::FromStr};

/// A recipe for a whole file. The letters after K types say how much is spent on the sensitive tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Mix {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// Name, type of most tensors, `general.file_type`.
const TABLE: [(Mix, &str, GgmlType, u32); 19] = [
    (Mix::F32, "f32", F32, 0),
    (Mix::F16, "f16", F16, 1),
    (Mix::BF16, "bf16", BF16, 32),
    (Mix::Q8_0, "q8_0", Q8_0, 7),
    (Mix::Q4_0, "q4_0", Q4_0, 2),
    (Mix::Q4_1, "q4_1", Q4_1, 3),
    (Mix::Q5_0, "q5_0", Q5_0, 8),
    (Mix::Q5_1, "q5_1", Q5_1, 9),
    (Mix::Q2_K, "q2_k", Q2_K, 10),
    (Mix::Q3_K_S, "q3_k_s", Q3_K, 11),
    (Mix::Q3_K_M, "q3_k_m", Q3_K, 12),
    (Mix::Q3_K_L, "q3_k_l", Q3_K, 13),
    (Mix::Q4_K_S, "q4_k_s", Q4_K, 14),
    (Mix::Q4_K_M, "q4_k_m", Q4_K, 15),
    (Mix::Q5_K_S, "q5_k_s", Q5_K, 16),
    (Mix::Q5_K_M, "q5_k_m", Q5_K, 17),
    (Mix::Q6_K, "q6_k", Q6_K, 18),
    (Mix::IQ4_NL, "iq4_nl", IQ4_NL, 25),
    (Mix::IQ4_XS, "iq4_xs", IQ4_XS, 30),
];

impl Mix {
    /// Every mix, in the order of the contract.
    pub fn all() -> impl Iterator<Item = Mix> {
        TABLE.iter().map(|row| row.0)
    }

    /// Every name, for messages.
    pub fn names() -> String {
        TABLE.map(|row| row.1).join(" ")
    }

    fn row(self) -> &'static (Mix, &'static str, GgmlType, u32) {
        TABLE.iter().find(|row| row.0 == self).expect("the table has every mix")
    }

    /// llama.cpp's name, lower case.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Type of every tensor that no rule lifts.
    pub fn base(self) -> GgmlType {
        self.row().2
    }

    /// The mix of which a type is the base, the plainest of them; q8_0 for one that no mix has.
    pub fn of_base(ty: GgmlType) -> Self {
        TABLE.iter().find(|row| row.2 == ty).map_or(Self::Q8_0, |row| row.0)
    }

    /// `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.row().3
    }

    /// Whether any weight is stored in blocks.
    pub fn is_quantized(self) -> bool {
        self.base().block_len() > 1
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mix {
    type Err = Error;
    /// # Errors
    /// [`Error::UnknownMix`], which lists the names.
    fn from_str(name: &str) -> Result<Self, Error> {
        let row = TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name));
        row.map(|row| row.0).ok_or_else(|| Error::UnknownMix(name.to_string()))
    }
}

/// Why a tensor gets its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// One dimension, or one row: too small to matter, too sensitive to round.
    Vector,
    /// Looked up, not multiplied: position and token type embeddings, which llama.cpp keeps in f32.
    Lookup,
    /// Computed, not stored in the source.
    Computed,
    /// The mix's base type.
    Base,
    /// The output matrix: every token's logit goes through it.
    Output,
    /// The token embedding of a model without an output matrix: it is the output matrix.
    Tied,
    /// attn_v, which the mix lifts in this layer.
    AttentionValue,
    /// attn_qkv, which the mix lifts: attn_v is a part of it.
    AttentionJoined,
    /// attn_output, which the mix lifts.
    AttentionOutput,
    /// ffn_down, which the mix lifts in this layer.
    FeedForwardDown,
    /// Chosen for this tensor, by how much the answers change when it is rounded.
    Budget,
    /// One type up, since the mix's own would round away what tuning changed.
    Delta,
    /// The user's pattern.
    Override(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vector => "a single row stays f32",
            Self::Lookup => "a small lookup table stays f32",
            Self::Computed => "computed from the config",
            Self::Base => "the mix's base type",
            Self::Output => "the output matrix",
            Self::Tied => "the token embedding is also the output matrix",
            Self::AttentionValue => "attn_v, lifted in this layer",
            Self::AttentionJoined => "attn_qkv, lifted",
            Self::AttentionOutput => "attn_output, lifted",
            Self::FeedForwardDown => "ffn_down, lifted in this layer",
            Self::Budget => "chosen by measured sensitivity",
            Self::Delta => "one type up, to keep what tuning changed",
            Self::Override(pattern) => return write!(f, "override `{pattern}`"),
        })
    }
}

/// Layers that get more bits: the first and the last eighth, and every third between.
pub(super) fn more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// The type that `mix` gives a matrix of this GGUF name, before the width of its rows is looked at.
/// `importance`: whether columns have one, which makes some lifts needless and others worth it.
pub(super) fn wanted(mix: Mix, spec: &ModelSpec, name: &str, tied: bool, importance: bool) -> (GgmlType, Reason) {
    let base = mix.base();
    if !mix.is_quantized() {
        return (base, Reason::Base);
    }
    if name == "output.weight" || (name == "token_embd.weight" && tied) {
        let ty = if base == Q8_0 { Q8_0 } else { Q6_K };
        return (ty, if tied { Reason::Tied } else { Reason::Output });
    }
    let Some((layer, part)) = block(name) else { return (base, Reason::Base) };
    let n = spec.n_layers;
    let lifted = match part {
        "attn_v.weight" => attention_value(mix, spec, layer).map(|t| (t, Reason::AttentionValue)),
        "attn_qkv.weight" => {
            let ty = match mix {
                Mix::Q3_K_M | Mix::Q3_K_L => Some(Q4_K),
                Mix::Q4_K_M => Some(Q5_K),
                Mix::Q5_K_M => Some(Q6_K),
                _ => None,
            };
            ty.map(|t| (t, Reason::AttentionJoined))
        }
        "ffn_down.weight" => {
            let ty = match mix {
                Mix::Q2_K => Some(Q3_K),
                Mix::Q3_K_M => Some(if layer < n / 16 { Q5_K } else { Q4_K }),
                Mix::Q3_K_L => Some(Q5_K),
                Mix::Q4_K_S if layer < n / 8 => Some(Q5_K),
                Mix::IQ4_NL | Mix::IQ4_XS if layer < n / 8 && !importance => Some(Q5_K),
                Mix::Q4_0 if layer < n / 8 && importance => Some(Q4_1),
                Mix::Q5_0 if layer < n / 8 && importance => Some(Q5_1),
                Mix::Q4_K_M | Mix::Q5_K_M if more_bits(layer, n) => Some(Q6_K),
                _ => None,
            };
            ty.map(|t| (t, Reason::FeedForwardDown))
        }
        "attn_output.weight" => {
            let ty = match mix {
                Mix::Q2_K => Some(Q3_K),
                Mix::Q3_K_M => Some(Q4_K),
                Mix::Q3_K_L => Some(Q5_K),
                _ => None,
            };
            ty.map(|t| (t, Reason::AttentionOutput))
        }
        _ => None,
    };
    lifted.unwrap_or((base, Reason::Base))
}

fn attention_value(mix: Mix, spec: &ModelSpec, layer: usize) -> Option<GgmlType> {
    let ty = match mix {
        Mix::Q2_K => Some(if spec.n_heads / spec.n_kv_heads >= 4 { Q4_K } else { Q3_K }),
        Mix::Q3_K_M => Some(if layer < 2 { Q5_K } else { Q4_K }),
        Mix::Q3_K_L => Some(Q5_K),
        Mix::Q4_K_S if layer < 4 => Some(Q5_K),
        Mix::IQ4_NL | Mix::IQ4_XS if spec.n_heads / spec.n_kv_heads >= 4 => Some(Q5_K),
        Mix::Q4_K_M | Mix::Q5_K_M if more_bits(layer, spec.n_layers) => Some(Q6_K),
        _ => None,
    };
    // 80 layers with shared key heads is llama.cpp's "70B": its attn_v is an eighth of attn_q, so more bits are cheap.
    let is_70b = spec.arch == Arch::Llama && spec.n_layers == 80 && spec.n_heads != spec.n_kv_heads;
    match ty.unwrap_or(mix.base()) {
        Q3_K | Q4_K if is_70b => Some(Q5_K),
        _ => ty,
    }
}

/// Layer and rest of a name such as `blk.3.attn_v.weight`.
pub(super) fn block(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// The type that stands in for `ty` when rows are not whole blocks of it: 256 -> 32 elements, and f16 when even 32 do not fit.
pub(super) fn fallback(ty: GgmlType, cols: usize) -> GgmlType {
    let fits = |t: GgmlType| cols.is_multiple_of(t.block_len());
    let smaller = match ty {
        _ if fits(ty) => return ty,
        Q2_K | Q3_K => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        IQ4_XS => IQ4_NL,
        other => other,
    };
    if fits(smaller) { smaller } else { F16 }
}
