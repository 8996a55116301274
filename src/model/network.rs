//! A trunk of any family with one head: what trainer, evaluation and verification work on. [`whole`]: what losses over whole
//! answers and texts ask of it.

mod whole;

use super::config::{Config, Family};
use super::layers::act::Act;
use super::layers::contrast::Pooling;
use super::layers::head::{self, LossSum};
use super::layers::linear::Linear;
use super::layers::weight::Weight;
use super::layers::{Grads, Pass};
use super::load::Checkpoint;
use super::peft::targets::{is_called, layer_of};
use super::trunk::{Parts, Trunk};
use super::{Packed, Segment, bert, gemma3, gpt2, llama};
use crate::data::batch::{Row, Target};
use crate::rng;
use candle_core::{Device, Result, Tensor};
use edgeft_runtime::format::GgmlType;
use std::collections::BTreeMap;

/// What the network answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Next tokens.
    Generate,
    /// One of these labels.
    Classify(Vec<String>),
    /// A span of the text (encoders).
    Span,
    /// A vector a text.
    Embed(Pooling),
}

/// Names that PEFT writes for a task whether a model has such a head or another.
pub const HEADS: [&str; 3] = ["classifier", "score", "qa_outputs"];

enum Head {
    /// (V, C), `lm_head` or the embedding it is tied to.
    Language { linear: Linear, tied: bool },
    /// A decoder's classifier: (labels, C) on the last token, no bias.
    Score(Linear),
    /// An encoder's classifier: out(act(dense(first token))).
    First {
        dense: Linear,
        act: Act,
        out: Linear,
        /// BERT's dense layer is its pooler, a part of the trunk. RoBERTa's and DistilBERT's come with the task, and are
        /// trained whole as the other heads are.
        pooler: bool,
    },
    /// An encoder's question answering: start and end logits of each token.
    Span(Linear),
    /// No weights: the last hidden states of a text as one vector.
    Pool(Pooling),
}

/// A network on a device.
pub struct Network {
    /// Its shape.
    pub config: Config,
    /// What it answers.
    pub task: Task,
    /// Head modules that the checkpoint did not hold: they start from the seed and must be trained.
    pub fresh: Vec<String>,
    trunk: Box<dyn Trunk>,
    head: Head,
    device: Device,
}

