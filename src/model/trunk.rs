//! A trunk: embeddings, blocks one behind the other, and where a family has it a last norm. What differs between families is
//! the block ([`Block`]) and how names in files map to its parts; what is common stands here: running through, keeping what
//! the backward needs, and running back.

use super::Packed;
use super::config::Config;
use super::layers::embedding::Embedding;
use super::layers::fused;
use super::layers::linear::Linear;
use super::layers::norm::Norm;
use super::layers::rope::{Angles, Rope};
use super::layers::weight::Weight;
use super::layers::{Grads, Pass, noise};
use super::load::Checkpoint;
use candle_core::{Device, Result, Tensor};
use std::borrow::Cow;

/// The second half of a training step: takes the gradient of the last hidden states (N, C).
pub type Backward<'a> = Box<dyn FnOnce(&Tensor, &mut Grads) -> Result<()> + Send + 'a>;

/// Halves of a batch are computed side by side when each has so many tokens: each waits less for the other than two threads
/// do that share every product. They are two however many threads there are, so that sums do not depend on that.
const HALF: usize = 64;

/// Everything of a network but its head.
pub trait Trunk: Send + Sync {
    /// Hidden states behind the last layer (N, C), without keeping anything.
    fn forward(&self, batch: &Packed, pass: Pass) -> Result<Tensor>;

    /// As [`Trunk::forward`], with the backward: it holds what the blocks keep, but only the inputs of the lowest `again`
    /// blocks that learn, which it computes again. It adds to the gradients those of all that is trained.
    fn forward_keep<'a>(&'a self, batch: &'a Packed, pass: Pass, again: usize) -> Result<(Tensor, Backward<'a>)>;

    /// Every projection, in network order.
    fn linears(&mut self) -> Vec<&mut Linear>;

    /// Every norm, in network order.
    fn norms(&mut self) -> Vec<&mut Norm>;

    /// The tables; that of the words comes first.
    fn embeddings(&mut self) -> Vec<&mut Embedding>;

    /// Nothing below block `lowest` learns: there nothing is kept, and no gradient goes.
    fn end_at(&mut self, lowest: usize);
}

/// The two halves of a batch, where it is cut in two.
fn halves(batch: &Packed) -> Option<[Packed; 2]> {
    let (mut low, half) = (0, batch.len() / 2);
    let at = batch.segments.iter().take_while(|s| {
        low += s.len;
        low <= half
    });
    // The sequence in the middle goes to the half that is shorter without it.
    let at = at.count();
    let before: usize = batch.segments[..at].iter().map(|s| s.len).sum();
    let middle = batch.segments.get(at).map_or(0, |s| s.len);
    let at = if 2 * before + middle < batch.len() { at + 1 } else { at };
    let two = batch.split_at(at);
    two.iter().all(|b| b.len() >= HALF).then_some(two)
}

/// What a block may look at besides its input.
pub struct Context<'a> {
    /// Who stands where.
    pub batch: Cow<'a, Packed>,
    /// Whether, and how, something is dropped.
    pub pass: Pass,
    /// Rotations, of each kind that the family has.
    pub angles: Vec<Angles>,
}

/// One block of a trunk.
pub trait Block: Send + Sync {
    /// What its backward needs.
    type Saved: Send;

    /// x: (N, C) → (N, C).
    fn forward(&self, x: &Tensor, at: &Context) -> Result<(Tensor, Self::Saved)>;

