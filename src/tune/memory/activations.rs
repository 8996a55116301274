//! What the forward keeps and the backward makes on the way, and how a micro-batch is cut so that it fits.
//!
//! A micro-batch that is too large is computed in parts whose gradients are summed: the same gradient, and the same dropout
//! and noise, since both are drawn by the token's place in the micro-batch.
//! Where parts would be small, a block keeps only its input for the backward and is computed again (Chen et al.,
//! arXiv:1604.06174). As few blocks as the room asks for are, the lowest first: they are needed last, when all others are
//! gone. The topmost is needed first, so it is always kept.

use crate::data::batch::Row;
use crate::model::config::{Config, Family};
use crate::model::layers::attention::QUERIES;
use crate::model::layers::head::CHUNK;

/// Without a bound: a micro-batch whose blocks keep more than this many bytes is cut in parts, or computed again.
const KEEP_BYTES: u64 = 512 << 20;
/// Parts of fewer tokens than this cost more time than computing activations again.
const LEAST_PART: usize = 512;

/// The shapes that decide what a micro-batch takes.
#[derive(Debug, Clone)]
pub struct Activations {
    /// Bytes that a part may take; without a bound, [`KEEP_BYTES`] of them may be kept.
    pub room: Option<u64>,
    /// Each row by itself.
    pub no_pack: bool,
    layers: u64,
    hidden: u64,
    q: u64,
    kv: u64,
    wide: u64,
    heads: u64,
    /// Columns of the logits; 0 where the head is small.
    vocab: u64,
    /// Floats that a block keeps for a token: see `Saved` of the trunks.
    kept: u64,
    decoder: bool,
}

/// What a part takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Kept from the forward for the backward.
    pub kept: u64,
    /// The block at work, with its attention.
    pub block: u64,
    /// The head at work.
    pub head: u64,
}

impl Taken {
    /// At the worst moment: block and head are never at work together.
    pub fn peak(&self) -> u64 {
        self.kept + self.block.max(self.head)
    }
}

impl Activations {
    /// Of a network; `language` where the head gives logits of the vocabulary.
    pub fn new(config: &Config, language: bool, no_pack: bool) -> Self {
        let [c, q, kv, f] =
            [config.hidden_size, config.q_dim(), config.kv_dim(), config.intermediate_size].map(|n| n as u64);
        let family = config.family;
        let wide = if family.gates() { 2 * f } else { f };
        let bare = if family.norms_heads() { q + kv } else { 0 };
        let stream = match family {
            Family::Gemma3 => 4 * c,
            _ if family.is_decoder() => 2 * c,
            _ => 3 * c,
        };
        Self {
            room: None,
            no_pack,
            layers: config.num_hidden_layers as u64,
            hidden: config.hidden_size as u64,
            q: config.q_dim() as u64,
            kv: config.kv_dim() as u64,
            wide: config.intermediate_size as u64,
            heads: config.num_attention_heads as u64,
            vocab: if language { config.vocab_size as u64 } else { 0 },
            kept: stream + 2 * q + 2 * kv + bare + wide,
            decoder: family.is_decoder(),
        }
    }

    /// Floats that the forward of a block makes for a token.
    fn forward_floats(&self) -> u64 {
        if self.decoder {
            4 * self.hidden + 2 * self.q + 2 * self.kv + 3 * self.wide
        } else {
            8 * self.hidden + 2 * self.wide
        }
    }

    /// Floats for a token that the backward of a block makes one after the other: gradients of the wide activations, of
    /// queries, keys and values (and their copies by head), and of the stream.
    fn made_floats(&self) -> u64 {
        if self.decoder {
            3 * self.wide + 5 * self.hidden + 4 * self.q + 3 * self.kv
        } else {
            2 * self.wide + 12 * self.hidden
        }
    }

    /// What the blocks keep of so many tokens, when the lowest `again` keep their input alone.
    fn held(&self, tokens: u64, again: u64) -> u64 {
        4 * tokens * ((self.layers - again) * self.kept + again * self.hidden)
    }

    /// What a forward and backward over rows takes, when the lowest `again` blocks are computed again.
    pub fn taken(&self, rows: &[&Row], again: u64) -> Taken {
        let tokens = tokens(rows) as u64;
        // The outermost stream: final states, their gradient, the last block's input and its gradient.
        let kept = 16 * tokens * self.hidden + self.held(tokens, again);
        Taken {
            kept,
            block: self.backward(tokens, rows),
            head: self.head(rows.iter().map(|r| r.learned()).sum::<usize>() as u64),
        }
    }

    /// What a forward alone takes.
    pub fn reading(&self, rows: &[&Row]) -> Taken {
        let tokens = tokens(rows) as u64;
        Taken {
            kept: 8 * tokens * self.hidden,
            block: 4 * tokens * self.forward_floats() + scores(rows),
            head: self.head(rows.iter().map(|r| r.learned()).sum::<usize>() as u64),
        }
    }

    /// What the backward of a block makes: its feed-forward, and after that its attention.
    fn backward(&self, tokens: u64, rows: &[&Row]) -> u64 {
        let (c, q, kv, f) = (self.hidden, self.q, self.kv, self.wide);
        // What goes down and its gradient; then the gradients of what it is made of. Beside them the stream.
        let feed_forward = if self.decoder { 3 * f + 4 * c } else { 2 * f + 3 * c };
        // The gradient of what attention gave; those of queries, keys and values by query head, and joined; the stream.
        let attention = 4 * c + 5 * q + 2 * kv;
        4 * tokens * feed_forward.max(attention) + 2 * scores(rows)
    }

    /// Logits, which become their gradient, a chunk at a time, and the hidden states of what is learned.
    fn head(&self, learned: u64) -> u64 {
        4 * (learned.min(CHUNK as u64) * self.vocab + 3 * learned * self.hidden)
    }

