//! The embedding page for C, and for whatever calls C: `targets/bundle/edgeft.h` is made from this file.
//!
//! ```text
//! path or bytes --edgeft_model_open--> EdgeftModel --edgeft_session_new--> EdgeftSession --edgeft_generate--> EdgeftGeneration
//! ```
//!
//! - `border`: what every call shares: checks on the way in, codes and sentences on the way out
//! - [`options`]: structs that the caller fills; each begins with its size, so that later versions can add fields
//! - [`results`]: structs that the library fills; each has a function that frees it
//!
//! Every pointer that comes in is checked for null, every text for UTF-8. A panic ends at the border as
//! [`EdgeftCode::Panic`]. A session is behind a lock that is never waited for, so a second caller gets an error instead of
//! a race.

mod border;
pub mod options;
pub mod results;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
mod seeds;

use std::ffi::{CStr, c_char, c_void};
use std::ops::ControlFlow;
use std::sync::{Mutex, TryLockError};

use crate::chat::Message;
use crate::model::adapter::Adapter;
use crate::model::{Model, Task};
use crate::session::{GenerateOptions, Session};
use border::{Checked, Failure, boxed, free, given, guard, input, place, text};
use options::{EdgeftGenerateOptions, EdgeftSessionOptions};
use results::{EdgeftAnswer, EdgeftGeneration, EdgeftLabels, EdgeftTokens, EdgeftVector};

/// How a call ended. `edgeft_last_error` has the sentence to it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EdgeftCode {
    /// Done.
    Ok = 0,
    /// A file or an argument cannot be used as it is: a null pointer, text that is not UTF-8, a number out of range.
    Input = 1,
    /// The system refused to read, or to start a thread.
    Io = 2,
    /// A tensor has another shape than the model needs.
    Shape = 3,
    /// More than fits: a prompt longer than the context.
    Limit = 4,
    /// Something that is needed is not there: a tokenizer, a chat template, an engine that this build lacks.
    Missing = 5,
    /// A session is in another call, on this or another thread.
    Busy = 6,
    /// A bug of the library. What was called upon can only be freed.
    Panic = 7,
}

/// What a model is for.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EdgeftTask {
    /// `edgeft_generate`.
    Generate = 0,
    /// `edgeft_classify`.
    Classify = 1,
    /// `edgeft_answer`.
    Answer = 2,
    /// `edgeft_embed`.
    Embed = 3,
}

/// A checked model. Threads may share it.
pub struct EdgeftModel(Model);

/// One sequence of tokens on one engine. One call at a time: a second one is refused with `EDGEFT_CODE_BUSY`.
pub struct EdgeftSession {
    session: Mutex<Session>,
    model: Model,
}

/// Hears each piece of a text as it is generated: `len` bytes of UTF-8 (a zero behind them), whole characters, perhaps
/// none. False ends the generation. It must return: no longjmp and no exception may leave it.
pub type EdgeftOnPiece = Option<unsafe extern "C" fn(text: *const c_char, len: usize, user_data: *mut c_void) -> bool>;

impl EdgeftSession {
    fn with<T>(&self, body: impl FnOnce(&mut Session) -> Checked<T>) -> Checked<T> {
        match self.session.try_lock() {
            Ok(mut session) => body(&mut session),
            Err(TryLockError::WouldBlock) => {
                let message = "session: is in another call; one at a time, or a session for each thread";
                Err(Failure::new(EdgeftCode::Busy, message))
            }
            Err(TryLockError::Poisoned(_)) => {
                Err(Failure::new(EdgeftCode::Panic, "session: a call on it met a bug; free it, and make a new one"))
            }
        }
    }
}

/// The version of the library, as `"0.1.0"`; never freed.
#[unsafe(no_mangle)]
pub extern "C" fn edgeft_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

/// The sentence to the last error of this thread; empty before the first. It stays until the thread's next error.
#[unsafe(no_mangle)]
pub extern "C" fn edgeft_last_error() -> *const c_char {
    border::last_error()
}