impl Network {
    /// Reads trunk and head. A head that the checkpoint lacks is drawn from `seed` and listed in [`Network::fresh`].
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than `config.json` says, by name.
    pub fn load(config: &Config, weights: &Checkpoint, task: Task, seed: u64, device: &Device) -> anyhow::Result<Self> {
        let c = config.hidden_size;
        let parts = Parts { config, weights, device };
        let mut trunk: Box<dyn Trunk> = match config.family {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Phi3 => {
                Box::new(llama::load(&parts)?)
            }
            Family::Gemma3 => Box::new(gemma3::load(&parts)?),
            Family::Gpt2 => Box::new(gpt2::load(&parts)?),
            Family::Bert | Family::Roberta | Family::DistilBert => Box::new(bert::load(&parts)?),
        };
        let mut fresh = Vec::new();
        let mut head_linear = |name: &str, out: usize, bias: bool| -> anyhow::Result<Linear> {
            if !weights.contains(&weights.called(&format!("{name}.weight"))) {
                fresh.push(name.to_owned());
                let values: Vec<f32> = (0..out * c)
                    .map(|i| rng::normal(seed, rng::stream(name, 0), i as u64) * config.initializer_range)
                    .collect();
                let bias = bias.then(|| Tensor::zeros(out, candle_core::DType::F32, device)).transpose()?;
                return Ok(Linear::new(name.into(), Tensor::from_vec(values, (out, c), device)?, bias));
            }
            // Heads lie as (out, in), whatever the trunk's matrices do.
            let weight = parts.tensor(&format!("{name}.weight"), &[out, c])?;
            let bias = bias.then(|| parts.tensor(&format!("{name}.bias"), &[out])).transpose()?;
            Ok(Linear::new(name.into(), weight, bias))
        };
        let head = match (config.family.is_decoder(), &task) {
            (true, Task::Generate) => {
                let linear = match trunk.embeddings().first().filter(|_| config.tie_word_embeddings) {
                    Some(words) => Linear::new(words.name.clone(), words.weight.clone(), None),
                    None => {
                        let weight = parts.matrix("lm_head.weight", [config.vocab_size, c])?;
                        Linear::new("lm_head".into(), weight, None)
                    }
                };
                Head::Language { linear, tied: config.tie_word_embeddings }
            }
            (true, Task::Classify(labels)) => Head::Score(head_linear("score", labels.len(), false)?),
            (false, Task::Classify(labels)) => {
                let (dense, act, out) = match config.family {
                    Family::Roberta => ("classifier.dense", Act::Tanh, "classifier.out_proj"),
                    Family::DistilBert => ("pre_classifier", Act::Relu, "classifier"),
                    _ => ("bert.pooler.dense", Act::Tanh, "classifier"),
                };
                let pooler = config.family == Family::Bert;
                let (dense, out) = (head_linear(dense, c, true)?, head_linear(out, labels.len(), true)?);
                Head::First { dense, act, out, pooler }
            }
            (false, Task::Span) => Head::Span(head_linear("qa_outputs", 2, true)?),
            (true, Task::Embed(Pooling::Cls)) => {
                crate::bad_input!(
                    "--pooling cls: the first token of a {} sees no other; use mean",
                    config.family.model_type()
                )
            }
            (_, Task::Embed(pooling)) => Head::Pool(*pooling),
            (true, Task::Span) => {
                crate::bad_input!("a span head needs an encoder; {} answers by generating", config.family.model_type())
            }
            (false, Task::Generate) => {
                crate::bad_input!("{} is an encoder: it cannot generate", config.family.model_type())
            }
        };
        Ok(Self { config: config.clone(), task, fresh, trunk, head, device: device.clone() })
    }

    /// Lays rows end to end. Rows of equal length that stand together share their attention GEMMs, so sort them first.
    pub fn pack(rows: &[&Row]) -> Packed {
        let mut packed = Packed::default();
        for row in rows {
            packed.push(&row.ids, &row.positions, &row.types, row.keys);
        }
        packed
    }

    /// Loss sums of the rows, without gradients.
    pub fn loss(&self, rows: &[&Row]) -> Result<LossSum> {
        let batch = Self::pack(rows);
        let h = self.trunk.forward(&batch, Pass::EVAL)?;
        Ok(self.head_loss(&h, &batch, rows, None, Pass::EVAL, &mut Grads::default())?.0)
    }

    /// Loss sums of the rows; adds to `grads` the gradient of `weight` times the summed loss. The lowest `again` blocks are
    /// computed again in the backward instead of kept.
    pub fn loss_and_grad(
        &self,
        rows: &[&Row],
        weight: f32,
        pass: Pass,
        again: usize,
        grads: &mut Grads,
    ) -> Result<LossSum> {
        let batch = Self::pack(rows);
        let (h, backward) = self.trunk.forward_keep(&batch, pass, again)?;
        let (loss, dh) = self.head_loss(&h, &batch, rows, Some(weight), pass, grads)?;
        if let Some(dh) = dh {
            backward(&dh, grads)?;
        }
        Ok(loss)
    }

    /// Hidden states of packed sequences, (N, C), before any head.
    pub fn hidden(&self, batch: &Packed) -> Result<Tensor> {
        self.trunk.forward(batch, Pass::EVAL)
    }

