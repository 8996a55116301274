//! The graphs as another program meets them: decoded from their bytes, followed from inputs to outputs, their weights read
//! back and held against the GGUF file of the same plan.

mod fused;
mod kin;
mod read;

use super::proto::{DataLocation, DataType, GraphProto, TensorProto};
use super::*;
use crate::plan::{PlanOptions, Regex, plan};
use crate::source::{ModelSpec, RopeScaling, Task, tests::Tiny};
use codes::{Codes, split, transpose};
use edgeft_runtime::format::{GgmlType, gguf::Gguf};
use std::collections::HashSet;

/// What [`write_onnx`] gave.
pub(super) struct Written {
    pub model: ModelProto,
    pub bytes: Vec<u8>,
    pub data: Vec<u8>,
    pub report: Report,
}

impl Written {
    fn graph(&self) -> &GraphProto {
        self.model.graph.as_ref().unwrap()
    }

    fn tensor(&self, name: &str) -> &TensorProto {
        self.graph().initializer.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// A constant's bytes, wherever they are.
    fn bytes_of<'a>(&'a self, tensor: &'a TensorProto) -> &'a [u8] {
        if let Some(raw) = &tensor.raw_data {
            return raw;
        }
        let entry = |key: &str| &tensor.external_data.iter().find(|e| e.key == key).unwrap().value;
        assert_eq!((entry("location").as_str(), tensor.data_location), (DATA_FILE, DataLocation::External as i32));
        let (at, n): (usize, usize) = (entry("offset").parse().unwrap(), entry("length").parse().unwrap());
        &self.data[at..at + n]
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let chunks = self.bytes_of(self.tensor(name)).chunks_exact(4);
        chunks.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.model.metadata_props.iter().find(|e| e.key == key).map(|e| e.value.as_str())
    }
}

pub(super) fn written(tiny: &Tiny, mix: Mix) -> Written {
    written_in(Operators::Portable, tiny, mix)
}

fn written_in(operators: Operators, tiny: &Tiny, mix: Mix) -> Written {
    let plan = plan(tiny, mix, &PlanOptions::default()).unwrap();
    let mut data = Vec::new();
    let extra = [("edgeft.plan.mix".to_string(), Value::Str(mix.name().into()))];
    let (bytes, report) = write_onnx(tiny, &plan, operators, &extra, &mut data, &mut |_, _| {}).unwrap();
    Written { model: ModelProto::decode(bytes.as_slice()).unwrap(), bytes, data, report }
}

fn refused(tiny: &Tiny, mix: Mix, options: &PlanOptions) -> String {
    let plan = plan(tiny, mix, options).unwrap();
    write_onnx(tiny, &plan, Operators::Portable, &[], &mut Vec::new(), &mut |_, _| {})
        .map(|_| ())
        .unwrap_err()
        .to_string()
}

fn with(mut tiny: Tiny, change: impl FnOnce(&mut ModelSpec)) -> Tiny {
    change(&mut tiny.spec);
    tiny
}

fn without(mut tiny: Tiny, tensor: &str) -> Tiny {
    tiny.tensors.retain(|name, _| !name.starts_with(tensor));
    tiny
}

/// Two layers of 256 and 512, so that every block type fits.
fn wide(arch: Arch) -> Tiny {
    Tiny::decoder(arch, 256, 512, 2)
}

fn labels() -> Task {
    Task::Classify { labels: ["no", "yes"].map(String::from).to_vec() }
}

fn llama_classifier() -> Tiny {
    let mut tiny = with(without(wide(Arch::Llama), "lm_head"), |s| s.task = labels());
    tiny.put("score.weight", &[2, 256]);
    tiny
}

fn reader() -> Tiny {
    let mut tiny = with(without(without(Tiny::bert(), "classifier"), "bert.pooler"), |s| s.task = Task::Answer);
    tiny.put("qa_outputs.weight", &[2, 64]);
    tiny.put("qa_outputs.bias", &[2]);
    tiny
}

fn llama3() -> Tiny {
    with(Tiny::llama(), |s| {
        s.rope.as_mut().unwrap().scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 16,
        };
    })
}

