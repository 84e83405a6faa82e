//! The allocator of programs that run models.

use std::ffi::c_long;

pub use mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h` (version 3): the milliseconds after which freed pages go back to the system.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
const NEVER: c_long = -1;

/// Keeps freed memory for the next allocation, instead of giving it back to the system after some milliseconds.
///
/// A training step frees hundreds of megabytes of activations that the next step allocates again; the system would
/// clear every page of them each time, a tenth of the step. The peak of the memory stays as it is. For a program whose
/// global allocator is [`MiMalloc`]; elsewhere it does nothing.
pub fn keep_freed_memory() {
    // SAFETY: the function stores a number in an option of the allocator, which exists as long as the process.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, NEVER) };
}
