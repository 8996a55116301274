//! A reliability diagram as SVG: how often predictions of a confidence are right; a model that knows itself lies on the diagonal.

use crate::eval::metrics::calibration::Bin;
use std::fmt::Write;

/// The figure, or nothing without rows.
pub(super) fn figure(bins: &[Bin]) -> Option<String> {
    let total: usize = bins.iter().map(|b| b.count).sum();
    if total == 0 {
        return None;
    }
    let (size, left, top, side) = ((432.0, 330.0), 48.0, 12.0, 270.0);
    let wide = 356.0;
    let x = |v: f64| left + v * wide;
    let y = |v: f64| top + (1.0 - v) * side;
    let mut out = format!(
        "<svg class=\"small\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"accuracy over confidence\">",
        size.0, size.1
    );
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (right, at, below) = (left + wide, y(tick), top + side + 17.0);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>\
             <text x=\"{:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{:.0} %</text>",
            left - 6.0,
            at + 4.0,
            100.0 * tick,
            x(tick),
            100.0 * tick
        );
    }
    let step = wide / bins.len() as f64;
    for (i, bin) in bins.iter().enumerate().filter(|(_, b)| b.count > 0) {
        // Bins with few rows are pale: their height is chance.
        let strength = 0.25 + 0.65 * (bin.count as f64 / total as f64).sqrt();
        let _ = write!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"rgb(var(--train))\" fill-opacity=\"{strength:.2}\">\
             <title>{} rows of confidence {:.1} %: {:.1} % right</title></rect>",
            left + i as f64 * step + 1.0,
            y(bin.accuracy),
            step - 2.0,
            (side * bin.accuracy).max(1.0),
            bin.count,
            100.0 * bin.confidence,
            100.0 * bin.accuracy
        );
    }
    let _ = write!(
        out,
        "<line class=\"bound\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">confidence</text></svg>",
        x(0.0),
        y(0.0),
        x(1.0),
        y(1.0),
        left + wide / 2.0,
        size.1 - 6.0
    );
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_with_rows_are_drawn_and_the_diagonal_behind_them() {
        let bin = |count, confidence, accuracy| Bin { count, confidence, accuracy };
        let svg = figure(&[bin(0, 0.0, 0.0), bin(3, 0.6, 1.0 / 3.0), bin(9, 0.97, 1.0)]).unwrap();
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("3 rows of confidence 60.0 %: 33.3 % right") && svg.contains("class=\"bound\""));
        assert!(!svg.contains("NaN"));
        assert_eq!(figure(&[bin(0, 0.0, 0.0)]), None);
    }
}
