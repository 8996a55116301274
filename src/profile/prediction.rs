//! A profile and a footprint -> memory, and tokens a second. Arithmetic, with every term on view: what the memory's bus allows
//! at most, and what is likely where somebody measured how much of it is reached.

use super::{Footprint, Profile};
use edgeft_runtime::format::GgmlType;
use serde::Serialize;
use serde_json::{Value, json};

/// Where in a text the predicted token stands, and how many sequences share a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Tokens that the cache has room for.
    pub ctx: usize,
    /// Tokens before the predicted one.
    pub depth: usize,
    /// Sequences side by side.
    pub batch: usize,
}

impl Position {
    /// As `bench` measures by default, in the context that `serve` makes room for.
    pub fn usual(footprint: &Footprint, ctx: Option<usize>) -> Self {
        let ctx = ctx.unwrap_or_else(|| footprint.default_ctx());
        Self { ctx, depth: ctx.min(144), batch: 1 }
    }
}

/// Bytes that serving takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Every tensor.
    pub weights: u64,
    /// Keys and values of a full context.
    pub cache: u64,
    /// Buffers of a pass.
    pub activations: u64,
    /// Tokenizer and template.
    pub text: u64,
    /// The program.
    pub program: u64,
    /// Tokens of the context.
    pub ctx: usize,
}

impl MemoryPlan {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.activations + self.text + self.program
    }
}

/// What is likely, from what was measured on the device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Likely {
    /// Tokens a second, of all sequences.
    pub decode_tokens_per_s: f64,
    /// What reads reach.
    pub gb_per_s: f64,
    /// What the kernels reach on this mix of types; null where nobody measured it.
    pub kernel_gb_per_s: Option<f64>,
    /// Times that all threads are set to work for a token.
    pub handshakes: usize,
    /// What one of them costs; null where nobody measured it.
    pub handshake_us: Option<f64>,
}

/// What a profile says of a model. Not measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Name of the profile.
    pub target: String,
    /// Name of the model.
    pub model: String,
    /// Type of its weights.
    pub ty: String,
    /// Where the token stands.
    pub position: Position,
    /// Weights that one forward reads.
    pub weights_per_forward: u64,
    /// Keys and values that it reads.
    pub cache_per_forward: u64,
    /// Of the memory bus.
    pub gb_per_s: f64,
    /// At that bandwidth: more is not to be had while the weights come from memory. `None` for a model that does not decode.
    pub decode_tokens_per_s: Option<f64>,
    /// Where enough was measured.
    pub likely: Option<Likely>,
    /// What serving takes.
    pub memory: MemoryPlan,
    /// Memory of the device, in bytes.
    pub memory_there: u64,
    /// The last cache, when all that a forward reads fits into it: then the bus is no bound.
    pub in_cache_mib: Option<f64>,
}

/// How `decode_tokens_per_s` is computed.
const AT_MOST: &str = "batch * gb_per_s * 1e9 / (weights_per_forward + cache_per_forward)";
/// How `likely` is computed.
const LIKELY: &str =
    "batch / (bytes_per_forward / min(gb_per_s, kernel_gb_per_s) / 1e9 + handshakes * handshake_us / 1e6)";

impl Profile {
    /// Predicts a model on this device.
    pub fn predict(&self, model: &Footprint, at: Position) -> Prediction {
        let weights = model.weights_read();
        let cache = at.batch as u64 * model.cache_read(at.depth);
        let bytes = (weights + cache) as f64;
        let at_most = at.batch as f64 * self.bandwidth.gb_per_s * 1e9 / bytes;
        let memory = MemoryPlan {
            weights: model.weights,
            cache: at.batch as u64 * model.cache(at.ctx),
            activations: at.batch as u64 * model.activations(at.ctx),
            text: model.text(),
            program: model.program(),
            ctx: at.ctx,
        };
        let cached = |c: &super::Memory| bytes < c.mib * 1048576.0;
        Prediction {
            target: self.name.clone(),
            model: model.name.clone(),
            ty: model.ty.clone(),
            position: at,
            weights_per_forward: weights,
            cache_per_forward: cache,
            gb_per_s: self.bandwidth.gb_per_s,
            decode_tokens_per_s: model.generates.then_some(at_most),
            likely: self.likely(model, bytes, at.batch as f64).filter(|_| model.generates),
            memory,
            memory_there: (self.memory.mib * 1048576.0) as u64,
            // Of `this`, the read that was measured had the caches' help already.
            in_cache_mib: self.cache.as_ref().filter(|c| !self.bandwidth.measured && cached(c)).map(|c| c.mib),
        }
    }

