//! Numbers side by side as horizontal bars in SVG: once for a screen, once for a phone, so that the words keep their size.

use super::escape;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// One measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bar {
    /// What was measured.
    pub label: String,
    /// Its colour: bars of one group have the same.
    pub group: String,
    /// Length.
    pub value: f64,
    /// What it cannot exceed, as a line across; not drawn where it lies beyond the figure.
    pub bound: Option<f64>,
}

/// Measurements of one unit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bars {
    /// Headline.
    pub title: String,
    /// Stands behind every number.
    pub unit: String,
    /// From top to bottom.
    pub rows: Vec<Bar>,
    /// A sentence below; may be empty.
    pub note: String,
}

/// Groups that have a colour of their own; more of them share the last.
const COLOURS: usize = 3;

/// The figure, or nothing when there is no finite number.
pub(super) fn figure(bars: &Bars) -> Option<String> {
    let rows: Vec<&Bar> = bars.rows.iter().filter(|b| b.value.is_finite() && b.value >= 0.0).collect();
    let longest = rows.iter().map(|b| b.value).fold(0.0, f64::max);
    if rows.is_empty() {
        return None;
    }
    let mut groups: Vec<&str> = Vec::new();
    for row in &rows {
        if !groups.contains(&row.group.as_str()) {
            groups.push(&row.group);
        }
    }
    let mut out = String::new();
    if groups.len() > 1 {
        out.push_str("<div class=\"key\">");
        for (i, group) in groups.iter().enumerate() {
            let _ = write!(out, "<span><i class=\"g{}\"></i>{}</span>", i.min(COLOURS - 1), escape(group));
        }
        out.push_str("</div>");
    }
    draw(&mut out, "wide", 860.0, &bars.title, &bars.unit, &rows, &groups, longest);
    draw(&mut out, "narrow", 360.0, &bars.title, &bars.unit, &rows, &groups, longest);
    Some(out)
}

/// Label above its bar, number behind it.
fn draw(
    out: &mut String,
    class: &str,
    width: f64,
    title: &str,
    unit: &str,
    rows: &[&Bar],
    groups: &[&str],
    longest: f64,
) {
    let (step, thick, room) = (44.0, 16.0, width - 130.0);
    let height = step * rows.len() as f64 + 4.0;
    let scale = if longest > 0.0 { room / longest } else { 0.0 };
    let _ = write!(
        out,
        "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    );
    for (i, row) in rows.iter().enumerate() {
        let top = step * i as f64;
        let length = (row.value * scale).max(1.0);
        let group = groups.iter().position(|g| *g == row.group).unwrap_or(0).min(COLOURS - 1);
        let label = if groups.len() > 1 { format!("{} on {}", row.label, row.group) } else { row.label.clone() };
        let (y, bar_end) = (top + 20.0, top + 20.0 + thick);
        let _ = write!(
            out,
            "<text x=\"0\" y=\"{:.1}\">{}</text><rect class=\"g{group}\" x=\"0\" y=\"{y:.1}\" width=\"{length:.1}\" \
             height=\"{thick}\" rx=\"3\"/>",
            top + 14.0,
            escape(&shortened(&label, (width / 7.5) as usize))
        );
        let bound = row.bound.map(|b| b * scale).filter(|x| x.is_finite() && *x <= room + 8.0);
        if let Some(x) = bound {
            let _ = write!(
                out,
                "<line class=\"bound\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                y - 3.0,
                bar_end + 3.0
            );
        }
        let after = length.max(bound.unwrap_or(0.0)) + 8.0;
        let _ = write!(
            out,
            "<text class=\"mark\" x=\"{after:.1}\" y=\"{:.1}\">{} {}</text>",
            y + thick - 4.0,
            number(row.value),
            escape(unit)
        );
    }
    out.push_str("</svg>");
}

/// Three digits: more would be noise.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// Letters beyond the figure are cut, and the cut is shown.
fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(rows: &[(&str, f64, Option<f64>)]) -> Bars {
        let bar = |&(group, value, bound): &(&str, f64, Option<f64>)| Bar {
            label: "a <b>".into(),
            group: group.into(),
            value,
            bound,
        };
        Bars {
            title: "\"speed\"".into(),
            unit: "tokens/s".into(),
            rows: rows.iter().map(bar).collect(),
            note: String::new(),
        }
    }

    #[test]
    fn lengths_are_in_proportion_and_the_longest_leaves_room_for_its_number() {
        let svg = figure(&bars(&[("cpu", 50.0, None), ("cpu", 100.0, None)])).unwrap();
        assert!(svg.contains("width=\"365.0\"") && svg.contains("width=\"730.0\""), "{svg}");
        assert!(!svg.contains("class=\"key\"") && svg.contains("50.0 tokens/s"), "{svg}");
    }

    #[test]
    fn engines_have_colours_and_a_key() {
        let svg =
            figure(&bars(&[("cpu", 1.0, None), ("gpu", 2.0, None), ("ort", 3.0, None), ("npu", 4.0, None)])).unwrap();
        assert!(svg.contains("<i class=\"g2\"></i>npu") && svg.contains("a &lt;b&gt; on gpu"), "{svg}");
    }

    #[test]
    fn a_ceiling_is_drawn_where_the_figure_reaches() {
        let count = |bound| figure(&bars(&[("cpu", 10.0, Some(bound))])).unwrap().matches("class=\"bound\"").count();
        assert_eq!((count(10.0), count(1000.0), count(f64::NAN)), (2, 0, 0));
    }

    #[test]
    fn every_number_in_the_drawing_is_finite() {
        let svg = figure(&bars(&[("cpu", 0.0, Some(0.0)), ("cpu", f64::NAN, None)])).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(figure(&bars(&[("cpu", f64::INFINITY, None)])), None);
    }
}
