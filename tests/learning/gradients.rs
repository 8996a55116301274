//! Every gradient against a finite difference of the loss itself. A term that is left out of a backward makes no error
//! message, and a residual branch hides it: present is not yet right.

use super::{Case, DECODER, labels, pairs, random, values, vectors};
use crate::common::{data, tiny::Tiny};
use candle_core::Tensor;
use edgeft::model::layers::{Grads, Pass};
use edgeft::model::network::{Network, Task};
use edgeft::model::peft::{AdapterConfig, Kind};
use edgeft::rng;
use serde_json::json;
use std::collections::BTreeMap;

/// Dropout draws the same mask at every call: the pass is the same.
const PASS: Pass = Pass { train: true, seed: 5, step: 2, ..Pass::EVAL };
/// Long enough to stand above the rounding of the loss, short enough for these steep networks.
const STEP: f64 = 0.01;

impl Case {
    fn gradient(&self, again: usize) -> BTreeMap<String, Tensor> {
        let mut grads = Grads::default();
        self.network.loss_and_grad(&self.rows(), 1.0, PASS, again, &mut grads).expect("a gradient");
        grads.0
    }

    fn loss(&self) -> f64 {
        self.network.loss_and_grad(&self.rows(), 1.0, PASS, 0, &mut Grads::default()).expect("a loss").nll
    }

    /// Slope of the loss along `direction`, by four values of it: wrong by the fifth power of the step.
    fn slope(&mut self, name: &str, direction: &Tensor) -> f64 {
        let home = get(&mut self.network, name);
        let mut at = |steps: f64| {
            let moved = (&home + (direction * (steps * STEP)).unwrap()).unwrap();
            set(&mut self.network, name, &moved);
            self.loss()
        };
        let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP);
        set(&mut self.network, name, &home);
        slope
    }

    /// Along the gradient itself and a random direction together, and along single weights.
    fn gradients_match(mut self) {
        let gradients = self.gradient(0);
        let mut names = Vec::new();
        self.network.trained(&mut |name, _| names.push(name));
        assert_eq!(names.len(), gradients.len(), "a gradient for each trained tensor, and for no other");
        for name in names {
            // DoRA counts the norm as a constant, so the loss has another slope along its pair: the tape checks that.
            let dora = name.replace("lora_A.weight", "lora_magnitude_vector");
            let dora = dora.replace("lora_B.weight", "lora_magnitude_vector");
            if dora != name && gradients.contains_key(&dora) {
                continue;
            }
            let g = &gradients[&name];
            let flat = values(g);
            let norm = flat.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            if name == "qa_outputs.bias" {
                // A softmax over positions does not feel a shift of them all.
                assert!(norm < 1e-4 && self.slope(&name, &g.ones_like().unwrap()).abs() < 1e-2, "{name}: {norm}");
                continue;
            }
            assert!(norm > 1e-4, "{name} has no slope: {norm:e}");
            let unit = |t: &Tensor| {
                let length = f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
                (t / length).unwrap()
            };
            let mixed = unit(&(unit(g) + unit(&random(&name, g.dims(), 1.0))).unwrap());
            let along = f64::from((g * &mixed).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            let slope = self.slope(&name, &mixed);
            assert!((along - slope).abs() <= 5e-3 * norm, "{name}: {along} along the gradient, the slope is {slope}");
            let largest = flat.iter().fold(0f32, |m, v| m.max(v.abs()));
            for draw in 0..3 {
                let i = (rng::bits(draw, rng::stream(&name, 1), 0) % flat.len() as u64) as usize;
                let mut one = vec![0f32; flat.len()];
                one[i] = 1.0;
                let direction = Tensor::from_vec(one, g.shape(), g.device()).unwrap();
                let slope = self.slope(&name, &direction);
                let difference = (f64::from(flat[i]) - slope).abs();
                assert!(difference <= 1e-2 * f64::from(largest) + 1e-3, "{name}[{i}]: {} against {slope}", flat[i]);
            }
        }
    }
}

fn get(network: &mut Network, name: &str) -> Tensor {
    let mut found = None;
    network.trained(&mut |n, tensor| {
        if n == name {
            found = Some(tensor.clone());
        }
    });
    found.expect(name)
}

