//! What is refused before a constraint is compiled: the library descends by recursion, counts up to the numbers it is
//! given, and knows no clock.

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::error::{Error, Kind, Result};

/// Bytes of a schema, an expression or a grammar.
pub const MAX_BYTES: usize = 64 << 10;
/// Levels of objects and arrays in a schema.
pub const MAX_DEPTH: usize = 64;
/// Levels of a schema and of all that its `$ref`s point at, together: as deep as a chain of references may go.
pub const MAX_REACH: usize = 1024;
/// Largest count in a schema: `minItems`, `maxLength` and their kin.
pub const MAX_COUNT: u64 = 10_000;

/// Keywords that count.
const COUNTS: [&str; 6] = ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];
/// Keywords whose values are data, in which a `$ref` means nothing.
const DATA: [&str; 4] = ["const", "enum", "default", "examples"];

/// A regular expression or a grammar that is not too long.
pub(super) fn text(what: &str, text: &str) -> Result<()> {
    match text.len() {
        0 => Err(Error::new(Kind::Input, what, "it is empty")),
        n if n > MAX_BYTES => Err(Error::new(Kind::Limit, what, format!("{n} bytes, more than {MAX_BYTES}"))),
        _ => Ok(()),
    }
}

/// A schema that can be compiled in bounded time, memory and stack.
pub fn schema(schema: &Json) -> Result<()> {
    let mut seen = Seen { root: schema, reach: 0, refs: HashMap::new() };
    seen.reach = seen.depth(schema, "")?;
    text("JSON schema", &schema.to_string())?;
    seen.walk(schema, "")
}

struct Seen<'a> {
    root: &'a Json,
    reach: usize,
    /// References with how deep what they point at is.
    refs: HashMap<&'a str, usize>,
}

impl<'a> Seen<'a> {
    /// Levels of a value, which are not too many.
    fn depth(&self, value: &Json, place: &str) -> Result<usize> {
        // Level by level, since what is too deep for the library may be too deep for a recursion here.
        let mut level = vec![value];
        for depth in 0..=MAX_DEPTH {
            let next: Vec<&Json> = level.iter().flat_map(|v| inner(v)).collect();
            if next.is_empty() {
                return Ok(depth + 1);
            }
            level = next;
        }
        Err(limit(place, format!("it is nested deeper than {MAX_DEPTH} levels")))
    }

    /// - `place`: a JSON pointer
    fn walk(&mut self, value: &'a Json, place: &str) -> Result<()> {
        match value {
            Json::Object(map) => {
                let names = place.ends_with("/properties");
                for (key, value) in map {
                    let place = format!("{place}/{key}");
                    match value {
                        Json::String(to) if key == "$ref" && !names => self.reference(to, &place)?,
                        Json::Number(n) if COUNTS.contains(&key.as_str()) && !names => count(n, &place)?,
                        _ if key == "x-guidance" && !names => {
                            return Err(Error::new(Kind::Input, at(&place), "it is no keyword of JSON Schema"));
                        }
                        _ if DATA.contains(&key.as_str()) && !names => {}
                        value => self.walk(value, &place)?,
                    }
                }
                Ok(())
            }
            Json::Array(all) => {
                all.iter().enumerate().try_for_each(|(i, value)| self.walk(value, &format!("{place}/{i}")))
            }
            _ => Ok(()),
        }
    }

    fn reference(&mut self, to: &'a str, place: &str) -> Result<()> {
        if self.refs.contains_key(to) {
            return Ok(());
        }
        let within = to.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let Some(pointer) = within else {
            let message = format!("`{to}` is outside the document; only `#` and `#/...` are followed");
            return Err(Error::new(Kind::Input, at(place), message));
        };
        let Some(target) = self.root.pointer(if pointer == "/" { "" } else { pointer }) else {
            return Err(Error::new(Kind::Input, at(place), format!("`{to}` is not in the document")));
        };
        let depth = self.depth(target, place)?;
        self.refs.insert(to, depth);
        self.reach += depth;
        match self.reach {
            n if n > MAX_REACH => {
                let message = format!("with what its {} references point at, it is {n} levels deep", self.refs.len());
                Err(limit(place, format!("{message}; the most is {MAX_REACH}")))
            }
            _ => Ok(()),
        }
    }
}

