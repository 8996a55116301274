//! One type for each matrix, so that the whole is small and changes little: the lower convex hull of all mixes, exactly.
//!
//! Of each matrix only the types on its own hull can be on the whole's, and along it each step buys less a byte than the one
//! before; so the whole's hull is all steps of all matrices in the order of what they buy.

use edgeft_runtime::format::GgmlType;

/// A type that a matrix may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Which.
    pub ty: GgmlType,
    /// Bytes in the file, padding included.
    pub bytes: u64,
    /// KL divergence that it costs, nats a position.
    pub kl: f64,
}

/// A matrix and its types.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// GGUF name.
    pub name: String,
    /// Elements.
    pub elements: u64,
    /// In any order.
    pub choices: Vec<Choice>,
}

/// A mix on the front.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Bytes of the whole file.
    pub bytes: u64,
    /// What it is predicted to change.
    pub kl: f64,
}

/// Mixes from the smallest to the largest.
#[derive(Debug, Clone)]
pub struct Front {
    /// The mixes.
    pub points: Vec<Point>,
    /// For each matrix its type in the smallest mix.
    first: Vec<GgmlType>,
    /// Step i leads from point i to i + 1: that matrix gets that type.
    steps: Vec<(usize, GgmlType)>,
}

impl Front {
    /// `others`: bytes of the file besides these matrices.
    pub fn new(tensors: &[Tensor], others: u64) -> Self {
        let mut steps = Vec::new();
        let (mut bytes, mut kl, mut first) = (others, 0.0, Vec::new());
        for (i, tensor) in tensors.iter().enumerate() {
            let hull = hull(&tensor.choices);
            let Some(start) = hull.first() else { continue };
            bytes += start.bytes;
            kl += start.kl;
            first.push(start.ty);
            for pair in hull.windows(2) {
                let (more, less) = (pair[1].bytes - pair[0].bytes, pair[0].kl - pair[1].kl);
                steps.push((less / more as f64, i, pair[1].ty, more, less));
            }
        }
        // The sort keeps the order of equals, so a matrix' steps stay in theirs.
        steps.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut points = vec![Point { bytes, kl }];
        for (_, _, _, more, less) in &steps {
            (bytes, kl) = (bytes + more, kl - less);
            points.push(Point { bytes, kl: kl.max(0.0) });
        }
        Self { points, first, steps: steps.into_iter().map(|(_, i, ty, _, _)| (i, ty)).collect() }
    }

    /// The type of each matrix at a point.
    pub fn types(&self, point: usize) -> Vec<GgmlType> {
        let mut types = self.first.clone();
        for (tensor, ty) in &self.steps[..point] {
            types[*tensor] = *ty;
        }
        types
    }

    /// The point that changes least among those of at most so many bytes; `None` when even the smallest is larger.
    pub fn within(&self, bytes: u64) -> Option<usize> {
        self.points.iter().rposition(|p| p.bytes <= bytes)
    }

    /// The smallest that is predicted to change at most so much; `None` when none does.
    pub fn changing(&self, kl: f64) -> Option<usize> {
        self.points.iter().position(|p| p.kl <= kl)
    }
}

/// The lower convex hull, from the fewest bytes on: each step down in KL, and each buying less a byte than the one before.
fn hull(choices: &[Choice]) -> Vec<Choice> {
    let mut sorted: Vec<Choice> = choices.iter().filter(|c| c.kl.is_finite()).copied().collect();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.kl.total_cmp(&b.kl)));
    let mut out: Vec<Choice> = Vec::new();
    for c in sorted {
        if out.last().is_some_and(|last| c.kl >= last.kl || c.bytes == last.bytes) {
            continue;
        }
        let rate = |a: &Choice, b: &Choice| (a.kl - b.kl) / (b.bytes - a.bytes) as f64;
        while out.len() > 1 && rate(&out[out.len() - 2], &out[out.len() - 1]) <= rate(&out[out.len() - 1], &c) {
            out.pop();
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use GgmlType::*;

    /// Four matrices of five types, sizes and costs from a small generator.
    fn some() -> Vec<Tensor> {
        let mut state = 7u64;
        let mut draw = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        (0..4)
            .map(|i| {
                let size = 100.0 + 900.0 * draw();
                let weight = draw() * draw();
                let choices =
                    [(Q2_K, 2.6, 4.0), (Q3_K, 3.4, 1.5), (Q4_K, 4.5, 0.4), (Q5_K, 5.5, 0.3), (Q6_K, 6.6, 0.02)];
                let choice = |(ty, bits, cost): (GgmlType, f64, f64)| Choice {
                    ty,
                    bytes: (size * bits) as u64,
                    kl: weight * cost * (0.5 + draw()),
                };
                Tensor { name: format!("t{i}"), elements: 8 * size as u64, choices: choices.map(choice).to_vec() }
            })
            .collect()
    }

    /// No mix at all, of all 5^4, is as small as a point of the front and changes less.
    #[test]
    fn nothing_beats_a_point_of_the_front() {
        let tensors = some();
        let front = Front::new(&tensors, 10);
        assert!(front.points.len() > 8);
        for (i, point) in front.points.iter().enumerate() {
            let types = front.types(i);
            let (mut bytes, mut kl) = (10, 0.0);
            for (tensor, ty) in tensors.iter().zip(&types) {
                let choice = tensor.choices.iter().find(|c| c.ty == *ty).unwrap();
                (bytes, kl) = (bytes + choice.bytes, kl + choice.kl);
            }
            assert!(bytes == point.bytes && (kl - point.kl).abs() < 1e-12, "{bytes} {kl} {point:?}");
            for mix in 0..5usize.pow(4) {
                let pick = |t: usize| &tensors[t].choices[mix / 5usize.pow(t as u32) % 5];
                let (bytes, kl) = (0..4).fold((10, 0.0), |(b, k), t| (b + pick(t).bytes, k + pick(t).kl));
                assert!(bytes > point.bytes || kl >= point.kl - 1e-12, "{mix}: {bytes} {kl} beats {point:?}");
            }
        }
    }

    #[test]
    fn a_bound_finds_its_point() {
        let front = Front::new(&some(), 10);
        let (first, last) = (front.points[0], *front.points.last().unwrap());
        assert_eq!((front.within(first.bytes - 1), front.within(first.bytes)), (None, Some(0)));
        assert_eq!(front.within(u64::MAX), Some(front.points.len() - 1));
        assert_eq!((front.changing(first.kl), front.changing(last.kl / 2.0)), (Some(0), None));
        let middle = front.within((first.bytes + last.bytes) / 2).unwrap();
        assert!(front.points[middle + 1].bytes > (first.bytes + last.bytes) / 2);
    }
}
