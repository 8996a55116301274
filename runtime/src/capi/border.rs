//! What every call from C shares: pointers and texts are checked on the way in; a failure, or a panic, becomes a code and a
//! sentence on the way out.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EdgeftCode;
use super::results::c_text;
use crate::error::{Error, Kind};

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// What a call ends with when it does not succeed.
#[derive(Debug)]
pub(super) struct Failure {
    code: EdgeftCode,
    pub(super) sentence: String,
}

impl Failure {
    pub(super) fn new(code: EdgeftCode, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into() }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let code = match e.kind() {
            Kind::Input => EdgeftCode::Input,
            Kind::Io => EdgeftCode::Io,
            Kind::Shape => EdgeftCode::Shape,
            Kind::Limit => EdgeftCode::Limit,
            Kind::Missing => EdgeftCode::Missing,
        };
        Self::new(code, e.to_string())
    }
}

pub(super) type Checked<T = ()> = Result<T, Failure>;

pub(super) fn input(place: &str, message: &str) -> Failure {
    Failure::new(EdgeftCode::Input, format!("{place}: {message}"))
}

/// The sentence to this thread's last error.
pub(super) fn last_error() -> *const c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}

/// Runs the body of a function: its failure, or its panic, becomes a code and a sentence.
pub(super) fn guard(body: impl FnOnce() -> Checked) -> EdgeftCode {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return EdgeftCode::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Failure::new(EdgeftCode::Panic, format!("a bug in edgeft {}: {text}", env!("CARGO_PKG_VERSION")))
        }
    };
    LAST_ERROR.with(|last| *last.borrow_mut() = c_text(&failure.sentence));
    failure.code
}

/// # Safety
/// `pointer` is null, or points at a `T` that nobody changes during `'a`.
pub(super) unsafe fn given<'a, T>(pointer: *const T, name: &str) -> Checked<&'a T> {
    // SAFETY: by the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| input(name, "is null"))
}

/// # Safety
/// `pointer` is null, or points at a text that ends with a zero and that nobody changes during `'a`.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Checked<&'a str> {
    if pointer.is_null() {
        return Err(input(name, "is null"));
    }
    // SAFETY: not null; by the caller's promise it ends with a zero.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|e| input(name, &format!("is not UTF-8 from byte {} on", e.valid_up_to())))
}

/// Where a result goes; it is null until the call has succeeded.
/// # Safety
/// `pointer` is null, or points at a place for a pointer that nobody else uses during `'a`.
pub(super) unsafe fn place<'a, T>(pointer: *mut *mut T, name: &str) -> Checked<&'a mut *mut T> {
    // SAFETY: by the caller's promise.
    let place = unsafe { pointer.as_mut() }.ok_or_else(|| input(name, "is null; give the address of a pointer"))?;
    *place = std::ptr::null_mut();
    Ok(place)
}

pub(super) fn boxed<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// # Safety
/// `pointer` is null, or came from [`boxed`] and is not used again.
pub(super) unsafe fn free<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: by the caller's promise. A panic while dropping has nowhere to go; the memory is lost.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(pointer) })));
    }
}
