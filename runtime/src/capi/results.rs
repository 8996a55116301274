//! Structs that the library fills and the caller reads: texts end with a zero, lists have their length. They may grow at
//! their end in later versions. Each is freed by its own function, and with it all that it points at.

use std::ffi::{CString, c_char};

use super::border::free;
use crate::session::{Answer, FinishReason, Generation, LabelScore};

/// Why a generation ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EdgeftFinishReason {
    /// The model, or a stop text, ended it.
    Stop = 0,
    /// `max_tokens`, or the context, was full.
    Length = 1,
    /// `on_piece` ended it.
    Cancelled = 2,
}

/// A finished generation.
#[repr(C)]
#[derive(Debug)]
pub struct EdgeftGeneration {
    /// Without the text that ended it.
    pub text: *const c_char,
    /// Bytes of `text`; it may hold zeros.
    pub text_len: usize,
    /// Why it ended.
    pub finish_reason: EdgeftFinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the text.
    pub tokens: usize,
    /// From the call to the first token, in milliseconds; 0 where there is no clock (WebAssembly).
    pub ttft_ms: f64,
    /// Tokens after the first, a second; 0 with fewer than two, or without a clock.
    pub decode_tokens_per_s: f64,
}

/// A label with its probability.
#[repr(C)]
#[derive(Debug)]
pub struct EdgeftLabel {
    /// As the model names it.
    pub label: *const c_char,
    /// From 0 to 1; all labels sum to 1.
    pub score: f32,
}

/// Labels, likeliest first.
#[repr(C)]
#[derive(Debug)]
pub struct EdgeftLabels {
    /// `len` of them.
    pub labels: *const EdgeftLabel,
    /// How many.
    pub len: usize,
}

/// An answer to a question.
#[repr(C)]
#[derive(Debug)]
pub struct EdgeftAnswer {
    /// The text.
    pub answer: *const c_char,
    /// First character in the context, counted in Unicode characters; -1 from a decoder, which writes its answer.
    pub start: i64,
    /// One past the last character; -1 from a decoder.
    pub end: i64,
    /// Probability of the span; from a decoder, the geometric mean over its tokens.
    pub score: f64,
    /// The same for "the context does not say"; not a number from a decoder.
    pub no_answer_score: f64,
}

/// A vector.
#[repr(C)]
#[derive(Debug)]
pub struct EdgeftVector {
    /// `len` of them.
    pub values: *const f32,
    /// How many.
    pub len: usize,
}

/// Token ids.
#[repr(C)]
#[derive(Debug)]
pub struct EdgeftTokens {
    /// `len` of them.
    pub ids: *const u32,
    /// How many.
    pub len: usize,
}

/// `text` with a zero behind it; zeros inside are left out, since nothing behind them could be read.
pub(super) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

/// A list on its own, until [`free_list`].
fn list<T>(items: Vec<T>) -> (*const T, usize) {
    let len = items.len();
    (Box::into_raw(items.into_boxed_slice()).cast::<T>(), len)
}

/// # Safety
/// Pointer and length came from [`list`] and are not used again.
unsafe fn free_list<T>(items: *const T, len: usize) {
    // SAFETY: by the caller's promise this is the slice that `list` let go.
    drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(items.cast_mut(), len)) });
}

/// # Safety
/// `text` came from `CString::into_raw` and is not used again.
unsafe fn free_text(text: *const c_char) {
    // SAFETY: by the caller's promise.
    drop(unsafe { CString::from_raw(text.cast_mut()) });
}

impl EdgeftGeneration {
    pub(super) fn new(g: &Generation) -> Self {
        let mut text = g.text.clone().into_bytes();
        text.push(0);
        let (text, len) = list(text);
        Self {
            text: text.cast(),
            text_len: len - 1,
            finish_reason: match g.finish_reason {
                FinishReason::Stop => EdgeftFinishReason::Stop,
                FinishReason::Length => EdgeftFinishReason::Length,
                FinishReason::Cancelled => EdgeftFinishReason::Cancelled,
            },
            prompt_tokens: g.timings.prompt_tokens,
            tokens: g.token_ids.len(),
            ttft_ms: g.timings.ttft_ms,
            decode_tokens_per_s: g.timings.decode_tokens_per_s.unwrap_or(0.0),
        }
    }
}