    /// The gradient of x; only when `want_dx` (below the lowest block may be nobody who learns).
    fn backward(
        &self,
        saved: Self::Saved,
        dy: &Tensor,
        at: &Context,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>>;

    /// Every projection, in order.
    fn linears(&mut self) -> Vec<&mut Linear>;

    /// Every norm, in order.
    fn norms(&mut self) -> Vec<&mut Norm>;
}

/// Tokens → (N, C).
pub struct Embeddings {
    /// (V, C).
    pub words: Embedding,
    /// Words are multiplied by this (Gemma: √C).
    pub scale: f64,
    /// (positions, C), where positions are learned.
    pub positions: Option<Embedding>,
    /// (types, C).
    pub types: Option<Embedding>,
    /// BERT's norm behind the sum.
    pub norm: Option<Norm>,
}

/// A trunk of blocks of one kind.
pub struct Stack<B> {
    /// Below the blocks.
    pub embeddings: Embeddings,
    /// In order.
    pub blocks: Vec<B>,
    /// Behind the last block.
    pub norm: Option<Norm>,
    /// Rotations, of each kind that the family has.
    pub ropes: Vec<Rope>,
    /// The lowest block that learns, or stands over embeddings that do.
    pub lowest: usize,
    /// Whether matrices are trained whole: gradients as large as they are stand there once, so halves are not learned from side
    /// by side.
    pub whole: bool,
}

enum Kept<S> {
    Whole(Box<S>),
    /// Only the block's input: the backward runs its forward again.
    Input(Tensor),
}

impl<B: Block> Trunk for Stack<B> {
    fn forward(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        let Some([low, high]) = halves(batch) else { return self.read(&self.context(Cow::Borrowed(batch), pass)) };
        let behind = pass.behind(&low);
        let (low, high) = (self.context(Cow::Owned(low), pass), self.context(Cow::Owned(high), behind));
        let (low, high) = rayon::join(|| self.read(&low), || self.read(&high));
        Tensor::cat(&[low?, high?], 0)
    }

    fn forward_keep<'a>(&'a self, batch: &'a Packed, pass: Pass, again: usize) -> Result<(Tensor, Backward<'a>)> {
        let Some([low, high]) = halves(batch).filter(|_| !self.whole) else {
            return self.keep(self.context(Cow::Borrowed(batch), pass), again);
        };
        let (cut, behind) = (low.len(), pass.behind(&low));
        let (low, high) = (self.context(Cow::Owned(low), pass), self.context(Cow::Owned(high), behind));
        let (low, high) = rayon::join(|| self.keep(low, again), || self.keep(high, again));
        let ((low, low_backward), (high, high_backward)) = (low?, high?);
        let h = Tensor::cat(&[low, high], 0)?;
        let backward = move |dh: &Tensor, grads: &mut Grads| {
            let (low, high) = (dh.narrow(0, 0, cut)?, dh.narrow(0, cut, dh.dim(0)? - cut)?);
            let mut more = Grads::default();
            let (a, b) = rayon::join(|| low_backward(&low, grads), || high_backward(&high, &mut more));
            a.and(b)?;
            more.0.into_iter().try_for_each(|(name, grad)| grads.add(&name, grad))
        };
        Ok((h, Box::new(backward)))
    }

    fn linears(&mut self) -> Vec<&mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears).collect()
    }

    fn norms(&mut self) -> Vec<&mut Norm> {
        let blocks = self.blocks.iter_mut().flat_map(Block::norms);
        self.embeddings.norm.iter_mut().chain(blocks).chain(&mut self.norm).collect()
    }

    fn embeddings(&mut self) -> Vec<&mut Embedding> {
        self.embeddings.tables()
    }

    fn end_at(&mut self, lowest: usize) {
        self.lowest = if self.embeddings.learn() { 0 } else { lowest.min(self.blocks.len()) };
        let trained = |block: &mut B| block.linears().iter().any(|l| l.trained);
        self.whole = self.embeddings.learn() || self.blocks.iter_mut().any(trained);
    }
}