    /// Output rows of packed sequences: (N, V) for generation, (sequences, labels) for classification, (N, 2) for spans,
    /// (sequences, C) for vectors, which are as long as they come.
    pub fn logits(&self, batch: &Packed) -> Result<Tensor> {
        let h = self.trunk.forward(batch, Pass::EVAL)?;
        match &self.head {
            Head::Language { linear, .. } => linear.forward(&h, Pass::EVAL),
            Head::Score(linear) => linear.forward(&pick(&h, &last(&batch.segments))?, Pass::EVAL),
            Head::First { dense, act, out, .. } => {
                let x = pick(&h, &first(&batch.segments))?;
                out.forward(&act.forward(&dense.forward(&x, Pass::EVAL)?)?, Pass::EVAL)
            }
            Head::Span(linear) => linear.forward(&h, Pass::EVAL),
            Head::Pool(pooling) => pooling.forward(&h, &batch.segments),
        }
    }

    /// The loss of hidden states h, and with `weight` their gradient.
    fn head_loss(
        &self,
        h: &Tensor,
        batch: &Packed,
        rows: &[&Row],
        weight: Option<f32>,
        pass: Pass,
        grads: &mut Grads,
    ) -> Result<(LossSum, Option<Tensor>)> {
        match &self.head {
            Head::Language { linear, .. } => {
                let mut targets = Vec::with_capacity(batch.len());
                for row in rows {
                    match &row.target {
                        Target::Tokens(t) => targets.extend_from_slice(t),
                        other => candle_core::bail!("row {}: a language model cannot learn {other:?}", row.source),
                    }
                }
                head::linear_cross_entropy(linear, h, &targets, weight, grads)
            }
            Head::Score(linear) => {
                let at = last(&batch.segments);
                let x = pick(h, &at)?;
                let (loss, dlogits) =
                    head::cross_entropy(linear.forward(&x, pass)?, &classes(rows)?, weight.unwrap_or(0.0))?;
                let Some(_) = weight else { return Ok((loss, None)) };
                let dx = linear.backward(&x, &dlogits, pass, grads)?;
                Ok((loss, Some(scatter(h, &at, &dx)?)))
            }
            Head::First { dense, act, out, .. } => {
                let (at, pass) = (first(&batch.segments), pass.of_rows());
                let x = pick(h, &at)?;
                let wide = dense.forward(&x, pass)?;
                let y = act.forward(&wide)?;
                let logits = out.forward(&y, pass)?;
                let (loss, dlogits) = head::cross_entropy(logits, &classes(rows)?, weight.unwrap_or(0.0))?;
                let Some(_) = weight else { return Ok((loss, None)) };
                let dy = out.backward(&y, &dlogits, pass, grads)?;
                let dx = dense.backward(&x, &act.backward(&wide, &dy)?, pass, grads)?;
                Ok((loss, Some(scatter(h, &at, &dx)?)))
            }
            Head::Span(linear) => {
                let logits = linear.forward(h, pass)?; // (N, 2)
                let mut loss = LossSum::default();
                let mut parts = Vec::new();
                for (segment, row) in batch.segments.iter().zip(rows) {
                    let Target::Span { start, end } = row.target else {
                        candle_core::bail!("row {}: a span head cannot learn {:?}", row.source, row.target)
                    };
                    let both = logits.narrow(0, segment.start, segment.len)?.t()?.contiguous()?; // (2, T)
                    // transformers takes the mean of the start's and the end's loss
                    let (sum, d) = head::cross_entropy(both, &[start, end], 0.5 * weight.unwrap_or(0.0))?;
                    loss += LossSum { nll: sum.nll / 2.0, count: 1, right: sum.right / 2 };
                    parts.push(d.t()?.contiguous()?);
                }
                let Some(_) = weight else { return Ok((loss, None)) };
                let dlogits = Tensor::cat(&parts, 0)?;
                Ok((loss, Some(linear.backward(h, &dlogits, pass, grads)?)))
            }
            Head::Pool(_) => candle_core::bail!("vectors are learned from each other, not row by row"),
        }
    }

