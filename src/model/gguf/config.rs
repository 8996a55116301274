//! GGUF metadata → the `config.json` that the same network has in Hugging Face's words. What it cannot say is refused.

use edgeft_runtime::format::gguf::{Array, Gguf, GgufError, Value};
use serde_json::{Value as Json, json};

/// `{arch}.{part}`.
pub fn key(gguf: &Gguf, part: &str) -> Result<String, String> {
    Ok(format!("{}.{part}", gguf.str("general.architecture").map_err(|e| e.to_string())?))
}

/// Query and key heads.
pub fn heads(gguf: &Gguf) -> Result<(usize, usize), String> {
    let meta = Meta { gguf, divisors: None };
    let n = meta.size("attention.head_count")?;
    let kv = meta.optional("attention.head_count_kv")?.unwrap_or(n);
    if n == 0 || kv == 0 || n % kv != 0 {
        return Err(format!("{n} heads cannot share {kv} key heads"));
    }
    Ok((n, kv))
}

/// The config of the network in a file. `divisors`: the values of its `rope_freqs.weight`.
///
/// # Errors
/// The key that is missing or says what is not supported.
pub fn of(gguf: &Gguf, divisors: Option<Vec<f32>>) -> Result<Json, String> {
    check(gguf)?;
    let meta = Meta { gguf, divisors };
    if gguf.str("general.architecture") == Ok("bert") { encoder(&meta) } else { decoder(&meta) }
}

/// Whether files of this architecture can be tuned.
///
/// # Errors
/// The architecture by name.
pub fn check(gguf: &Gguf) -> Result<(), String> {
    match gguf.str("general.architecture").map_err(|e| e.to_string())? {
        "bert" if gguf.tensor("token_types.weight").is_none() => {
            Err("a GGUF file of DistilBERT (no `token_types.weight`) cannot be tuned; tune its Hugging Face folder"
                .into())
        }
        "llama" | "qwen2" | "bert" => Ok(()),
        other => Err(format!(
            "a GGUF file of architecture `{other}` cannot be tuned (known: llama, qwen2, bert); tune its Hugging Face folder"
        )),
    }
}

fn decoder(meta: &Meta) -> Result<Json, String> {
    let gguf = meta.gguf;
    let qwen2 = gguf.str("general.architecture") == Ok("qwen2");
    if meta.optional("expert_count")?.is_some_and(|n| n > 0) {
        return Err("a mixture of experts cannot be tuned".into());
    }
    let (hidden, (n_heads, n_kv_heads)) = (meta.size("embedding_length")?, heads(gguf)?);
    let head_dim = match meta.optional("attention.key_length")? {
        Some(d) => d,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => return Err(format!("embedding_length {hidden} is no multiple of {n_heads} heads")),
    };
    for part in ["attention.value_length", "rope.dimension_count"] {
        if let Some(d) = meta.optional(part)?
            && d != head_dim
        {
            return Err(format!("{part} is {d}, but a head has {head_dim}; that is not supported"));
        }
    }
    if n_heads % n_kv_heads != 0 || head_dim % 2 != 0 {
        return Err(format!("{n_heads} heads of {head_dim} over {n_kv_heads} key heads"));
    }
    let window = match gguf.u32("edgeft.attention.sliding_window") {
        Ok(window) => Some(window),
        Err(GgufError::NoKey(_)) => None,
        Err(e) => return Err(e.to_string()),
    };
    let (family, class) = match (qwen2, window) {
        (true, _) => ("qwen2", "Qwen2"),
        (false, Some(_)) => ("mistral", "Mistral"),
        (false, None) => ("llama", "Llama"),
    };
    let has = |name: &str| gguf.tensor(name).is_some();
    let (q_bias, out_bias, mlp_bias) =
        (has("blk.0.attn_q.bias"), has("blk.0.attn_output.bias"), has("blk.0.ffn_up.bias"));
    if (qwen2 && (!q_bias || out_bias || mlp_bias)) || (!qwen2 && q_bias != out_bias) {
        return Err("its biases are on other projections than this architecture's; tune the Hugging Face folder".into());
    }
    let theta = meta.float("rope.freq_base")?.unwrap_or(10_000.0);
    let mut config = json!({
        "architectures": [format!("{class}ForCausalLM")], "model_type": family, "hidden_act": "silu",
        "vocab_size": meta.vocabulary()?, "hidden_size": hidden, "intermediate_size": meta.size("feed_forward_length")?,
        "num_hidden_layers": meta.size("block_count")?, "num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads,
        "head_dim": head_dim, "max_position_embeddings": meta.size("context_length")?,
        "rms_norm_eps": short(meta.need("attention.layer_norm_rms_epsilon")?), "rope_theta": short(theta),
        "attention_bias": q_bias, "mlp_bias": mlp_bias, "tie_word_embeddings": !has("output.weight"),
    });
    if let Some(window) = window {
        config["sliding_window"] = json!(window);
    }
    if let Some(scaling) = rope_scaling(meta, theta, head_dim)? {
        config["rope_scaling"] = scaling;
    }
    meta.ids(&mut config);
    if gguf.str("edgeft.task") == Ok("classify") {
        config["architectures"] = json!([format!("{class}ForSequenceClassification")]);
        meta.labels(&mut config)?;
    }
    Ok(config)
}