fn set(network: &mut Network, name: &str, value: &Tensor) {
    network.trained(&mut |n, tensor| {
        if n == name {
            *tensor = value.clone();
        }
    });
    network.trained(&mut |_, _| ()); // a tied head follows
}

fn text() -> crate::common::tensors::Tensors {
    data::ids(3, 14, 2)
}

#[test]
fn of_low_rank_pairs_on_every_projection_of_a_llama() {
    Case::new(&Tiny::llama(), Task::Generate, &text()).with_lora(&DECODER, 0.0, false).gradients_match();
}

#[test]
fn of_low_rank_pairs_under_dropout_and_with_the_root_of_the_rank() {
    Case::new(&Tiny::llama(), Task::Generate, &text()).with_lora(&DECODER, 0.3, true).gradients_match();
}

#[test]
fn of_magnitudes_on_every_projection_with_and_without_dropout() {
    for dropout in [0.0, 0.3] {
        let dora = AdapterConfig { kind: Kind::Dora, ..pairs(&DECODER, dropout) };
        Case::new(&Tiny::qwen2(), Task::Generate, &text()).with(&dora).gradients_match();
        let dora = AdapterConfig { kind: Kind::Dora, ..pairs(&["c_attn", "c_proj", "c_fc"], dropout) };
        Case::new(&Tiny::gpt2(), Task::Generate, &text()).with(&dora).gradients_match();
    }
}

#[test]
fn of_vectors_that_scale_outputs_with_their_biases_and_inputs() {
    let ia3 = vectors(&["q_proj", "k_proj", "v_proj", "gate_proj", "down_proj"], &["down_proj"]);
    Case::new(&Tiny::qwen2(), Task::Generate, &text()).with(&ia3).gradients_match();
    let rows = data::classes(4, 12, 3, 1);
    let ia3 = vectors(&["key", "value", "output.dense"], &["output.dense"]);
    Case::new(&Tiny::classifier(&["a", "b", "c"]), labels(&["a", "b", "c"]), &rows).with(&ia3).gradients_match();
}

#[test]
fn of_pairs_in_the_upper_layer_alone_with_nothing_kept_below() {
    let upper = AdapterConfig { layers: Some(vec![1]), ..pairs(&DECODER, 0.0) };
    Case::new(&Tiny::llama(), Task::Generate, &text()).with(&upper).gradients_match();
    let upper = AdapterConfig { layers: Some(vec![1]), ..pairs(&["query", "dense"], 0.0) };
    Case::new(&Tiny::reader(), Task::Span, &data::spans(4, 12, 1)).with(&upper).gradients_match();
}

#[test]
fn of_every_weight_of_a_llama_with_a_head_of_its_own() {
    Case::new(&Tiny::llama(), Task::Generate, &text()).with_all().gradients_match();
}

#[test]
fn of_every_weight_and_bias_with_a_tied_head_and_stretched_rotations() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    let tiny = Tiny::llama()
        .with("tie_word_embeddings", json!(true))
        .with("attention_bias", json!(true))
        .with("mlp_bias", json!(true))
        .with("num_key_value_heads", json!(4))
        .with("rope_scaling", scaling);
    Case::new(&tiny, Task::Generate, &text()).with_all().gradients_match();
}

#[test]
fn of_a_qwen2_and_of_a_mistral_whose_window_is_shorter_than_the_rows() {
    Case::new(&Tiny::qwen2(), Task::Generate, &text()).with_all().gradients_match();
    let mistral = Tiny::mistral().with("sliding_window", json!(5));
    Case::new(&mistral, Task::Generate, &text()).with_lora(&DECODER, 0.0, false).gradients_match();
}

#[test]
fn of_a_llama_that_classifies_by_its_last_token() {
    let rows = data::classes(4, 12, 3, 1);
    Case::new(&Tiny::llama(), labels(&["a", "b", "c"]), &rows).with_lora(&DECODER, 0.0, false).gradients_match();
}