    fn likely(&self, model: &Footprint, bytes: f64, batch: f64) -> Option<Likely> {
        let kernel_gb_per_s = self.kernel_gb_per_s(model);
        if self.sustained.is_none() && kernel_gb_per_s.is_none() {
            return None;
        }
        let gb_per_s = self.sustained.as_ref().unwrap_or(&self.bandwidth).gb_per_s;
        let slower = kernel_gb_per_s.map_or(gb_per_s, |k| k.min(gb_per_s));
        let handshake_us = self.handshake.as_ref().map(|h| h.us);
        let seconds = bytes / slower / 1e9 + model.steps as f64 * handshake_us.unwrap_or(0.0) / 1e6;
        let decode_tokens_per_s = batch / seconds;
        Some(Likely { decode_tokens_per_s, gb_per_s, kernel_gb_per_s, handshakes: model.steps, handshake_us })
    }

    /// Of this mix of types; `None` when one that matters was not measured. Norms and biases are a hundredth at most, and
    /// are counted as if they were like the rest.
    fn kernel_gb_per_s(&self, model: &Footprint) -> Option<f64> {
        let all = model.weights_read() as f64;
        let speed = |ty: GgmlType| self.kernels.iter().find(|k| k.ty == ty.name()).map(|k| k.gb_per_s);
        let (mut seconds, mut known) = (0.0, 0.0);
        for (ty, bytes) in &model.read {
            match speed(*ty) {
                Some(gb_per_s) => {
                    seconds += *bytes as f64 / gb_per_s;
                    known += *bytes as f64;
                }
                None if (*bytes as f64) < 0.02 * all => {}
                None => return None,
            }
        }
        (seconds > 0.0).then(|| known / seconds)
    }
}

impl Prediction {
    /// Whether the plan leaves the device some memory of its own.
    pub fn fits(&self) -> bool {
        self.memory.total() < self.memory_there
    }

    /// For scripts and manifests.
    pub fn json(&self) -> Value {
        let mut memory = json!(self.memory);
        memory["total"] = json!(self.memory.total());
        json!({
            "kind": "predicted",
            "target": self.target,
            "model": self.model,
            "type": self.ty,
            "position": self.position.depth,
            "batch": self.position.batch,
            "weights_per_forward": self.weights_per_forward,
            "cache_per_forward": self.cache_per_forward,
            "bytes_per_forward": self.weights_per_forward + self.cache_per_forward,
            "gb_per_s": self.gb_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "likely": self.likely,
            "formula": {"decode_tokens_per_s": AT_MOST, "likely": LIKELY},
            "in_cache": self.in_cache_mib.is_some(),
            "memory": memory,
            "bytes_needed": self.memory.total(),
            "fits": self.fits(),
        })
    }
}

/// 1234.5 -> `1234`, 12.345 -> `12.3`.
pub fn rate(tokens_per_s: f64) -> String {
    if tokens_per_s < 100.0 { format!("{tokens_per_s:.1}") } else { format!("{tokens_per_s:.0}") }
}

