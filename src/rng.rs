//! Counter-based random numbers: a value is a function of (seed, stream, index), so nothing has a state to save, and any
//! element can be drawn again in the backward, after a resume, or on another thread.
//!
//! The mixer is SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014), applied over the three words in turn.

/// A stream for one use (`name`) at one time (`step`).
pub fn stream(name: &str, step: u64) -> u64 {
    // FNV-1a: spreads names well enough for the mixer that follows.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    mix(hash ^ mix(step))
}

/// 64 random bits.
pub fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    mix(index.wrapping_add(mix(stream.wrapping_add(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))))))
}

/// Uniform in [0, 1), 24 bits.
pub fn uniform(seed: u64, stream: u64, index: u64) -> f32 {
    (bits(seed, stream, index) >> 40) as f32 / (1u64 << 24) as f32
}

/// Standard normal, by Box and Muller.
pub fn normal(seed: u64, stream: u64, index: u64) -> f32 {
    let word = bits(seed, stream, index);
    let u = ((word >> 32) as f64 + 0.5) / 4_294_967_296.0;
    let angle = std::f64::consts::TAU * (word & 0xffff_ffff) as f64 / 4_294_967_296.0;
    ((-2.0 * u.ln()).sqrt() * angle.cos()) as f32
}

/// 0..n in a random order (Fisher and Yates).
pub fn shuffled(n: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, (bits(seed, stream, i as u64) % (i as u64 + 1)) as usize);
    }
    order
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_fills_the_interval_evenly_and_streams_differ() {
        let draw = |s| (0..10_000).map(|i| uniform(1, s, i)).collect::<Vec<_>>();
        let (a, b) = (draw(stream("a", 0)), draw(stream("a", 1)));
        let mean = a.iter().sum::<f32>() / 1e4;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!(a.iter().all(|v| (0.0..1.0).contains(v)));
        let along: f32 = a.iter().zip(&b).map(|(a, b)| (a - 0.5) * (b - 0.5)).sum::<f32>() / 1e4;
        assert!(along.abs() < 0.005, "{along}");
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let v: Vec<f32> = (0..20_000).map(|i| normal(3, 5, i)).collect();
        let (mean, square) = (v.iter().sum::<f32>() / 2e4, v.iter().map(|x| x * x).sum::<f32>() / 2e4);
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.05, "{mean} {square}");
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut order = shuffled(100, 7, 1);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
