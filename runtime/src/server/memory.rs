//! What a server may come to take of the machine's memory, worked out before it takes it: the weights, adapters beside them,
//! and the keys and values of every sequence at its longest.

use crate::engine::{Backend, KvType};
use crate::error::{Error, Kind, Result};
use crate::measure::device::usable_bytes;
use crate::model::Model;
use crate::session::SessionOptions;

/// Answers that go on beside each other, unless told otherwise.
pub const PARALLEL: usize = 4;
/// Most answers, or kept caches, that may be asked for.
pub const MOST: usize = 64;

/// How many sequences a server has, and what they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Answers that go on beside each other.
    pub parallel: usize,
    /// Sequences of the engine: those answers', and caches kept for the next turn of a chat.
    pub sequences: usize,
    /// Bytes of the weights.
    pub weights: u64,
    /// Bytes of all adapters.
    pub adapters: u64,
    /// Bytes of the keys and values of all sequences at their longest.
    pub caches: u64,
}

impl Plan {
    /// For this machine, or the group that this process is in.
    /// - `adapters`: bytes of those beside the model, together
    /// - `parallel`: answers side by side; when it is left open, [`PARALLEL`] or as many as there is memory for
    /// - `kept`: caches; when it is left open, as many as answers
    /// - `most`: bytes that it may take, where that is less than there are
    /// # Errors
    /// [`Kind::Limit`] with the numbers and the ways out.
    pub fn new(
        model: &Model,
        adapters: u64,
        options: &SessionOptions,
        parallel: Option<usize>,
        kept: Option<usize>,
        most: Option<u64>,
    ) -> Result<Self> {
        // What a GPU has is told by its driver, when the cache grows there.
        let memory = if options.backend == Backend::Gpu { None } else { usable_bytes() };
        let least = most.into_iter().chain(memory).min();
        Self::within(model, adapters, options, parallel, kept, least)
    }

    /// All that it takes.
    pub fn bytes(&self) -> u64 {
        self.weights.saturating_add(self.adapters).saturating_add(self.caches)
    }

    /// What to tell when there is memory for fewer answers than usual, and no number was asked for.
    pub fn fewer(&self, asked: Option<usize>) -> Option<String> {
        let n = self.parallel;
        let line =
            format!("memory has room for {n} of {PARALLEL} answers side by side; --parallel asks for another number");
        (asked.is_none() && n < PARALLEL).then_some(line)
    }

    /// The same for a machine of `memory` bytes.
    /// # Errors
    /// As [`Plan::new`].
    pub fn within(
        model: &Model,
        adapters: u64,
        options: &SessionOptions,
        parallel: Option<usize>,
        kept: Option<usize>,
        memory: Option<u64>,
    ) -> Result<Self> {
        let ctx = options.engine(model, 1).ctx;
        let (weights, each) = (model.weight_bytes(), sequence_bytes(model, options, ctx));
        let plan = |parallel: usize| {
            let sequences = parallel.max(kept.unwrap_or(parallel));
            Self { parallel, sequences, weights, adapters, caches: each * sequences as u64 }
        };
        let least = parallel.unwrap_or(1);
        let memory = memory.unwrap_or(u64::MAX);
        let fits = |plan: &Self| plan.bytes() <= memory;
        let found = (least..=parallel.unwrap_or(PARALLEL)).rev().map(plan).find(fits);
        found.ok_or_else(|| {
            let Self { sequences, caches, .. } = plan(least);
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            let beside = if adapters > 0 { format!(", adapters {} MiB", mib(adapters)) } else { String::new() };
            let fewer = if adapters > 0 { ", serve fewer adapters" } else { "" };
            let room = memory.saturating_sub(weights.saturating_add(adapters));
            let longest = (ctx as u64 * room).checked_div(caches).unwrap_or(0);
            let fitting = if longest > 0 { format!(" (--ctx {longest} fits)") } else { String::new() };
            let message = format!(
                "the weights take {} MiB{beside} and {sequences} sequences of {ctx} tokens {} MiB, but there are {} MiB; \
                 lower --ctx{fitting}, --parallel or --cache-slots{fewer}, or quantize the model further",
                mib(weights),
                mib(caches),
                memory >> 20
            );
            Error::new(Kind::Limit, "memory", message)
        })
    }
}

/// Keys and values of one sequence of `ctx` tokens; an encoder keeps none.
fn sequence_bytes(model: &Model, options: &SessionOptions, ctx: usize) -> u64 {
    let h = model.hparams();
    let element = match model.kv().unwrap_or(options.kv) {
        KvType::F32 => 4,
        KvType::F16 => 2,
    };
    if h.causal { (2 * h.n_layers * ctx * h.n_kv_heads * h.head_dim * element) as u64 } else { 0 }
}