impl<B: Block> Stack<B> {
    fn context<'a>(&self, batch: Cow<'a, Packed>, pass: Pass) -> Context<'a> {
        Context { angles: self.ropes.iter().map(|r| r.angles(&batch.positions)).collect(), batch, pass }
    }

    fn read(&self, at: &Context) -> Result<Tensor> {
        let mut x = self.embeddings.forward(&at.batch, at.pass)?;
        for block in &self.blocks {
            x = block.forward(&x, at)?.0;
        }
        self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }

    fn keep<'a>(&'a self, at: Context<'a>, again: usize) -> Result<(Tensor, Backward<'a>)> {
        let mut x = self.embeddings.forward(&at.batch, at.pass)?;
        let mut kept = Vec::with_capacity(self.blocks.len());
        let (below, learning) = self.blocks.split_at(self.lowest);
        for block in below {
            x = block.forward(&x, &at)?.0;
        }
        for (i, block) in learning.iter().enumerate() {
            let (y, saved) = block.forward(&x, &at)?;
            kept.push(if i < again { Kept::Input(x) } else { Kept::Whole(Box::new(saved)) });
            x = y;
        }
        let h = self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
        Ok((h, Box::new(move |dh, grads| self.backward(&at, kept, &x, dh, grads))))
    }

    /// From the gradient of the last hidden states; `last` is the input of the last norm.
    fn backward(
        &self,
        at: &Context,
        kept: Vec<Kept<B::Saved>>,
        last: &Tensor,
        dh: &Tensor,
        grads: &mut Grads,
    ) -> Result<()> {
        let mut dx = self.norm.as_ref().map_or(Ok(dh.clone()), |norm| norm.backward(last, dh, grads))?;
        let below = self.embeddings.learn();
        for (i, (block, kept)) in self.blocks[self.lowest..].iter().zip(kept).enumerate().rev() {
            let saved = match kept {
                Kept::Whole(saved) => *saved,
                Kept::Input(x) => block.forward(&x, at)?.1,
            };
            match block.backward(saved, &dx, at, grads, i > 0 || below)? {
                Some(below) => dx = below,
                None => return Ok(()),
            }
        }
        self.embeddings.backward(&at.batch, at.pass, &dx, grads)
    }
}

impl Embeddings {
    /// (N, C).
    fn forward(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        let x = self.sum(batch, pass)?;
        self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }

    fn sum(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        let mut x = self.words.forward(&batch.ids)?;
        if self.scale != 1.0 {
            x = (x * self.scale)?;
        }
        x = noise::neftune(x, &batch.segments, pass)?;
        if let Some(types) = &self.types {
            fused::add(&x, &types.forward(&batch.types)?)?;
        }
        if let Some(positions) = &self.positions {
            fused::add(&x, &positions.forward(&rows(positions, batch))?)?;
        }
        Ok(x)
    }

    /// Whether anything here is trained.
    fn learn(&self) -> bool {
        let tables = [Some(&self.words), self.positions.as_ref(), self.types.as_ref()];
        tables.into_iter().flatten().any(|t| t.trained) || self.norm.as_ref().is_some_and(|n| n.trained)
    }

    fn backward(&self, batch: &Packed, pass: Pass, dy: &Tensor, grads: &mut Grads) -> Result<()> {
        if !self.learn() {
            return Ok(());
        }
        let dx = match &self.norm {
            Some(norm) => norm.backward(&self.sum(batch, pass)?, dy, grads)?,
            None => dy.clone(),
        };
        let scaled = if self.scale != 1.0 { (&dx * self.scale)? } else { dx.clone() };
        self.words.backward(&batch.ids, &scaled, grads)?;
        if let Some(types) = &self.types {
            types.backward(&batch.types, &dx, grads)?;
        }
        if let Some(positions) = &self.positions {
            positions.backward(&rows(positions, batch), &dx, grads)?;
        }
        Ok(())
    }

    fn tables(&mut self) -> Vec<&mut Embedding> {
        std::iter::once(&mut self.words).chain(&mut self.positions).chain(&mut self.types).collect()
    }
}

/// Rows of the position table. RoBERTa's counts the tokens that are no padding, from `padding + 1`; all padding reads the row
/// `padding`.
fn rows(table: &Embedding, batch: &Packed) -> Vec<u32> {
    let Some(padding) = table.padding else { return batch.positions.clone() };
    let mut rows = Vec::with_capacity(batch.len());
    for segment in &batch.segments {
        let mut row = padding;
        for id in &batch.ids[segment.start..][..segment.len] {
            row += u32::from(*id != padding);
            rows.push(if *id == padding { padding } else { row });
        }
    }
    rows
}

/// Parts of a network out of a checkpoint, frozen.
pub struct Parts<'a> {
    /// Shape of the network.
    pub config: &'a Config,
    /// Its tensors.
    pub weights: &'a Checkpoint,
    /// Where they go.
    pub device: &'a Device,
}

