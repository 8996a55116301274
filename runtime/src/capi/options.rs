//! Structs that the caller fills. Each begins with its size, and zero in any other field is the default, so that
//! `{sizeof options}` is all that has to be written, and a program built against an older header goes on working.

use std::ffi::c_char;

use super::border::{Checked, input, text};
use crate::engine::{Backend, KvType};
use crate::session::{GenerateOptions, SessionOptions};

/// `EdgeftSessionOptions.backend`: the library's own CPU kernels.
pub const EDGEFT_BACKEND_CPU: u32 = 0;
/// `EdgeftSessionOptions.backend`: wgpu, where the library was built with it.
pub const EDGEFT_BACKEND_GPU: u32 = 1;
/// `EdgeftSessionOptions.backend`: ONNX Runtime, where the library was built with it.
pub const EDGEFT_BACKEND_ORT: u32 = 2;
/// `EdgeftSessionOptions.kv`: keys and values are kept as 16-bit floats.
pub const EDGEFT_KV_F16: u32 = 0;
/// `EdgeftSessionOptions.kv`: keys and values are kept as 32-bit floats.
pub const EDGEFT_KV_F32: u32 = 1;

/// How a session is set up. Zero in a field is its default.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EdgeftSessionOptions {
    /// `sizeof(EdgeftSessionOptions)`.
    pub size: usize,
    /// Tokens that prompt and answer may hold together; 0 is the model's own context, at most 4096.
    pub ctx: usize,
    /// Threads that compute; 0 is as many as the process may use.
    pub threads: usize,
    /// `EDGEFT_BACKEND_...`.
    pub backend: u32,
    /// `EDGEFT_KV_...`.
    pub kv: u32,
}

/// What to generate, and when to stop. Zero in a field is its default.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EdgeftGenerateOptions {
    /// `sizeof(EdgeftGenerateOptions)`.
    pub size: usize,
    /// At most so many tokens; 0 is 256.
    pub max_tokens: usize,
    /// The same seed gives the same text.
    pub seed: u64,
    /// 0 takes the likeliest token; 1 draws from the model's own distribution.
    pub temperature: f32,
    /// Keep the likeliest tokens that together reach this probability; 0 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this share as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Makes recent tokens less likely when above 1; 0 is off.
    pub repeat_penalty: f32,
    /// Keep so many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// `n_stop` texts that end the answer and are no part of it.
    pub stop: *const *const c_char,
    /// How many they are.
    pub n_stop: usize,
    /// Not 0: the prompt is a user's message, put into the model's chat template.
    pub chat: u32,
}

/// A struct whose bytes may all be zero, and which begins with its size.
///
/// # Safety
/// `repr(C)`, a `usize` first, and every field is an integer, a float or a pointer.
unsafe trait FromCaller: Copy {}
// SAFETY: as its fields show.
unsafe impl FromCaller for EdgeftSessionOptions {}
// SAFETY: as its fields show.
unsafe impl FromCaller for EdgeftGenerateOptions {}

/// What the caller filled in, zero beyond it. A caller with a newer header may only use the fields that are known here.
///
/// # Safety
/// `options` is null, or points at as many bytes as the `usize` it begins with says.
unsafe fn filled<T: FromCaller>(options: *const T) -> Checked<Option<T>> {
    if options.is_null() {
        return Ok(None);
    }
    let known = size_of::<T>();
    // SAFETY: not null, and `T` begins with its size.
    let size = unsafe { options.cast::<usize>().read() };
    if !(size_of::<usize>()..=64 * known).contains(&size) {
        return Err(input("options.size", &format!("is {size}; set it to sizeof, which is {known} here")));
    }
    // SAFETY: by the caller's promise, so many bytes can be read.
    let given = unsafe { std::slice::from_raw_parts(options.cast::<u8>(), size) };
    let (fields, unknown) = given.split_at(size.min(known));
    if unknown.iter().any(|&b| b != 0) {
        return Err(input("options", "use a field that this version of the library does not know; see edgeft_version"));
    }
    // SAFETY: zeros are a `T`, by the trait.
    let mut out: T = unsafe { std::mem::zeroed() };
    // SAFETY: no more than `T` holds.
    unsafe { std::ptr::copy_nonoverlapping(fields.as_ptr(), (&raw mut out).cast::<u8>(), fields.len()) };
    Ok(Some(out))
}

/// # Safety
/// As [`filled`].
pub(super) unsafe fn session(options: *const EdgeftSessionOptions) -> Checked<SessionOptions> {
    let mut out = SessionOptions::default();
    // SAFETY: by the caller's promise.
    let Some(o) = unsafe { filled(options) }? else { return Ok(out) };
    let some = |n: usize| (n > 0).then_some(n);
    (out.ctx, out.threads) = (some(o.ctx), some(o.threads));
    out.backend = match o.backend {
        EDGEFT_BACKEND_CPU => Backend::Cpu,
        EDGEFT_BACKEND_GPU => Backend::Gpu,
        EDGEFT_BACKEND_ORT => Backend::Ort,
        other => return Err(input("options.backend", &format!("{other} is not one of EDGEFT_BACKEND_..."))),
    };
    out.kv = match o.kv {
        EDGEFT_KV_F16 => KvType::F16,
        EDGEFT_KV_F32 => KvType::F32,
        other => return Err(input("options.kv", &format!("{other} is not one of EDGEFT_KV_..."))),
    };
    Ok(out)
}

/// The options, and whether the prompt is a chat.
///
/// # Safety
/// As [`filled`]; `stop` points at `n_stop` texts that end with a zero.
pub(super) unsafe fn generate(options: *const EdgeftGenerateOptions) -> Checked<(GenerateOptions, bool)> {
    let mut out = GenerateOptions::default();
    // SAFETY: by the caller's promise.
    let Some(o) = unsafe { filled(options) }? else { return Ok((out, false)) };
    if o.max_tokens > 0 {
        out.max_tokens = o.max_tokens;
    }
    let s = &mut out.sampling;
    (s.seed, s.temperature, s.min_p, s.top_k) = (o.seed, o.temperature, o.min_p, o.top_k);
    for (field, value) in [(&mut s.top_p, o.top_p), (&mut s.repeat_penalty, o.repeat_penalty)] {
        if value != 0.0 {
            *field = value;
        }
    }
    if o.n_stop > 0 && o.stop.is_null() {
        return Err(input("options.stop", "is null"));
    }
    for i in 0..o.n_stop {
        // SAFETY: not null; by the caller's promise `n_stop` long, each a text.
        out.stop.push(unsafe { text(*o.stop.add(i), "options.stop") }?.to_owned());
    }
    Ok((out, o.chat != 0))
}
