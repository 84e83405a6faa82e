//! Compiling plain loops for the vector instructions the processor really has.

use std::sync::LazyLock;

use pulp::Arch;

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

/// Runs `body` compiled for the widest vector instructions of this processor.
///
/// The body must be a closure whose hot loops are inlined into it: the compiler then vectorises them for
/// AVX-512, AVX2 or the baseline, and the choice is made at run time.
#[inline]
pub fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    ARCH.dispatch(body)
}

/// Runs `body` on one of the threads that share the work. Called from any other thread, each parallel operation wakes
/// them, sleeps, and is woken again; for the hundreds of short ones that make a token this costs as much as the work.
pub fn on_threads<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| body())
}

/// Asks for numbers that will be read soon; where that cannot be done, it does nothing.
#[inline(always)]
pub(crate) fn prefetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        let start = numbers.as_ptr().cast::<i8>();
        for offset in (0..size_of_val(numbers)).step_by(LINE) {
            // SAFETY: nothing is read; the address may be any.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}