fn families() -> Vec<(&'static str, Tiny)> {
    vec![
        ("untied", wide(Arch::Llama)),
        ("tied", without(wide(Arch::Llama), "lm_head")),
        ("qwen2", wide(Arch::Qwen2)),
        ("narrow", Tiny::llama()),
        ("window", with(Tiny::llama(), |s| s.sliding_window = Some(8))),
        ("llama3", llama3()),
        ("llama classifier", llama_classifier()),
        ("classifier", Tiny::bert()),
        ("reader", reader()),
        ("encoder", kin::encoder()),
    ]
}

/// Operators that the graphs may have. All are standard in opset 17.
const OPERATORS: [&str; 33] = [
    "Add",
    "And",
    "Cast",
    "Concat",
    "Cos",
    "DequantizeLinear",
    "Div",
    "Erf",
    "Gather",
    "GatherND",
    "LayerNormalization",
    "Less",
    "LessOrEqual",
    "MatMul",
    "Mul",
    "Pow",
    "Range",
    "ReduceMax",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Sin",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
];

#[test]
fn every_graph_is_sound() {
    for (family, tiny) in families().into_iter().chain(kin::families()) {
        for mix in MIXES {
            let written = written(&tiny, mix);
            is_sound(&written, &format!("{family} {mix}"));
            let graph = written.graph();
            let at = |what: &str| format!("{family} {mix}: {what}");
            for node in &graph.node {
                let op = node.op_type.as_str();
                assert!(OPERATORS.contains(&op), "{}", at(op));
                assert_eq!(node.domain, "", "{}", at(op));
            }
            let blocks = graph.node.iter().any(|n| n.op_type == "DequantizeLinear");
            let versions = (written.model.ir_version, written.model.opset_import[0].version);
            assert_eq!(versions, if blocks { (10, 21) } else { (8, 17) }, "{}", at("versions"));
            assert_eq!(blocks, mix.is_quantized(), "{}", at("blocks"));
        }
    }
}

/// What is read was made before, once; what is made is read; weights lie in the data file.
fn is_sound(written: &Written, case: &str) {
    let graph = written.graph();
    let at = |what: &str| format!("{case}: {what}");
    let mut known: HashSet<&str> = HashSet::new();
    for name in graph.input.iter().map(|i| &i.name).chain(graph.initializer.iter().map(|t| &t.name)) {
        assert!(known.insert(name), "{}", at(&format!("`{name}` twice")));
    }
    let (mut used, mut names) = (HashSet::new(), HashSet::new());
    for node in &graph.node {
        assert!(names.insert(&node.name), "{}", at(&node.name));
        for input in &node.input {
            assert!(known.contains(input.as_str()), "{}", at(&format!("{} reads `{input}`", node.name)));
            used.insert(input.as_str());
        }
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            assert!(known.insert(output), "{}", at(&format!("`{output}` made twice")));
        }
    }
    for output in &graph.output {
        assert!(known.contains(output.name.as_str()), "{}", at(&output.name));
        used.insert(&output.name);
    }
    let idle: Vec<_> = known.difference(&used).collect();
    assert!(idle.is_empty(), "{}", at(&format!("{idle:?} for nobody")));
    weights_lie_in_the_data_file(written, &at(""));
}

fn weights_lie_in_the_data_file(written: &Written, at: &str) {
    let mut ends = 0;
    for tensor in &written.graph().initializer {
        let bytes = written.bytes_of(tensor);
        let elements: i64 = tensor.dims.iter().product();
        let bits = match DataType::try_from(tensor.data_type).unwrap() {
            DataType::Int64 => 64,
            DataType::Float => 32,
            DataType::Float16 | DataType::Bfloat16 => 16,
            DataType::Int8 | DataType::Uint8 => 8,
            DataType::Int4 => 4,
            other => panic!("{at}{}: {other:?}", tensor.name),
        };
        assert_eq!(bytes.len() as i64, (elements * bits + 7) / 8, "{at}{}", tensor.name);
        if tensor.raw_data.is_none() {
            let offset = bytes.as_ptr().addr() - written.data.as_ptr().addr();
            assert!(
                offset >= ends && offset.is_multiple_of(64),
                "{at}{} begins at {offset}, after {ends}",
                tensor.name
            );
            ends = offset + bytes.len();
        }
    }
    assert_eq!(ends, written.data.len(), "{at}");
}

