//! Vectors of texts: pooling, and the loss that draws what belongs together near and pushes the rest away.

use super::host::Host;
use super::math;
use crate::model::Segment;
use candle_core::{Result, Tensor, bail};

/// Which tokens make the vector of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean of all its tokens.
    #[default]
    Mean,
    /// Its first token, which encoders such as BERT put before a text.
    Cls,
}

impl Pooling {
    /// h: (N, C) → a vector a sequence, (sequences, C), as long as it comes.
    pub fn forward(self, h: &Tensor, segments: &[Segment]) -> Result<Tensor> {
        let (h, c) = (h.contiguous()?, h.dim(1)?);
        let host = Host::new(&h)?;
        let mut out = vec![0f32; segments.len() * c];
        for (v, s) in out.chunks_mut(c).zip(segments) {
            let n = self.tokens(s);
            for x in host.slice()[s.start * c..].chunks(c).take(n) {
                v.iter_mut().zip(x).for_each(|(v, x)| *v += x);
            }
            v.iter_mut().for_each(|v| *v /= n as f32);
        }
        Tensor::from_vec(out, (segments.len(), c), h.device())
    }

    /// The gradient of h: (N, C) from dv: (sequences, C).
    pub fn backward(self, h: &Tensor, segments: &[Segment], dv: &Tensor) -> Result<Tensor> {
        let (dv, c) = (dv.contiguous()?, h.dim(1)?);
        let host = Host::new(&dv)?;
        let mut out = vec![0f32; h.elem_count()];
        for (v, s) in host.slice().chunks(c).zip(segments) {
            let n = self.tokens(s);
            for x in out[s.start * c..].chunks_mut(c).take(n) {
                x.iter_mut().zip(v).for_each(|(x, v)| *x = v / n as f32);
            }
        }
        Tensor::from_vec(out, h.shape(), h.device())
    }

    fn tokens(self, segment: &Segment) -> usize {
        if self == Self::Mean { segment.keys.max(1) } else { 1 }
    }
}

/// What an anchor may be held against.
pub struct Candidates<'a> {
    /// Row of each anchor's own positive among the vectors.
    pub own: &'a [usize],
    /// Rows of anchors.
    pub anchors: &'a [usize],
    /// Rows of everything that an anchor is held against.
    pub rows: &'a [usize],
    /// Whether a candidate (by its place in `rows`) is left out for an anchor (by its place in `anchors`): a text that is as
    /// right as its own positive.
    pub hidden: &'a dyn Fn(usize, usize) -> bool,
}

/// Sums over the anchors of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Contrasted {
    /// Loss in nats, summed.
    pub nll: f64,
    /// Anchors.
    pub count: usize,
    /// Anchors whose own positive is the nearest.
    pub right: usize,
    /// Cosine of each anchor with its own positive, summed.
    pub own: f64,
    /// Cosine of each anchor with what is nearest besides, summed over those that have such.
    pub other: f64,
}

