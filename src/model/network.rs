//! A trunk of either family with one head: what trainer, evaluation and verification work on.

use super::bert::{self, Bert};
use super::config::{Config, Family};
use super::layers::head::{self, LossSum};
use super::layers::linear::Linear;
use super::layers::{Grads, Pass, mlp};
use super::llama::{self, Llama};
use super::load::Checkpoint;
use super::{Packed, Segment};
use crate::data::batch::{Row, Target};
use crate::rng;
use candle_core::{Device, Result, Tensor};

/// What the network answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Next tokens.
    Generate,
    /// One of these labels.
    Classify(Vec<String>),
    /// A span of the text (encoders).
    Span,
}

enum Trunk {
    Llama(Llama),
    Bert(Bert),
}

enum Head {
    /// (V, C), `lm_head` or the embedding it is tied to.
    Language { linear: Linear, tied: bool },
    /// Llama's classifier: (labels, C) on the last token, no bias.
    Score(Linear),
    /// BERT's classifier on tanh(pooler(first token)).
    Pooled { pooler: Linear, classifier: Linear },
    /// BERT's question answering: start and end logits of each token.
    Span(Linear),
}

/// A network on a device.
pub struct Network {
    /// Its shape.
    pub config: Config,
    /// What it answers.
    pub task: Task,
    /// Head modules that the checkpoint did not hold: they start from the seed and must be trained.
    pub fresh: Vec<String>,
    trunk: Trunk,
    head: Head,
    device: Device,
}

enum Trace {
    Llama(llama::Trace),
    Bert(bert::Trace),
}

