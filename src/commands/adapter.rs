//! `--adapter FILE[=SCALE]`: a GGUF adapter beside the model, for the verbs that run one.

use edgeft_runtime::Adapter;

/// What such a flag names.
pub struct Named {
    /// As it was typed.
    pub text: String,
    /// The adapter.
    pub adapter: Adapter,
    /// 1 unless given.
    pub scale: f32,
}

/// Reads what the flag names.
///
/// # Errors
/// As [`Adapter::named`].
pub fn open(text: &str) -> anyhow::Result<Named> {
    let (adapter, scale) = Adapter::named(text).map_err(|e| e.at("--adapter"))?;
    Ok(Named { text: text.to_owned(), adapter, scale })
}
