//! A GGUF file as a base to tune: tensors under the names and in the row order of a Hugging Face checkpoint, weights left in
//! their blocks, mapped. What is trained on is then bit by bit what the file ships.
//!
//! llama.cpp's Llama files hold the rows of q and k in another order (`convert_hf_to_gguf.py`): rotary pairs lie next to each
//! other there, half a head apart here. Blocks never cross rows, so the order is undone row by row, without touching one.
//!
//! - [`config`]: metadata → `config.json`

pub mod config;

use super::layers::weight::Rows;
use crate::error::BadInput;
use edgeft_runtime::format::GgmlType;
use edgeft_runtime::format::block;
use edgeft_runtime::format::gguf::{Array, Gguf};
use edgeft_runtime::format::map::Mapped;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A mapped file and where its tensors are.
pub struct GgufBase {
    path: PathBuf,
    gguf: Gguf,
    map: Arc<Mapped>,
    /// By Hugging Face's names.
    place: BTreeMap<String, Held>,
}

/// What holds a tensor.
enum Held {
    /// A tensor of the file: its index, and the heads whose rows are in llama.cpp's order.
    Tensor { index: usize, heads: Option<usize> },
    /// An f32 array of the metadata, with its shape.
    Key { key: &'static str, shape: Vec<usize> },
}

impl GgufBase {
    /// Maps a file and finds its tensors.
    ///
    /// # Errors
    /// [`BadInput`] naming the file, and the tensor that no module takes.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let bad = |what: String| BadInput(format!("{}: {what}", path.display()));
        let map = Mapped::open(path).map_err(|e| bad(e.to_string()))?;
        let gguf = Gguf::parse(&map).map_err(|e| bad(e.to_string()))?;
        config::check(&gguf).map_err(bad)?;
        let mut place = BTreeMap::new();
        for (index, tensor) in gguf.tensors.iter().enumerate() {
            // Divisors of rotary frequencies: the config speaks of them.
            if tensor.name == "rope_freqs.weight" {
                continue;
            }
            let Some((name, heads)) = hugging_face(&gguf, &tensor.name).map_err(bad)? else {
                return Err(bad(format!(
                    "tensor `{}` has no place in the networks that can be tuned; tune the Hugging Face folder",
                    tensor.name
                ))
                .into());
            };
            place.insert(name, Held::Tensor { index, heads });
        }
        for (key, name) in [
            ("edgeft.head.score.weight", "score.weight"),
            ("edgeft.head.qa_outputs.weight", "qa_outputs.weight"),
            ("edgeft.head.qa_outputs.bias", "qa_outputs.bias"),
        ] {
            if let Ok(Array::F32(values)) = gguf.array(key) {
                let width =
                    gguf.u32(&config::key(&gguf, "embedding_length").map_err(bad)?).map_err(|e| bad(e.to_string()))?;
                let width = if name.ends_with("bias") { 1 } else { width as usize };
                if width == 0 || !values.len().is_multiple_of(width) {
                    return Err(bad(format!("{key} has {} values, no rows of {width}", values.len())).into());
                }
                let rows = values.len() / width;
                let shape = if name.ends_with("bias") { vec![rows] } else { vec![rows, width] };
                place.insert(name.to_owned(), Held::Key { key, shape });
            }
        }
        Ok(Self { path: path.to_owned(), gguf, map: Arc::new(map), place })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Metadata and tensor table.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Hugging Face's names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// Rows first, as Hugging Face counts.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(match self.place.get(name)? {
            Held::Tensor { index, .. } => self.gguf.tensors[*index].dims.iter().rev().map(|d| *d as usize).collect(),
            Held::Key { shape, .. } => shape.clone(),
        })
    }

    /// What rotary frequencies are divided by: `rope_freqs.weight`, (D / 2).
    pub fn rope_divisors(&self) -> Option<Vec<f32>> {
        let index = self.gguf.tensors.iter().position(|t| t.name == "rope_freqs.weight")?;
        let n = self.gguf.tensors[index].dims[0] as usize;
        let mut out = vec![0.0; n];
        self.matrix(index, None, 1, n)?.decode(0, &mut out);
        Some(out)
    }

    /// All values of a tensor.
    pub fn read(&self, name: &str) -> Option<Vec<f32>> {
        match self.place.get(name)? {
            Held::Key { key, .. } => match self.gguf.array(key) {
                Ok(Array::F32(values)) => Some(values.clone()),
                _ => None,
            },
            Held::Tensor { index, heads } => {
                let info = &self.gguf.tensors[*index];
                let (columns, rows) = match (info.dims.as_slice(), heads) {
                    // A bias whose elements are in llama.cpp's order is a matrix of one column.
                    ([n], Some(_)) => (1, *n as usize),
                    (dims, _) => (dims[0] as usize, dims[1..].iter().product::<u64>() as usize),
                };
                let matrix = self.matrix(*index, *heads, rows, columns)?;
                let mut out = vec![0.0; rows * columns];
                out.par_chunks_mut(columns).enumerate().for_each(|(i, out)| matrix.decode(i, out));
                Some(out)
            }
        }
    }

    /// A matrix in its blocks; `None` for what is no tensor of two dimensions in the file.
    pub fn rows(&self, name: &str) -> Option<BlockRows> {
        match self.place.get(name)? {
            Held::Tensor { index, heads } => match *self.gguf.tensors[*index].dims {
                [columns, rows] => self.matrix(*index, *heads, rows as usize, columns as usize),
                _ => None,
            },
            Held::Key { .. } => None,
        }
    }

    fn matrix(&self, index: usize, heads: Option<usize>, rows: usize, columns: usize) -> Option<BlockRows> {
        let info = &self.gguf.tensors[index];
        Some(BlockRows {
            map: Arc::clone(&self.map),
            start: (self.gguf.data_start + info.offset) as usize,
            row_bytes: info.ty.row_bytes(columns)?,
            ty: info.ty,
            rows,
            columns,
            half: heads.map(|h| rows / h / 2),
        })
    }
}

