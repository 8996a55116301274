//! The families beside Llama, Mistral, Qwen2 and BERT on both implementations; and however tokens come to the CPU engine.

use super::{Pair, shapes as others};
use crate::common::{self, Folder, data, tiny::Tiny};
use edgeft::eval::subject::EngineName;
use edgeft_quantize::Mix;
use edgeft_runtime::engine::{Backend, EngineOptions, KvType, Rows, Run};
use edgeft_runtime::model::Model;
use serde_json::json;

/// Shapes of theirs, each with other weights.
pub(super) fn shapes() -> Vec<(&'static str, Tiny)> {
    let layers = |kinds: &str| -> Vec<&str> {
        kinds.chars().map(|c| if c == 'l' { "sliding_attention" } else { "full_attention" }).collect()
    };
    let gemma = |kinds: &str| {
        Tiny::gemma3().with("num_hidden_layers", json!(kinds.len())).with("layer_types", json!(layers(kinds)))
    };
    let all = [
        ("qwen3", Tiny::qwen3()),
        (
            "a tied qwen3 of one key head",
            Tiny::qwen3().with("num_key_value_heads", json!(1)).with("tie_word_embeddings", json!(true)),
        ),
        ("a qwen3 with biases", Tiny::qwen3().with("attention_bias", json!(true))),
        ("phi3", Tiny::phi3()),
        ("a phi3 that turns half of each head", Tiny::phi3().with("partial_rotary_factor", json!(0.5))),
        ("a phi3 with a window", Tiny::phi3().with("sliding_window", json!(7))),
        ("a phi3 of wide heads", Tiny::phi3().with("head_dim", json!(24)).with("num_key_value_heads", json!(4))),
        ("gemma3", Tiny::gemma3()),
        ("a gemma3 of four layers", gemma("lllg")),
        ("a gemma3 of layers in no order", gemma("gllg")),
        ("a gemma3 of local layers alone", gemma("ll")),
        ("a gemma3 that sees all", gemma("gg")),
        ("a gemma3 of one scale", Tiny::gemma3().with("query_pre_attn_scalar", json!(20))),
        (
            "a stretched gemma3",
            Tiny::gemma3()
                .with("rope_scaling", json!({"rope_type": "linear", "factor": 8.0}))
                .with("num_key_value_heads", json!(1)),
        ),
        ("gpt2", Tiny::gpt2()),
        (
            "a gpt2 with a head of its own",
            Tiny::gpt2().with("tie_word_embeddings", json!(false)).with("n_inner", json!(51)),
        ),
    ];
    (20..).zip(all).map(|(seed, (name, tiny))| (name, tiny.seed(seed).without_text())).collect()
}

/// One of each of them that is larger: more layers and heads, a window that the rows outgrow. Calm, as depth makes small
/// differences large.
fn larger() -> Vec<(&'static str, Tiny)> {
    let wide = |tiny: Tiny| {
        tiny.with("hidden_size", json!(192)).with("intermediate_size", json!(320)).with("num_hidden_layers", json!(8))
    };
    let heads = |tiny: Tiny| tiny.with("num_attention_heads", json!(6)).with("num_key_value_heads", json!(2));
    let gemma = heads(wide(Tiny::gemma3())).with("layer_types", json!(null)).with("head_dim", json!(48));
    let all = [
        ("a larger qwen3", heads(wide(Tiny::qwen3())).with("head_dim", json!(48))),
        ("a larger phi3", heads(wide(Tiny::phi3())).with("sliding_window", json!(24))),
        ("a larger gemma3", gemma.with("sliding_window", json!(16)).with("_sliding_window_pattern", json!(6))),
        (
            "a larger gpt2",
            Tiny::gpt2()
                .with("n_embd", json!(192))
                .with("n_inner", json!(768))
                .with("n_layer", json!(8))
                .with("n_head", json!(6))
                .with("n_positions", json!(128)),
        ),
    ];
    (40..).zip(all).map(|(seed, (name, tiny))| (name, tiny.seed(seed).calm().without_text())).collect()
}

/// A decoder that tells three labels apart.
fn scoring(tiny: Tiny, class: &str) -> Tiny {
    let class = format!("{class}ForSequenceClassification");
    tiny.with("architectures", json!([class])).with("id2label", json!({"0": "a", "1": "b", "2": "c"}))
}