/// BERT's words, which RoBERTa's network has too once its positions begin at the table's first row.
fn encoder(meta: &Meta) -> Result<Json, String> {
    let gguf = meta.gguf;
    let types = gguf.u32("tokenizer.ggml.token_type_count").map_err(|e| e.to_string())?;
    let mut config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "vocab_size": meta.vocabulary()?,
        "hidden_size": meta.size("embedding_length")?, "intermediate_size": meta.size("feed_forward_length")?,
        "num_hidden_layers": meta.size("block_count")?, "num_attention_heads": heads(gguf)?.0,
        "max_position_embeddings": meta.size("context_length")?, "type_vocab_size": types,
        "layer_norm_eps": short(meta.need("attention.layer_norm_epsilon")?),
    });
    meta.ids(&mut config);
    match gguf.str("edgeft.task") {
        Ok("classify") => {
            config["architectures"] = json!(["BertForSequenceClassification"]);
            meta.labels(&mut config)?;
        }
        Ok("answer") => config["architectures"] = json!(["BertForQuestionAnswering"]),
        _ => {}
    }
    Ok(config)
}

/// `rope_scaling`. llama.cpp keeps Llama 3's as the divisor of each frequency, so the numbers that gave the divisors are
/// looked for; every published model has them among these.
fn rope_scaling(meta: &Meta, theta: f32, head_dim: usize) -> Result<Option<Json>, String> {
    match meta.gguf.str(&key(meta.gguf, "rope.scaling.type")?) {
        Err(GgufError::NoKey(_)) | Ok("none") => {}
        Ok("linear") => {
            let factor = meta.need("rope.scaling.factor")?;
            return Ok(Some(json!({"rope_type": "linear", "factor": short(factor)})));
        }
        Ok(other) => return Err(format!("rope scaling `{other}` is not supported; known: none, linear")),
        Err(e) => return Err(e.to_string()),
    }
    let Some(found) = &meta.divisors else { return Ok(None) };
    if found.iter().all(|f| *f == 1.0) {
        return Ok(None);
    }
    let factor = found.iter().copied().fold(1.0, f32::max);
    for (low, high) in [(1.0, 4.0), (1.0, 2.0), (2.0, 4.0), (1.0, 8.0)] {
        for original in (2..24).map(|n| 1u32 << n) {
            let made = (0..head_dim / 2).map(|i| divisor(i, head_dim, theta, factor, low, high, original));
            if found.len() == head_dim / 2 && made.zip(found).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs()) {
                return Ok(Some(json!({"rope_type": "llama3", "factor": short(factor), "low_freq_factor": low,
                    "high_freq_factor": high, "original_max_position_embeddings": original})));
            }
        }
    }
    Err("rope_freqs.weight is not Llama 3's scaling with any known numbers; tune the Hugging Face folder".into())
}

/// What Llama 3.1 divides frequency `i` by.
fn divisor(i: usize, head_dim: usize, theta: f32, factor: f32, low: f64, high: f64, original: u32) -> f32 {
    let wavelength = std::f64::consts::TAU * f64::from(theta).powf(2.0 * i as f64 / head_dim as f64);
    let turns = f64::from(original) / wavelength;
    if turns > high {
        return 1.0;
    }
    if turns < low {
        return factor;
    }
    let smooth = (turns - low) / (high - low);
    (1.0 / ((1.0 - smooth) / f64::from(factor) + smooth)) as f32
}

/// The shortest decimal that is this number in f32.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

struct Meta<'a> {
    gguf: &'a Gguf,
    divisors: Option<Vec<f32>>,
}

