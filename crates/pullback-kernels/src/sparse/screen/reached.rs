//! Which of 32 numbers reach a bound.

use super::PANEL;

/// How the bits are found of the 32 numbers that are at least as large as a bound.
pub(super) trait Reached: Copy {
    /// A bit a number.
    fn reached(self, numbers: &[f32; PANEL], bound: f32) -> u32;
}

/// In the plain way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

impl Reached for Plain {
    #[inline(always)]
    fn reached(self, numbers: &[f32; PANEL], bound: f32) -> u32 {
        let mut any = 0;
        for &x in numbers {
            any |= u32::from(x >= bound);
        }
        if any == 0 {
            return 0;
        }
        let mut bits = 0;
        for (i, &x) in numbers.iter().enumerate() {
            bits |= u32::from(x >= bound) << i;
        }
        bits
    }
}

/// With masks of AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Masks(());

#[cfg(target_arch = "x86_64")]
impl Masks {
    /// # Safety
    /// The processor must have AVX-512.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

#[cfg(target_arch = "x86_64")]
impl Reached for Masks {
    #[inline(always)]
    fn reached(self, numbers: &[f32; PANEL], bound: f32) -> u32 {
        use std::arch::x86_64::{_CMP_GE_OQ, _mm512_cmp_ps_mask, _mm512_loadu_ps, _mm512_set1_ps};
        // SAFETY: the processor has AVX-512, as this value shows; both loads lie in the array.
        unsafe {
            let bound = _mm512_set1_ps(bound);
            let [low, high] = [0, 16].map(|start| {
                let numbers = _mm512_loadu_ps(numbers.as_ptr().add(start));
                u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(numbers, bound))
            });
            low | high << 16
        }
    }
}
