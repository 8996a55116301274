//! Byte-level BPE (`gpt2`): the merges are GGUF's own form; only the pre-tokenizer needs a name.

use super::{
    Vocabulary,
    json::{Json, refuse},
};
use crate::error::Result;
use edgeft_runtime::format::gguf::Value as GgufValue;
use serde_json::Value;

/// Splits that llama.cpp has a name for and whose regex a tokenizer.json spells out before its `ByteLevel` step.
const SPLITS: [(&str, &str); 2] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
];

pub(super) fn vocabulary(json: &Json) -> Result<Vocabulary> {
    let pre = pre(&json.pre_tokenizers())?;
    let (tokens, types) = json.tokens(str::to_string)?;
    // A space inside a token would read as the end of the first half; byte-level tokens spell it U+0120.
    let spell = |s: &str| s.replace(' ', "\u{120}");
    let merges = json.merges()?.iter().map(|(a, b)| format!("{} {}", spell(a), spell(b))).collect();
    Ok(Vocabulary {
        model: "gpt2",
        pre: Some(pre),
        tokens,
        types,
        scores: None,
        merges: Some(merges),
        more: Vec::new(),
    })
}

/// What an encoder's text stands between (RoBERTa's `<s>` and `</s>`), and the token of a hidden word.
pub(super) fn frame(json: &Json) -> Result<Vec<(&'static str, GgufValue)>> {
    let (first, last) = json.template()?;
    let ids = [
        ("ggml.cls_token_id", first),
        ("ggml.seperator_token_id", last), // spelled so in the format
        ("ggml.mask_token_id", json.id("<mask>")?),
    ];
    Ok(ids.into_iter().filter_map(|(key, id)| Some((key, GgufValue::U32(id?)))).collect())
}

/// llama.cpp's name for a pre-tokenizer.
fn pre(steps: &[&Value]) -> Result<&'static str> {
    let is = |step: &Value, kind: &str| step["type"] == kind;
    if let Some(step) = steps.iter().find(|s| s["add_prefix_space"] == true) {
        return refuse(format!(
            "`add_prefix_space` is true in {step}, which byte-level GGUF tokenizers cannot express"
        ));
    }
    let own_split = |step: &Value| is(step, "ByteLevel") && step["use_regex"] != false;
    match steps {
        [bytes] if own_split(bytes) => return Ok("gpt-2"),
        [digits, bytes] if is(digits, "Digits") && digits["individual_digits"] == true && own_split(bytes) => {
            return Ok("smollm");
        }
        [split, bytes] if is(split, "Split") && is(bytes, "ByteLevel") && bytes["use_regex"] == false => {
            let regex = split["pattern"]["Regex"].as_str().unwrap_or_default();
            let plain = split["behavior"] == "Isolated" && split["invert"] != true;
            if let Some((_, name)) = SPLITS.iter().find(|(r, _)| plain && *r == regex) {
                return Ok(name);
            }
        }
        _ => {}
    }
    let shown: Vec<String> = steps.iter().map(ToString::to_string).collect();
    refuse(format!(
        "no GGUF name is known for the pre-tokenizer {}; gpt-2, smollm, llama-bpe and qwen2 are",
        shown.join(" then ")
    ))
}
