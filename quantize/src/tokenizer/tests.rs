//! Small tokenizers, written out, and what becomes of them.

use super::*;
use crate::source::tests::Tiny;
use serde_json::json;

const GPT2: &str = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;

/// A byte-level tokenizer: the 256 bytes in GPT-2's alphabet, five merges, two special tokens and one added by hand.
fn byte_level(pre_tokenizer: &str) -> Vec<u8> {
    let mut next = 0x100;
    let mut alphabet: Vec<String> = (0..256u32)
        .map(|b| {
            let printable = matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let c = if printable { b } else { next };
            next += u32::from(!printable);
            char::from_u32(c).unwrap().to_string()
        })
        .collect();
    alphabet.extend(["he", "ll", "hell", "hello", "\u{120}w"].map(String::from));
    let vocab: serde_json::Map<_, _> = alphabet.into_iter().enumerate().map(|(i, t)| (t, json!(i))).collect();
    let pre: serde_json::Value = serde_json::from_str(pre_tokenizer).unwrap();
    json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 261, "content": "<|bos|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 262, "content": "<|eos|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 263, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false},
        ],
        "normalizer": null,
        "pre_tokenizer": pre,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [261], "tokens": ["<|bos|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["\u{120}", "w"]]},
    })
    .to_string()
    .into_bytes()
}

/// SentencePiece BPE: three special tokens, 256 bytes, then pieces.
fn sentencepiece() -> Vec<u8> {
    let mut vocab = serde_json::Map::new();
    let mut put = |t: &str| {
        let id = vocab.len();
        vocab.insert(t.to_string(), json!(id));
    };
    ["<unk>", "<s>", "</s>"].iter().for_each(|t| put(t));
    (0..256).for_each(|b| put(&format!("<0x{b:02X}>")));
    ["\u{2581}t", "he", "\u{2581}the", "\u{2581}", "t", "h", "e", "a", "\u{2581}a"].iter().for_each(|t| put(t));
    let added = |id: u32, t: &str| json!({"id": id, "content": t, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
            "merges": [["\u{2581}", "t"], ["h", "e"], ["\u{2581}t", "he"], ["\u{2581}", "a"]]},
    })
    .to_string()
    .into_bytes()
}

fn wordpiece(lowercase: bool) -> Vec<u8> {
    let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##able", "able", "a", "##a", "!", "you"];
    let vocab: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(i, t)| (t.to_string(), json!(i))).collect();
    let added: Vec<_> = (0..5)
        .map(|i| json!({"id": i, "content": tokens[i], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}))
        .collect();
    json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
    })
    .to_string()
    .into_bytes()
}

#[test]
fn byte_level_pre_tokenizers_are_told_apart_by_structure() {
    let split = |regex: &str| {
        let regex = json!(regex);
        format!(
            r#"{{"type":"Sequence","pretokenizers":[
                {{"type":"Split","pattern":{{"Regex":{regex}}},"behavior":"Isolated","invert":false}},
                {{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}}]}}"#
        )
    };
    let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let smollm =
        format!(r#"{{"type":"Sequence","pretokenizers":[{{"type":"Digits","individual_digits":true}},{GPT2}]}}"#);
    for (pre, name) in [
        (GPT2.to_string(), "gpt-2"),
        (smollm, "smollm"),
        (split(llama), "llama-bpe"),
        (split(&llama.replace(r"\p{N}{1,3}", r"\p{N}")), "qwen2"),
    ] {
        assert_eq!(vocabulary(&byte_level(&pre), None, 300).unwrap().pre, Some(name));
    }
    let e = vocabulary(&byte_level(&split(r"\w+")), None, 300).unwrap_err().to_string();
    assert!(
        e.starts_with("tokenizer.json: no GGUF name is known for the pre-tokenizer {") && e.contains(r"\\w+"),
        "{e}"
    );
    let e = vocabulary(&byte_level(&GPT2.replacen("false", "true", 1)), None, 300).unwrap_err().to_string();
    assert!(e.contains("`add_prefix_space` is true"), "{e}");
}

#[test]
fn byte_level_tokens_merges_and_types() {
    let v = vocabulary(&byte_level(GPT2), None, 266).unwrap();
    assert_eq!((v.model, v.tokens.len(), v.types.len()), ("gpt2", 266, 266));
    assert_eq!(v.merges.as_deref().unwrap(), ["h e", "l l", "he ll", "hell o", "\u{120} w"]);
    assert_eq!(v.tokens[261..], ["<|bos|>", "<|eos|>", "<tool>", "[PAD264]", "[PAD265]"]);
    // Older files spell a merge as one string.
    let mut old: serde_json::Value = serde_json::from_slice(&byte_level(GPT2)).unwrap();
    old["model"]["merges"] = json!(v.merges);
    assert_eq!(vocabulary(old.to_string().as_bytes(), None, 266).unwrap().merges, v.merges);
    use TokenType::*;
    assert_eq!(v.types[260..], [Normal, Control, Control, UserDefined, Unused, Unused]);
}