    /// Every projection of the trunk, in network order, then BERT's pooler.
    pub fn linears(&mut self) -> Vec<&mut Linear> {
        let mut all = self.trunk.linears();
        if let Head::First { dense, pooler: true, .. } = &mut self.head {
            all.push(dense);
        }
        all
    }

    /// The output modules that a new task trains whole: PEFT's `modules_to_save`.
    pub fn head_modules(&mut self) -> Vec<&mut Linear> {
        match &mut self.head {
            Head::Language { .. } | Head::Pool(_) => Vec::new(),
            Head::Score(linear) | Head::Span(linear) => vec![linear],
            Head::First { out, pooler: true, .. } => vec![out],
            Head::First { dense, out, .. } => vec![dense, out],
        }
    }

    /// `modules_to_save` as PEFT writes it: RoBERTa's two head modules are one to it.
    pub fn modules_to_save(&mut self) -> Vec<String> {
        let mut names: Vec<String> = self.head_modules().iter().map(|h| h.name.clone()).collect();
        if self.config.family == Family::Roberta && names.len() == 2 {
            names = vec!["classifier".into()];
        }
        // A pooler that starts from noise is trained whole beside the head.
        if self.fresh.iter().any(|n| n.ends_with("pooler.dense")) {
            names.push("pooler".into());
        }
        names
    }

    /// Marks modules that are trained and saved whole, by the last parts of their paths or of a path above them.
    ///
    /// # Errors
    /// A name that no module has, and a table that the head is tied to: saved whole, one would part from the other.
    pub fn train_whole(&mut self, names: &[String]) -> anyhow::Result<()> {
        for name in names {
            let within = |path: &str| is_called(path, name) || format!(".{path}").contains(&format!(".{name}."));
            let mut found = HEADS.contains(&name.as_str());
            for linear in self.linears().into_iter().filter(|l| within(&l.name)) {
                (linear.trained, found) = (true, true);
            }
            for (i, table) in self.trunk.embeddings().into_iter().enumerate().filter(|(_, e)| within(&e.name)) {
                if i == 0 && matches!(&self.head, Head::Language { tied: true, .. }) {
                    crate::bad_input!("`{}` is tied to the head and cannot be trained beside adapters", table.name);
                }
                (table.trained, found) = (true, true);
            }
            match &mut self.head {
                Head::Language { linear, tied: false } if within(&linear.name) => {
                    (linear.trained, found) = (true, true)
                }
                _ => (),
            }
            found |= self.head_modules().iter().any(|head| within(&head.name)); // trained whole in any case
            if !found {
                crate::bad_input!("no module is called {name}, so it cannot be saved whole");
            }
        }
        Ok(())
    }

    /// Marks every weight of trunk and head as trained (full fine-tuning).
    ///
    /// # Errors
    /// A weight that is quantized: nothing of it can be trained.
    pub fn train_all(&mut self) -> anyhow::Result<()> {
        let is_frozen = |weight: &Weight| matches!(weight, Weight::Frozen(_));
        let linear = self.linears().into_iter().find(|l| is_frozen(&l.weight)).map(|l| l.name.clone());
        let table = self.trunk.embeddings().into_iter().find(|e| is_frozen(&e.weight)).map(|e| e.name.clone());
        if let Some(name) = linear.or(table) {
            crate::bad_input!(
                "--method full: `{name}` is quantized and cannot be trained; give the Hugging Face folder, or use --method qlora"
            );
        }
        self.trunk.embeddings().into_iter().for_each(|e| e.trained = true);
        self.trunk.norms().into_iter().for_each(|n| n.trained = true);
        self.linears().into_iter().for_each(|l| l.trained = true);
        self.head_modules().into_iter().for_each(|l| l.trained = true);
        if let Head::Language { linear, .. } = &mut self.head {
            linear.trained = true;
        }
        self.end_at_lowest();
        Ok(())
    }

