//! Which modules carry an adapter, by PEFT's rules: the last parts of a path, or a pattern for all of it; of chosen layers.

use regex::Regex;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Whether the module at `path` is called `name`: the whole path, or its last parts.
pub fn is_called(path: &str, name: &str) -> bool {
    path == name || path.ends_with(&format!(".{name}"))
}

/// A pattern that must match the whole of `inside`, as Python's `re` would spell it.
///
/// # Errors
/// What is no pattern here, such as one that looks ahead.
pub fn whole(pattern: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|_| format!("the pattern `{pattern}` is not supported"))
}

/// Patterns over module paths with a value each; the first that matches the end of a path wins.
#[derive(Debug, Clone, PartialEq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Patterns<T> {
    /// The value for the module at `path`.
    pub fn get(&self, path: &str) -> Option<T> {
        let matches = |key: &str| whole(&format!("(?:.*\\.)?(?:{key})")).is_ok_and(|p| p.is_match(path));
        self.0.iter().find(|(key, _)| matches(key)).map(|(_, value)| *value)
    }
}

/// Number of the layer that the module at `path` belongs to: the first part that is a number and has two parts before it, or
/// the one after `pattern` (`layers`, `h`), when patterns are given.
pub fn layer_of(path: &str, patterns: &[String]) -> Option<usize> {
    let parts: Vec<&str> = path.split('.').collect();
    // The number is never the last part: a module stands inside the layer.
    let inner = 1..parts.len().saturating_sub(1);
    if patterns.is_empty() {
        return inner.skip(1).find_map(|i| parts[i].parse().ok());
    }
    let named =
        |i: usize, pattern: &String| parts[..i].join(".").ends_with(pattern.as_str()).then(|| parts[i].parse().ok());
    patterns.iter().find_map(|pattern| inner.clone().find_map(|i| named(i, pattern).flatten()))
}

/// Numbers of layers, written `4-11` or `0,2,8-9`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Layers(pub Vec<usize>);

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |t: &str| t.trim().parse::<usize>().map_err(|_| format!("`{text}` is no range such as 4-11 or 0,2,8-9"));
        let mut layers = Vec::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (number(from)?, number(to)?);
            if from > to || to > 9999 {
                return Err(format!("`{part}` is no range of layers"));
            }
            layers.extend(from..=to);
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(Self(layers))
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => String::new(),
        });
        f.write_str(&runs.collect::<Vec<_>>().join(","))
    }
}

impl TryFrom<String> for Layers {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Layers> for String {
    fn from(layers: Layers) -> Self {
        layers.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_and_written_as_ranges() {
        for (text, canonical, layers) in
            [("4-6", "4-6", vec![4, 5, 6]), ("7", "7", vec![7]), ("9,1-2,2-3", "1-3,9", vec![1, 2, 3, 9])]
        {
            let read: Layers = text.parse().unwrap();
            assert_eq!((&read.0, read.to_string().as_str()), (&layers, canonical));
        }
        for wrong in ["", "a", "5-4", "1-", "-3", "1-99999"] {
            assert!(wrong.parse::<Layers>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_tells_its_layer() {
        let none: &[String] = &[];
        assert_eq!(layer_of("model.layers.11.self_attn.q_proj", none), Some(11));
        assert_eq!(layer_of("bert.encoder.layer.0.output.dense", none), Some(0));
        assert_eq!(layer_of("model.layers.1.experts.3.w1", none), Some(1));
        assert_eq!(layer_of("bert.pooler.dense", none), None);
        assert_eq!(layer_of("transformer.h.2.attn.c_attn", &["h".into()]), Some(2));
        assert_eq!(layer_of("transformer.h.2.attn.c_attn", &["layers".into()]), None);
    }

    #[test]
    fn the_first_pattern_that_fits_gives_the_value() {
        let patterns = Patterns(vec![("layers.0.*v_proj".into(), 2), ("q_proj".into(), 8), ("v_proj".into(), 4)]);
        assert_eq!(patterns.get("model.layers.0.self_attn.v_proj"), Some(2));
        assert_eq!(patterns.get("model.layers.1.self_attn.v_proj"), Some(4));
        assert_eq!(patterns.get("model.layers.1.self_attn.q_proj"), Some(8));
        assert_eq!(patterns.get("model.layers.1.self_attn.xq_proj"), None);
        assert!(whole("a(?=b)").is_err());
    }
}
