//! Recorded losses are reproduced, every gradient is right, and neither the cut into micro-batches nor an interruption
//! changes what is learned.

mod gradients;
mod oracle;
mod quantized;
mod resume;
mod split;
mod traces;
mod whole;

use crate::common::{Folder, tensors, tiny::Tiny};
use candle_core::{Device, Tensor};
use edgeft::data::batch::Row;
use edgeft::data::tokens::read_rows;
use edgeft::model::network::{Network, Task};
use edgeft::model::open::Opened;
use edgeft::model::peft::{self, AdapterConfig, Kind};
use edgeft::rng;

/// A tiny network with its rows.
struct Case {
    network: Network,
    rows: Vec<Row>,
}

impl Case {
    /// `tiny` with the head of `task`, and pre-tokenized rows.
    fn new(tiny: &Tiny, task: Task, rows: &tensors::Tensors) -> Self {
        let folder = Folder::new();
        tiny.write(&folder, "base");
        folder.write("rows.safetensors", tensors::bytes(rows));
        let opened = Opened::open(folder.at("base").to_str().expect("UTF-8"), 0).expect("opens");
        let network = Network::load(&opened.config, &opened.weights, task, 3, &Device::Cpu).expect("loads");
        Self { network, rows: read_rows(&folder.at("rows.safetensors")).expect("rows") }
    }

    /// With a low-rank pair on every projection named, and B no longer zero: else A would have no slope.
    fn with_lora(self, targets: &[&str], dropout: f32, rslora: bool) -> Self {
        self.with(&AdapterConfig { rslora, ..pairs(targets, dropout) })
    }

    /// With adapters that no longer do nothing: B away from zero, magnitudes and vectors away from where they start.
    fn with(mut self, config: &AdapterConfig) -> Self {
        peft::attach(&mut self.network, config, 1).expect("attaches");
        self.network.trained(&mut |name, tensor| {
            if name.ends_with("lora_B.weight") {
                *tensor = random(&name, tensor.dims(), 0.05);
            } else if name.ends_with("lora_magnitude_vector") || name.ends_with("ia3_l") {
                let around = (random(&name, tensor.dims(), 0.2) + 1.0).expect("a tensor");
                *tensor = (&*tensor * around).expect("a tensor");
            }
        });
        self
    }

    /// With every weight trained.
    fn with_all(mut self) -> Self {
        self.network.train_all().expect("weights that can be trained");
        self
    }

    fn rows(&self) -> Vec<&Row> {
        self.rows.iter().collect()
    }
}

/// Pairs of rank 4 with s = 2.
fn pairs(targets: &[&str], dropout: f32) -> AdapterConfig {
    let target_modules = targets.iter().map(|t| (*t).to_owned()).collect();
    AdapterConfig { r: 4, alpha: 8.0, dropout, target_modules, ..AdapterConfig::default() }
}

/// Vectors on what is named; those of `feedforward` scale the input.
fn vectors(targets: &[&str], feedforward: &[&str]) -> AdapterConfig {
    let names = |names: &[&str]| names.iter().map(|t| (*t).to_owned()).collect();
    let (target_modules, feedforward_modules) = (names(targets), names(feedforward));
    AdapterConfig { kind: Kind::Ia3, target_modules, feedforward_modules, ..AdapterConfig::default() }
}

const DECODER: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn random(name: &str, shape: &[usize], deviation: f32) -> Tensor {
    let n: usize = shape.iter().product();
    let stream = rng::stream(name, 9);
    let values: Vec<f32> = (0..n as u64).map(|i| deviation * rng::normal(4, stream, i)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32")
}

fn labels(names: &[&str]) -> Task {
    Task::Classify(names.iter().map(|n| (*n).to_owned()).collect())
}
