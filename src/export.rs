//! A model folder, a RUN or `nano` → GGUF, as a file or in memory. The tokenizer is proven on the way: ids by the GGUF's
//! own fields equal those of tokenizer.json, or nothing is written. An ONNX folder ([`onnx`]) carries tokenizer.json itself.

pub mod onnx;

use crate::error::BadInput;
use crate::merge::Merged;
use crate::model::open::{Opened, TextFiles};
use crate::tune::run_folder;
use anyhow::Context;
use edgeft_quantize::tokenizer::{TokenizerFiles, added_by_template};
use edgeft_quantize::{Mix, Plan, PlanOptions, Report, plan};
use edgeft_runtime::format::gguf::Value;
use edgeft_runtime::tokenizer::{Specials, Tokenizer};
use std::path::Path;

/// Ends of a turn that chat templates use, when the template of the model names them.
const ENDS_OF_TURN: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>"];

/// Tokenizer files of a model, in the quantizer's words.
pub fn tokenizer_files(opened: &Opened) -> anyhow::Result<TokenizerFiles> {
    let Some(json) = opened.text.tokenizer_json.clone() else {
        return Ok(TokenizerFiles { chat_template: opened.text.chat_template.clone(), ..TokenizerFiles::default() });
    };
    let special = specials(opened)?;
    let (first, last) = added_by_template(&json, special.bos.or(special.cls), special.eos.or(special.sep))
        .map_err(|e| BadInput(format!("{}: {e}", opened.name)))?;
    let sentencepiece_model = match opened.base_path.as_ref().map(|p| p.join("tokenizer.model")).filter(|p| p.is_file())
    {
        Some(path) => Some(std::fs::read(path)?),
        None => None,
    };
    Ok(TokenizerFiles {
        tokenizer_json: Some(json),
        chat_template: opened.text.chat_template.clone(),
        bos: special.bos,
        eos: special.eos,
        eot: special.eot,
        pad: special.pad,
        unk: special.unk,
        add_bos: first,
        add_eos: last,
        sentencepiece_model,
    })
}

/// The tokenizer of a model folder, as training uses it: tokenizer.json itself.
///
/// # Errors
/// [`BadInput`] when the folder has none.
pub fn tokenizer(opened: &Opened) -> anyhow::Result<Tokenizer> {
    let Some(json) = &opened.text.tokenizer_json else {
        return Err(BadInput(format!(
            "{}: no tokenizer.json in the model folder, so text cannot be tokenized; put it there, or give pre-tokenized .safetensors",
            opened.name
        ))
        .into());
    };
    Tokenizer::from_hf_json(json, specials(opened)?)
        .map_err(|e| BadInput(format!("{}: tokenizer.json: {e}", opened.name)).into())
}

/// Ids with a role: tokenizer_config.json names them, config.json numbers them.
fn specials(opened: &Opened) -> anyhow::Result<Specials> {
    let vocab = Vocabulary::of(&opened.text)
        .map_err(|e| BadInput(format!("{}: tokenizer.json: not valid JSON: {e}", opened.name)))?;
    let named = |key: &str| opened.text.special(key).and_then(|t| vocab.id(t));
    let eos = named("eos_token").or(opened.config.eos_token_ids.first().copied());
    let template = opened.text.chat_template.as_deref().unwrap_or_default();
    let eot =
        ENDS_OF_TURN.iter().filter(|t| template.contains(**t)).find_map(|t| vocab.id(t)).filter(|t| Some(*t) != eos);
    let encoder = !opened.config.family.is_decoder();
    let (cls, sep) = (named("cls_token").or(vocab.id("[CLS]")), named("sep_token").or(vocab.id("[SEP]")));
    Ok(Specials {
        bos: named("bos_token").or(opened.config.bos_token_id).or(if encoder { cls } else { None }),
        eos: eos.or(if encoder { sep } else { None }),
        eot,
        eom: None,
        unk: named("unk_token"),
        pad: named("pad_token").or(opened.config.pad_token_id),
        sep: if encoder { sep } else { None },
        cls: if encoder { cls } else { None },
        mask: named("mask_token"),
        add_bos: None,
        add_eos: None,
    })
}

