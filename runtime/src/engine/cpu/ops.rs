//! What stands between two matrices: norms, rotary embedding, gates. Slices in, slices out.

/// y = x / rms(x) * w, row by row (Zhang and Sennrich, arXiv:1910.07467).
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut Vec<f32>) {
    y.clear();
    for x in x.chunks(w.len()) {
        let square = x.iter().map(|v| f64::from(v * v)).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (square + f64::from(eps)).sqrt();
        y.extend(x.iter().zip(w).map(|(x, w)| (f64::from(*x) * r) as f32 * w));
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
    /// (D/2) radians a position.
    inv_freq: Vec<f64>,
    /// Whether pairs are (2i, 2i + 1), as in GGUF files of Llama, or (i, i + D/2).
    adjacent: bool,
}

impl Rope {
    /// - `factors`: (D/2) what each frequency is divided by (`rope_freqs.weight`)
    pub fn new(head_dim: usize, theta: f32, linear: f32, factors: Option<&[f32]>, adjacent: bool) -> Self {
        let freq = |i: usize| {
            let base = f64::from(theta).powf(-(2.0 * i as f64) / head_dim as f64);
            base / f64::from(linear) / factors.map_or(1.0, |f| f64::from(f[i]))
        };
        Self { inv_freq: (0..head_dim / 2).map(freq).collect(), adjacent }
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
        for x in x.chunks_mut(2 * half) {
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
        *g = *g / (1.0 + (-*g).exp()) * u;
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
