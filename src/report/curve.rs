//! Numbers over steps, as SVG. Losses are drawn twice: once for a screen, once for a phone, so that the words keep their size on both.

use super::escape;
use std::fmt::Write;

/// Points of a line that are worth drawing.
const MOST: usize = 600;

/// The figure, or nothing when there is no finite loss.
pub(super) fn figure(loss: &[(usize, f64)], val: &[(usize, f64)]) -> Option<String> {
    let (loss, val) = (finite(loss), finite(val));
    if loss.is_empty() && val.is_empty() {
        return None;
    }
    let mut out = String::from("<div class=\"key\">");
    if !loss.is_empty() {
        out.push_str("<span><i style=\"background:rgb(var(--train))\"></i>training</span>");
    }
    if !val.is_empty() {
        out.push_str("<span><i style=\"background:rgb(var(--bad))\"></i>held out</span>");
    }
    out.push_str("</div>");
    draw(&mut out, ("wide", "loss over steps"), (860.0, 320.0), &loss, &val);
    draw(&mut out, ("narrow", "loss over steps"), (360.0, 260.0), &loss, &val);
    Some(out)
}

/// A small figure of one number, or nothing when there is no finite value.
pub(super) fn small(title: &str, points: &[(usize, f64)]) -> Option<String> {
    let points = finite(points);
    let mut out = String::new();
    let label = escape(&format!("{title} over steps"));
    if !points.is_empty() {
        draw(&mut out, ("small", &label), (420.0, 220.0), &points, &[]);
    }
    (!out.is_empty()).then_some(out)
}

fn finite(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    points.iter().copied().filter(|(_, y)| y.is_finite()).collect()
}

/// `what` is the class of the figure and its label, for those who cannot see it.
fn draw(out: &mut String, what: (&str, &str), size: (f64, f64), loss: &[(usize, f64)], val: &[(usize, f64)]) {
    let ((class, label), (width, height)) = (what, size);
    let all = || loss.iter().chain(val);
    let last = all().map(|p| p.0).max().unwrap_or(0) as f64;
    let first = (all().map(|p| p.0).min().unwrap_or(0) as f64).min(last - 1.0);
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    // Losses are above zero: the axis starts there unless that would waste most of the height.
    let low = if low >= 0.0 && low < 0.6 * high { 0.0 } else { low };
    let y_ticks = ticks(low, high, (height / 60.0) as usize, false);
    let (low, high) = (low.min(y_ticks[0]), high.max(*y_ticks.last().unwrap_or(&high)));
    let (left, right, top, bottom) = (48.0, width - 16.0, 12.0, height - 40.0);
    let x = |step: f64| left + (step - first) / (last - first) * (right - left);
    let y = |value: f64| bottom - (value - low) / (high - low) * (bottom - top);

    let _ = write!(out, "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">");
    for tick in &y_ticks {
        let at = y(*tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            at + 4.0,
            number(*tick)
        );
    }
    for tick in ticks(first, last, (width / 90.0) as usize, true) {
        let anchor = if x(tick) > right - 20.0 { "end" } else { "middle" };
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            x(tick),
            bottom + 18.0,
            number(tick)
        );
    }
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>",
        (left + right) / 2.0,
        height - 4.0
    );

    let line = |points: &[(f64, f64)]| -> String {
        points.iter().enumerate().fold(String::new(), |mut d, (i, (step, value))| {
            let _ = write!(d, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x(*step), y(*value));
            d
        })
    };
    let noisy = loss.len() >= 20;
    if !loss.is_empty() {
        let class = if noisy { "raw" } else { "smooth" };
        let _ = write!(out, "<path class=\"{class}\" d=\"{}\"/>", line(&thinned(loss)));
    }
    if noisy {
        let _ = write!(out, "<path class=\"smooth\" d=\"{}\"/>", line(&thinned(&smoothed(loss))));
    }
    if !val.is_empty() {
        let points: Vec<(f64, f64)> = val.iter().map(|(s, v)| (*s as f64, *v)).collect();
        let _ = write!(out, "<path class=\"val\" d=\"{}\"/>", line(&points));
        let best = val.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(val[0]);
        for (step, value) in val.iter().filter(|p| val.len() <= 60 || **p == best) {
            let class = if (*step, *value) == best { "dot best" } else { "dot" };
            let title = escape(&format!("step {step}: {value:.4}"));
            let (x, y) = (x(*step as f64), y(*value));
            let _ = write!(
                out,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{title}</title></circle>"
            );
        }
        let (at, above) = (x(best.0 as f64), y(best.1));
        let anchor = if at > right - 60.0 { "end" } else { "middle" };
        let at_y = if above < top + 24.0 { above + 20.0 } else { above - 11.0 };
        let _ = write!(
            out,
            "<text class=\"mark\" x=\"{at:.1}\" y=\"{at_y:.1}\" text-anchor=\"{anchor}\">{:.3}</text>",
            best.1
        );
    }
    out.push_str("</svg>");
}

