//! What an answer must look like, as flags.

use crate::error::BadInput;
use edgeft_runtime::Session;
use edgeft_runtime::session::GenerateOptions;
use std::path::PathBuf;

/// Flags that hold an answer to a form.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub struct ConstraintArgs {
    /// The answer is a JSON document of this schema
    #[arg(long, value_name = "FILE", visible_alias = "json-schema", conflicts_with = "question")]
    pub schema: Option<PathBuf>,
    /// The answer is a text that this expression matches, from its first to its last character
    #[arg(long, value_name = "RE", conflicts_with = "question")]
    pub regex: Option<String>,
    /// The answer is a text of this grammar, in Lark's notation as llguidance reads it
    #[arg(long, value_name = "FILE", conflicts_with = "question")]
    pub grammar: Option<PathBuf>,
}

/// What they ask for: flag, and text of the schema, the expression or the grammar.
#[derive(Debug)]
pub struct Asked {
    flag: String,
    #[cfg_attr(not(feature = "constrain"), allow(dead_code))]
    text: String,
    #[cfg_attr(not(feature = "constrain"), allow(dead_code))]
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Schema,
    Regex,
    Grammar,
}

impl ConstraintArgs {
    /// Reads the file, where there is one, before a large model is loaded.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(&self) -> anyhow::Result<Option<Asked>> {
        let file = |name: &str, path: &PathBuf, kind| {
            let flag = format!("{name} {}", path.display());
            let text = std::fs::read_to_string(path).map_err(|e| BadInput(format!("{flag}: {e}")))?;
            anyhow::Ok(Some(Asked { flag, text, kind }))
        };
        match self {
            Self { schema: Some(path), .. } => file("--schema", path, Kind::Schema),
            Self { grammar: Some(path), .. } => file("--grammar", path, Kind::Grammar),
            Self { regex: Some(text), .. } => {
                Ok(Some(Asked { flag: "--regex".into(), text: text.clone(), kind: Kind::Regex }))
            }
            _ => Ok(None),
        }
    }
}

impl Asked {
    /// Holds a generation to it.
    ///
    /// # Errors
    /// What no grammar becomes of, with the flag.
    #[cfg(feature = "constrain")]
    pub fn hold(&self, session: &Session, options: GenerateOptions) -> anyhow::Result<GenerateOptions> {
        use edgeft_runtime::constrain::{Constraint, Grammar};
        let constraint = match self.kind {
            Kind::Regex => Constraint::Regex(self.text.clone()),
            Kind::Grammar => Constraint::Lark(self.text.clone()),
            Kind::Schema => Constraint::JsonSchema(
                serde_json::from_str(&self.text).map_err(|e| BadInput(format!("{}: it is no JSON: {e}", self.flag)))?,
            ),
        };
        let grammar = Grammar::new(&constraint, session.tokenizer()?).map_err(|e| e.at(&self.flag))?;
        Ok(GenerateOptions { grammar: Some(grammar), ..options })
    }

    /// A build without constraints holds nothing, and says so.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "constrain"))]
    pub fn hold(&self, _: &Session, _: GenerateOptions) -> anyhow::Result<GenerateOptions> {
        crate::bad_input!("{}: not in this build; build edgeft with its feature `constrain`", self.flag)
    }
}