#[test]
fn sentencepiece_scores_follow_the_merges() {
    let v = vocabulary(&sentencepiece(), None, 268).unwrap();
    assert_eq!((v.model, v.pre), ("llama", Some("default")));
    let scores = v.scores.unwrap();
    let score = |t: &str| scores[v.tokens.iter().position(|x| x == t).unwrap()];
    assert_eq!((score("\u{2581}t"), score("he"), score("\u{2581}the"), score("\u{2581}a")), (-0.0, -1.0, -2.0, -3.0));
    assert!(score("t") < -3.0 && score("a") < score("t"));
    use TokenType::*;
    assert_eq!(v.types[..4], [Unknown, Control, Control, Byte]);
    assert_eq!(v.types[259], Normal);
    assert_eq!(v.more, [("ggml.add_space_prefix", Value::Bool(true))]);
}

#[test]
fn a_sentencepiece_model_gives_its_own_scores() {
    // Two pieces as protobuf: field 1 (message): field 1 text, field 2 score (fixed32), field 3 type (varint).
    let piece = |text: &str, score: f32| {
        let mut p = vec![0x0a, text.len() as u8];
        p.extend(text.as_bytes());
        p.push(0x15);
        p.extend(score.to_le_bytes());
        p.extend([0x18, 1]);
        let mut m = vec![0x0a, p.len() as u8];
        m.extend(p);
        m
    };
    let mut model = piece("\u{2581}t", -7.5);
    model.extend(piece("he", -2.25));
    model.extend([0x12, 2, 0x20, 1]); // trainer settings, skipped
    let v = vocabulary(&sentencepiece(), Some(&model), 268).unwrap();
    let scores = v.scores.unwrap();
    assert_eq!((scores[259], scores[260], scores[261]), (-7.5, -2.25, sentencepiece::LOWEST));
    for cut in [1, 3, 8, model.len() - 1] {
        let e = vocabulary(&sentencepiece(), Some(&model[..cut]), 268).unwrap_err().to_string();
        assert!(e.starts_with("tokenizer.json: tokenizer.model: "), "{e}");
    }
}

#[test]
fn wordpiece_marks_starts_instead_of_continuations() {
    let v = vocabulary(&wordpiece(true), None, 12).unwrap();
    let want = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "\u{2581}un",
        "able",
        "\u{2581}able",
        "\u{2581}a",
        "a",
        "\u{2581}!",
        "\u{2581}you",
    ];
    assert_eq!(v.tokens, want);
    for (key, id) in [("bos", 2), ("seperator", 3), ("unknown", 1), ("padding", 0), ("mask", 4)] {
        let key = format!("ggml.{key}_token_id");
        assert!(v.more.iter().any(|(k, v)| *k == key && *v == Value::U32(id)), "{key}");
    }
    assert!(v.more.contains(&("ggml.normalizer.lowercase", Value::Bool(true))));
}

#[test]
fn sizes_and_ids_must_fit_the_embedding() {
    let e = vocabulary(&byte_level(GPT2), None, 263).unwrap_err();
    assert_eq!(
        e.to_string(),
        "the tokenizer has 264 tokens, but the embedding has 263 rows; resize the embedding or use the tokenizer the model \
         was trained with"
    );
    let mut spec = Tiny::llama().spec;
    spec.vocab_size = 264;
    let mut files = TokenizerFiles { tokenizer_json: Some(byte_level(GPT2)), eos: Some(264), ..Default::default() };
    let e = keys(&files, &spec).unwrap_err();
    assert_eq!(e.to_string(), "metadata key `tokenizer.ggml.eos_token_id`: it is 264, but the embedding has 264 rows");
    files.eos = Some(262);
    files.chat_template = Some("{{ bos_token }}".into());
    let keys = keys(&files, &spec).unwrap();
    let get = |key: &str| keys.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    assert_eq!(get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(false)));
    assert_eq!(get("tokenizer.chat_template"), Some(Value::Str("{{ bos_token }}".into())));
    assert_eq!(get("tokenizer.huggingface.json"), Some(Value::Str(String::from_utf8(byte_level(GPT2)).unwrap())));
}

