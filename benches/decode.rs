//! Prefill and decode of a whole model, as `edgeft bench` measures them. The last line is JSON.
//!
//! ```text
//! cargo bench --bench decode                              nano, converted to f32, q8_0 and q4_k_m in memory
//! cargo bench --bench decode -- model.gguf other.gguf     these files (or EDGEFT_BENCH_MODEL)
//! ```

use edgeft::export;
use edgeft::model::open::Opened;
use edgeft_quantize::Mix;
use edgeft_runtime::engine::{Backend, EngineOptions, KvType};
use edgeft_runtime::kernels::Kernels;
use edgeft_runtime::measure::device::{Device, peak_mib};
use edgeft_runtime::measure::report::{Ceiling, Report};
use edgeft_runtime::measure::{Bench, Case};
use edgeft_runtime::model::Model;
use serde_json::json;
use std::path::Path;
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let mut files: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if files.is_empty() {
        files.extend(std::env::var("EDGEFT_BENCH_MODEL"));
    }
    let mut lines = Vec::new();
    if files.is_empty() {
        let nano = Opened::open("nano", 0)?;
        for mix in [Mix::F32, Mix::Q8_0, Mix::Q4_K_M] {
            let name = format!("nano {}", mix.name());
            let bytes = export::to_memory(&nano, mix)?;
            lines.extend(measure(&name, || Model::from_bytes(bytes.clone(), &name))?);
        }
    }
    for file in &files {
        lines.extend(measure(file, || Model::open(Path::new(file)))?);
    }
    println!("{}", json!({ "rows": lines }));
    Ok(())
}

/// One sequence, and four side by side, on every thread there is.
fn measure(name: &str, open: impl Fn() -> edgeft_runtime::Result<Model>) -> anyhow::Result<Vec<serde_json::Value>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut lines = Vec::new();
    for batch in [1, 4] {
        let start = Instant::now();
        let model = open()?;
        let (task, causal, n_ctx) = (model.task(), model.hparams().causal, model.hparams().n_ctx);
        let case = Case { batch, ..Case::default() }.within(task, causal, n_ctx);
        let options = EngineOptions {
            backend: Backend::Cpu,
            threads,
            ctx: case.ctx(task, causal),
            n_seqs: batch,
            kv: KvType::F16,
        };
        let mut engine = model.engine(&options)?;
        let tokenizer = model.tokenizer().ok();
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let measurement = Bench::new(&model, engine.as_mut(), tokenizer.as_deref(), case)?.measure(&mut |_| ())?;
        let peak_mib = peak_mib();
        let ceiling = Ceiling::measure(&model, &measurement, threads, KvType::F16);
        let device = Device::detect(&Kernels::detect()?);
        let report = Report {
            engine: "cpu",
            model: name.to_owned(),
            threads,
            kv: KvType::F16,
            load_ms,
            peak_mib,
            measurement,
            ceiling,
            device,
        };
        println!("{report}");
        lines.push(report.json());
    }
    Ok(lines)
}
