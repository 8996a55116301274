//! What stands between two matrices: norms, rotary embedding, activations and gates. Slices in, slices out.

use crate::kernels::exp::exp;
use crate::model::Act;

/// Weights of a norm: RMSNorm, or LayerNorm where there is a bias.
pub struct Norm {
    /// (C).
    pub weight: Vec<f32>,
    /// (C).
    pub bias: Option<Vec<f32>>,
}

impl Norm {
    /// y = norm(x), row by row.
    pub fn apply(&self, x: &[f32], eps: f32, y: &mut Vec<f32>) {
        match &self.bias {
            None => rms_norm(x, &self.weight, eps, y),
            Some(bias) => {
                y.clear();
                y.extend_from_slice(x);
                layer_norm(y, &self.weight, bias, eps);
            }
        }
    }

    /// x = norm(x), row by row.
    pub fn renew(&self, x: &mut [f32], eps: f32) {
        match &self.bias {
            None => rms_norm_heads(x, &self.weight, eps),
            Some(bias) => layer_norm(x, &self.weight, bias, eps),
        }
    }
}

/// y = x / rms(x) * w, row by row (Zhang and Sennrich, arXiv:1910.07467).
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut Vec<f32>) {
    y.clear();
    for x in x.chunks(w.len()) {
        let square = x.iter().map(|v| f64::from(v * v)).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (square + f64::from(eps)).sqrt();
        y.extend(x.iter().zip(w).map(|(x, w)| (f64::from(*x) * r) as f32 * w));
    }
}

/// The same in place, for each head of (H, D) by one weight of (D).
pub fn rms_norm_heads(x: &mut [f32], w: &[f32], eps: f32) {
    for x in x.chunks_mut(w.len()) {
        let square = x.iter().map(|v| f64::from(v * v)).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (square + f64::from(eps)).sqrt();
        x.iter_mut().zip(w).for_each(|(x, w)| *x = (f64::from(*x) * r) as f32 * w);
    }
}

/// x = (x - mean) / deviation * w + b, row by row (Ba et al., arXiv:1607.06450).
pub fn layer_norm(x: &mut [f32], w: &[f32], b: &[f32], eps: f32) {
    for x in x.chunks_mut(w.len()) {
        let n = x.len() as f64;
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let square = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (square + f64::from(eps)).sqrt();
        for (x, (w, b)) in x.iter_mut().zip(w.iter().zip(b)) {
            *x = ((f64::from(*x) - mean) * r) as f32 * w + b;
        }
    }
}

/// Rotary frequencies of one model (RoFormer, arXiv:2104.09864, section 3.4.2).
pub struct Rope {
    /// (R/2) radians a position, R rotated dimensions of a head.
    inv_freq: Vec<f64>,
    /// D.
    head_dim: usize,
    /// Whether pairs are (2i, 2i + 1), as in GGUF files of Llama, or (i, i + R/2).
    adjacent: bool,
}

impl Rope {
    /// Rotations of whole heads.
    /// - `factors`: (D/2) what each frequency is divided by (`rope_freqs.weight`)
    pub fn new(head_dim: usize, theta: f32, linear: f32, factors: Option<&[f32]>, adjacent: bool) -> Self {
        let freq = |i: usize| {
            let base = f64::from(theta).powf(-(2.0 * i as f64) / head_dim as f64);
            base / f64::from(linear) / factors.map_or(1.0, |f| f64::from(f[i]))
        };
        Self { inv_freq: (0..head_dim / 2).map(freq).collect(), head_dim, adjacent }
    }

    /// Rotations of the first dimensions of heads that are wider.
    pub fn of_heads(self, head_dim: usize) -> Self {
        Self { head_dim, ..self }
    }

    /// Pairs that are rotated: angles of one position.
    pub fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// (cos, sin) of every pair at one position.
    pub fn angles(&self, position: usize, out: &mut Vec<(f32, f32)>) {
        out.extend(self.inv_freq.iter().map(|f| {
            let (sin, cos) = (position as f64 * f).sin_cos();
            (cos as f32, sin as f32)
        }));
    }

    /// Rotates the heads of one token, in place. `x`: (H * D).
    pub fn rotate(&self, x: &mut [f32], angles: &[(f32, f32)]) {
        let half = self.inv_freq.len();
        for x in x.chunks_mut(self.head_dim) {
            for (i, (cos, sin)) in angles.iter().enumerate() {
                let (a, b) = if self.adjacent { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (p, q) = (x[a], x[b]);
                x[a] = p * cos - q * sin;
                x[b] = q * cos + p * sin;
            }
        }
    }
}

/// g = silu(g) * u.
pub fn swiglu(g: &mut [f32], u: &[f32]) {
    for (g, u) in g.iter_mut().zip(u) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

/// g = act(g) * u.
pub fn gated(act: Act, g: &mut [f32], u: &[f32]) {
    if act == Act::Silu {
        return swiglu(g, u);
    }
    bend(act, g);
    g.iter_mut().zip(u).for_each(|(g, u)| *g *= u);
}

/// x = act(x).
pub fn bend(act: Act, x: &mut [f32]) {
    match act {
        Act::Silu => x.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x)),
        Act::Gelu => gelu(x),
        Act::GeluTanh => gelu_tanh(x),
    }
}

/// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2 (Hendrycks and Gimpel, arXiv:1606.08415).
fn gelu_tanh(x: &mut [f32]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    for x in x {
        *x *= 0.5 * (1.0 + (SQRT_2_OVER_PI * (*x + 0.044_715 * *x * *x * *x)).tanh());
    }
}

/// x Φ(x), with the exact normal distribution function.
pub fn gelu(x: &mut [f32]) {
    for x in x {
        *x *= (0.5 * (1.0 + erf(f64::from(*x) * std::f64::consts::FRAC_1_SQRT_2))) as f32;
    }
}

/// The error function, by Abramowitz and Stegun 7.1.26: at most 1.5e-7 off.
fn erf(x: f64) -> f64 {
    const A: [f64; 5] = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let sum = A.iter().rev().fold(0.0, |sum, a| (sum + a) * t);
    (1.0 - sum * (-x * x).exp()).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_close_at_known_places() {
        for (x, want) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - want).abs() < 1.6e-7 && (erf(-x) + want).abs() < 1.6e-7, "{x}");
        }
    }

    #[test]
    fn norms_by_hand() {
        let mut y = Vec::new();
        rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0, &mut y);
        let rms = 12.5f32.sqrt();
        assert!((y[0] - 3.0 / rms).abs() < 1e-6 && (y[1] - 8.0 / rms).abs() < 1e-6, "{y:?}");
        let mut x = [1.0, 3.0];
        layer_norm(&mut x, &[1.0, 2.0], &[0.0, 1.0], 0.0);
        assert_eq!(x, [-1.0, 3.0]);
    }

    #[test]
    fn norms_of_heads_and_of_rows_are_one() {
        let (w, mut y) = ([0.5, 2.0, 1.0], Vec::new());
        let mut x = [1.0, -2.0, 0.5, 3.0, 0.0, -1.0];
        rms_norm(&x, &w, 1e-5, &mut y);
        rms_norm_heads(&mut x, &w, 1e-5);
        assert_eq!(x.to_vec(), y);
    }

    /// Values of torch's `gelu(approximate="tanh")` and `silu`.
    #[test]
    fn activations_at_known_places() {
        let (mut tanh, mut silu) = ([-3.0, -1.0, 0.0, 0.5, 2.0], [-3.0, -1.0, 0.0, 0.5, 2.0]);
        bend(Act::GeluTanh, &mut tanh);
        bend(Act::Silu, &mut silu);
        for (x, want) in tanh.into_iter().zip([-0.003_637_392, -0.158_808, 0.0, 0.345_714, 1.954_597_7]) {
            assert!((x - want).abs() < 1e-6f32, "{x} {want}");
        }
        for (x, want) in silu.into_iter().zip([-0.142_277_6, -0.268_941_4, 0.0, 0.311_229_7, 1.761_594_2]) {
            assert!((x - want).abs() < 1e-6f32, "{x} {want}");
        }
        let mut gate = [2.0, -1.0];
        gated(Act::GeluTanh, &mut gate, &[2.0, -3.0]);
        assert!((gate[0] - 3.909_195_4).abs() < 2e-6f32 && (gate[1] - 0.476_424).abs() < 1e-6, "{gate:?}");
    }

    #[test]
    fn a_part_of_each_head_turns_as_a_narrow_head_would() {
        let narrow = Rope::new(4, 100.0, 1.0, None, false);
        let wide = Rope::new(4, 100.0, 1.0, None, false).of_heads(6);
        let mut angles = Vec::new();
        narrow.angles(3, &mut angles);
        let (mut a, mut b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 7.0, 8.0]);
        narrow.rotate(&mut a, &angles);
        wide.rotate(&mut b, &angles);
        assert_eq!((&b[..4], &b[4..6], &b[6..10], &b[10..]), (&a[..], &[5.0, 6.0][..], &a[..], &[7.0, 8.0][..]));
        assert_eq!((wide.pairs(), angles.len()), (2, 2));
    }

    #[test]
    fn both_pairings_turn_by_the_same_angles() {
        let (adjacent, halves) = (Rope::new(4, 100.0, 1.0, None, true), Rope::new(4, 100.0, 1.0, None, false));
        let mut angles = Vec::new();
        adjacent.angles(3, &mut angles);
        let (mut a, mut b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]);
        adjacent.rotate(&mut a, &angles);
        halves.rotate(&mut b, &angles);
        assert_eq!(a, [b[0], b[2], b[1], b[3]]);
        let want = (3f32.cos() - 2.0 * 3f32.sin(), 2.0 * 3f32.cos() + 3f32.sin());
        assert!((a[0] - want.0).abs() < 1e-6 && (a[1] - want.1).abs() < 1e-6, "{a:?}");
    }

    #[test]
    fn scaled_frequencies_turn_more_slowly() {
        let (mut plain, mut slow) = (Vec::new(), Vec::new());
        Rope::new(4, 100.0, 1.0, None, true).angles(3, &mut plain);
        Rope::new(4, 100.0, 3.0, Some(&[1.0, 2.0]), true).angles(3 * 3, &mut slow);
        assert!((plain[0].0 - slow[0].0).abs() < 1e-6 && (plain[1].1 - slow[1].1).abs() > 0.1);
    }
}