#[test]
fn inputs_and_outputs_have_the_names_and_the_order_of_optimum() {
    let ports = |tiny: &Tiny| {
        let written = written(tiny, Mix::F32);
        let names = |list: &[proto::ValueInfoProto]| list.iter().map(|v| v.name.clone()).collect::<Vec<_>>().join(" ");
        (names(&written.graph().input), names(&written.graph().output))
    };
    let cache = |stem: &str| format!("{stem}.0.key {stem}.0.value {stem}.1.key {stem}.1.value");
    let decoder = (
        format!("input_ids attention_mask position_ids {}", cache("past_key_values")),
        format!("logits {}", cache("present")),
    );
    assert_eq!(ports(&Tiny::llama()), decoder);
    assert_eq!(ports(&llama_classifier()), ("input_ids attention_mask position_ids".into(), "logits".into()));
    let encoder_inputs = "input_ids attention_mask token_type_ids".to_string();
    assert_eq!(ports(&Tiny::bert()), (encoder_inputs.clone(), "logits".into()));
    assert_eq!(ports(&reader()), (encoder_inputs.clone(), "start_logits end_logits".into()));
    assert_eq!(ports(&kin::encoder()), (encoder_inputs, "last_hidden_state".into()));
    for (name, tiny) in kin::families() {
        let bare = ("input_ids attention_mask".into(), "logits".into());
        assert_eq!(ports(&tiny), if name == "distilbert" { bare } else { decoder.clone() }, "{name}");
    }
}

/// Codes and scales of a GGUF tensor, its rows in the order of the source.
fn codes_of(gguf: &Gguf, bytes: &[u8], tiny: &Tiny, name: &str) -> (Codes, usize) {
    let info = gguf.tensor(name).unwrap();
    let (cols, rows) = (info.dims[0] as usize, info.dims[1] as usize);
    let mut codes = split(info.ty, gguf.data(bytes, info)).unwrap();
    if tiny.spec.arch == Arch::Llama && (name.contains("attn_q.") || name.contains("attn_k.")) {
        let d = tiny.spec.head_dim;
        let (mut q, mut s) = (codes.codes.clone(), codes.scales.clone());
        let groups = cols / codes.block;
        for row in 0..rows {
            // Row 2j + s of a head in the file is row s D/2 + j of the source.
            let from = row / d * d + row % d % 2 * (d / 2) + row % d / 2;
            q[from * cols..][..cols].copy_from_slice(&codes.codes[row * cols..][..cols]);
            s[from * groups..][..groups].copy_from_slice(&codes.scales[row * groups..][..groups]);
        }
        (codes.codes, codes.scales) = (q, s);
    }
    (codes, rows)
}

#[test]
fn codes_and_scales_are_those_of_the_gguf_file() {
    for mix in [Mix::Q8_0, Mix::Q4_0, Mix::Q6_K] {
        let old = [wide(Arch::Llama), without(wide(Arch::Llama), "lm_head"), wide(Arch::Qwen2), Tiny::bert()];
        for tiny in old.into_iter().chain(kin::families().into_iter().map(|(_, tiny)| tiny)) {
            let plan = plan(&tiny, mix, &PlanOptions::default()).unwrap();
            let mut bytes = Vec::new();
            crate::write_gguf(&tiny, &Default::default(), &plan, &[], &mut bytes, &mut |_, _| {}).unwrap();
            let (gguf, onnx) = (Gguf::parse(&bytes).unwrap(), written(&tiny, mix));
            let mut compared = 0;
            for t in plan.tensors.iter().filter(|t| t.ty.block_len() > 1) {
                let crate::plan::Origin::Source(placed) = &t.origin else { panic!() };
                let (want, rows) = codes_of(&gguf, &bytes, &tiny, &t.name);
                let stored = onnx.tensor(&placed.source);
                let turned = !t.name.starts_with("token_embd");
                let upright = |x: Vec<i8>| if turned { transpose(&x, x.len() / rows) } else { x };
                let codes = match DataType::try_from(stored.data_type).unwrap() {
                    DataType::Int8 => onnx.bytes_of(stored).iter().map(|b| *b as i8).collect(),
                    DataType::Int4 => {
                        let halves = |b: &u8| [(*b << 4) as i8 >> 4, *b as i8 >> 4]; // sign-extended
                        onnx.bytes_of(stored).iter().flat_map(halves).collect::<Vec<i8>>()
                    }
                    other => panic!("{other:?}"),
                };
                let scales = onnx.floats(&format!("{}.scale", placed.source));
                let scales = if turned { transpose(&scales, scales.len() / rows) } else { scales };
                assert_eq!((upright(codes), scales), (want.codes, want.scales), "{mix} {}", t.name);
                compared += 1;
            }
            assert!(compared >= 7, "{mix}: {compared} tensors");
        }
    }
}

