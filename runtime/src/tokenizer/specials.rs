//! The files of a Hugging Face folder -> ids with a role: tokenizer_config.json names them, config.json numbers them, and
//! tokenizer.json knows which number a name has.

use serde_json::Value as Json;

use super::{Specials, input};
use crate::error::Result;

/// Ends of a turn that chat templates use, when the template of the model names them.
const ENDS_OF_TURN: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>"];

/// Text side of a model folder, as [`Specials::of_folder`] reads it. A file that is not there is null.
#[derive(Debug, Clone, Copy)]
pub struct FolderFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer_json: &'a [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: &'a Json,
    /// `config.json`, or the part of another file that has `bos_token_id`, `eos_token_id` and `pad_token_id`.
    pub config: &'a Json,
    /// Jinja source of the chat template.
    pub chat_template: Option<&'a str>,
    /// Whether the model reads in both directions, so that CLS begins and SEP ends a text.
    pub encoder: bool,
}

impl Specials {
    /// Ids with a role.
    ///
    /// # Errors
    /// [`crate::Kind::Input`] when tokenizer.json is not JSON.
    pub fn of_folder(files: &FolderFiles) -> Result<Self> {
        let vocab: Json = serde_json::from_slice(files.tokenizer_json)
            .map_err(|e| input(format!("the tokenizer.json is not JSON: {e}")))?;
        let id = |token: &str| id_of(&vocab, token);
        // A string, or an object with `content`.
        let named = |key: &str| {
            let value = &files.tokenizer_config[key];
            id(value.as_str().or_else(|| value["content"].as_str())?)
        };
        // One id, or several, the first of which ends a text.
        let numbered = |key: &str| {
            let value = &files.config[key];
            u32::try_from(value.as_u64().or_else(|| value[0].as_u64())?).ok()
        };
        let eos = named("eos_token").or_else(|| numbered("eos_token_id"));
        let template = files.chat_template.unwrap_or_default();
        let ends = ENDS_OF_TURN.iter().filter(|t| template.contains(**t)).find_map(|t| id(t));
        let cls = files.encoder.then(|| named("cls_token").or_else(|| id("[CLS]"))).flatten();
        let sep = files.encoder.then(|| named("sep_token").or_else(|| id("[SEP]"))).flatten();
        Ok(Self {
            bos: named("bos_token").or_else(|| numbered("bos_token_id")).or(cls),
            eos: eos.or(sep),
            eot: ends.filter(|t| Some(*t) != eos),
            eom: None,
            unk: named("unk_token"),
            pad: named("pad_token").or_else(|| numbered("pad_token_id")),
            sep,
            cls,
            mask: named("mask_token"),
            add_bos: None,
            add_eos: None,
        })
    }
}

/// Id of a token: added ones first, then the vocabulary.
fn id_of(vocab: &Json, token: &str) -> Option<u32> {
    let added = vocab["added_tokens"].as_array().into_iter().flatten().find(|t| t["content"] == token);
    let id = added.and_then(|t| t["id"].as_u64()).or_else(|| vocab["model"]["vocab"][token].as_u64())?;
    u32::try_from(id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOKENIZER: &str = r#"{"added_tokens": [{"id": 7, "content": "<s>"}, {"id": 8, "content": "<|im_end|>"}],
        "model": {"vocab": {"<s>": 1, "</s>": 2, "[CLS]": 3, "[SEP]": 4}}}"#;

    fn files<'a>(tokenizer_config: &'a Json, config: &'a Json, encoder: bool) -> FolderFiles<'a> {
        let chat_template = Some("{{ '<|im_end|>' }}");
        FolderFiles { tokenizer_json: TOKENIZER.as_bytes(), tokenizer_config, config, chat_template, encoder }
    }

    #[test]
    fn names_win_over_numbers_and_added_tokens_over_the_vocabulary() {
        let (names, numbers) =
            (json!({"bos_token": {"content": "<s>"}}), json!({"bos_token_id": 5, "eos_token_id": [2, 8]}));
        let specials = Specials::of_folder(&files(&names, &numbers, false)).unwrap();
        assert_eq!((specials.bos, specials.eos, specials.eot, specials.cls), (Some(7), Some(2), Some(8), None));
    }

    #[test]
    fn an_encoder_begins_with_cls_and_ends_with_sep() {
        let specials = Specials::of_folder(&files(&Json::Null, &Json::Null, true)).unwrap();
        assert_eq!((specials.bos, specials.eos), (Some(3), Some(4)));
    }

    #[test]
    fn an_end_of_turn_that_ends_the_text_too_is_named_once() {
        let numbers = json!({"eos_token_id": 8});
        let specials = Specials::of_folder(&files(&Json::Null, &numbers, false)).unwrap();
        assert_eq!((specials.eos, specials.eot), (Some(8), None));
    }
}
