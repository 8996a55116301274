//! YAML as Kubernetes reads it, into JSON: enough for the manifests that are written here.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value, json};

/// The documents of a file.
///
/// # Panics
/// On what is no YAML, and on anchors and aliases, which the manifests do without.
#[track_caller]
pub fn documents(text: &str) -> Vec<Value> {
    let mut events = Parser::new_from_str(text).map(|event| event.expect("YAML").0);
    let mut found = Vec::new();
    while let Some(event) = events.next() {
        if let Event::DocumentStart(_) = event {
            let first = events.next().expect("a document");
            found.push(value(first, &mut events));
        }
    }
    found
}

fn value<'a>(event: Event<'a>, events: &mut impl Iterator<Item = Event<'a>>) -> Value {
    match event {
        Event::Scalar(text, ScalarStyle::Plain, ..) => match text.as_ref() {
            "true" => json!(true),
            "false" => json!(false),
            "null" | "~" | "" => Value::Null,
            number if number.parse::<i64>().is_ok() => json!(number.parse::<i64>().expect("a number")),
            other => json!(other),
        },
        Event::Scalar(text, ..) => json!(text.as_ref()),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match events.next().expect("the end of a list") {
                    Event::SequenceEnd => return Value::Array(items),
                    item => items.push(value(item, events)),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut fields = Map::new();
            loop {
                match events.next().expect("the end of a mapping") {
                    Event::MappingEnd => return Value::Object(fields),
                    Event::Scalar(key, ..) => {
                        let field = events.next().expect("a value");
                        let before = fields.insert(key.to_string(), value(field, events));
                        assert!(before.is_none(), "`{key}` stands twice");
                    }
                    other => panic!("{other:?} where a key should be"),
                }
            }
        }
        other => panic!("{other:?} where a value should be"),
    }
}

#[test]
fn a_manifest_becomes_json() {
    let text = "a: 1\nb:\n  - x: true\n    y: \"2\"\n  - [\"--z\", q]\n---\nc: 12Mi # why\n";
    assert_eq!(documents(text), [json!({"a": 1, "b": [{"x": true, "y": "2"}, ["--z", "q"]]}), json!({"c": "12Mi"})]);
}