impl Network {
    /// Reads trunk and head. A head that the checkpoint lacks is drawn from `seed` and listed in [`Network::fresh`].
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than `config.json` says, by name.
    pub fn load(config: &Config, weights: &Checkpoint, task: Task, seed: u64, device: &Device) -> anyhow::Result<Self> {
        let c = config.hidden_size;
        let mut fresh = Vec::new();
        let mut head_linear = |name: &str, out: usize, bias: bool| -> anyhow::Result<Linear> {
            let at = bert::checkpoint_name(weights, &format!("{name}.weight"));
            if !weights.contains(&at) {
                fresh.push(name.to_owned());
                let values: Vec<f32> = (0..out * c)
                    .map(|i| rng::normal(seed, rng::stream(name, 0), i as u64) * config.initializer_range)
                    .collect();
                let bias = bias.then(|| Tensor::zeros(out, candle_core::DType::F32, device)).transpose()?;
                return Ok(Linear::new(name.into(), Tensor::from_vec(values, (out, c), device)?, bias));
            }
            let weight = weights.tensor(&at, &[out, c], device)?;
            let bias_at = bert::checkpoint_name(weights, &format!("{name}.bias"));
            let bias = bias.then(|| weights.tensor(&bias_at, &[out], device)).transpose()?;
            Ok(Linear::new(name.into(), weight, bias))
        };
        let head = match (config.family.is_decoder(), &task) {
            (true, Task::Generate) => {
                let tied = config.tie_word_embeddings;
                let name = if tied { "model.embed_tokens" } else { "lm_head" };
                let weight = weights.tensor(&format!("{name}.weight"), &[config.vocab_size, c], device)?;
                Head::Language { linear: Linear::new(name.into(), weight, None), tied }
            }
            (true, Task::Classify(labels)) => Head::Score(head_linear("score", labels.len(), false)?),
            (false, Task::Classify(labels)) => Head::Pooled {
                pooler: head_linear("bert.pooler.dense", c, true)?,
                classifier: head_linear("classifier", labels.len(), true)?,
            },
            (false, Task::Span) => Head::Span(head_linear("qa_outputs", 2, true)?),
            (true, Task::Span) => {
                crate::bad_input!("a span head needs an encoder; {} answers by generating", config.family.model_type())
            }
            (false, Task::Generate) => {
                crate::bad_input!("{} is an encoder: it cannot generate", config.family.model_type())
            }
        };
        let trunk = match config.family {
            Family::Bert => Trunk::Bert(Bert::load(config, weights, device)?),
            Family::Llama | Family::Mistral | Family::Qwen2 => Trunk::Llama(Llama::load(config, weights, device)?),
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
        let h = self.hidden(&batch, Pass::EVAL)?;
        Ok(self.head_loss(&h, &batch, rows, None, Pass::EVAL, &mut Grads::default())?.0)
    }

    /// Loss sums of the rows; adds to `grads` the gradient of `weight` times the summed loss.
    pub fn loss_and_grad(
        &self,
        rows: &[&Row],
        weight: f32,
        pass: Pass,
        recompute: bool,
        grads: &mut Grads,
    ) -> Result<LossSum> {
        let batch = Self::pack(rows);
        let (h, trace) = match &self.trunk {
            Trunk::Llama(t) => t.forward_keep(&batch, pass, recompute).map(|(h, t)| (h, Trace::Llama(t)))?,
            Trunk::Bert(t) => t.forward_keep(&batch, pass, recompute).map(|(h, t)| (h, Trace::Bert(t)))?,
        };
        let (loss, dh) = self.head_loss(&h, &batch, rows, Some(weight), pass, grads)?;
        let Some(dh) = dh else { return Ok(loss) };
        match (&self.trunk, trace) {
            (Trunk::Llama(t), Trace::Llama(trace)) => t.backward(&batch, trace, &dh, pass, grads)?,
            (Trunk::Bert(t), Trace::Bert(trace)) => t.backward(&batch, trace, &dh, pass, grads)?,
            _ => candle_core::bail!("a trace of another family"),
        }
        Ok(loss)
    }

    /// Output rows of packed sequences: (N, V) for generation, (sequences, labels) for classification, (N, 2) for spans.
    pub fn logits(&self, batch: &Packed) -> Result<Tensor> {
        let h = self.hidden(batch, Pass::EVAL)?;
        match &self.head {
            Head::Language { linear, .. } => linear.forward(&h, Pass::EVAL),
            Head::Score(linear) => linear.forward(&pick(&h, &last(&batch.segments))?, Pass::EVAL),
            Head::Pooled { pooler, classifier } => {
                let pooled = pooler.forward(&pick(&h, &first(&batch.segments))?, Pass::EVAL)?.tanh()?;
                classifier.forward(&pooled, Pass::EVAL)
            }
            Head::Span(linear) => linear.forward(&h, Pass::EVAL),
        }
    }

    fn hidden(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        match &self.trunk {
            Trunk::Llama(t) => t.forward(batch, pass),
            Trunk::Bert(t) => t.forward(batch, pass),
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
                    head::cross_entropy(&linear.forward(&x, pass)?, &classes(rows)?, weight.unwrap_or(0.0))?;
                let Some(_) = weight else { return Ok((loss, None)) };
                let dx = linear.backward(&x, &dlogits, pass, grads)?;
                Ok((loss, Some(scatter(h, &at, &dx)?)))
            }
            Head::Pooled { pooler, classifier } => {
                let (at, pass) = (first(&batch.segments), pass.of_rows());
                let x = pick(h, &at)?;
                let pooled = pooler.forward(&x, pass)?.tanh()?;
                let logits = classifier.forward(&pooled, pass)?;
                let (loss, dlogits) = head::cross_entropy(&logits, &classes(rows)?, weight.unwrap_or(0.0))?;
                let Some(_) = weight else { return Ok((loss, None)) };
                let dpooled = classifier.backward(&pooled, &dlogits, pass, grads)?;
                let dx = pooler.backward(&x, &mlp::tanh_backward(&pooled, &dpooled)?, pass, grads)?;
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
                    let (sum, d) = head::cross_entropy(&both, &[start, end], 0.5 * weight.unwrap_or(0.0))?;
                    loss += LossSum { nll: sum.nll / 2.0, count: 1, right: sum.right / 2 };
                    parts.push(d.t()?.contiguous()?);
                }
                let Some(_) = weight else { return Ok((loss, None)) };
                let dlogits = Tensor::cat(&parts, 0)?;
                Ok((loss, Some(linear.backward(h, &dlogits, pass, grads)?)))
            }
        }
    }

    /// Every projection of the trunk, in network order, then the pooler.
    pub fn linears(&mut self) -> Vec<&mut Linear> {
        let mut all: Vec<&mut Linear> = match &mut self.trunk {
            Trunk::Llama(t) => t.linears().collect(),
            Trunk::Bert(t) => t.linears().collect(),
        };
        if let Head::Pooled { pooler, .. } = &mut self.head {
            all.push(pooler);
        }
        all
    }

    /// The output modules that a new task trains whole: PEFT's `modules_to_save`.
    pub fn head_modules(&mut self) -> Vec<&mut Linear> {
        match &mut self.head {
            Head::Language { .. } => Vec::new(),
            Head::Score(linear) | Head::Span(linear) => vec![linear],
            Head::Pooled { classifier, .. } => vec![classifier],
        }
    }

    /// Marks every weight of trunk and head as trained (full fine-tuning).
    pub fn train_all(&mut self) -> anyhow::Result<()> {
        let norms: Vec<_> = match &mut self.trunk {
            Trunk::Llama(t) => {
                t.embed_trained = true;
                t.norms().collect()
            }
            Trunk::Bert(_) => crate::bad_input!("--method full is not built for BERT yet; use --method lora"),
        };
        norms.into_iter().for_each(|n| n.trained = true);
        self.linears().into_iter().for_each(|l| l.trained = true);
        self.head_modules().into_iter().for_each(|l| l.trained = true);
        if let Head::Language { linear, .. } = &mut self.head {
            linear.trained = true;
        }
        Ok(())
    }

    /// Calls `f` with the name and the place of every trained tensor, each once.
    pub fn trained(&mut self, f: &mut dyn FnMut(String, &mut Tensor)) {
        match &mut self.trunk {
            Trunk::Llama(t) => {
                if t.embed_trained {
                    f("model.embed_tokens.weight".into(), &mut t.embed_tokens);
                }
                t.linears().for_each(|l| l.trained(f));
                t.norms().for_each(|n| n.trained(f));
            }
            Trunk::Bert(t) => {
                t.linears().for_each(|l| l.trained(f));
                t.norms().for_each(|n| n.trained(f));
            }
        }
        match (&mut self.head, &self.trunk) {
            // One tensor under two names: the trunk's is the one that is updated.
            (Head::Language { linear, tied: true }, Trunk::Llama(t)) => linear.weight = t.embed_tokens.clone(),
            (Head::Language { linear, .. } | Head::Score(linear) | Head::Span(linear), _) => linear.trained(f),
            (Head::Pooled { pooler, classifier }, _) => {
                pooler.trained(f);
                classifier.trained(f);
            }
        }
    }

    /// Where the network lives.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// How many targets of the rows a loss will be summed over: what the optimizer step divides by.
pub fn count_targets(rows: &[&Row]) -> usize {
    rows.iter()
        .map(|row| match &row.target {
            Target::Tokens(t) => t.iter().flatten().count(),
            Target::Class(_) | Target::Span { .. } => 1,
            Target::None => 0,
        })
        .sum()
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
