//! Every tensor that an engine will read, with the shape it must have (ggml order), before anything is computed.

use super::missing;
use crate::error::{Error, Kind, Result};
use crate::format::GgmlType;
use crate::format::gguf::{Array, Gguf, TensorInfo};
use crate::model::{Arch, Hparams, Task, input};

/// # Errors
/// By name: a tensor that is missing, has another shape than the metadata says, or is a vector and not f32.
pub fn check(gguf: &Gguf, h: &Hparams, task: Task, n_labels: usize) -> Result<()> {
    let table = Table { gguf, h };
    table.need("token_embd.weight", &[h.hidden, h.n_vocab])?;
    match h.arch {
        Arch::Bert => table.encoder(task, n_labels),
        _ => table.decoder(task, n_labels),
    }
}

struct Table<'a> {
    gguf: &'a Gguf,
    h: &'a Hparams,
}

impl Table<'_> {
    fn need(&self, name: &str, dims: &[usize]) -> Result<()> {
        same(self.gguf.tensor(name).ok_or_else(|| missing(name))?, dims)
    }

    fn maybe(&self, name: &str, dims: &[usize]) -> Result<()> {
        self.gguf.tensor(name).map_or(Ok(()), |t| same(t, dims))
    }

    /// A matrix (out, in) and its bias, which some families always have.
    fn matrix(&self, name: &str, out: usize, input: usize, biased: bool) -> Result<()> {
        self.need(&format!("{name}.weight"), &[input, out])?;
        let bias = format!("{name}.bias");
        if biased { self.need(&bias, &[out]) } else { self.maybe(&bias, &[out]) }
    }

    /// A norm; one that takes the mean away has a bias.
    fn norm(&self, name: &str, biased: bool) -> Result<()> {
        self.need(&format!("{name}.weight"), &[self.h.hidden])?;
        if biased { self.need(&format!("{name}.bias"), &[self.h.hidden]) } else { Ok(()) }
    }

    /// A head that travels as an f32 array.
    fn array(&self, key: &str, n: usize) -> Result<()> {
        match self.gguf.array(key)? {
            Array::F32(v) if v.len() == n => Ok(()),
            other => {
                Err(Error::new(Kind::Shape, key, format!("has {} elements, the model needs {n} f32", other.len())))
            }
        }
    }

    fn decoder(&self, task: Task, n_labels: usize) -> Result<()> {
        let h = self.h;
        let (c, f, q, kv) = (h.hidden, h.ffn, h.n_heads * h.head_dim, h.n_kv_heads * h.head_dim);
        // GPT-2 has a bias wherever it can have one, and norms that take the mean away.
        let biased = h.arch == Arch::Gpt2;
        self.norm("output_norm", biased)?;
        self.maybe("output.weight", &[c, h.n_vocab])?;
        self.maybe("rope_freqs.weight", &[h.rotary_dim / 2])?;
        if h.arch == Arch::Gpt2 {
            self.need("position_embd.weight", &[c, h.n_ctx])?;
        }
        let norms: &[&str] = match h.arch {
            Arch::Gemma3 => &["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"],
            _ => &["attn_norm", "ffn_norm"],
        };
        let joined = [("attn_qkv", q + 2 * kv, c)];
        let apart = [("attn_q", q, c), ("attn_k", kv, c), ("attn_v", kv, c)];
        let (attention, feed_forward): (&[_], &[_]) = match h.arch {
            Arch::Gpt2 => (&joined, &[("ffn_up", f, c)]),
            Arch::Phi3 => (&joined, &[("ffn_up", 2 * f, c)]),
            _ => (&apart, &[("ffn_gate", f, c), ("ffn_up", f, c)]),
        };
        for i in 0..h.n_layers {
            for part in norms {
                self.norm(&format!("blk.{i}.{part}"), biased)?;
            }
            if matches!(h.arch, Arch::Qwen3 | Arch::Gemma3) {
                self.need(&format!("blk.{i}.attn_q_norm.weight"), &[h.head_dim])?;
                self.need(&format!("blk.{i}.attn_k_norm.weight"), &[h.head_dim])?;
            }
            let matrices = attention.iter().chain(feed_forward).copied();
            for (part, out, input) in matrices.chain([("attn_output", c, q), ("ffn_down", c, f)]) {
                self.matrix(&format!("blk.{i}.{part}"), out, input, biased)?;
            }
        }
        if task == Task::Classify {
            self.array("edgeft.head.score.weight", n_labels * c)?;
        }
        Ok(())
    }

    fn encoder(&self, task: Task, n_labels: usize) -> Result<()> {
        let h = self.h;
        let (c, f, q, kv) = (h.hidden, h.ffn, h.n_heads * h.head_dim, h.n_kv_heads * h.head_dim);
        self.need("position_embd.weight", &[c, h.n_ctx])?;
        self.maybe("token_types.weight", &[c, h.n_token_types])?;
        self.norm("token_embd_norm", true)?;
        for i in 0..h.n_layers {
            for (part, out, input) in [
                ("attn_q", q, c),
                ("attn_k", kv, c),
                ("attn_v", kv, c),
                ("attn_output", c, q),
                ("ffn_up", f, c),
                ("ffn_down", c, f),
            ] {
                self.matrix(&format!("blk.{i}.{part}"), out, input, true)?;
            }
            for part in ["attn_output_norm", "layer_output_norm"] {
                self.norm(&format!("blk.{i}.{part}"), true)?;
            }
        }
        match task {
            Task::Classify if self.gguf.get(PRE_CLASSIFIER).is_some() => {
                self.array(PRE_CLASSIFIER, c * c)?;
                self.array("edgeft.head.pre_classifier.bias", c)?;
                self.array("edgeft.head.classifier.weight", n_labels * c)?;
                self.array("edgeft.head.classifier.bias", n_labels)
            }
            Task::Classify => {
                self.matrix("cls", c, c, true)?;
                self.matrix("cls.output", n_labels, c, true)
            }
            Task::Answer => {
                self.array("edgeft.head.qa_outputs.weight", 2 * c)?;
                self.array("edgeft.head.qa_outputs.bias", 2)
            }
            Task::Embed => Ok(()),
            Task::Generate => Err(input("an encoder cannot generate".into())),
        }
    }
}

/// DistilBERT's, which ends in ReLU, where llama.cpp's `cls` ends in tanh.
const PRE_CLASSIFIER: &str = "edgeft.head.pre_classifier.weight";

fn same(t: &TensorInfo, dims: &[usize]) -> Result<()> {
    let found: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
    // ggml drops trailing dimensions of 1.
    let trimmed = |d: &[usize]| -> Vec<usize> {
        let n = d.iter().rposition(|v| *v != 1).map_or(1, |p| p + 1);
        d[..n].to_vec()
    };
    if trimmed(&found) != trimmed(dims) {
        return Err(Error::new(
            Kind::Shape,
            format!("tensor `{}`", t.name),
            format!("has dimensions {found:?}, the metadata says {dims:?}"),
        ));
    }
    if dims.len() == 1 && t.ty != GgmlType::F32 {
        return Err(Error::new(
            Kind::Input,
            format!("tensor `{}`", t.name),
            format!("is {}; norms and biases must be f32", t.ty),
        ));
    }
    Ok(())
}