#[test]
fn floats_are_those_of_the_source_turned_for_matmul() {
    let tiny = Tiny::llama();
    let onnx = written(&tiny, Mix::F32);
    let source = |name: &str| &tiny.tensors[name].1;
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"] {
        let (shape, values) = &tiny.tensors[name];
        assert_eq!(onnx.floats(name), transpose(values, shape[0]), "{name}");
        assert_eq!(onnx.tensor(name).dims, [shape[1] as i64, shape[0] as i64]);
    }
    for name in ["model.embed_tokens.weight", "model.norm.weight"] {
        assert_eq!(&onnx.floats(name), source(name), "{name}");
    }
}

/// Frequencies under Llama 3's scaling, from its definition: short wavelengths kept, long ones divided.
#[test]
fn frequencies_are_stretched_as_the_config_says() {
    let plain = written(&Tiny::llama(), Mix::F32).floats("rotary.inv_freq");
    assert_eq!(plain.len(), 8);
    for (i, f) in plain.iter().enumerate() {
        assert!((f - 10_000f32.powf(-(i as f32) / 8.0)).abs() <= 1e-6 * f, "{i}: {f}");
    }
    let stretched = written(&llama3(), Mix::F32).floats("rotary.inv_freq");
    // Wavelengths 2π / f: 6.28 at i = 0, between 16 / 4 and 16 / 1, so blended; from i = 1 on (19.9) long, so divided by 8.
    let smooth = (16.0 * 1.0 / std::f32::consts::TAU - 1.0) / 3.0;
    assert!((stretched[0] - ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-6, "{}", stretched[0]);
    for i in 1..8 {
        assert!((stretched[i] - plain[i] / 8.0).abs() <= 1e-6 * plain[i], "{i}: {}", stretched[i]);
    }
    let linear = with(Tiny::llama(), |s| s.rope.as_mut().unwrap().scaling = RopeScaling::Linear { factor: 2.5 });
    let linear = written(&linear, Mix::F32).floats("rotary.inv_freq");
    assert!(linear.iter().zip(&plain).all(|(a, b)| (a * 2.5 - b).abs() <= 1e-6 * b));
}

#[test]
fn the_metadata_says_what_the_model_is_and_seals_the_data() {
    let onnx = written(&Tiny::bert(), Mix::Q8_0);
    for (key, value) in [
        ("general.architecture", "bert"),
        ("edgeft.task", "classify"),
        ("edgeft.labels", r#"["a","b","c"]"#),
        ("edgeft.plan.mix", "q8_0"),
        ("bert.block_count", "1"),
        ("bert.attention.causal", "false"),
    ] {
        assert_eq!(onnx.metadata(key), Some(value), "{key}");
    }
    assert_eq!(onnx.metadata("edgeft.data_sha256"), Some(sha256(&onnx.data).as_str()));
    assert_eq!(onnx.metadata("general.file_type"), None);
    assert_eq!(onnx.report.sha256, sha256(&onnx.bytes));
    let windowed = written(&with(Tiny::llama(), |s| s.sliding_window = Some(8)), Mix::F32);
    assert_eq!(windowed.metadata("edgeft.attention.sliding_window"), Some("8"));
}

#[test]
fn the_report_counts_what_the_files_hold() {
    let onnx = written(&Tiny::llama(), Mix::F32);
    let elements: usize = Tiny::llama().tensors.values().map(|(_, x)| x.len()).sum();
    assert_eq!((onnx.report.bpw, onnx.report.types["f32"]), (32.0, 21));
    assert_eq!(onnx.report.bytes, (onnx.bytes.len() + onnx.data.len()) as u64);
    assert_eq!(onnx.report.tensors.iter().map(|t| t.bytes).sum::<u64>(), 4 * elements as u64);
    // Eight bits a code and an f32 for each 32: 9. The vectors' f32 adds a little.
    let bpw = written(&wide(Arch::Llama), Mix::Q8_0).report.bpw;
    assert!((9.0..9.05).contains(&bpw), "{bpw}");
    // A bare encoder has no use for the pooler that its checkpoint holds.
    let skipped = written(&kin::encoder(), Mix::F32).report.skipped;
    let names: Vec<_> = skipped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]);
}

