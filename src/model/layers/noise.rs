//! NEFTune (Jain et al., arXiv:2310.05914): noise on the embeddings of the tokens while learning.
//!
//! ε is uniform in ±α / √(T C), T the tokens of the row and C the width, so that its expected length does not grow with
//! either. The noise is added, so the backward passes it by.

use super::Pass;
use super::host::{Host, rows_per_task};
use crate::model::Segment;
use crate::rng;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// x: (N, C) → x + ε while training with noise, else x. ε is a function of (seed, step, token, element).
pub fn neftune(x: Tensor, segments: &[Segment], pass: Pass) -> Result<Tensor> {
    if !pass.train || pass.noise == 0.0 {
        return Ok(x);
    }
    let (x, width) = (x.contiguous()?, x.dim(1)?);
    let reach: Vec<f32> = segments
        .iter()
        .flat_map(|s| std::iter::repeat_n(pass.noise / ((s.keys * width) as f32).sqrt(), s.len))
        .collect();
    let host = Host::new(&x)?;
    let stream = rng::stream("neftune", pass.step);
    let rows = rows_per_task(width);
    let mut out = vec![0.0; x.elem_count()];
    out.par_chunks_mut(rows * width).zip(host.slice().par_chunks(rows * width)).enumerate().for_each(
        |(task, (out, x))| {
            for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                let token = task * rows + i / width;
                let index = ((pass.first + task * rows) * width + i) as u64;
                *out = x + (2.0 * rng::uniform(pass.seed, stream, index) - 1.0) * reach[token];
            }
        },
    );
    Tensor::from_vec(out, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const PASS: Pass = Pass { train: true, seed: 3, step: 7, noise: 5.0, ..Pass::EVAL };

    fn noise(segments: &[Segment], pass: Pass) -> Vec<f32> {
        let n = segments.iter().map(|s| s.len).sum::<usize>();
        let x = Tensor::zeros((n, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        neftune(x, segments, pass).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn segment(start: usize, len: usize) -> Segment {
        Segment { start, len, keys: len }
    }

    #[test]
    fn noise_is_uniform_within_its_reach_which_shrinks_with_the_row() {
        let all = noise(&[segment(0, 400), segment(400, 100)], PASS);
        for (part, len) in [(&all[..400 * 64], 400.0f32), (&all[400 * 64..], 100.0)] {
            let reach = 5.0 / (len * 64.0).sqrt();
            assert!(part.iter().all(|v| v.abs() <= reach));
            let mean = part.iter().sum::<f32>() / part.len() as f32;
            let square = part.iter().map(|v| v * v).sum::<f32>() / part.len() as f32;
            assert!(mean.abs() < 0.02 * reach, "{mean}");
            assert!((square / (reach * reach / 3.0) - 1.0).abs() < 0.03, "{square}");
        }
    }

    #[test]
    fn parts_draw_what_the_whole_draws_and_another_step_draws_anew() {
        let whole = noise(&[segment(0, 30), segment(30, 11)], PASS);
        assert_eq!(noise(&[segment(0, 30)], PASS), whole[..30 * 64]);
        assert_eq!(noise(&[segment(0, 11)], Pass { first: 30, ..PASS }), whole[30 * 64..]);
        assert_ne!(noise(&[segment(0, 30)], Pass { step: 8, ..PASS }), whole[..30 * 64]);
        for quiet in [Pass { train: false, ..PASS }, Pass { noise: 0.0, ..PASS }] {
            assert!(noise(&[segment(0, 5)], quiet).iter().all(|v| *v == 0.0));
        }
    }
}
