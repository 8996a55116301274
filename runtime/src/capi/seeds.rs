//! Seeds for hash tables on `wasm32-unknown-unknown`, which has no source of them: the crate `getrandom` asks here when it is
//! built with `--cfg getrandom_backend="custom"`. Nothing in this library draws secrets; ids and texts do not depend on it.

use std::sync::atomic::{AtomicU64, Ordering};

/// # Safety
/// `dest` points at `len` bytes that may be written.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_v03_custom(dest: *mut u8, len: usize) -> Result<(), getrandom::Error> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    for i in 0..len {
        // SplitMix64 (Steele, Lea, Flood 2014).
        let mut x = CALLS.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // SAFETY: by the caller's promise.
        unsafe { dest.add(i).write((x ^ (x >> 31)) as u8) };
    }
    Ok(())
}
