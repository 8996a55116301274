//! A first request to a server, one that its model can answer.

use edgeft_runtime::model::{Model, Task};
use serde_json::json;
use std::path::Path;

/// A line of curl.
/// - `key_file`: the file that `--api-key-file` named
pub fn first(model: &Model, url: &str, key_file: Option<&Path>) -> String {
    let chat = matches!(model.chat(), Ok(Some(_)));
    let (path, body) = match (model.task(), chat) {
        (Task::Classify, _) => ("v1/classify", json!({"input": "What a pleasant surprise."})),
        (Task::Answer, _) => ("v1/answer", json!({"question": "Who wrote it?", "context": "Ann wrote it."})),
        (Task::Embed, _) => ("v1/embeddings", json!({"input": "Hello"})),
        (Task::Generate, true) => {
            ("v1/chat/completions", json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}))
        }
        (Task::Generate, false) => ("v1/completions", json!({"prompt": "Once upon a time", "max_tokens": 32})),
    };
    let key = key_file
        .map_or(String::new(), |path| format!(" -H \"Authorization: Bearer $(grep -m1 '^[^#]' {})\"", path.display()));
    format!("curl {url}/{path}{key} -d '{body}'")
}