    /// As many blocks as it makes sense to compute again.
    pub fn most_again(&self) -> u64 {
        self.layers.saturating_sub(1)
    }

    /// Blocks.
    pub fn layers(&self) -> u64 {
        self.layers
    }

    /// Columns of the logits; 0 where the head is small.
    pub fn vocab(&self) -> u64 {
        self.vocab
    }

    /// Layers times query width: what a pair of tokens costs in attention, in multiply-adds each way.
    pub fn attention_width(&self) -> f64 {
        (self.layers * self.q) as f64
    }

    /// Layers times heads: probabilities of a pair of tokens.
    pub fn heads_in_all(&self) -> f64 {
        (self.layers * self.heads) as f64
    }

    /// Width of a head.
    pub fn head_dim(&self) -> f64 {
        self.q as f64 / self.heads as f64
    }

    /// Pairs of tokens of a row whose score is multiplied out: a decoder's queries see what came before, some of them at a time.
    pub fn pairs(&self, tokens: f64) -> f64 {
        if self.decoder { tokens * (tokens + tokens.min(QUERIES as f64)) / 2.0 } else { tokens * tokens }
    }

    /// Probabilities of a row's pairs of tokens, in all layers and heads.
    pub fn exps(&self, tokens: f64) -> f64 {
        let pairs = if self.decoder { tokens * (tokens + 1.0) / 2.0 } else { tokens * tokens };
        pairs * self.heads_in_all()
    }

    /// Multiply-adds of a token's logits.
    pub fn logits_width(&self) -> f64 {
        (self.vocab * self.hidden) as f64
    }

    /// Floats that all blocks read or write for a token between GEMMs, over so many forwards and a backward.
    pub fn passes(&self, forwards: f64) -> f64 {
        self.layers as f64 * (3.0 * forwards * self.forward_floats() as f64 + 3.0 * self.made_floats() as f64)
    }

    /// A micro-batch in parts, in order, and how many of the lowest blocks each computes again.
    pub fn parts<'a>(&self, rows: &'a [&'a Row]) -> Vec<(&'a [&'a Row], usize)> {
        if self.no_pack {
            return rows.chunk_by(|_, b| !b.begins()).map(|unit| (unit, self.again(unit))).collect();
        }
        if self.fits(rows, 0) {
            return vec![(rows, 0)];
        }
        // Parts that keep all cost less time than a whole that computes again, unless they are small.
        let kept = self.cut_evenly(rows, |part| self.fits(part, 0));
        let enough = |part: &&[&Row]| tokens(part) >= LEAST_PART;
        if kept.iter().all(|part| self.fits(part, 0)) && kept[..kept.len() - 1].iter().all(enough) {
            return kept.into_iter().map(|part| (part, 0)).collect();
        }
        if self.room.is_none() {
            return vec![(rows, self.again(rows))];
        }
        let parts = self.cut(rows, |part| self.fits(part, self.most_again()));
        parts.into_iter().map(|part| (part, self.again(part))).collect()
    }

    /// Rows that are only read, in parts.
    pub fn read_parts<'a>(&self, rows: &'a [&'a Row]) -> Vec<&'a [&'a Row]> {
        match self.room {
            _ if self.no_pack => rows.chunk_by(|_, b| !b.begins()).collect(),
            None => vec![rows],
            Some(room) => self.cut(rows, |part| self.reading(part).peak() <= room),
        }
    }

    /// Whether rows that compute so many blocks again stay within the bound.
    fn fits(&self, rows: &[&Row], again: u64) -> bool {
        match self.room {
            Some(room) => self.taken(rows, again).peak() <= room,
            None => self.held(tokens(rows) as u64, again) <= KEEP_BYTES,
        }
    }

    /// The fewest blocks whose second forward makes the rest fit; all of them where nothing does.
    fn again(&self, rows: &[&Row]) -> usize {
        let fits = |again: &u64| self.fits(rows, *again);
        (0..self.most_again()).find(fits).unwrap_or(self.most_again()) as usize
    }

    /// As few parts as fit, of much the same size.
    fn cut_evenly<'a>(&self, rows: &'a [&'a Row], fits: impl Fn(&[&Row]) -> bool) -> Vec<&'a [&'a Row]> {
        const STEPS: usize = 16;
        let (all, fewest) = (tokens(rows), self.cut(rows, &fits));
        let even = (0..STEPS).map(|step| {
            let most = (all / fewest.len()).max(1) * (STEPS + step) / STEPS;
            self.cut(rows, |part| tokens(part) <= most && fits(part))
        });
        even.into_iter().find(|parts| parts.len() == fewest.len()).unwrap_or(fewest)
    }

    /// Parts that fit, as long as can be; an example that does not is a part by itself.
    fn cut<'a>(&self, rows: &'a [&'a Row], fits: impl Fn(&[&Row]) -> bool) -> Vec<&'a [&'a Row]> {
        let (mut out, mut start, mut fitted) = (Vec::new(), 0, 0);
        for end in (1..=rows.len()).filter(|end| rows.get(*end).is_none_or(|row| row.begins())) {
            if fitted > start && !fits(&rows[start..end]) {
                out.push(&rows[start..fitted]);
                start = fitted;
            }
            fitted = end;
        }
        if start < rows.len() {
            out.push(&rows[start..]);
        }
        out
    }
}

/// Bytes of the scores that each thread has at hand.
fn scores(rows: &[&Row]) -> u64 {
    let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    (4 * rayon::current_num_threads() * QUERIES.min(longest) * longest) as u64
}

fn tokens(rows: &[&Row]) -> usize {
    rows.iter().map(|r| r.ids.len()).sum()
}