/// InfoNCE (arXiv:1807.03748) over cosines, known from sentence-transformers as MultipleNegativesRankingLoss: for each anchor
/// the cross-entropy of its own positive among all candidates, at logits cos / `temperature`.
///
/// v: (n, C), of any length. Returns the sums and the gradient of v for `weight` times the summed loss.
pub fn info_nce(v: &Tensor, at: &Candidates, temperature: f64, weight: f64) -> Result<(Contrasted, Tensor)> {
    let (n, c) = v.dims2()?;
    if at.own.len() != at.anchors.len() {
        bail!("{} anchors with {} positives", at.anchors.len(), at.own.len());
    }
    let lengths: Vec<f32> = {
        let v = v.contiguous()?;
        let host = Host::new(&v)?;
        let square = |x: &[f32]| x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        host.slice().chunks(c).map(|x| square(x).sqrt().max(1e-12) as f32).collect()
    };
    let lengths = Tensor::from_vec(lengths, (n, 1), v.device())?;
    let unit = v.broadcast_div(&lengths)?;
    let pick = |rows: &[usize]| -> Result<(Tensor, Tensor)> {
        let index: Vec<u32> = rows.iter().map(|r| *r as u32).collect();
        let index = Tensor::new(index, v.device())?;
        Ok((unit.index_select(&index, 0)?, index))
    };
    let ((a, a_at), (k, k_at)) = (pick(at.anchors)?, pick(at.rows)?);
    let cosines = a.matmul(&k.t()?)?; // (anchors, candidates)
    let width = at.rows.len();
    let mut sums = Contrasted { count: at.anchors.len(), ..Contrasted::default() };
    let mut slopes = vec![0f32; at.anchors.len() * width];
    {
        let host = Host::new(&cosines)?;
        for (i, (x, g)) in host.slice().chunks(width).zip(slopes.chunks_mut(width)).enumerate() {
            let Some(own) = at.rows.iter().position(|row| *row == at.own[i]) else {
                bail!("the positive of anchor {i} is no candidate");
            };
            let seen = |j: &usize| *j == own || !(at.hidden)(i, *j);
            let places: Vec<usize> = (0..width).filter(seen).collect();
            let seen: Vec<f32> = places.iter().map(|j| x[*j]).collect();
            let max = f64::from(math::max(&seen));
            let e: Vec<f64> = seen.iter().map(|x| ((f64::from(*x) - max) / temperature).exp()).collect();
            let sum: f64 = e.iter().sum();
            let mut best = f64::NEG_INFINITY;
            let mut others = 0.0;
            for ((j, e), x) in places.iter().zip(&e).zip(&seen) {
                if *j != own {
                    g[*j] = (weight * e / sum / temperature) as f32;
                    others += e / sum;
                    best = best.max(f64::from(*x));
                }
            }
            // 1 - p of the own positive as what the others have: near a sure answer the difference would be rounding alone.
            g[own] = -(weight * others / temperature) as f32;
            sums.nll += sum.ln() - (f64::from(x[own]) - max) / temperature;
            sums.right += usize::from(f64::from(x[own]) > best);
            sums.own += f64::from(x[own]);
            sums.other += if best.is_finite() { best } else { 0.0 };
        }
    }
    let slopes = Tensor::from_vec(slopes, (at.anchors.len(), width), v.device())?;
    let du = Tensor::zeros(v.shape(), v.dtype(), v.device())?.index_add(&a_at, &slopes.matmul(&k)?, 0)?.index_add(
        &k_at,
        &slopes.t()?.contiguous()?.matmul(&a)?,
        0,
    )?;
    // u = v / |v|: dv = (du - u (u · du)) / |v|.
    let along = (&unit * &du)?.sum_keepdim(1)?;
    let dv = (du - unit.broadcast_mul(&along)?)?.broadcast_div(&lengths)?;
    Ok((sums, dv))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn vectors() -> Tensor {
        let value = |i: usize| ((i * 7919 + 13) % 2003) as f32 / 700.0 - 1.4;
        Tensor::from_vec((0..6 * 5).map(value).collect::<Vec<_>>(), (6, 5), &Device::Cpu).unwrap()
    }

    /// Two anchors with a positive each, and a negative of either.
    const AT: Candidates = Candidates { anchors: &[0, 3], own: &[1, 4], rows: &[1, 2, 4, 5], hidden: &|_, _| false };

    #[test]
    fn the_loss_and_its_gradient_are_those_of_the_tape() {
        let leaf = Var::from_tensor(&vectors()).unwrap();
        let v = leaf.as_tensor();
        let unit = v.broadcast_div(&v.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap();
        let pick = |rows: &[u32]| unit.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
        let scores = (pick(&[0, 3]).matmul(&pick(&[1, 2, 4, 5]).t().unwrap()).unwrap() / 0.05).unwrap();
        let want = candle_nn::loss::cross_entropy(&scores, &Tensor::new(&[0u32, 2], &Device::Cpu).unwrap()).unwrap();
        let (sums, dv) = info_nce(&vectors(), &AT, 0.05, 0.5).unwrap();
        let theirs = f64::from(want.to_scalar::<f32>().unwrap());
        assert!((sums.nll / 2.0 - theirs).abs() < 1e-5 * theirs, "{} against {theirs}", sums.nll / 2.0);
        let tape = want.backward().unwrap();
        let off = (dv - tape.get(&leaf).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 2e-5, "{off}");
    }

    #[test]
    fn what_is_as_right_as_the_positive_is_no_negative() {
        let (all, _) = info_nce(&vectors(), &AT, 0.05, 1.0).unwrap();
        let hidden = |_: usize, j: usize| j != 0 && j != 2;
        let (few, dv) = info_nce(&vectors(), &Candidates { hidden: &hidden, ..AT }, 0.05, 1.0).unwrap();
        assert!(few.nll < all.nll);
        let rows = dv.to_vec2::<f32>().unwrap();
        assert!(rows[2].iter().chain(&rows[5]).all(|d| *d == 0.0), "a hidden text has no slope");
        // An anchor by itself has nothing to be told from.
        let alone = Candidates { anchors: &[0], own: &[1], rows: &[1], hidden: &|_, _| false };
        let (sums, dv) = info_nce(&vectors(), &alone, 0.05, 1.0).unwrap();
        assert_eq!((sums.nll, sums.right), (0.0, 1));
        assert!(dv.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|d| *d == 0.0));
    }

    #[test]
    fn pooling_leaves_padding_out_and_gives_its_gradient_back() {
        let h = vectors();
        let segments = [Segment { start: 0, len: 2, keys: 2 }, Segment { start: 2, len: 4, keys: 3 }];
        let rows = h.to_vec2::<f32>().unwrap();
        let mean = Pooling::Mean.forward(&h, &segments).unwrap().to_vec2::<f32>().unwrap();
        assert!((mean[1][0] - (rows[2][0] + rows[3][0] + rows[4][0]) / 3.0).abs() < 1e-6);
        assert_eq!(Pooling::Cls.forward(&h, &segments).unwrap().to_vec2::<f32>().unwrap()[1], rows[2]);
        let dv = Tensor::ones((2, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        let down = |pooling: Pooling| -> Vec<f32> {
            let dh = pooling.backward(&h, &segments, &dv).unwrap().to_vec2::<f32>().unwrap();
            dh.iter().map(|row| row[0]).collect()
        };
        let third = 1.0 / 3.0;
        assert_eq!(down(Pooling::Mean), [0.5, 0.5, third, third, third, 0.0]);
        assert_eq!(down(Pooling::Cls), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    }
}