/// Maps and checks a GGUF file; `path` is UTF-8. Free the model with `edgeft_model_free`.
/// # Safety
/// `path` ends with a zero; `model` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_model_open(path: *const c_char, model: *mut *mut EdgeftModel) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (place, path) = unsafe { (place(model, "model")?, text(path, "path")?) };
        *place = boxed(EdgeftModel(Model::open(path)?));
        Ok(())
    })
}

/// The same from memory, which is copied; `name` stands in messages.
/// # Safety
/// `bytes` are `len` bytes; `name` ends with a zero; `model` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_model_from_bytes(
    bytes: *const u8,
    len: usize,
    name: *const c_char,
    model: *mut *mut EdgeftModel,
) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (place, first, name) = unsafe { (place(model, "model")?, given(bytes, "bytes")?, text(name, "name")?) };
        // SAFETY: not null; by the caller's promise `len` bytes long.
        let bytes = unsafe { std::slice::from_raw_parts(first, len) };
        *place = boxed(EdgeftModel(Model::from_bytes(bytes.to_vec(), name)?));
        Ok(())
    })
}

/// What the model is for.
/// # Safety
/// `model` is a model; `task` is a place for a task.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_model_task(model: *const EdgeftModel, task: *mut EdgeftTask) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (model, place) = unsafe { (given(model, "model")?, task.as_mut()) };
        *place.ok_or_else(|| input("task", "is null"))? = match model.0.task() {
            Task::Generate => EdgeftTask::Generate,
            Task::Classify => EdgeftTask::Classify,
            Task::Answer => EdgeftTask::Answer,
            Task::Embed => EdgeftTask::Embed,
        };
        Ok(())
    })
}

/// Frees a model; null does nothing. Sessions that were made of it live on.
/// # Safety
/// `model` is null or a model, which is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_model_free(model: *mut EdgeftModel) {
    // SAFETY: by the caller's promise.
    unsafe { free(model) }
}

/// Loads the model into an engine. Null `options` are the defaults. Free the session with `edgeft_session_free`.
/// # Safety
/// `model` is a model; `options` is null or begins with its own size; `session` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_session_new(
    model: *const EdgeftModel,
    options: *const EdgeftSessionOptions,
    session: *mut *mut EdgeftSession,
) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (place, model) = unsafe { (place(session, "session")?, given(model, "model")?) };
        // SAFETY: by the caller's promise.
        let options = unsafe { options::session(options) }?;
        let session = Mutex::new(Session::new(&model.0, &options)?);
        *place = boxed(EdgeftSession { session, model: model.0.clone() });
        Ok(())
    })
}

/// Forgets the tokens that the session holds. Without it, a prompt that begins like the last one is read only from where
/// they part.
/// # Safety
/// `session` is a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_session_reset(session: *mut EdgeftSession) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        unsafe { given(session, "session") }?.with(|s| {
            s.reset();
            Ok(())
        })
    })
}

/// Loads a GGUF adapter (`edgeft quantize RUN --adapter-only` writes one) beside the model, at `scale` times its strength, and
/// sets `number` to its number, from 0. It is used from `edgeft_session_use_adapter` on, and freed with the session.
/// # Safety
/// `session` is a session; `path` ends with a zero; `number` is a place for an int32_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_session_add_adapter(
    session: *mut EdgeftSession,
    path: *const c_char,
    scale: f32,
    number: *mut i32,
) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (session, path, place) = unsafe { (given(session, "session")?, text(path, "path")?, number.as_mut()) };
        let place = place.ok_or_else(|| input("number", "is null"))?;
        if !scale.is_finite() {
            return Err(input("scale", "is no number"));
        }
        let adapter = Adapter::open(path)?;
        *place = session.with(|s| Ok(s.add_adapter(&adapter, scale)?))? as i32;
        Ok(())
    })
}