impl Parts<'_> {
    /// A tensor under its full name, or as the checkpoint spells it.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> anyhow::Result<Tensor> {
        self.weights.tensor(&self.weights.called(name), shape, self.device)
    }

    /// A matrix under its full name, or as the checkpoint spells it, in the form that the checkpoint keeps it in.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> anyhow::Result<Weight> {
        self.weights.weight(&self.weights.called(name), shape, self.device)
    }

    /// `name.weight`, (out, in), and `name.bias`, (out). GPT-2's lie as (in, out) in files.
    pub fn linear(&self, name: String, out: usize, input: usize, bias: bool) -> anyhow::Result<Linear> {
        let at = format!("{name}.weight");
        let weight = if self.config.family.stores_transposed() {
            self.tensor(&at, &[input, out])?.t()?.contiguous()?.into()
        } else {
            self.matrix(&at, [out, input])?
        };
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), &[out])).transpose()?;
        Ok(Linear::new(name, weight, bias))
    }

    /// RMSNorm.
    pub fn rms_norm(&self, name: String, width: usize) -> anyhow::Result<Norm> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        Ok(Norm::new(name, weight, None, self.config.norm_eps))
    }

    /// LayerNorm.
    pub fn layer_norm(&self, name: String) -> anyhow::Result<Norm> {
        let c = self.config.hidden_size;
        let (weight, bias) =
            (self.tensor(&format!("{name}.weight"), &[c])?, self.tensor(&format!("{name}.bias"), &[c])?);
        Ok(Norm::new(name, weight, Some(bias), self.config.norm_eps))
    }

    /// A table of `rows`.
    pub fn embedding(&self, name: String, rows: usize, padding: Option<u32>) -> anyhow::Result<Embedding> {
        let weight = self.matrix(&format!("{name}.weight"), [rows, self.config.hidden_size])?;
        Ok(Embedding::new(name, weight, padding))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_between_sequences_next_to_its_middle_and_not_in_crumbs() {
        let of = |lengths: &[usize]| {
            let mut batch = Packed::default();
            for (i, n) in lengths.iter().enumerate() {
                batch.push(&vec![i as u32; *n], &(0..*n as u32).collect::<Vec<_>>(), &[], *n - 1);
            }
            halves(&batch).map(|two| {
                let [low, high] = &two;
                assert_eq!([&low.ids[..], &high.ids[..]].concat(), batch.ids);
                assert_eq!([&low.positions[..], &high.positions[..]].concat(), batch.positions);
                assert_eq!(low.types.len() + high.types.len(), batch.types.len());
                for half in &two {
                    let mut start = 0;
                    for s in &half.segments {
                        assert_eq!((s.start, s.keys), (start, s.len - 1));
                        start += s.len;
                    }
                    assert_eq!(start, half.len());
                }
                two.map(|half| half.segments.iter().map(|s| s.len).collect::<Vec<_>>())
            })
        };
        let cut = |low: &[usize], high: &[usize]| Some([low.to_vec(), high.to_vec()]);
        assert_eq!(of(&[256; 4]), cut(&[256; 2], &[256; 2]));
        assert_eq!(of(&[100, 100, 100]), cut(&[100], &[100, 100]));
        assert_eq!(of(&[80, 90, 400]), cut(&[80, 90], &[400]));
        assert_eq!(of(&[400, 90, 80]), cut(&[400], &[90, 80]));
        assert_eq!(of(&[64, 64]), cut(&[64], &[64]));
        assert_eq!(of(&[63, 64]), None);
        assert_eq!(of(&[500]), None);
        assert_eq!(of(&[500, 10]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn positions_of_a_padded_table_count_what_is_no_padding() {
        let zeros = || Tensor::zeros((9, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let mut batch = Packed::default();
        batch.push(&[7, 8, 1, 9, 1], &[0, 1, 2, 3, 4], &[], 4);
        batch.push(&[7], &[5], &[], 1);
        assert_eq!(rows(&Embedding::new("p".into(), zeros(), Some(1)), &batch), [2, 3, 1, 4, 1, 2]);
        assert_eq!(rows(&Embedding::new("p".into(), zeros(), None), &batch), [0, 1, 2, 3, 4, 5]);
    }
}