/// Mean over about a twentieth of the steps around each one: no lag, and fewer of them at both ends.
fn smoothed(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let reach = (points.len() / 40).max(1);
    let around = |i: usize| {
        let reach = reach.min(i).min(points.len() - 1 - i);
        let near = &points[i - reach..=i + reach];
        (points[i].0, near.iter().map(|p| p.1).sum::<f64>() / near.len() as f64)
    };
    (0..points.len()).map(around).collect()
}

/// Means of neighbours, so that no more than [`MOST`] points are drawn.
fn thinned(points: &[(usize, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MOST).max(1);
    let mean = |g: &[(usize, f64)]| {
        let n = g.len() as f64;
        (g.iter().map(|p| p.0 as f64).sum::<f64>() / n, g.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(group).map(mean).collect()
}

/// Round numbers between `low` and `high` at about `wanted` places: multiples of 1, 2 or 5 times a power of ten. With
/// `inside`, none lies beyond either end; else they reach over both.
fn ticks(low: f64, high: f64, wanted: usize, inside: bool) -> Vec<f64> {
    let span = if high > low { high - low } else { high.abs().max(1.0) * 0.1 };
    let rough = span / wanted.max(2) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough * 0.999).unwrap_or(10.0);
    let step = if inside { (factor * power).max(1.0) } else { factor * power };
    let (mut from, mut to) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    if inside {
        (from, to) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    } else if from == to {
        (from, to) = (from - 1, to + 1);
    }
    (from..=to).map(|i| i as f64 * step).collect()
}

/// A tick's label, without a tail of zeros.
fn number(value: f64) -> String {
    let text = match value.abs() {
        0.0 => return "0".into(),
        v if v >= 1e6 => return format!("{}M", number(value / 1e6)),
        v if v >= 1e4 => return format!("{}k", number(value / 1e3)),
        v if v < 1e-3 => return format!("{value:.0e}"),
        _ => format!("{value:.4}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_over_both_ends() {
        let near = |got: Vec<f64>, want: &[f64]| {
            assert_eq!(got.len(), want.len(), "{got:?}");
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9), "{got:?}");
        };
        near(ticks(0.0, 3.1, 5, false), &[0.0, 1.0, 2.0, 3.0, 4.0]);
        near(ticks(0.31, 0.38, 4, false), &[0.3, 0.32, 0.34, 0.36, 0.38]);
        near(ticks(1.0, 60.0, 6, true), &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        near(ticks(0.0, 3.0, 9, true), &[0.0, 1.0, 2.0, 3.0]);
        assert!(ticks(2.0, 2.0, 5, false).len() >= 2);
    }

    #[test]
    fn labels_have_no_tail() {
        let labels: Vec<String> = [0.0, 2.0, 0.25, 12_000.0, 0.0002].into_iter().map(number).collect();
        assert_eq!(labels, ["0", "2", "0.25", "12k", "2e-4"]);
    }

    #[test]
    fn every_number_in_the_drawing_is_finite_whatever_the_losses() {
        for (loss, val) in [
            (vec![(1, 2.0)], vec![]),
            (vec![], vec![(5, 1.0)]),
            (vec![(1, 0.0), (2, 0.0)], vec![]),
            (vec![(1, f64::NAN), (2, f64::INFINITY), (3, 1e9)], vec![(3, -1.0)]),
            ((1..5000).map(|s| (s, 1.0 + (s as f64).sin())).collect(), (1..100).map(|s| (s * 50, 1.0)).collect()),
        ] {
            let svg = figure(&loss, &val).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            if let Some(svg) = small("a number", &loss) {
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
        assert_eq!(figure(&[(1, f64::NAN)], &[]), None);
    }

    #[test]
    fn long_runs_are_thinned_and_smoothing_keeps_a_line() {
        let flat: Vec<(usize, f64)> = (0..5000).map(|s| (s, 2.0)).collect();
        assert!(thinned(&flat).len() <= MOST);
        let line: Vec<(usize, f64)> = (0..100).map(|s| (s, 7.0 - s as f64)).collect();
        assert!(smoothed(&line).iter().zip(&line).all(|(a, b)| (a.1 - b.1).abs() < 1e-9));
    }
}