#[test]
fn types_without_a_form_in_onnx_are_named() {
    let options = |pattern: &str, ty| PlanOptions {
        overrides: vec![(Regex::new(pattern).unwrap(), ty)],
        ..PlanOptions::default()
    };
    assert_eq!(
        refused(&wide(Arch::Llama), Mix::Q8_0, &options("blk.1.ffn_down", GgmlType::Q4_K)),
        "tensor `blk.1.ffn_down.weight` would be q4_k, which ONNX's operators cannot express; known: f32 f16 bf16 q8_0 \
         q4_0 q6_k"
    );
    let mixed = plan(&wide(Arch::Llama), Mix::F32, &options("ffn_down", GgmlType::Q4_0)).unwrap();
    write_onnx(&wide(Arch::Llama), &mixed, Operators::Portable, &[], &mut Vec::new(), &mut |_, _| {}).unwrap();
}

#[test]
fn a_bad_value_is_named_where_the_source_has_it() {
    let spoilt = |name: &str, at: usize, value: f32, mix| {
        let mut tiny = Tiny::llama();
        tiny.tensors.get_mut(name).unwrap().1[at] = value;
        refused(&tiny, mix, &PlanOptions::default())
    };
    assert_eq!(
        spoilt("model.layers.0.self_attn.q_proj.weight", 24 * 64 + 3, f32::NAN, Mix::Q8_0),
        "tensor `model.layers.0.self_attn.q_proj.weight`, row 24, column 3: NaN is a value that no type can hold"
    );
    assert_eq!(
        spoilt("model.norm.weight", 3, f32::INFINITY, Mix::F32),
        "tensor `model.norm.weight`, row 0, column 3: inf is a value that no type can hold"
    );
}

#[test]
fn a_plan_of_another_model_is_refused() {
    let plan = plan(&Tiny::llama(), Mix::F32, &PlanOptions::default()).unwrap();
    let larger = Tiny::decoder(Arch::Llama, 64, 96, 3);
    let e =
        write_onnx(&larger, &plan, Operators::Portable, &[], &mut Vec::new(), &mut |_, _| {}).map(|_| ()).unwrap_err();
    assert_eq!(e.to_string(), "the plan does not fit the source: `blk.2.attn_norm.weight` is missing; plan again");
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let at = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let onnx = written(&wide(Arch::Llama), Mix::Q4_0);
            (onnx.bytes, onnx.data)
        })
    };
    let one = at(1);
    assert!(one == at(2) && one == at(5));
}

#[test]
fn progress_ends_at_the_total() {
    for tiny in [Tiny::llama(), llama3()] {
        let plan = plan(&tiny, Mix::Q4_0, &PlanOptions::default()).unwrap();
        let mut heard = Vec::new();
        write_onnx(&tiny, &plan, Operators::Portable, &[], &mut Vec::new(), &mut |d, t| heard.push((d, t))).unwrap();
        assert!(heard.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!(heard.last(), Some(&(plan.elements(), plan.elements())));
    }
}