#[test]
fn the_template_says_what_is_added() {
    assert_eq!(added_by_template(&byte_level(GPT2), Some(261), Some(262)).unwrap(), (true, false));
    assert_eq!(added_by_template(&wordpiece(true), Some(2), Some(3)).unwrap(), (true, true));
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    let refuse = |change: fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_slice(&sentencepiece()).unwrap();
        change(&mut json);
        vocabulary(json.to_string().as_bytes(), None, 300).unwrap_err().to_string()
    };
    assert!(refuse(|j| j["model"]["type"] = json!("Unigram")).contains("`model.type` is Unigram"));
    assert!(refuse(|j| j["model"]["byte_fallback"] = json!(false)).contains("without `byte_fallback`"));
    assert!(refuse(|j| j["normalizer"] = json!({"type": "Lowercase"})).contains("has no GGUF translation"));
    assert!(refuse(|j| j["model"]["merges"][1] = json!(["h"])).contains("`model.merges[1]` is [\"h\"]"));
    assert!(refuse(|j| j["model"]["vocab"]["he"] = json!(1)).contains("are both id 1"));
    assert!(refuse(|j| j["model"]["vocab"]["he"] = json!(u32::MAX)).contains("the largest id is 4294967295"));
    assert!(vocabulary(b"{", None, 1).unwrap_err().to_string().starts_with("tokenizer.json: EOF while parsing"));
}

/// The keys of a file with this tokenizer.
fn file_keys(json: Vec<u8>, rows: usize, bos: u32, eos: u32, ends: (bool, bool)) -> Vec<(String, Value)> {
    let mut spec = Tiny::llama().spec;
    spec.vocab_size = rows;
    let files = TokenizerFiles {
        tokenizer_json: Some(json),
        bos: Some(bos),
        eos: Some(eos),
        add_bos: ends.0,
        add_eos: ends.1,
        ..Default::default()
    };
    keys(&files, &spec).unwrap()
}

#[test]
fn byte_level_and_sentencepiece_are_proven() {
    let texts = ["hello world, hello".to_string()];
    for (json, rows, bos, eos) in [(byte_level(GPT2), 300, 261, 262), (sentencepiece(), 268, 1, 2)] {
        let keys = file_keys(json.clone(), rows, bos, eos, (true, false));
        let n = prove(&json, &keys, &texts).unwrap();
        assert!(n > 90, "{n}");
    }
}