/// A matrix of the file.
pub struct BlockRows {
    map: Arc<Mapped>,
    start: usize,
    row_bytes: usize,
    ty: GgmlType,
    rows: usize,
    columns: usize,
    /// D / 2, where the rows of each head are in llama.cpp's order.
    half: Option<usize>,
}

impl BlockRows {
    /// Type of the blocks.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Where row `i` lies in the file: row s D/2 + j of a head is there row 2 j + s.
    fn at(&self, i: usize) -> usize {
        match self.half {
            None => i,
            Some(half) => {
                let (head, row) = (i / (2 * half), i % (2 * half));
                head * 2 * half + 2 * (row % half) + row / half
            }
        }
    }
}

impl Rows for BlockRows {
    fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    fn decode(&self, i: usize, out: &mut [f32]) {
        let start = self.start + self.at(i) * self.row_bytes;
        block::decode(self.ty, &self.map[start..start + self.row_bytes], out);
    }
}

/// Hugging Face's name of a tensor, and the heads whose rows are in llama.cpp's order.
fn hugging_face(gguf: &Gguf, name: &str) -> Result<Option<(String, Option<usize>)>, String> {
    let arch = gguf.str("general.architecture").map_err(|e| e.to_string())?;
    let bert = arch == "bert";
    let top = match (name, bert) {
        ("token_embd.weight", false) => "model.embed_tokens.weight",
        ("output_norm.weight", false) => "model.norm.weight",
        ("output.weight", false) => "lm_head.weight",
        ("token_embd.weight", true) => "bert.embeddings.word_embeddings.weight",
        ("position_embd.weight", true) => "bert.embeddings.position_embeddings.weight",
        ("token_types.weight", true) => "bert.embeddings.token_type_embeddings.weight",
        ("token_embd_norm.weight", true) => "bert.embeddings.LayerNorm.weight",
        ("token_embd_norm.bias", true) => "bert.embeddings.LayerNorm.bias",
        ("cls.weight", true) => "bert.pooler.dense.weight",
        ("cls.bias", true) => "bert.pooler.dense.bias",
        ("cls.output.weight", true) => "classifier.weight",
        ("cls.output.bias", true) => "classifier.bias",
        _ => "",
    };
    if !top.is_empty() {
        return Ok(Some((top.to_owned(), None)));
    }
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|n| n.split_once('.')) else { return Ok(None) };
    let Some((module, kind)) = part.rsplit_once('.') else { return Ok(None) };
    let module = match (module, bert) {
        ("attn_norm", false) => "input_layernorm",
        ("ffn_norm", false) => "post_attention_layernorm",
        ("attn_q", false) => "self_attn.q_proj",
        ("attn_k", false) => "self_attn.k_proj",
        ("attn_v", false) => "self_attn.v_proj",
        ("attn_output", false) => "self_attn.o_proj",
        ("ffn_gate", false) => "mlp.gate_proj",
        ("ffn_up", false) => "mlp.up_proj",
        ("ffn_down", false) => "mlp.down_proj",
        ("attn_q", true) => "attention.self.query",
        ("attn_k", true) => "attention.self.key",
        ("attn_v", true) => "attention.self.value",
        ("attn_output", true) => "attention.output.dense",
        ("attn_output_norm", true) => "attention.output.LayerNorm",
        ("ffn_up", true) => "intermediate.dense",
        ("ffn_down", true) => "output.dense",
        ("layer_output_norm", true) => "output.LayerNorm",
        _ => return Ok(None),
    };
    let heads = match (arch, module) {
        ("llama", "self_attn.q_proj") => Some(config::heads(gguf)?.0),
        ("llama", "self_attn.k_proj") => Some(config::heads(gguf)?.1),
        _ => None,
    };
    let trunk = if bert { "bert.encoder.layer" } else { "model.layers" };
    Ok(Some((format!("{trunk}.{layer}.{module}.{kind}"), heads)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_come_back_from_pairs() {
        // Two heads of four: the file holds rows 0 2 1 3 of each, as the quantizer's `interleave_heads` lays them.
        let map = Arc::new({
            let file = tempfile::NamedTempFile::new().unwrap();
            let values: Vec<u8> = [0f32, 2., 1., 3., 4., 6., 5., 7.].iter().flat_map(|v| v.to_le_bytes()).collect();
            std::fs::write(file.path(), values).unwrap();
            Mapped::open(file.path()).unwrap()
        });
        let rows = BlockRows { map, start: 0, row_bytes: 4, ty: GgmlType::F32, rows: 8, columns: 1, half: Some(2) };
        let mut out = [0.0];
        for i in 0..8 {
            rows.decode(i, &mut out);
            assert_eq!(out[0], i as f32);
        }
    }
}
