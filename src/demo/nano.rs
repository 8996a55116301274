//! `nano`, the embedded model: trained by this project's own trainer on text that [`super::corpus`] writes.

/// `config.json`.
pub const CONFIG: &str = include_str!("nano/config.json");
/// `tokenizer.json`.
pub const TOKENIZER: &str = include_str!("nano/tokenizer.json");
/// `tokenizer_config.json`.
pub const TOKENIZER_CONFIG: &str = include_str!("nano/tokenizer_config.json");
/// Weights, f16 safetensors.
pub const WEIGHTS: &[u8] = include_bytes!("nano/model.safetensors");