/// What an array or an object holds.
fn inner(value: &Json) -> Vec<&Json> {
    match value {
        Json::Array(all) => all.iter().collect(),
        Json::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn count(n: &serde_json::Number, place: &str) -> Result<()> {
    match n.as_u64() {
        Some(n) if n > MAX_COUNT => Err(limit(place, format!("{n} is more than {MAX_COUNT}"))),
        Some(_) => Ok(()),
        None => Err(Error::new(Kind::Input, at(place), format!("{n} is not a count"))),
    }
}

fn at(place: &str) -> String {
    format!("JSON schema, #{place}")
}

fn limit(place: &str, message: String) -> Error {
    Error::new(Kind::Limit, at(place), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constrain::tests::{refuses, schema, tokenizer, write};
    use crate::constrain::{Constraint, Grammar};
    use crate::sample::{Sampler, Sampling};
    use serde_json::json;
    use std::time::{Duration, Instant};

    #[test]
    fn references_are_followed_inside_the_document_alone() {
        refuses(schema(json!({"$ref": "https://example.org/s.json"})), Kind::Input, "outside the document");
        refuses(schema(json!({"$ref": "file:///etc/passwd"})), Kind::Input, "outside the document");
        refuses(schema(json!({"$ref": "#/$defs/none"})), Kind::Input, "not in the document");
        refuses(schema(json!({"$ref": "#"})), Kind::Input, "JSON schema");
        let list = schema(json!({"type": "object", "required": ["next"], "additionalProperties": false, "properties":
            {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}}));
        let (text, ended) = write(&list, &tokenizer(), 3, 2000);
        assert!(!ended || serde_json::from_str::<Json>(&text).is_ok(), "{text}");
        let named = schema(json!({"type": "object", "properties": {"$ref": {"type": "null"}}, "required": ["$ref"],
            "additionalProperties": false}));
        assert_eq!(
            serde_json::from_str::<Json>(&write(&named, &tokenizer(), 0, 100).0).unwrap(),
            json!({"$ref": null})
        );
    }

    #[test]
    fn what_would_take_the_stack_the_memory_or_the_day_is_refused() {
        let mut deep = json!({"type": "null"});
        (0..200).for_each(|_| deep = json!({"items": deep}));
        refuses(schema(deep), Kind::Limit, "deeper than 64");
        let wide: Vec<String> = (0..9000).map(|i| format!("value {i}")).collect();
        refuses(schema(json!({"enum": wide})), Kind::Limit, "more than 65536");
        refuses(schema(json!({"type": "array", "minItems": 1_000_000_000_000u64})), Kind::Limit, "more than 10000");
        let mut defs = serde_json::Map::new();
        (0..1000)
            .for_each(|i| drop(defs.insert(i.to_string(), json!({"items": {"$ref": format!("#/$defs/{}", i + 1)}}))));
        defs.insert("1000".into(), json!({"type": "null"}));
        refuses(schema(json!({"$ref": "#/$defs/0", "$defs": defs})), Kind::Limit, "the most is 1024");
        // Choices of choices: 4 to the 9th combinations.
        let four = |i: usize| {
            let one = |j| json!({"type": "object", "properties": {format!("p{i}"): {"const": j}}});
            json!({"anyOf": (0..4).map(one).collect::<Vec<_>>()})
        };
        refuses(schema(json!({"allOf": (0..9).map(four).collect::<Vec<_>>()})), Kind::Input, "too large");
    }

    /// As deep as the bounds let through: it must fit the stack.
    #[test]
    fn the_deepest_chain_of_references_is_compiled() {
        let leaf = (0..28).fold(json!({"type": "null"}), |s, _| json!({"type": "array", "maxItems": 1, "items": s}));
        let mut defs = serde_json::Map::new();
        for i in 0..30 {
            let next = if i == 29 { json!({"type": "null"}) } else { json!({"$ref": format!("#/$defs/{}", i + 1)}) };
            defs.insert(i.to_string(), (0..28).fold(next, |s, _| json!({"type": "array", "maxItems": 1, "items": s})));
        }
        let deep = schema(json!({"anyOf": [{"$ref": "#/$defs/0"}, leaf], "$defs": defs}));
        let (text, ended) = write(&deep, &tokenizer(), 1, 3000);
        assert!(ended && text.starts_with('['), "{text}");
    }

    /// Grammars whose automata are huge, or numbers odd: masks may fail with a named limit, and must neither hang nor panic.
    #[test]
    fn what_explodes_is_stopped_by_its_bounds() {
        let regex = |text: &str| Constraint::Regex(text.into());
        let twice = json!({"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}}, {"type": "null"}]});
        let hostile = [
            regex("((a{1000}){1000}){1000}"),
            regex("(a|b)*a(a|b){400}c"),
            regex("(.*a.*b.*){20}"),
            regex("(a?){300}a{300}"),
            schema(json!({"type": "integer", "multipleOf": 999_999_937, "minimum": 5})),
            schema(json!({"type": "number", "multipleOf": 1e-9, "minimum": -1e300, "maximum": 1e300})),
            schema(json!({"type": "string", "pattern": "^(a+)+$", "minLength": 5000, "maxLength": 10_000})),
            schema(json!({"type": "object", "patternProperties": {"^a": {}, "b$": {}}})),
            schema(json!({"type": "object", "minProperties": 5000, "properties": {"a": {}}})),
            schema(json!({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": twice}})),
            schema(json!({"$ref": ["é".repeat(60)]})), // the library panics on this one
            schema(json!({"enum": (0..6000).map(|i| format!("{:04x}", i * 7919 % 65536)).collect::<Vec<_>>()})),
        ];
        let tokenizer = tokenizer();
        for constraint in hostile {
            let start = Instant::now();
            let outcome = Grammar::new(&constraint, &tokenizer).and_then(|grammar| {
                let mut held = grammar.begin(tokenizer.stop_ids());
                let mut sampler = Sampler::new(Sampling { temperature: 1.0, ..Sampling::default() })?;
                for _ in 0..300 {
                    let mut logits = vec![0.0; tokenizer.vocab_size()];
                    held.mask(&mut logits)?;
                    let id = sampler.next(&mut logits, &[])?;
                    if tokenizer.stop_ids().contains(&id) || held.take(id)? {
                        break;
                    }
                }
                Ok(())
            });
            assert!(start.elapsed() < Duration::from_secs(20), "{constraint:?}: {:?}", start.elapsed());
            if let Err(e) = outcome {
                assert_eq!(e.kind(), Kind::Input, "{constraint:?}: {e}");
            }
        }
    }
}