/// Gemma's: spaces replaced and a cut that finds none, no space before a text, runs of spaces and lines added by hand.
fn gemma() -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(&sentencepiece()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    for token in ["\u{2581}\u{2581}", "\n\n", "<start_of_turn>"] {
        vocab.insert(token.into(), json!(vocab.len()));
    }
    let added = |id: u32, t: &str, special: bool| json!({"id": id, "content": t, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
    for token in [added(268, "\u{2581}\u{2581}", false), added(269, "\n\n", false), added(270, "<start_of_turn>", true)]
    {
        json["added_tokens"].as_array_mut().unwrap().push(token);
    }
    json["model"]["merges"].as_array_mut().unwrap().insert(0, json!(["\u{2581}", "\u{2581}"]));
    json["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    json["pre_tokenizer"] =
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    json["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]});
    json.to_string().into_bytes()
}

/// Phi-3's: markers that take the spaces behind them along.
fn phi3() -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(&sentencepiece()).unwrap();
    let added = |id: u32, t: &str, special: bool, rstrip: bool| json!({"id": id, "content": t, "single_word": false, "lstrip": false, "rstrip": rstrip, "normalized": false, "special": special});
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    for token in ["<|endoftext|>", "<|user|>", "<|end|>"] {
        vocab.insert(token.into(), json!(vocab.len()));
    }
    json["added_tokens"] = json!([
        added(0, "<unk>", true, false),
        added(1, "<s>", true, false),
        added(2, "</s>", false, true),
        added(268, "<|endoftext|>", true, false),
        added(269, "<|user|>", true, true),
        added(270, "<|end|>", true, true),
    ]);
    json.to_string().into_bytes()
}

/// RoBERTa's: a text between `<s>` and `</s>`, a mask that takes the spaces before it along.
fn roberta() -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(&byte_level(GPT2)).unwrap();
    let added = |id: u32, t: &str, lstrip: bool| json!({"id": id, "content": t, "single_word": false, "lstrip": lstrip, "rstrip": false, "normalized": false, "special": true});
    json["added_tokens"] = json!([added(261, "<s>", false), added(262, "</s>", false), added(263, "<mask>", true)]);
    json["post_processor"] = json!({"type": "RobertaProcessing", "sep": ["</s>", 262], "cls": ["<s>", 261],
        "trim_offsets": true, "add_prefix_space": false});
    json.to_string().into_bytes()
}

#[test]
fn the_tokenizers_of_the_other_families_are_proven() {
    let texts = ["the  a\n\nthe    a \n".to_string(), "<|user|>\nthe a<|end|>\n \n<|user|>  the".to_string()];
    for (json, rows, ends) in [
        (gemma(), 271, (1, 2, (true, false))),
        (roberta(), 264, (261, 262, (true, true))),
        (sentencepiece(), 268, (1, 2, (true, false))),
    ] {
        let keys = file_keys(json.clone(), rows, ends.0, ends.1, ends.2);
        prove(&json, &keys, &texts).unwrap();
    }
    let v = vocabulary(&gemma(), None, 271).unwrap();
    assert_eq!((v.tokens[268].as_str(), v.types[268]), ("  ", TokenType::UserDefined));
    assert_eq!(v.more, [("ggml.add_space_prefix", Value::Bool(false))]);
}

/// All keys of a file of Phi-3, from a folder of this name.
fn phi3_keys(name: &str) -> Vec<(String, Value)> {
    let mut tiny = Tiny::phi3();
    tiny.spec.vocab_size = 271;
    tiny.spec.name = name.into();
    tiny.put("model.embed_tokens.weight", &[271, 64]);
    tiny.put("lm_head.weight", &[271, 64]);
    let files = TokenizerFiles {
        tokenizer_json: Some(phi3()),
        bos: Some(1),
        eos: Some(268),
        add_bos: true,
        ..TokenizerFiles::default()
    };
    let plan = crate::plan(&tiny, crate::Mix::F32, &crate::PlanOptions::default()).unwrap();
    crate::gguf::metadata(&tiny, &files, &plan, &[]).unwrap()
}

/// llama.cpp looks for Phi-3's habit in the model's name, so the name must tell.
#[test]
fn the_markers_of_phi3_take_spaces_along_by_the_models_name() {
    let texts = ["<|user|>\nthe a<|end|>\n \n<|user|>  the</s> a<s> a<|endoftext|>\na".to_string()];
    for (name, told) in [("my run", "my run (phi3)"), ("Phi-3-mini-4k", "Phi-3-mini-4k")] {
        let mut keys = phi3_keys(name);
        let at = keys.iter().position(|(k, _)| k == "general.name").unwrap();
        assert_eq!(keys[at].1, Value::Str(told.into()));
        prove(&phi3(), &keys, &texts).unwrap();
        keys[at].1 = Value::Str("another".into());
        assert!(matches!(prove(&phi3(), &keys, &texts), Err(proof::ProofError::Difference(_))));
    }
    // A tokenizer without the habit must not be under such a name.
    let mut spec = Tiny::llama().spec;
    let files = TokenizerFiles { tokenizer_json: Some(sentencepiece()), ..TokenizerFiles::default() };
    for (name, want) in
        [("my-Phi3-run", Some("my-Phi 3-run")), ("PHI-3 and phi-3", Some("PHI 3 and phi 3")), ("nano", None)]
    {
        spec.name = name.into();
        assert_eq!(telling_name(&files, &spec).unwrap().as_deref(), want);
    }
}

#[test]
fn an_encoder_of_byte_level_tokens_names_its_frame() {
    let mut spec = Tiny::bert().spec;
    (spec.arch, spec.vocab_size) = (Arch::Roberta, 264);
    let files = TokenizerFiles {
        tokenizer_json: Some(roberta()),
        bos: Some(261),
        eos: Some(262),
        add_bos: true,
        add_eos: true,
        ..TokenizerFiles::default()
    };
    let keys = keys(&files, &spec).unwrap();
    for (key, id) in [("bos", 261), ("eos", 262), ("cls", 261), ("seperator", 262), ("mask", 263)] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        assert!(keys.contains(&(key.clone(), Value::U32(id))), "{key}");
    }
    assert!(keys.contains(&("tokenizer.ggml.model".into(), Value::Str("gpt2".into()))));
    assert!(keys.contains(&("tokenizer.ggml.token_type_count".into(), Value::U32(2))));
}

#[test]
fn a_wrong_translation_is_found() {
    let json = byte_level(GPT2);
    let find = |change: fn(&mut Vec<(String, Value)>), text: &str| {
        let mut keys = file_keys(json.clone(), 300, 261, 262, (true, false));
        change(&mut keys);
        match prove(&json, &keys, &[text.to_string()]) {
            Err(proof::ProofError::Difference(d)) => d,
            other => panic!("{other:?}"),
        }
    };
    // The bos that the template adds is not added.
    let d =
        find(|k| k.iter_mut().find(|(k, _)| k == "tokenizer.ggml.add_bos_token").unwrap().1 = Value::Bool(false), "x");
    assert!(d.add_special && d.at == 0 && d.expected[0] == 261);
    // A merge is lost: "hello" comes apart.
    let lose = |k: &mut Vec<(String, Value)>| {
        let merges = &mut k.iter_mut().find(|(k, _)| k == "tokenizer.ggml.merges").unwrap().1;
        let Value::Array(Array::Str(m)) = merges else { panic!() };
        m.remove(3);
    };
    let d = find(lose, "say hello");
    assert_eq!(d.expected.len() + 1, d.got.len());
    assert!(d.to_string().starts_with("\"say hello\" differs from id "), "{d}");
}
