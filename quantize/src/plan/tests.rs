//! The rule table, line by line, and what small models do to it.

use super::*;
use crate::source::{Arch, tests::Tiny};
use GgmlType::*;

fn planned(tiny: &Tiny, mix: Mix) -> Plan {
    plan(tiny, mix, &PlanOptions::default()).unwrap()
}

/// Types of one part over all layers.
fn part(plan: &Plan, part: &str) -> Vec<GgmlType> {
    plan.tensors.iter().filter(|t| t.name.ends_with(part) && t.name.starts_with("blk")).map(|t| t.ty).collect()
}

fn of(plan: &Plan, name: &str) -> GgmlType {
    plan.tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}")).ty
}

#[test]
fn every_mix_parses_and_says_its_names() {
    for mix in Mix::all() {
        assert_eq!(mix.name().parse::<Mix>().unwrap(), mix);
        assert_eq!(mix.name().to_uppercase().parse::<Mix>().unwrap(), mix);
    }
    let e = "q4_k_xl".parse::<Mix>().unwrap_err().to_string();
    assert!(e.starts_with("unknown type `q4_k_xl`; known: f32 f16 bf16 q8_0 "), "{e}");
}

#[test]
fn lifted_layers_are_the_first_and_last_eighth_and_every_third_between() {
    let lifted = |n| (0..n).filter(|&i| mix::more_bits(i, n)).collect::<Vec<_>>();
    assert_eq!(lifted(32), [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
    assert_eq!(lifted(8), [0, 3, 6, 7]);
    assert_eq!(lifted(2), [1]);
    assert_eq!(lifted(1), [0]);
}

#[test]
fn the_mixes_spend_their_bits_where_llama_cpp_does() {
    let tiny = Tiny::decoder(Arch::Llama, 256, 512, 8);
    let m = [Q6_K, Q4_K, Q4_K, Q6_K, Q4_K, Q4_K, Q6_K, Q6_K];
    let plan = planned(&tiny, Mix::Q4_K_M);
    assert_eq!((part(&plan, "attn_v.weight"), part(&plan, "ffn_down.weight")), (m.to_vec(), m.to_vec()));
    assert_eq!(part(&plan, "attn_k.weight"), [Q4_K; 8]);
    assert_eq!((of(&plan, "output.weight"), of(&plan, "token_embd.weight")), (Q6_K, Q4_K));
    let plan = planned(&tiny, Mix::Q5_K_M);
    let m = m.map(|t| if t == Q4_K { Q5_K } else { t });
    assert_eq!((part(&plan, "attn_v.weight"), part(&plan, "ffn_down.weight")), (m.to_vec(), m.to_vec()));
    let plan = planned(&tiny, Mix::Q4_K_S);
    assert_eq!(part(&plan, "attn_v.weight"), [Q5_K, Q5_K, Q5_K, Q5_K, Q4_K, Q4_K, Q4_K, Q4_K]);
    assert_eq!(part(&plan, "ffn_down.weight"), [Q5_K, Q4_K, Q4_K, Q4_K, Q4_K, Q4_K, Q4_K, Q4_K]);
    let plan = planned(&tiny, Mix::Q5_K_S);
    assert_eq!((part(&plan, "attn_v.weight"), part(&plan, "ffn_down.weight")), (vec![Q5_K; 8], vec![Q5_K; 8]));
    let plan = planned(&tiny, Mix::Q3_K_M);
    assert_eq!(part(&plan, "attn_v.weight"), [Q5_K, Q5_K, Q4_K, Q4_K, Q4_K, Q4_K, Q4_K, Q4_K]);
    assert_eq!((part(&plan, "ffn_down.weight"), part(&plan, "attn_output.weight")), (vec![Q4_K; 8], vec![Q4_K; 8]));
    let plan = planned(&tiny, Mix::Q3_K_L);
    assert_eq!((part(&plan, "attn_v.weight"), part(&plan, "attn_output.weight")), (vec![Q5_K; 8], vec![Q5_K; 8]));
    let plan = planned(&tiny, Mix::Q2_K);
    assert_eq!((part(&plan, "attn_v.weight"), part(&plan, "ffn_up.weight")), (vec![Q3_K; 8], vec![Q2_K; 8]));
    let mut shared = Tiny::decoder(Arch::Llama, 256, 512, 8);
    shared.spec.n_kv_heads = 1;
    for i in 0..8 {
        shared.put(&format!("model.layers.{i}.self_attn.k_proj.weight"), &[64, 256]);
        shared.put(&format!("model.layers.{i}.self_attn.v_proj.weight"), &[64, 256]);
    }
    assert_eq!(part(&planned(&shared, Mix::Q2_K), "attn_v.weight"), [Q4_K; 8]);
    for (mix, ty) in [(Mix::Q4_0, Q4_0), (Mix::Q5_1, Q5_1), (Mix::Q6_K, Q6_K), (Mix::Q3_K_S, Q3_K)] {
        let plan = planned(&tiny, mix);
        assert_eq!((part(&plan, "attn_v.weight"), part(&plan, "ffn_down.weight")), (vec![ty; 8], vec![ty; 8]));
        assert_eq!(of(&plan, "output.weight"), Q6_K, "{mix}");
    }
    assert_eq!(of(&planned(&tiny, Mix::Q8_0), "output.weight"), Q8_0);
}

#[test]
fn eighty_layers_with_shared_heads_lift_attn_v() {
    let mut tiny = Tiny::llama();
    tiny.spec.n_layers = 80;
    let v = |mix, layer: usize| mix::wanted(mix, &tiny.spec, &format!("blk.{layer}.attn_v.weight"), false, false).0;
    assert_eq!((v(Mix::Q4_K_M, 10), v(Mix::Q4_K_M, 11)), (Q5_K, Q5_K));
    assert_eq!((v(Mix::Q4_K_M, 0), v(Mix::Q3_K_S, 0), v(Mix::Q5_K_S, 0)), (Q6_K, Q5_K, Q5_K));
}

#[test]
fn floats_reach_matrices_and_leave_vectors() {
    for (mix, ty) in [(Mix::F32, F32), (Mix::F16, F16), (Mix::BF16, BF16)] {
        let plan = planned(&Tiny::llama(), mix);
        assert_eq!((of(&plan, "token_embd.weight"), of(&plan, "output.weight")), (ty, ty));
        assert_eq!((of(&plan, "blk.0.ffn_down.weight"), of(&plan, "blk.0.attn_norm.weight")), (ty, F32));
    }
}

#[test]
fn bert_keeps_positions_and_types_and_lifts_its_embedding() {
    let plan = planned(&Tiny::bert(), Mix::Q4_0);
    assert_eq!((of(&plan, "position_embd.weight"), of(&plan, "token_types.weight")), (F32, F32));
    // No output matrix: llama.cpp treats the embedding as one. Rows of 64 are not whole q6_k blocks.
    let embedding = plan.tensors.iter().find(|t| t.name == "token_embd.weight").unwrap();
    assert_eq!((embedding.ty, embedding.wanted, &embedding.reason), (Q8_0, Q6_K, &Reason::Tied));
    assert_eq!((of(&plan, "cls.weight"), of(&plan, "cls.output.weight"), of(&plan, "cls.bias")), (Q4_0, Q4_0, F32));
}

#[test]
fn rows_that_are_not_256_wide_fall_back_and_strict_says_which() {
    let tiny = Tiny::llama();
    let plan = planned(&tiny, Mix::Q4_K_M);
    assert_eq!(part(&plan, "attn_k.weight"), [Q5_0, Q5_0]);
    assert_eq!(part(&plan, "ffn_down.weight"), [Q5_0, Q8_0]); // layer 1 of 2 is lifted to q6_k, which becomes q8_0
    assert_eq!(plan.fallbacks().count(), 2 + 2 * 7);
    assert!((plan.bits_per_weight() - 8.0 * plan.bytes() as f64 / plan.elements() as f64).abs() < 1e-12);
    assert!(plan.bits_per_weight() > 5.5);
    let e = plan_strict(&tiny, Mix::Q4_K_M).unwrap_err().to_string();
    assert!(
        e.starts_with(
            "strict types: 16 of the tensors cannot have the type that q4_k_m gives them: `output.weight`: rows of 64 are \
             not whole q6_k blocks of 256: q8_0; `token_embd.weight`: rows of 64 are not whole q4_k blocks of 256: q5_0; \
             `blk.0.attn_k.weight`: "
        ),
        "{e}"
    );
    plan_strict(&Tiny::decoder(Arch::Llama, 256, 512, 2), Mix::Q4_K_M).unwrap();
}

fn plan_strict(tiny: &Tiny, mix: Mix) -> Result<Plan> {
    plan(tiny, mix, &PlanOptions { strict: true, ..PlanOptions::default() })
}

#[test]
fn rows_that_are_not_even_32_wide_become_f16() {
    for (ty, at_96, at_40) in
        [(Q2_K, Q4_0, F16), (Q3_K, Q4_0, F16), (Q4_K, Q5_0, F16), (Q5_K, Q5_1, F16), (Q6_K, Q8_0, F16)]
    {
        assert_eq!((mix::fallback(ty, 512), mix::fallback(ty, 96), mix::fallback(ty, 40)), (ty, at_96, at_40));
    }
    assert_eq!((mix::fallback(Q8_0, 40), mix::fallback(Q4_1, 48), mix::fallback(F32, 7)), (F16, F16, F32));
}

#[test]
fn overrides_win_fall_back_and_must_do_something() {
    let tiny = Tiny::llama();
    let over = |pairs: &[(&str, GgmlType)]| {
        let overrides = pairs.iter().map(|(p, t)| (Regex::new(p).unwrap(), *t)).collect();
        plan(&tiny, Mix::Q8_0, &PlanOptions { overrides, ..PlanOptions::default() })
    };
    let p = over(&[("blk\\.0\\..*attn_v", F16), ("attn_(k|v)", Q4_0), ("^output", Q6_K)]).unwrap();
    assert_eq!(part(&p, "attn_v.weight"), [F16, Q4_0]);
    assert_eq!((part(&p, "attn_k.weight"), part(&p, "attn_q.weight")), (vec![Q4_0; 2], vec![Q8_0; 2]));
    assert_eq!(of(&p, "output.weight"), Q8_0); // rows of 64 cannot be q6_k
    assert_eq!(p.fallbacks().count(), 1);
    assert_eq!(
        over(&[("attn_norm", F16)]).unwrap_err().to_string(),
        "the override `attn_norm` matches no tensor that may be quantized; patterns are searched in GGUF names such as \
         `blk.0.ffn_down.weight`"
    );
}

#[test]
fn file_order_is_that_of_llama_quantize() {
    let tiny = Tiny::decoder(Arch::Llama, 64, 96, 11);
    let plan = planned(&tiny, Mix::F32);
    let names: Vec<_> = plan.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names[..5],
        ["output.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.weight", "blk.0.attn_norm.weight"]
    );
    let first = |n: &str| names.iter().position(|x| x.starts_with(n)).unwrap();
    assert!(first("blk.2.") < first("blk.10."));
}

#[test]
fn a_repeated_output_matrix_is_written_once() {
    let mut tiny = Tiny::llama();
    let embedding = tiny.tensors["model.embed_tokens.weight"].clone();
    assert!(!planned(&tiny, Mix::Q8_0).tied);
    tiny.tensors.insert("lm_head.weight".into(), embedding);
    let plan = planned(&tiny, Mix::Q4_0);
    assert!(plan.tied && plan.tensors.iter().all(|t| t.name != "output.weight"));
    assert_eq!(plan.skipped[0].0, "lm_head.weight");
    // One bit, and it is a matrix of its own again.
    tiny.tensors.get_mut("lm_head.weight").unwrap().1[7] *= -1.0;
    assert!(!planned(&tiny, Mix::Q4_0).tied);
}

#[test]
fn llama3_divisors_keep_short_waves_and_stretch_long_ones() {
    let mut tiny = Tiny::llama();
    tiny.spec.head_dim = 16;
    tiny.spec.rope.as_mut().unwrap().scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 100,
    };
    let plan = planned(&tiny, Mix::Q4_0);
    let t = plan.tensors.iter().find(|t| t.name == "rope_freqs.weight").unwrap();
    let Origin::RopeDivisors(d) = &t.origin else { panic!() };
    assert_eq!((t.ty, d.len(), d[0], d[7]), (F32, 8, 1.0, 8.0));
    // Wavelength of pair 2: 2 pi 10000^(4/16) = 62.83; smooth = (100 / 62.83 - 1) / 3 = 0.19718; 1 / (0.80282 / 8 + 0.19718).
    assert!((d[2] - 3.361_6).abs() < 1e-3, "{d:?}");
}

#[test]
fn contradictions_in_the_spec_are_named() {
    let mut tiny = Tiny::llama();
    tiny.spec.n_kv_heads = 3;
    let e = plan(&tiny, Mix::F16, &PlanOptions::default()).unwrap_err();
    assert_eq!(e.to_string(), "n_kv_heads is 3, but it must divide n_heads");
}
