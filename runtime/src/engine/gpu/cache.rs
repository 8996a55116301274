//! Keys and values on the device, by sequence and layer. They grow with the tokens, up to a capacity that never moves.

use super::device::Gpu;
use super::pipelines::Store;
use crate::engine::KvType;
use crate::error::{Error, Kind, Result};
use wgpu::Buffer;

/// Tokens that a sequence gets room for at first.
const FIRST_ROOM: usize = 64;

/// The cache of one engine.
pub struct Cache {
    seqs: Vec<Seq>,
    n_layers: usize,
    /// Numbers of a key row, K * D.
    width: usize,
    capacity: usize,
    kv: KvType,
}

#[derive(Default)]
struct Seq {
    /// Keys and values of each layer.
    layers: Vec<[Buffer; 2]>,
    /// Tokens that the buffers have room for.
    room: usize,
    /// Tokens that it holds.
    len: usize,
}

impl Cache {
    /// An empty cache; see [`crate::kv_cache::KvCache::new`]. Without layers it only counts tokens.
    pub fn new(n_seqs: usize, n_layers: usize, width: usize, capacity: usize, kv: KvType) -> Self {
        Self { seqs: (0..n_seqs).map(|_| Seq::default()).collect(), n_layers, width, capacity, kv }
    }

    /// Tokens that a sequence may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of sequences.
    pub fn n_seqs(&self) -> usize {
        self.seqs.len()
    }

    /// Tokens that a sequence holds.
    pub fn len(&self, seq: usize) -> usize {
        self.seqs[seq].len
    }

    /// How kernels read it.
    pub fn store(&self) -> Store {
        self.kv.into()
    }

    /// Makes room for `n` more tokens of a sequence in every layer; says whether buffers were replaced.
    ///
    /// # Errors
    /// `Limit` when the sequence would outgrow the capacity, the binding of a layer, or the memory.
    pub fn reserve(&mut self, gpu: &Gpu, seq: usize, n: usize) -> Result<bool> {
        let (len, room) = (self.seqs[seq].len, self.seqs[seq].room);
        if len + n > self.capacity {
            let message = format!(
                "{len} tokens and {n} more, but the context holds {}; shorten the text or raise --ctx",
                self.capacity
            );
            return Err(Error::new(Kind::Limit, "context", message));
        }
        if len + n <= room || self.n_layers == 0 {
            return Ok(false);
        }
        // Doubled, so that a long text is copied a few times only; but what a binding holds is enough if it is enough.
        let most = (gpu.most_bytes() / self.bytes(1)) as usize;
        let wanted = (len + n).next_power_of_two().max(FIRST_ROOM).min(self.capacity);
        let wanted = if most >= len + n { wanted.min(most) } else { wanted };
        let bytes = self.bytes(wanted);
        let place = format!("key and value cache of {wanted} tokens");
        let layers = (0..self.n_layers)
            .map(|_| Ok([gpu.storage(&place, bytes)?, gpu.storage(&place, bytes)?]))
            .collect::<Result<Vec<_>>>()?;
        if len > 0 {
            let kept = self.bytes(len);
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for (old, new) in self.seqs[seq].layers.iter().flatten().zip(layers.iter().flatten()) {
                encoder.copy_buffer_to_buffer(old, 0, new, 0, kept);
            }
            gpu.submit(encoder)?;
        }
        self.seqs[seq].layers.iter().flatten().for_each(|b| gpu.release(b));
        self.seqs[seq] = Seq { layers, room: wanted, len };
        Ok(true)
    }

    /// Keys and values of one layer.
    pub fn layer(&self, seq: usize, layer: usize) -> &[Buffer; 2] {
        &self.seqs[seq].layers[layer]
    }

    /// Counts `n` written tokens in.
    pub fn advance(&mut self, seq: usize, n: usize) {
        self.seqs[seq].len += n;
    }

    /// Forgets a sequence's tokens from position `len` on.
    pub fn truncate(&mut self, seq: usize, len: usize) {
        self.seqs[seq].len = self.seqs[seq].len.min(len);
    }

    /// Bytes of `tokens` keys of one layer.
    fn bytes(&self, tokens: usize) -> u64 {
        let number = if self.kv == KvType::F16 { 2 } else { 4 };
        (tokens * self.width * number) as u64
    }
}