#[test]
fn of_a_bert_that_classifies_with_its_pooler_adapted() {
    let rows = data::classes(4, 12, 3, 1);
    let tiny = Tiny::classifier(&["a", "b", "c"]);
    Case::new(&tiny, labels(&["a", "b", "c"]), &rows)
        .with_lora(&["query", "key", "value", "dense"], 0.0, false)
        .gradients_match();
}

#[test]
fn of_a_fresh_pooler_and_classifier_which_are_trained_whole() {
    let rows = data::classes(4, 12, 2, 1);
    let case = Case::new(&Tiny::bert(), labels(&["a", "b"]), &rows);
    assert_eq!(case.network.fresh, ["classifier"]);
    case.with_lora(&["query", "value"], 0.1, false).gradients_match();
}

#[test]
fn of_a_bert_that_finds_spans_beside_padding() {
    let rows = data::spans(4, 12, 1);
    Case::new(&Tiny::reader(), Task::Span, &rows)
        .with_lora(&["query", "key", "value", "dense"], 0.0, false)
        .gradients_match();
}

#[test]
fn of_low_rank_pairs_in_joined_matrices() {
    let phi = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"];
    Case::new(&Tiny::phi3(), Task::Generate, &text()).with_lora(&phi, 0.3, false).gradients_match();
    let gpt2 = ["c_attn", "c_proj", "c_fc"];
    Case::new(&Tiny::gpt2(), Task::Generate, &text()).with_lora(&gpt2, 0.3, false).gradients_match();
}

#[test]
fn of_low_rank_pairs_behind_norms_of_heads() {
    Case::new(&Tiny::qwen3(), Task::Generate, &text()).with_lora(&DECODER, 0.0, false).gradients_match();
    Case::new(&Tiny::gemma3(), Task::Generate, &text()).with_lora(&DECODER, 0.0, false).gradients_match();
}

#[test]
fn of_every_weight_of_a_gemma3_and_of_a_gpt2() {
    Case::new(&Tiny::gemma3(), Task::Generate, &text()).with_all().gradients_match();
    Case::new(&Tiny::gpt2(), Task::Generate, &text()).with_all().gradients_match();
}

#[test]
fn of_heads_that_are_trained_whole_beside_the_pairs() {
    let rows = data::classes(4, 12, 3, 1);
    for (tiny, targets, heads) in [
        (Tiny::roberta(), ["query", "output.dense"], vec!["classifier.dense", "classifier.out_proj"]),
        (Tiny::distilbert(), ["q_lin", "lin2"], vec!["pre_classifier", "classifier"]),
    ] {
        let case = Case::new(&tiny, labels(&["a", "b", "c"]), &rows);
        assert_eq!(case.network.fresh, heads);
        case.with_lora(&targets, 0.0, false).gradients_match();
    }
}

#[test]
fn of_readers_beside_padding() {
    let rows = data::spans(4, 12, 1);
    Case::new(&Tiny::roberta().reading(), Task::Span, &rows)
        .with_lora(&["value", "output.dense"], 0.0, false)
        .gradients_match();
    Case::new(&Tiny::distilbert().reading(), Task::Span, &rows)
        .with_lora(&["v_lin", "lin1"], 0.0, false)
        .gradients_match();
}

#[test]
fn activations_computed_again_give_the_same_bits_as_activations_kept() {
    let decoder = Case::new(&Tiny::llama(), Task::Generate, &text()).with_lora(&DECODER, 0.2, false);
    let encoder =
        Case::new(&Tiny::reader(), Task::Span, &data::spans(4, 12, 1)).with_lora(&["query", "dense"], 0.2, false);
    let dora = AdapterConfig { kind: Kind::Dora, layers: Some(vec![1]), ..pairs(&DECODER, 0.2) };
    let upper = Case::new(&Tiny::llama(), Task::Generate, &text()).with(&dora);
    for case in [decoder, encoder, upper] {
        let kept = case.gradient(0);
        for blocks in [1, 2] {
            let again = case.gradient(blocks);
            assert_eq!(kept.keys().collect::<Vec<_>>(), again.keys().collect::<Vec<_>>());
            for (name, g) in &kept {
                assert_eq!(values(g), values(&again[name]), "{name}, {blocks} blocks");
            }
        }
    }
}