/// Token → id of a tokenizer.json, added tokens first.
struct Vocabulary(serde_json::Value);

impl Vocabulary {
    fn of(text: &TextFiles) -> Result<Self, serde_json::Error> {
        let Some(bytes) = &text.tokenizer_json else { return Ok(Self(serde_json::Value::Null)) };
        serde_json::from_slice(bytes).map(Self)
    }

    fn id(&self, token: &str) -> Option<u32> {
        let added = self.0["added_tokens"].as_array().into_iter().flatten().find(|t| t["content"] == token);
        let id = added.and_then(|t| t["id"].as_u64()).or_else(|| self.0["model"]["vocab"][token].as_u64())?;
        u32::try_from(id).ok()
    }
}

/// What the plan for `mix` would be.
pub fn make_plan(opened: &Opened, mix: Mix, options: &PlanOptions) -> anyhow::Result<Plan> {
    plan(&Merged::new(opened)?, mix, options).with_context(|| cannot(opened))
}

/// Writes a GGUF file.
///
/// # Errors
/// A tensor without a rule, a tokenizer that GGUF's fields do not reproduce, an output that exists.
pub fn to_file(
    opened: &Opened,
    mix: Mix,
    options: &PlanOptions,
    out: &Path,
    force: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Report> {
    let merged = Merged::new(opened)?;
    let plan = plan(&merged, mix, options).with_context(|| cannot(opened))?;
    let files = tokenizer_files(opened)?;
    prove(&merged, &files, &plan).with_context(|| cannot(opened))?;
    edgeft_quantize::write_gguf_file(&merged, &files, &plan, &provenance(opened, mix)?, out, force, progress)
        .with_context(|| cannot(opened))
}

/// Writes a GGUF file into memory: how `run`, `serve` and `bench` take a folder or a RUN.
pub fn to_memory(opened: &Opened, mix: Mix) -> anyhow::Result<Vec<u8>> {
    let merged = Merged::new(opened)?;
    let plan = plan(&merged, mix, &PlanOptions::default()).with_context(|| cannot(opened))?;
    let files = tokenizer_files(opened)?;
    prove(&merged, &files, &plan).with_context(|| cannot(opened))?;
    let mut bytes = Vec::new();
    edgeft_quantize::write_gguf(&merged, &files, &plan, &provenance(opened, mix)?, &mut bytes, &mut |_, _| ())
        .with_context(|| cannot(opened))?;
    Ok(bytes)
}

/// What an error of the quantizer, which knows tensors and no folders, begins with.
fn cannot(opened: &Opened) -> String {
    format!("cannot convert {} to GGUF", opened.name)
}

/// The tokenizer keys, read back by the runtime, must give the ids of tokenizer.json.
fn prove(merged: &Merged, files: &TokenizerFiles, plan: &Plan) -> anyhow::Result<()> {
    let Some(json) = &files.tokenizer_json else { return Ok(()) };
    let keys = edgeft_quantize::gguf::metadata(merged, files, plan, &[])?;
    edgeft_quantize::tokenizer::prove(json, &keys, &[])
        .map_err(|e| BadInput(format!("the tokenizer would not survive the export: {e}; nothing was written")))?;
    Ok(())
}

/// `edgeft.*` keys: where the file comes from.
fn provenance(opened: &Opened, mix: Mix) -> anyhow::Result<Vec<(String, Value)>> {
    let text = |key: &str, value: String| (format!("edgeft.{key}"), Value::Str(value));
    let mut keys = vec![text("version", env!("CARGO_PKG_VERSION").into()), text("plan.mix", mix.name().into())];
    match &opened.run {
        Some(run) => {
            keys.push(text("provenance.base_sha256", run.sha256.base.clone()));
            keys.push(text("provenance.data_sha256", run.sha256.data.clone()));
        }
        None => {
            if let Some(path) = &opened.base_path {
                keys.push(text("provenance.base_sha256", run_folder::sha256(path)?));
            }
        }
    }
    if let Some(adapter) = &opened.adapter {
        let file = adapter.join("adapter_model.safetensors");
        keys.push(text("provenance.adapter_sha256", run_folder::sha256(&file)?));
    }
    Ok(keys)
}