/// What follows is computed with the adapter of a number; -1 is the model alone, as at first.
/// # Safety
/// `session` is a session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_session_use_adapter(session: *mut EdgeftSession, number: i32) -> EdgeftCode {
    guard(|| {
        let adapter = match number {
            -1 => None,
            n => Some(usize::try_from(n).map_err(|_| input("number", "is below -1"))?),
        };
        // SAFETY: by the caller's promise.
        unsafe { given(session, "session") }?.with(|s| Ok(s.use_adapter(adapter)?))
    })
}

/// Frees a session; null does nothing. Not from within its own `on_piece`.
/// # Safety
/// `session` is null or a session that no call is in, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_session_free(session: *mut EdgeftSession) {
    // SAFETY: by the caller's promise.
    unsafe { free(session) }
}

/// Continues `prompt`, or answers it where the options say chat. `on_piece` may be null; `user_data` is handed to it.
/// Free the generation with `edgeft_generation_free`.
/// # Safety
/// `session` is a session; `prompt` ends with a zero; `options` is null or begins with its own size; `on_piece` may be
/// called with `user_data`; `generation` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_generate(
    session: *mut EdgeftSession,
    prompt: *const c_char,
    options: *const EdgeftGenerateOptions,
    on_piece: EdgeftOnPiece,
    user_data: *mut c_void,
    generation: *mut *mut EdgeftGeneration,
) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (place, session, prompt) =
            unsafe { (place(generation, "generation")?, given(session, "session")?, text(prompt, "prompt")?) };
        // SAFETY: by the caller's promise.
        let (options, chat) = unsafe { options::generate(options) }?;
        let done = session.with(|s| {
            let ids = match chat {
                true => session.model.chat_ids(&[Message::new("user", prompt)])?,
                false => s.tokenizer()?.encode(prompt, true)?,
            };
            let done = s.generate(&ids, &GenerateOptions { own_text: chat, ..options }, &mut |piece| {
                let Some(on_piece) = on_piece else { return ControlFlow::Continue(()) };
                let mut bytes = piece.text.as_bytes().to_vec();
                bytes.push(0);
                // SAFETY: by the caller's promise; the bytes outlive the call.
                match unsafe { on_piece(bytes.as_ptr().cast(), bytes.len() - 1, user_data) } {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            });
            Ok(done?)
        })?;
        *place = boxed(EdgeftGeneration::new(&done));
        Ok(())
    })
}

/// Labels of `text`, likeliest first. Free them with `edgeft_labels_free`.
/// # Safety
/// `session` is a session; `text` ends with a zero; `labels` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_classify(
    session: *mut EdgeftSession,
    text: *const c_char,
    labels: *mut *mut EdgeftLabels,
) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (place, session, text) =
            unsafe { (place(labels, "labels")?, given(session, "session")?, self::text(text, "text")?) };
        *place = boxed(EdgeftLabels::new(&session.with(|s| Ok(s.classify_text(text)?))?));
        Ok(())
    })
}

/// Answers `question` from `context`. Free the answer with `edgeft_answer_free`.
/// # Safety
/// `session` is a session; `question` and `context` end with a zero; `answer` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_answer(
    session: *mut EdgeftSession,
    question: *const c_char,
    context: *const c_char,
    answer: *mut *mut EdgeftAnswer,
) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (place, session) = unsafe { (place(answer, "answer")?, given(session, "session")?) };
        // SAFETY: by the caller's promise.
        let (question, context) = unsafe { (text(question, "question")?, text(context, "context")?) };
        *place = boxed(EdgeftAnswer::new(&session.with(|s| Ok(s.answer(question, context)?))?));
        Ok(())
    })
}

/// The vector of `text`, of length 1. Free it with `edgeft_vector_free`.
/// # Safety
/// `session` is a session; `text` ends with a zero; `vector` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_embed(
    session: *mut EdgeftSession,
    text: *const c_char,
    vector: *mut *mut EdgeftVector,
) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (place, session, text) =
            unsafe { (place(vector, "vector")?, given(session, "session")?, self::text(text, "text")?) };
        *place = boxed(EdgeftVector::new(session.with(|s| Ok(s.embed_text(text)?))?));
        Ok(())
    })
}

