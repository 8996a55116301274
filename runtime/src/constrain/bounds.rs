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
