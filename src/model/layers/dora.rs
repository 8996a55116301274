//! DoRA (Liu et al., arXiv:2402.09353): y = m/‖W + s B A‖ ⊙ (W x + s B A x) + b. The norm is taken over each row of the
//! sum and, as in section 4.3 of the paper and in PEFT, counted as a constant by the backward.

use super::host::Host;
use super::linear::Linear;
use super::lora::Lora;
use super::{Grads, Pass};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// A direction that a low-rank pair turns, and a magnitude a row.
pub struct Dora {
    /// The pair. Its dropout also reaches W x, as in PEFT: y = W x + b + (c - 1) W x̃ + c s B A x̃, x̃ the dropped x.
    pub pair: Lora,
    /// m: (out), the norms of W's rows at first.
    pub magnitude: Tensor,
    /// ‖W‖² by row: (out). W is frozen, so it is summed once.
    squares: Tensor,
}

impl Dora {
    /// Over W: (out, in), with m = ‖W‖: beside a pair whose B is zero, as it is at first, this changes nothing.
    pub fn new(pair: Lora, weight: &Tensor) -> Result<Self> {
        let squares = squared_rows(weight)?;
        Ok(Self { pair, magnitude: squares.sqrt()?, squares })
    }

    /// x: (N, in) → (N, out).
    pub fn forward(&self, linear: &Linear, x: &Tensor, pass: Pass) -> Result<Tensor> {
        let c = self.factors(linear)?; // (out)
        let dropped = self.pair.dropped(x, &linear.name, pass)?;
        let delta = self.pair.delta(&dropped)?;
        if !self.pair.drops(pass) {
            let y = (linear.project(x)? + delta)?.broadcast_mul(&c)?;
            return match &linear.bias {
                Some(b) => y.broadcast_add(b),
                None => Ok(y),
            };
        }
        let turned = linear.project(&dropped)?.broadcast_mul(&(&c - 1.0)?)?;
        (linear.plain(x)? + turned)? + delta.broadcast_mul(&c)?
    }

    /// dm = Σ dy ⊙ (W x̃ + s B A x̃) / ‖W + s B A‖; the pair is given c ⊙ dy; dx as for LoRA, with c ⊙ dy for dy.
    pub fn backward(
        &self,
        linear: &Linear,
        x: &Tensor,
        dy: &Tensor,
        pass: Pass,
        grads: &mut Grads,
        want_dx: bool,
    ) -> Result<Option<Tensor>> {
        let (name, c) = (&linear.name, self.factors(linear)?);
        let dropped = self.pair.dropped(x, name, pass)?;
        let sum = (linear.project(&dropped)? + self.pair.delta(&dropped)?)?; // (N, out)
        grads.add(&format!("{name}.lora_magnitude_vector"), ((dy * sum)?.sum(0)? / self.norms(linear)?)?)?;
        let scaled = dy.broadcast_mul(&c)?;
        let dz = self.pair.weight_grads(name, &dropped, &scaled, grads)?;
        if !want_dx {
            return Ok(None);
        }
        let low = dz.matmul(&self.pair.a)?;
        if !self.pair.drops(pass) {
            return Ok(Some((linear.project_back(&scaled)? + low)?));
        }
        let turned = (linear.project_back(&(scaled - dy)?)? + low)?;
        Ok(Some((linear.project_back(dy)? + self.pair.dropped(&turned, name, pass)?)?))
    }

    /// W' = m/‖W + s B A‖ ⊙ (W + s B A), by row, in f32.
    pub fn folded(pair: &Lora, magnitude: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let sum = pair.folded(weight)?;
        let c = (magnitude / squared_rows(&sum)?.sqrt()?)?;
        sum.broadcast_mul(&c.unsqueeze(1)?)
    }

    /// Calls `f` with the name and the place of A, B and m.
    pub fn trained(&mut self, name: &str, f: &mut dyn FnMut(String, &mut Tensor)) {
        self.pair.trained(name, f);
        f(format!("{name}.lora_magnitude_vector"), &mut self.magnitude);
    }

    /// c = m/‖W + s B A‖: (out).
    fn factors(&self, linear: &Linear) -> Result<Tensor> {
        &self.magnitude / self.norms(linear)?
    }

    /// ‖W + s B A‖ by row, without making the sum: ‖W‖² + 2 s (W Aᵀ) ⊙ B + s² (B A Aᵀ) ⊙ B, each summed over r.
    fn norms(&self, linear: &Linear) -> Result<Tensor> {
        let Lora { a, b, scale, .. } = &self.pair;
        let crossed = (linear.project(a)?.t()? * b)?.sum(1)?; // (out)
        let own = (b.matmul(&a.matmul(&a.t()?)?)? * b)?.sum(1)?;
        let squares = ((&self.squares + (crossed * (2.0 * scale))?)? + (own * (scale * scale))?)?;
        squares.relu()?.sqrt() // a sum that cancels whole may come out below zero by rounding
    }
}