/// Ids of `text`; with `special`, the model's own special tokens stand around it. Free them with `edgeft_tokens_free`.
/// # Safety
/// `model` is a model; `text` ends with a zero; `tokens` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgeft_tokenize(
    model: *const EdgeftModel,
    text: *const c_char,
    special: bool,
    tokens: *mut *mut EdgeftTokens,
) -> EdgeftCode {
    guard(|| {
        // SAFETY: by the caller's promise.
        let (place, model, text) =
            unsafe { (place(tokens, "tokens")?, given(model, "model")?, self::text(text, "text")?) };
        *place = boxed(EdgeftTokens::new(model.0.tokenizer()?.encode(text, special)?));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> String {
        // SAFETY: the thread's own text, until its next error.
        unsafe { CStr::from_ptr(edgeft_last_error()) }.to_str().unwrap().to_owned()
    }

    fn tiny(name: &str) -> *mut EdgeftSession {
        let path = format!("{}/../tests/fixtures/tiny/{name}.gguf\0", env!("CARGO_MANIFEST_DIR"));
        let (mut model, mut session) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: texts end with a zero, places are places, and the model is freed once.
        unsafe {
            assert_eq!(edgeft_model_open(path.as_ptr().cast(), &mut model), EdgeftCode::Ok, "{}", said());
            assert_eq!(edgeft_session_new(model, std::ptr::null(), &mut session), EdgeftCode::Ok, "{}", said());
            edgeft_model_free(model);
        }
        session
    }

    #[test]
    fn a_panic_ends_at_the_border_and_spoils_only_its_session() {
        let session = tiny("classify");
        // SAFETY: a session until it is freed below, once.
        let held = unsafe { &*session };
        assert_eq!(guard(|| held.with(|_| panic!("row {} of 3", 7))), EdgeftCode::Panic);
        assert_eq!(said(), format!("a bug in edgeft {}: row 7 of 3", env!("CARGO_PKG_VERSION")));
        let mut labels = std::ptr::null_mut();
        // SAFETY: as above.
        unsafe {
            assert_eq!(edgeft_classify(session, c"good".as_ptr(), &mut labels), EdgeftCode::Panic);
            assert_eq!(said(), "session: a call on it met a bug; free it, and make a new one");
            edgeft_session_free(session);
        }
        let other = tiny("classify");
        // SAFETY: as above.
        unsafe {
            assert_eq!(edgeft_classify(other, c"good".as_ptr(), &mut labels), EdgeftCode::Ok);
            results::edgeft_labels_free(labels);
            edgeft_session_free(other);
        }
    }

    #[test]
    fn each_thread_has_its_own_last_error() {
        assert_eq!(guard(|| Err(input("here", "is null"))), EdgeftCode::Input);
        let there = std::thread::spawn(|| {
            let before = said();
            guard(|| Err(input("there", "is\0null")));
            (before, said())
        });
        assert_eq!(there.join().unwrap(), (String::new(), "there: isnull".to_owned()));
        assert_eq!(said(), "here: is null");
    }

    #[test]
    fn options_of_an_unknown_kind_are_refused_by_name() {
        let mut o =
            EdgeftSessionOptions { size: size_of::<EdgeftSessionOptions>(), ctx: 0, threads: 1, backend: 9, kv: 0 };
        // SAFETY: the options begin with their size.
        let failure = unsafe { options::session(&o) }.unwrap_err();
        assert_eq!(failure.sentence, "options.backend: 9 is not one of EDGEFT_BACKEND_...");
        (o.backend, o.kv) = (options::EDGEFT_BACKEND_CPU, 2);
        // SAFETY: as above.
        assert_eq!(unsafe { options::session(&o) }.unwrap_err().sentence, "options.kv: 2 is not one of EDGEFT_KV_...");
        o.kv = options::EDGEFT_KV_F32;
        // SAFETY: as above.
        assert_eq!(unsafe { options::session(&o) }.unwrap().threads, Some(1));
    }
}