fn mb(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

impl std::fmt::Display for Prediction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "Predicted for {} on {} (arithmetic, not measured):", self.model, self.target)?;
        match self.decode_tokens_per_s {
            Some(tokens) => {
                writeln!(
                    f,
                    "  decode    at most {} tokens/s: {:.1} GB/s over {} MB of weights and {} MB of cache at position {}",
                    rate(tokens),
                    self.gb_per_s,
                    mb(self.weights_per_forward),
                    mb(self.cache_per_forward),
                    self.position.depth
                )?;
                if let Some(mib) = self.in_cache_mib {
                    writeln!(f, "            they fit into the last cache of {mib} MiB, so the bus is no bound")?;
                }
            }
            None => writeln!(
                f,
                "  latency   not predicted: this model does not decode, and its speed is a matter of arithmetic"
            )?,
        }
        if let Some(likely) = &self.likely {
            let (read, kernels) = (likely.gb_per_s, likely.kernel_gb_per_s);
            let kernels = kernels.map_or(String::new(), |k| format!(", kernels {k:.1} GB/s"));
            let handshakes = likely
                .handshake_us
                .map_or(String::new(), |us| format!(", {} times all threads at {us:.1} us", likely.handshakes));
            let tokens = rate(likely.decode_tokens_per_s);
            writeln!(f, "            likely  {tokens} tokens/s: reads {read:.1} GB/s{kernels}{handshakes}")?;
        }
        let m = &self.memory;
        let fits = if self.fits() { "fits" } else { "does NOT fit" };
        writeln!(f, "  memory    {} MB of {:.1} GB: {fits}", mb(m.total()), self.memory_there as f64 / 1e9)?;
        write!(
            f,
            "            weights {} + cache of {} tokens {} + activations {} + tokenizer {} + program {} MB",
            mb(m.weights),
            m.ctx,
            mb(m.cache),
            mb(m.activations),
            mb(m.text),
            mb(m.program)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::open::Opened;
    use crate::profile::{Bandwidth, Handshake, Kernel, Memory};
    use edgeft_quantize::Mix;

    fn nano() -> Footprint {
        Footprint::of_plan(&Opened::open("nano", 0).unwrap(), Mix::Q8_0).unwrap()
    }

    fn bandwidth(gb_per_s: f64) -> Bandwidth {
        Bandwidth { gb_per_s, source: "a test".into(), measured: false }
    }

    fn board() -> Profile {
        let memory = Memory { mib: 64.0, source: "a test".into(), measured: false };
        let cache = Memory { mib: 1.0, ..memory.clone() };
        Profile {
            bandwidth: bandwidth(10.0),
            memory,
            cache: Some(cache),
            sustained: None,
            ..Profile::named("raspberry-pi-5").unwrap()
        }
    }

    #[test]
    fn a_bound_is_bandwidth_over_bytes_and_nothing_is_likely_that_nobody_measured() {
        let (model, at) = (nano(), Position { ctx: 200, depth: 100, batch: 2 });
        let p = board().predict(&model, at);
        let bytes = (model.weights_read() + 2 * model.cache_read(100)) as f64;
        assert_eq!(p.decode_tokens_per_s, Some(2.0 * 10e9 / bytes));
        assert_eq!((p.likely, p.in_cache_mib), (None, None));
        let m = p.memory;
        assert_eq!(m.cache, 2 * model.cache(200));
        assert_eq!(p.json()["memory"]["total"], m.weights + m.cache + m.activations + m.text + m.program);
    }

    #[test]
    fn what_was_measured_makes_it_slower_term_by_term() {
        let (model, at) = (nano(), Position { ctx: 200, depth: 0, batch: 1 });
        let bytes = model.weights_read() as f64;
        let mut board = board();
        let likely = |board: &Profile| 1.0 / board.predict(&model, at).likely.unwrap().decode_tokens_per_s;
        board.sustained = Some(bandwidth(5.0));
        assert!((likely(&board) - bytes / 5e9).abs() < 1e-9);
        let kernel = Kernel { ty: "q8_0".into(), gb_per_s: 2.0, source: "a test".into(), measured: true };
        board.kernels = vec![kernel];
        assert!((likely(&board) - bytes / 2e9).abs() < 1e-9);
        board.handshake = Some(Handshake { us: 3.0, source: "a test".into(), measured: true });
        assert!((likely(&board) - bytes / 2e9 - model.steps as f64 * 3e-6).abs() < 1e-9);
        board.kernels[0].ty = "q4_0".into(); // not what the model is made of
        assert_eq!(board.predict(&model, at).likely.unwrap().kernel_gb_per_s, None);
    }

    #[test]
    fn a_plan_over_the_memory_does_not_fit_and_a_small_model_knows_no_bus() {
        let (model, mut board) = (nano(), board());
        let at = Position::usual(&model, None);
        assert!(board.predict(&model, at).fits());
        board.memory.mib = 8.0;
        let p = board.predict(&model, at);
        assert!(!p.fits() && p.to_string().contains("does NOT fit"), "{p}");
        board.cache = Some(Memory { mib: 32.0, source: "a test".into(), measured: false });
        assert!(board.predict(&model, at).to_string().contains("the bus is no bound"));
    }

    #[test]
    fn it_says_that_nothing_was_measured_and_shows_its_terms() {
        let text = board().predict(&nano(), Position { ctx: 64, depth: 32, batch: 1 }).to_string();
        for words in ["arithmetic, not measured", "at most", "GB/s over", "cache of 64 tokens", "program"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