/// ‖W‖² by row, summed in f64: a row has thousands of squares, and their sum is kept for the whole run.
fn squared_rows(weight: &Tensor) -> Result<Tensor> {
    let (out, input) = weight.dims2()?;
    let weight = weight.contiguous()?;
    let host = Host::new(&weight)?;
    let square = |row: &[f32]| row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>() as f32;
    let squares: Vec<f32> = host.slice().par_chunks(input).map(square).collect();
    Tensor::from_vec(squares, out, weight.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use candle_core::{Device, Var};

    fn random(name: &str, shape: (usize, usize)) -> Var {
        let n = (shape.0 * shape.1) as u64;
        let values: Vec<f32> = (0..n).map(|i| rng::normal(2, rng::stream(name, 0), i)).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn close(ours: &Tensor, theirs: &Tensor, name: &str) {
        let off = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let largest = theirs.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(off <= 1e-5 * largest, "{name}: {off} off, the largest is {largest}");
    }

    /// Output, dx, dA, dB and dm as candle's tape has them, W + s B A written out and its norm detached.
    fn agrees(dropout: f32) {
        let (n, input, out, r, scale) = (6, 5, 7, 2, 1.5);
        let (x, w, a, b) =
            (random("x", (n, input)), random("w", (out, input)), random("a", (r, input)), random("b", (out, r)));
        let (m, bias) =
            (Var::from_tensor(&random("m", (1, out)).flatten_all().unwrap()).unwrap(), random("bias", (1, out)));
        let dy = random("dy", (n, out));
        let bias = bias.flatten_all().unwrap().detach();
        let mut linear = Linear::new("q".into(), w.as_detached_tensor(), Some(bias.clone()));
        let pair = Lora { a: a.as_detached_tensor(), b: b.as_detached_tensor(), scale, dropout };
        let mut dora = Dora::new(pair, &w).unwrap();
        dora.magnitude = m.as_detached_tensor();
        let pass = Pass { train: true, seed: 3, step: 1, ..Pass::EVAL };
        // What dropout does is a factor an element.
        let mask = dora.pair.dropped(&x.ones_like().unwrap(), "q", pass).unwrap();
        linear.adapter = Some(super::super::adapter::Adapter::Dora(dora));
        let mut grads = Grads::default();
        let x0 = x.as_detached_tensor();
        let y = linear.forward(&x0, pass).unwrap();
        let dx = linear.backward(&x0, &dy.as_detached_tensor(), pass, &mut grads).unwrap();

        let dropped = (x.as_tensor() * &mask).unwrap();
        let delta = (b.matmul(&a).unwrap() * scale).unwrap();
        let norm = (w.as_tensor() + &delta).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap().detach();
        let c = (m.as_tensor() / norm).unwrap();
        let project = |x: &Tensor, w: &Tensor| x.matmul(&w.t().unwrap()).unwrap();
        let base = (project(&dropped, &w) - project(&x, &w)).unwrap(); // zero without dropout
        let theirs = (project(&dropped, &w) + project(&dropped, &delta)).unwrap().broadcast_mul(&c).unwrap();
        let theirs = (theirs - base).unwrap().broadcast_add(&bias).unwrap();
        close(&y, &theirs, "y");
        let tape = (theirs * dy.as_detached_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        close(&dx, tape.get(&x).unwrap(), "dx");
        for (name, leaf) in [("lora_A.weight", &a), ("lora_B.weight", &b), ("lora_magnitude_vector", &m)] {
            close(&grads.0[&format!("q.{name}")], tape.get(leaf).unwrap(), name);
        }
    }

    #[test]
    fn every_gradient_agrees_with_the_tape() {
        agrees(0.0);
        agrees(0.4);
    }

    #[test]
    fn at_first_it_changes_nothing_and_folded_it_answers_the_same() {
        let (x, w) = (random("x", (4, 5)), random("w", (3, 5)));
        let b = Tensor::zeros((3, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let a = random("a", (2, 5)).as_detached_tensor();
        let mut linear = Linear::new("q".into(), w.as_detached_tensor(), None);
        let plain = linear.forward(&x, Pass::EVAL).unwrap();
        let mut dora = Dora::new(Lora { a, b, scale: 2.0, dropout: 0.0 }, &w).unwrap();
        close(&dora.forward(&linear, &x, Pass::EVAL).unwrap(), &plain, "start");
        dora.pair.b = random("b", (3, 2)).as_detached_tensor();
        dora.magnitude = (&dora.magnitude * 1.25).unwrap();
        let turned = dora.forward(&linear, &x, Pass::EVAL).unwrap();
        linear.weight = Dora::folded(&dora.pair, &dora.magnitude, &w).unwrap().into();
        close(&linear.forward(&x, Pass::EVAL).unwrap(), &turned, "folded");
    }
}
