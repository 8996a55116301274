//! `/openapi.json`: the table of routes and the tables of fields, in OpenAPI 3.1.

use super::names::Names;
use super::routes::{Gives, ROUTES, Route, Verb};
use super::schema;
use serde_json::{Map, Value, json};

/// What every answer that is an error may be.
const ERRORS: [(&str, &str); 11] = [
    ("400", "A field is missing, unknown or out of range, or the text is longer than the context"),
    ("401", "No key, or a wrong one"),
    ("403", "A Host or an Origin that is not allowed"),
    ("404", "No such model"),
    ("405", "Another method is served here"),
    ("408", "The body came too slowly"),
    ("413", "The body is too large"),
    ("429", "Too many requests wait; `Retry-After` says when to ask again"),
    ("500", "The engine failed on this request"),
    ("503", "The model is being loaded, or the server is about to stop"),
    ("504", "The answer was not whole in time"),
];

/// The document.
pub(super) fn document(names: &Names, needs_key: bool) -> Value {
    let names: Vec<&str> = names.all().iter().map(|(name, _)| &**name).collect();
    let mut paths = Map::new();
    for route in ROUTES {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        methods[route.verb.as_str().to_ascii_lowercase()] = operation(route, &names, needs_key);
    }
    let error = json!({"type": "object", "required": ["error"], "properties": {"error":
        {"type": "object", "required": ["message", "type", "param", "code"], "properties": {
            "message": {"type": "string"}, "type": {"type": "string"},
            "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}});
    let error_v2 = json!({"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}});
    json!({
        "openapi": "3.1.0",
        "info": {"title": format!("edgeft serve: {}", names.join(", ")), "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": {"Error": error, "ErrorV2": error_v2},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn operation(route: &Route, names: &[&str], needs_key: bool) -> Value {
    let mut responses = Map::new();
    let content = match route.gives {
        Gives::Json => json!({"application/json": {"schema": {"type": "object"}}}),
        Gives::JsonOrEvents => json!({"application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}}}),
        Gives::Text(kind) => json!({kind: {"schema": {"type": "string"}}}),
    };
    responses.insert("200".into(), json!({"description": "OK", "content": content}));
    let kind = if route.path.starts_with("/v2") { "ErrorV2" } else { "Error" };
    for (status, description) in ERRORS {
        let schema = json!({"$ref": format!("#/components/schemas/{kind}")});
        let content = json!({"application/json": {"schema": schema}});
        responses.insert(status.into(), json!({"description": description, "content": content}));
    }
    let mut out = json!({"summary": route.summary, "responses": responses});
    if let Verb::Post(table) = route.verb {
        let content = json!({"application/json": {"schema": schema::of(table)}});
        out["requestBody"] = json!({"required": true, "content": content});
    }
    if route.path.contains("{name}") {
        out["parameters"] =
            json!([{"name": "name", "in": "path", "required": true, "schema": {"type": "string", "enum": names}}]);
    }
    if needs_key && !route.open {
        out["security"] = json!([{"key": []}]);
    }
    out
}