/// Classifiers, then readers.
fn heads() -> [Vec<(&'static str, Tiny)>; 2] {
    let classifiers = vec![
        ("a classifier on Qwen3", scoring(Tiny::qwen3(), "Qwen3")),
        ("a classifier on Phi-3", scoring(Tiny::phi3(), "Phi3")),
        ("a classifier on Gemma 3", scoring(Tiny::gemma3(), "Gemma3Text")),
        ("a classifier on GPT-2", scoring(Tiny::gpt2(), "GPT2")),
        ("a classifier on RoBERTa", Tiny::roberta().labelling(&["a", "b"])),
        (
            "a classifier on RoBERTa of two types",
            Tiny::roberta().with("type_vocab_size", json!(2)).labelling(&["a", "b", "c"]),
        ),
        ("a classifier on DistilBERT", Tiny::distilbert().labelling(&["a", "b", "c"])),
    ];
    let readers = vec![
        ("a reader on RoBERTa", Tiny::roberta().reading()),
        ("a reader on DistilBERT", Tiny::distilbert().reading()),
    ];
    [classifiers, readers].map(|all| all.into_iter().map(|(name, tiny)| (name, tiny.without_text())).collect())
}

#[test]
fn larger_decoders_of_the_other_families_agree_at_every_position() {
    for (name, tiny) in larger() {
        Pair::new(&tiny, &data::ids(2, 100, 3)).agree(name);
    }
}

#[test]
fn heads_of_the_other_families_agree() {
    let [classifiers, readers] = heads();
    classifiers.iter().for_each(|(name, tiny)| Pair::new(tiny, &data::classes(5, 30, 2, 1)).agree(name));
    readers.iter().for_each(|(name, tiny)| Pair::new(tiny, &data::spans(5, 30, 2)).agree(name));
}

#[test]
fn onnx_runtime_answers_as_the_cpu_on_the_other_families() {
    if !common::ort("onnx_runtime_answers_as_the_cpu_on_the_other_families") {
        return;
    }
    for (name, tiny) in shapes().into_iter().chain(larger()) {
        let mut pair = super::Elsewhere::new(EngineName::Ort, "", &tiny, &data::ids(2, 40, 3));
        pair.agree(name);
        pair.write_the_same(name);
    }
    let [classifiers, readers] = heads();
    for (name, tiny) in classifiers {
        super::Elsewhere::new(EngineName::Ort, "", &tiny, &data::classes(5, 30, 2, 1)).agree(name);
    }
    for (name, tiny) in readers {
        super::Elsewhere::new(EngineName::Ort, "", &tiny, &data::spans(5, 30, 2)).agree(name);
    }
}

/// Three texts at once, in steps of one, three, seven and more tokens, are each what it is alone in one pass, to the bit; and
/// a cache of halves is near.
#[test]
fn however_tokens_come_a_text_is_the_same() {
    for (name, tiny) in others().into_iter().chain(shapes()) {
        let folder = Folder::new();
        tiny.write(&folder, "base");
        let opened = edgeft::model::open::Opened::open(&folder.at("base").to_string_lossy(), 0).expect("opens");
        let file = edgeft::export::to_memory(&opened, Mix::F32).expect("a file");
        let model = Model::from_bytes(file, name).expect("a model");
        let texts: Vec<Vec<u32>> =
            [(37, 11), (29, 7), (41, 13)].map(|(n, step)| (0..n).map(|i| 5 + i * step % 300).collect()).to_vec();
        let engine = |n_seqs, kv| {
            let options = EngineOptions { backend: Backend::Cpu, threads: 2, ctx: 64, n_seqs, kv };
            model.engine(&options).expect("an engine")
        };
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for kv in [KvType::F32, KvType::F16] {
            let mut alone = Vec::new();
            for text in &texts {
                let mut out = Vec::new();
                let run = Run { seq: 0, tokens: text, types: None, rows: Rows::All };
                engine(1, kv).forward(&[run], &mut out).expect("logits");
                alone.push(out);
            }
            let (mut together, mut engine) = (vec![Vec::new(); 3], engine(3, kv));
            let mut steps = [1, 3, 7, 2, 12, 5, 1, 64].iter().cycle();
            while (0..3).any(|seq| engine.len(seq) < texts[seq].len()) {
                let runs: Vec<Run> = (0..3)
                    .filter_map(|seq| {
                        let rest = &texts[seq][engine.len(seq)..];
                        let tokens = &rest[..rest.len().min(*steps.next().expect("endless"))];
                        (!tokens.is_empty()).then_some(Run { seq, tokens, types: None, rows: Rows::All })
                    })
                    .collect();
                let mut out = Vec::new();
                engine.forward(&runs, &mut out).expect("logits");
                let mut out = out.chunks(engine.output_dim());
                for run in &runs {
                    run.tokens.iter().for_each(|_| together[run.seq].extend_from_slice(out.next().expect("a row")));
                }
            }
            assert!(alone == together, "{name}, {kv:?}");
            rows.push(alone.concat());
        }
        let rms = (rows[0].iter().map(|x| x * x).sum::<f32>() / rows[0].len() as f32).sqrt();
        let off = rows[0].iter().zip(&rows[1]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off > 0.0 && off < 0.05 * rms, "{name}: a cache of halves is {off} off, of {rms}");
    }
}