impl Meta<'_> {
    fn optional(&self, part: &str) -> Result<Option<usize>, String> {
        match self.gguf.u32(&key(self.gguf, part)?) {
            Ok(v) => Ok(Some(v as usize)),
            Err(GgufError::NoKey(_)) => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }

    fn size(&self, part: &str) -> Result<usize, String> {
        self.gguf.u32(&key(self.gguf, part)?).map(|v| v as usize).map_err(|e| e.to_string())
    }

    fn float(&self, part: &str) -> Result<Option<f32>, String> {
        match self.gguf.f32(&key(self.gguf, part)?) {
            Ok(v) => Ok(Some(v)),
            Err(GgufError::NoKey(_)) => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }

    fn need(&self, part: &str) -> Result<f32, String> {
        let name = key(self.gguf, part)?;
        self.float(part)?.ok_or_else(|| format!("no metadata key `{name}`"))
    }

    /// Rows of the embedding.
    fn vocabulary(&self) -> Result<u64, String> {
        let embedding = self.gguf.tensor("token_embd.weight").ok_or("no tensor `token_embd.weight`")?;
        Ok(embedding.dims.get(1).copied().unwrap_or(1))
    }

    /// Ids that begin, end and fill a text.
    fn ids(&self, config: &mut Json) {
        for (key, name) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")] {
            if let Ok(id) = self.gguf.u32(&format!("tokenizer.ggml.{key}_token_id"))
                && id != u32::MAX
            {
                config[name] = json!(id);
            }
        }
    }

    fn labels(&self, config: &mut Json) -> Result<(), String> {
        let Some(Value::Array(Array::Str(labels))) = self.gguf.get("edgeft.labels") else {
            return Err("a classifier without edgeft.labels".into());
        };
        let by_index: serde_json::Map<_, _> =
            labels.iter().enumerate().map(|(i, label)| (i.to_string(), json!(label))).collect();
        config["id2label"] = by_index.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeft_runtime::format::gguf::{DEFAULT_ALIGNMENT, VERSION};

    fn meta(keys: &[(&str, Value)]) -> Gguf {
        let mut metadata = vec![("general.architecture".to_owned(), Value::Str("llama".into()))];
        metadata.extend(keys.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        Gguf { version: VERSION, alignment: DEFAULT_ALIGNMENT, data_start: 0, metadata, tensors: Vec::new() }
    }

    #[test]
    fn the_numbers_behind_llama_3s_divisors_are_found() {
        let gguf = meta(&[]);
        for (factor, original) in [(8.0, 8192), (32.0, 8192), (4.0, 16)] {
            let made = (0..32).map(|i| divisor(i, 64, 500_000.0, factor, 1.0, 4.0, original)).collect();
            let meta = Meta { gguf: &gguf, divisors: Some(made) };
            let found = rope_scaling(&meta, 500_000.0, 64).unwrap().unwrap();
            // Other numbers may give the very same divisors; these must.
            let n = |key: &str| found[key].as_f64().unwrap();
            let again: Vec<f32> = (0..32)
                .map(|i| {
                    let original = n("original_max_position_embeddings") as u32;
                    divisor(i, 64, 500_000.0, n("factor") as f32, n("low_freq_factor"), n("high_freq_factor"), original)
                })
                .collect();
            let close = again.iter().zip(meta.divisors.as_ref().unwrap()).all(|(a, b)| (a - b).abs() <= 1e-5 * b);
            assert!(close, "{found}");
        }
    }

    #[test]
    fn divisors_of_another_kind_are_refused() {
        let gguf = meta(&[]);
        let meta = Meta { gguf: &gguf, divisors: Some((0..32).map(|i| 1.0 + i as f32).collect()) };
        let error = rope_scaling(&meta, 10_000.0, 64).unwrap_err();
        assert!(error.starts_with("rope_freqs.weight is not Llama 3's scaling"), "{error}");
    }

    #[test]
    fn what_cannot_be_said_is_refused_by_key() {
        let refuses = |keys: &[(&str, Value)], because: &str| {
            assert_eq!(of(&meta(keys), None).unwrap_err(), because);
        };
        refuses(&[], "no metadata key `llama.embedding_length`");
        refuses(&[("llama.expert_count", Value::U32(8))], "a mixture of experts cannot be tuned");
        let heads = [("llama.embedding_length", Value::U32(64)), ("llama.attention.head_count", Value::U32(4))];
        let value = ("llama.attention.value_length", Value::U32(8));
        refuses(
            &[heads[0].clone(), heads[1].clone(), value],
            "attention.value_length is 8, but a head has 16; that is not supported",
        );
    }
}