    /// From now on each weight named is seen as a file of that type would hold it (quantization-aware training).
    pub fn round(&mut self, types: &BTreeMap<String, GgmlType>) {
        let of = |name: &str| types.get(&format!("{name}.weight")).copied();
        self.linears().into_iter().for_each(|l| of(&l.name).into_iter().for_each(|ty| l.weight.round(ty)));
        let tables = self.trunk.embeddings();
        tables.into_iter().for_each(|e| of(&e.name).into_iter().for_each(|ty| e.weight.round(ty)));
        match &mut self.head {
            Head::Language { tied: true, .. } => self.tie(),
            Head::Language { linear, .. } => of(&linear.name).into_iter().for_each(|ty| linear.weight.round(ty)),
            _ => {}
        }
        let heads = self.head_modules();
        heads.into_iter().for_each(|l| of(&l.name).into_iter().for_each(|ty| l.weight.round(ty)));
    }

    /// A head that is tied sees the words as they are now.
    fn tie(&mut self) {
        if let (Head::Language { linear, tied: true }, Some(words)) = (&mut self.head, self.trunk.embeddings().first())
        {
            linear.weight = words.weight.clone();
        }
    }

    /// Looks up which block is the lowest that learns, after what is trained was marked: the backward ends there.
    pub fn end_at_lowest(&mut self) {
        let mut names = Vec::new();
        self.trained(&mut |name, _| names.push(name));
        let lowest = names.iter().filter_map(|n| layer_of(n, &[])).min().unwrap_or(self.config.num_hidden_layers);
        self.trunk.end_at(lowest);
    }

    /// Calls `f` with the name and the place of every trained tensor, each once.
    pub fn trained(&mut self, f: &mut dyn FnMut(String, &mut Tensor)) {
        self.trunk.embeddings().into_iter().for_each(|e| e.trained(f));
        self.trunk.linears().into_iter().for_each(|l| l.trained(f));
        self.trunk.norms().into_iter().for_each(|n| n.trained(f));
        match &mut self.head {
            // One tensor under two names: the trunk's is the one that is updated.
            Head::Language { tied: true, .. } => self.tie(),
            Head::Language { linear, .. } | Head::Score(linear) | Head::Span(linear) => linear.trained(f),
            Head::First { dense, out, .. } => {
                dense.trained(f);
                out.trained(f);
            }
            Head::Pool(_) => {}
        }
    }

    /// Every trained tensor by name, as a checkpoint holds it.
    ///
    /// # Errors
    /// What candle reports.
    pub fn checkpoint(&mut self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        self.trained(&mut |name, tensor| {
            tensors.insert(name, tensor.clone());
        });
        if self.config.family.stores_transposed() {
            for linear in self.trunk.linears() {
                if let Some(weight) = tensors.get_mut(&format!("{}.weight", linear.name)) {
                    *weight = weight.t()?.contiguous()?;
                }
            }
        }
        Ok(tensors)
    }

    /// Where the network lives.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

fn classes(rows: &[&Row]) -> Result<Vec<u32>> {
    rows.iter()
        .map(|row| match row.target {
            Target::Class(c) => Ok(c),
            ref other => candle_core::bail!("row {}: a classifier cannot learn {other:?}", row.source),
        })
        .collect()
}

fn first(segments: &[Segment]) -> Vec<u32> {
    segments.iter().map(|s| s.start as u32).collect()
}

fn last(segments: &[Segment]) -> Vec<u32> {
    segments.iter().map(|s| (s.start + s.keys - 1) as u32).collect()
}

fn pick(h: &Tensor, rows: &[u32]) -> Result<Tensor> {
    h.index_select(&Tensor::new(rows, h.device())?, 0)
}

fn scatter(h: &Tensor, rows: &[u32], dx: &Tensor) -> Result<Tensor> {
    Tensor::zeros(h.shape(), h.dtype(), h.device())?.index_add(&Tensor::new(rows, h.device())?, dx, 0)
}