impl Drop for EdgeftGeneration {
    fn drop(&mut self) {
        // SAFETY: from `list`, with the zero behind the text.
        unsafe { free_list(self.text.cast::<u8>(), self.text_len + 1) }
    }
}

impl EdgeftLabels {
    pub(super) fn new(scores: &[LabelScore]) -> Self {
        let one = |s: &LabelScore| EdgeftLabel { label: c_text(&s.label).into_raw(), score: s.score };
        let (labels, len) = list(scores.iter().map(one).collect());
        Self { labels, len }
    }
}

impl Drop for EdgeftLabel {
    fn drop(&mut self) {
        // SAFETY: from `into_raw`.
        unsafe { free_text(self.label) }
    }
}

impl Drop for EdgeftLabels {
    fn drop(&mut self) {
        // SAFETY: from `list`.
        unsafe { free_list(self.labels, self.len) }
    }
}

impl EdgeftAnswer {
    pub(super) fn new(a: &Answer) -> Self {
        let at = |n: Option<usize>| n.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1);
        Self {
            answer: c_text(&a.answer).into_raw(),
            start: at(a.start),
            end: at(a.end),
            score: a.score,
            no_answer_score: a.no_answer_score.unwrap_or(f64::NAN),
        }
    }
}

impl Drop for EdgeftAnswer {
    fn drop(&mut self) {
        // SAFETY: from `into_raw`.
        unsafe { free_text(self.answer) }
    }
}

impl EdgeftVector {
    pub(super) fn new(vector: Vec<f32>) -> Self {
        let (values, len) = list(vector);
        Self { values, len }
    }
}

impl Drop for EdgeftVector {
    fn drop(&mut self) {
        // SAFETY: from `list`.
        unsafe { free_list(self.values, self.len) }
    }
}

impl EdgeftTokens {
    pub(super) fn new(tokens: Vec<u32>) -> Self {
        let (ids, len) = list(tokens);
        Self { ids, len }
    }
}

impl Drop for EdgeftTokens {
    fn drop(&mut self) {
        // SAFETY: from `list`.
        unsafe { free_list(self.ids, self.len) }
    }
}

/// Frees a generation; null does nothing.
/// # Safety
/// `generation` is null or a generation, which is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_generation_free(generation: *mut EdgeftGeneration) {
    // SAFETY: by the caller's promise.
    unsafe { free(generation) }
}

/// Frees labels; null does nothing.
/// # Safety
/// `labels` are null or labels, which are not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_labels_free(labels: *mut EdgeftLabels) {
    // SAFETY: by the caller's promise.
    unsafe { free(labels) }
}

/// Frees an answer; null does nothing.
/// # Safety
/// `answer` is null or an answer, which is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_answer_free(answer: *mut EdgeftAnswer) {
    // SAFETY: by the caller's promise.
    unsafe { free(answer) }
}

/// Frees a vector; null does nothing.
/// # Safety
/// `vector` is null or a vector, which is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_vector_free(vector: *mut EdgeftVector) {
    // SAFETY: by the caller's promise.
    unsafe { free(vector) }
}

/// Frees tokens; null does nothing.
/// # Safety
/// `tokens` are null or tokens, which are not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_tokens_free(tokens: *mut EdgeftTokens) {
    // SAFETY: by the caller's promise.
    unsafe { free(tokens) }
}

/// Memory for a caller that has none of its own, as a page with a WebAssembly module: `len` bytes, all zero, or null where
/// there are not so many. Free them with `edgeft_bytes_free`.
#[unsafe(no_mangle)]
pub extern "C" fn edgeft_bytes_new(len: usize) -> *mut u8 {
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(len).is_err() {
        return std::ptr::null_mut();
    }
    bytes.resize(len, 0);
    list(bytes).0.cast_mut()
}

/// Frees `len` bytes of `edgeft_bytes_new`; null does nothing.
/// # Safety
/// `bytes` are null or of `edgeft_bytes_new` with this `len`, and are not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_bytes_free(bytes: *mut u8, len: usize) {
    if !bytes.is_null() {
        // SAFETY: by the caller's promise.
        unsafe { free_list(bytes, len) }
    }
}
