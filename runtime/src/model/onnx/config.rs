//! `config.json` (or, where there is none, `genai_config.json`) and the graph -> shape and labels.

use super::ports::{Output, Ports};
use crate::error::{Error, Kind, Result};
use crate::format::onnx::{Dim, Onnx};
use crate::model::{Act, Arch, Hparams, Task, input};
use serde_json::Value as Json;

/// Families that number the first token with 2: positions 0 and 1 are spoken for.
const POSITIONS_FROM_2: [&str; 4] = ["roberta", "xlm-roberta", "camembert", "mpnet"];

/// The JSON files of a folder; null where there is none.
pub struct Config<'a> {
    /// `config.json`, as transformers writes it.
    pub config: &'a Json,
    /// `genai_config.json`, as ONNX Runtime GenAI reads it.
    pub genai: &'a Json,
    /// `1_Pooling/config.json`, as sentence-transformers writes it.
    pub pooling: &'a Json,
}

impl Config<'_> {
    /// The class of the checkpoint.
    pub fn architecture(&self) -> Option<&str> {
        self.config["architectures"][0].as_str()
    }

    /// A number that families call by different names, or its place in genai_config.json ("" when it has none there).
    fn size(&self, names: &[&str], genai: &str) -> Result<usize> {
        self.maybe(names, genai)?.ok_or_else(|| {
            let place = if self.config.is_null() && self.genai.is_null() { "the folder" } else { "config.json" };
            let message = if place == "the folder" {
                "has neither config.json nor genai_config.json; put the config.json of the model there".to_owned()
            } else {
                format!("no `{}`", names[0])
            };
            Error::new(Kind::Input, place, message)
        })
    }

    fn maybe(&self, names: &[&str], genai: &str) -> Result<Option<usize>> {
        let own = names.iter().map(|name| (*name, &self.config[*name]));
        let other = Some(genai).filter(|g| !g.is_empty()).and_then(|g| Some((g, self.genai.pointer(g)?)));
        let Some((name, value)) = own.chain(other).find(|(_, value)| !value.is_null()) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
            _ => Err(input(format!("`{name}` is {value}; expected a whole number from 1"))),
        }
    }

    /// Shape of the model.
    ///
    /// # Errors
    /// `Input` naming the key that is missing; `Shape` when the graph says otherwise.
    pub fn hparams(&self, ports: &Ports, task: Task) -> Result<Hparams> {
        let n_vocab = self.size(&["vocab_size"], "/model/vocab_size")?;
        if let Output::Tokens { logits } = &ports.output
            && let Some(width) = logits.dims.get(2).and_then(Dim::fixed)
            && width != n_vocab as u64
        {
            let message = format!("has {width} numbers a position, but the vocabulary has {n_vocab} tokens");
            return Err(Error::new(Kind::Shape, "output `logits`", message));
        }
        let hidden = self.size(&["hidden_size", "n_embd", "dim"], "/model/decoder/hidden_size")?;
        let n_heads = self.size(&["num_attention_heads", "n_head", "n_heads"], "/model/decoder/num_attention_heads")?;
        let cache = ports.cache.first().map(|layer| &layer.key);
        let n_kv_heads = match cache.and_then(|c| c.n_heads) {
            Some(n) => n,
            None => self.maybe(&["num_key_value_heads"], "/model/decoder/num_key_value_heads")?.unwrap_or(n_heads),
        };
        let head_dim = match cache.and_then(|c| c.head_dim) {
            Some(d) => d,
            None => self.maybe(&["head_dim"], "/model/decoder/head_size")?.unwrap_or(hidden / n_heads),
        };
        let n_layers = match ports.cache.len() {
            0 => self.size(&["num_hidden_layers", "n_layer", "n_layers"], "/model/decoder/num_hidden_layers")?,
            n => n,
        };
        let positions = self.size(&["max_position_embeddings", "n_positions", "n_ctx"], "/model/context_length")?;
        let from_2 = POSITIONS_FROM_2.iter().any(|family| self.config["model_type"] == *family);
        let causal = matches!(ports.output, Output::Tokens { .. });
        Ok(Hparams {
            arch: Arch::Onnx,
            n_vocab,
            n_ctx: if from_2 { positions.saturating_sub(2).max(1) } else { positions },
            hidden,
            ffn: self.maybe(&["intermediate_size", "n_inner", "hidden_dim"], "")?.unwrap_or(4 * hidden),
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            norm_eps: 0.0,
            rotary_dim: if causal && self.config["model_type"] != "gpt2" { head_dim } else { 0 },
            rope_theta: 0.0,
            rope_factor: 0.0,
            local_rope_theta: None,
            sliding_window: None,
            local_layers: Vec::new(),
            attention_scale: 0.0,
            embedding_scale: 0.0,
            activation: Act::Silu, // the graph's own, whatever it is
            n_token_types: match (&ports.types, causal) {
                (Some(_), _) => self.maybe(&["type_vocab_size"], "")?.unwrap_or(1),
                (None, false) => 2, // a tokenizer may tell two texts apart even where the graph does not
                (None, true) => 0,
            },
            causal: causal && matches!(task, Task::Generate | Task::Answer),
        })
    }

    /// Labels in the order of the logits.
    ///
    /// # Errors
    /// `Input` when nothing names or counts them; `Shape` when the graph gives another number of logits.
    pub fn labels(&self, onnx: &Onnx, ports: &Ports) -> Result<Vec<String>> {
        let given = match (onnx.metadata("edgeft.labels"), self.config["id2label"].as_object()) {
            (Some(text), _) => serde_json::from_str(text)
                .map_err(|e| Error::new(Kind::Input, "edgeft.labels", format!("is no JSON array of texts: {e}")))?,
            (None, Some(map)) => {
                let pair = |(id, label): (&String, &Json)| Some((id.parse().ok()?, label.as_str()?.to_owned()));
                let mut pairs: Vec<(usize, String)> = map.iter().filter_map(pair).collect();
                pairs.sort();
                pairs.into_iter().map(|(_, label)| label).collect()
            }
            (None, None) => Vec::new(),
        };
        let counted = match &ports.output {
            Output::Labels { logits } => logits.dims.get(1).and_then(Dim::fixed).map(|n| n as usize),
            _ => None,
        };
        let count = counted.or(self.maybe(&["num_labels"], "")?);
        match (given.len(), count) {
            (0, Some(n)) if n < 1 << 16 => Ok((0..n).map(|i| format!("LABEL_{i}")).collect()), // as transformers does
            (0, _) => Err(Error::new(Kind::Input, "config.json", "no `id2label`, which names what the logits mean")),
            (n, Some(m)) if counted.is_some() && n != m => {
                Err(Error::new(Kind::Shape, "output `logits`", format!("has {m} numbers, but {n} labels are named")))
            }
            _ => Ok(given),
        }
    }

    /// Whether a text's vector is the mean of its tokens' (the usual), or the first token's.
    ///
    /// # Errors
    /// `Input` on another way of pooling.
    pub fn pools_by_mean(&self) -> Result<bool> {
        let on: Vec<&str> = self.pooling.as_object().map_or(Vec::new(), |map| {
            map.iter().filter(|(k, v)| k.starts_with("pooling_mode_") && **v == true).map(|(k, _)| k.as_str()).collect()
        });
        match on.as_slice() {
            [] | ["pooling_mode_mean_tokens"] => Ok(true),
            ["pooling_mode_cls_token"] => Ok(false),
            other => {
                let message = format!("{} is not supported; known: mean_tokens, cls_token", other.join(" with "));
                Err(Error::new(Kind::Input, "1_Pooling/config.json", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::onnx::{Dim, ElementType, Port};
    use serde_json::json;

    fn config<'a>(config: &'a Json, genai: &'a Json) -> Config<'a> {
        Config { config, genai, pooling: &Json::Null }
    }

    fn ports(output: Output) -> Ports {
        let ids = Port { name: "input_ids".into(), ty: ElementType::I64, dims: vec![] };
        Ports { ids, mask: None, positions: None, types: None, cache: vec![], in_place: false, output }
    }

    fn logits(dims: &[Option<u64>]) -> Port {
        let dims = dims.iter().map(|d| d.map_or(Dim::Unknown, Dim::Fixed)).collect();
        Port { name: "logits".into(), ty: ElementType::F32, dims }
    }

    #[test]
    fn families_may_call_their_sizes_as_they_like() {
        let gpt2 = json!({"vocab_size": 9, "n_embd": 8, "n_head": 2, "n_layer": 3, "n_positions": 16});
        let tokens = ports(Output::Tokens { logits: logits(&[None, None, Some(9)]) });
        let h = config(&gpt2, &Json::Null).hparams(&tokens, Task::Generate).unwrap();
        assert_eq!((h.hidden, h.head_dim, h.n_layers, h.n_ctx, h.causal), (8, 4, 3, 16, true));

        let genai = json!({"model": {"vocab_size": 9, "context_length": 32, "decoder": {"hidden_size": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_size": 6, "num_hidden_layers": 1}}});
        let h = config(&Json::Null, &genai).hparams(&tokens, Task::Generate).unwrap();
        assert_eq!((h.n_ctx, h.n_kv_heads, h.head_dim), (32, 2, 6));

        let error = config(&Json::Null, &Json::Null).hparams(&tokens, Task::Generate).unwrap_err().to_string();
        assert!(error.contains("neither config.json nor genai_config.json"), "{error}");
    }

    #[test]
    fn a_vocabulary_that_differs_from_the_graph_is_refused_with_both_numbers() {
        let gpt2 = json!({"vocab_size": 9, "n_embd": 8, "n_head": 2, "n_layer": 3, "n_positions": 16});
        let tokens = ports(Output::Tokens { logits: logits(&[None, None, Some(10)]) });
        let error = config(&gpt2, &Json::Null).hparams(&tokens, Task::Generate).unwrap_err().to_string();
        assert!(error.contains("10 numbers a position, but the vocabulary has 9"), "{error}");
    }

    #[test]
    fn labels_come_from_the_file_itself_then_from_config_then_by_count() {
        let named = json!({"id2label": {"1": "good", "0": "bad"}});
        let labels = |metadata: &[(&str, &str)], json: &Json, n: Option<u64>| {
            let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let onnx = Onnx { metadata, ..Onnx::default() };
            config(json, &Json::Null).labels(&onnx, &ports(Output::Labels { logits: logits(&[None, n]) }))
        };
        assert_eq!(labels(&[("edgeft.labels", r#"["no", "yes"]"#)], &named, Some(2)).unwrap(), ["no", "yes"]);
        assert_eq!(labels(&[], &named, None).unwrap(), ["bad", "good"]);
        assert_eq!(labels(&[], &Json::Null, Some(2)).unwrap(), ["LABEL_0", "LABEL_1"]);
        assert!(labels(&[], &named, Some(3)).unwrap_err().to_string().contains("has 3 numbers, but 2 labels"));
        assert!(labels(&[], &Json::Null, None).is_err());
        assert!(labels(&[("edgeft.labels", "no")], &named, None).is_err());
    }

    #[test]
    fn roberta_keeps_its_first_two_positions() {
        let json = json!({"model_type": "roberta", "vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2,
            "num_hidden_layers": 1, "max_position_embeddings": 514});
        let labels = ports(Output::Labels { logits: logits(&[None, Some(2)]) });
        let h = config(&json, &Json::Null).hparams(&labels, Task::Classify).unwrap();
        assert_eq!((h.n_ctx, h.causal, h.n_token_types), (512, false, 2));
    }

    #[test]
    fn pooling_is_the_mean_unless_a_file_says_the_first_token() {
        let pools = |pooling: &Json| Config { config: &Json::Null, genai: &Json::Null, pooling }.pools_by_mean();
        assert!(pools(&Json::Null).unwrap());
        assert!(!pools(&json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})).unwrap());
        assert!(pools(&json!({"pooling_mode_max_tokens": true})).is_err());
    }
}
