//! `edgeft tokenize`: the tokens of a text.

use super::show;
use crate::cli::Global;
use crate::error::BadInput;
use crate::export;
use crate::model::open::{Opened, Place};
use edgeft_runtime::format::gguf::Gguf;
use edgeft_runtime::format::map::Mapped;
use edgeft_runtime::model::Model;
use edgeft_runtime::tokenizer::{Specials, Tokenizer};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Flags of `tokenize`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft tokenize nano --text \"Hello there\"\nNext:\n  edgeft run nano -p \"Hello there\""
)]
pub struct TokenizeArgs {
    /// Model, or a GGUF file with a vocabulary alone
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Text
    #[arg(long, value_name = "T", required_unless_present = "file")]
    pub text: Option<String>,
    /// File with the text
    #[arg(long, value_name = "F", conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// Leave out the tokens that the tokenizer adds around a text
    #[arg(long)]
    pub no_special: bool,
}

/// Runs the verb.
pub fn run(args: &TokenizeArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let tokenizer = open(&args.model)?;
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|e| BadInput(format!("cannot read {}: {e}", file.display())))?
        }
        (None, None) => crate::bad_input!("give --text or --file"),
    };
    let ids = tokenizer.encode(&text, !args.no_special)?;
    let tokens: Vec<String> = ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap_or_default().to_owned()).collect();
    show::report(global, &json!({"ids": ids, "tokens": tokens}), || {
        let rows: Vec<Vec<String>> =
            tokens.iter().zip(&ids).map(|(t, i)| vec![format!("{t:?}"), i.to_string()]).collect();
        print!("{}", show::table(&rows));
        println!("{} tokens", ids.len());
    });
    Ok(ExitCode::SUCCESS)
}

/// The tokenizer of a MODEL, or of a folder that holds a tokenizer.json alone.
fn open(model: &str) -> anyhow::Result<Arc<Tokenizer>> {
    let alone = Path::new(model).join("tokenizer.json");
    if alone.is_file() && !Path::new(model).join("config.json").is_file() {
        let json = std::fs::read(&alone).map_err(|e| BadInput(format!("cannot read {}: {e}", alone.display())))?;
        let built = Tokenizer::from_hf_json(&json, Specials::default());
        return Ok(Arc::new(built.map_err(|e| e.at(&alone.display().to_string()))?));
    }
    match Place::of(model)? {
        Place::Gguf(path) => {
            let bytes = Mapped::open(&path).map_err(|e| BadInput(format!("cannot read {model}: {e}")))?;
            let gguf = Gguf::parse(&bytes).map_err(|e| BadInput(format!("{model}: {e}")))?;
            Ok(Arc::new(Tokenizer::from_gguf(&gguf).map_err(|e| e.at(model))?))
        }
        Place::Onnx(path) => Ok(Model::open(&path)?.tokenizer()?),
        _ => Ok(Arc::new(export::tokenizer(&Opened::open(model, 0)?)?)),
    }
}
