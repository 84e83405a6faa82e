//! The tile unit: whether it may be used, its configuration, and the product of two packed panels.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::LazyLock;

use super::split::{PANEL, STEP_ROWS, TileRow, step_rows};

/// Whether this processor has the unit and the system lets this process use it.
pub(crate) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && has_tiles()
            && permitted()
    });
    *AVAILABLE
}

/// Eight tiles of 16 rows of 64 bytes, and products of bf16.
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    if __cpuid(0).eax < 0x1d {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    let palette = __cpuid_count(0x1d, 1);
    features & BF16 != 0
        && features & TILES != 0
        && palette.ebx & 0xffff >= 64
        && palette.ebx >> 16 >= 8
        && palette.ecx & 0xffff >= 16
}

/// Asks the kernel for the use of tile registers in all threads of this process (Linux 5.16 and later; an
/// older kernel answers with an error).
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let answer: i64;
    // SAFETY: the call only sets a permission of the process and touches no memory of ours; `syscall`
    // overwrites `rcx` and `r11` besides its result.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

/// The configuration of the tile registers of this thread, given back when dropped.
#[derive(Debug)]
pub(crate) struct Tiles;

impl Tiles {
    /// # Safety
    /// [`available`] must hold.
    pub(crate) unsafe fn configure() -> Self {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        static EIGHT_FULL_TILES: Configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        // SAFETY: the unit is there (the caller's promise) and the configuration is one it has. Compiled
        // code uses no tile registers, so nothing of it is lost.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const EIGHT_FULL_TILES,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a `Tiles` exists only where the unit does. An empty tile state is also what lets the
        // kernel switch threads without saving 8 KiB.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Rows that [`multiply_panels`] asks for ahead of their use in each step.
pub(super) const AHEAD: usize = 16;

/// The sums of a panel of the left operand with one of the right.
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [f32; PANEL * PANEL]);

/// `sums = left × right` over `steps` packed steps of one panel each.
///
/// The six products of parts are taken in an order in which neighbours share an operand, so that a step
/// needs 14 tile loads for 24 tile products; the products take longer than the loads.
///
/// Each step also asks for [`AHEAD`] rows from `ahead` on, for the second cache: panels that come from the third one would
/// be waited for. Nothing is read there, so it may be any address.
///
/// # Safety
/// The tiles must be configured, and `left` and `right` valid for reads of `steps` steps.
#[inline]
pub(super) unsafe fn multiply_panels(
    sums: &mut Sums,
    left: *const TileRow,
    right: *const TileRow,
    steps: usize,
    ahead: *const TileRow,
) {
    const {
        assert!(STEP_ROWS * size_of::<TileRow>() == 6144 && PANEL == 32);
    }
    // SAFETY: reads lie in the steps that the caller promises, writes in `sums`: 32 rows of 128 bytes.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            // low · high
            "tileloadd tmm4, [{left} + {row} + 4096]",
            "tileloadd tmm6, [{right} + {row}]",
            "tileloadd tmm7, [{right} + {row} + 1024]",
            "tileloadd tmm5, [{left} + {row} + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + 64]",
            "prefetcht1 [{ahead} + 128]",
            // middle · high
            "tileloadd tmm4, [{left} + {row} + 2048]",
            "tileloadd tmm5, [{left} + {row} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead} + 192]",
            "prefetcht1 [{ahead} + 256]",
            "prefetcht1 [{ahead} + 320]",
            // middle · middle
            "tileloadd tmm6, [{right} + {row} + 2048]",
            "tileloadd tmm7, [{right} + {row} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead} + 384]",
            "prefetcht1 [{ahead} + 448]",
            "prefetcht1 [{ahead} + 512]",
            // high · middle
            "tileloadd tmm4, [{left} + {row}]",
            "tileloadd tmm5, [{left} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead} + 576]",
            "prefetcht1 [{ahead} + 640]",
            "prefetcht1 [{ahead} + 704]",
            // high · low
            "tileloadd tmm6, [{right} + {row} + 4096]",
            "tileloadd tmm7, [{right} + {row} + 5120]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead} + 768]",
            "prefetcht1 [{ahead} + 832]",
            // high · high
            "tileloadd tmm6, [{right} + {row}]",
            "tileloadd tmm7, [{right} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead} + 896]",
            "prefetcht1 [{ahead} + 960]",
            "add {left}, 6144",
            "add {right}, 6144",
            "add {ahead}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {sums_row}], tmm0",
            "tilestored [{sums} + {sums_row} + 64], tmm1",
            "tilestored [{sums} + {sums_row} + 2048], tmm2",
            "tilestored [{sums} + {sums_row} + 2112], tmm3",
            left = inout(reg) left => _,
            right = inout(reg) right => _,
            ahead = inout(reg) ahead => _,
            steps = inout(reg) steps => _,
            row = in(reg) 64_usize,
            sums = in(reg) sums.0.as_mut_ptr(),
            sums_row = in(reg) 128_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Rows that [`Tiles::add_high`] asks for ahead of their use in each step.
pub(crate) const HIGH_AHEAD: usize = 4;

#[expect(
    clippy::unused_self,
    reason = "a `Tiles` shows that the tiles are configured, and for how long"
)]
impl Tiles {
    /// Empties the sums, for [`add_high`](Self::add_high).
    #[inline]
    pub(crate) fn clear(&mut self) {
        // SAFETY: the tiles are configured, as this value shows.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }

    /// Adds the product of the high parts alone, over `steps` packed steps (at least one) of one panel each. The sums
    /// stay in the unit, which may still be at work when this returns, until [`store`](Self::store).
    ///
    /// Each step also asks for [`HIGH_AHEAD`] rows from `ahead` on, for the second cache; nothing is read there.
    ///
    /// # Safety
    /// `left` and `right` must be valid for reads of `steps` steps of one part.
    #[inline]
    pub(crate) unsafe fn add_high(
        &mut self,
        left: *const TileRow,
        right: *const TileRow,
        steps: usize,
        ahead: *const TileRow,
    ) {
        const {
            assert!(step_rows(1) * size_of::<TileRow>() == 2048 && PANEL == 32 && HIGH_AHEAD == 4);
        }
        // SAFETY: the tiles are configured, as this value shows; reads lie in the steps that the caller promises.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{left} + {row}]",
                "tileloadd tmm6, [{right} + {row}]",
                "tileloadd tmm7, [{right} + {row} + 1024]",
                "tileloadd tmm5, [{left} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "prefetcht1 [{ahead}]",
                "prefetcht1 [{ahead} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "prefetcht1 [{ahead} + 128]",
                "prefetcht1 [{ahead} + 192]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 2048",
                "add {right}, 2048",
                "add {ahead}, 256",
                "dec {steps}",
                "jnz 2b",
                left = inout(reg) left => _,
                right = inout(reg) right => _,
                ahead = inout(reg) ahead => _,
                steps = inout(reg) steps => _,
                row = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Writes the sums: nothing but these functions touches the tiles in between.
    #[inline]
    pub(crate) fn store(&mut self, sums: &mut Sums) {
        // SAFETY: the tiles are configured, as this value shows; writes lie in `sums`: 32 rows of 128 bytes.
        unsafe {
            asm!(
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 64], tmm1",
                "tilestored [{sums} + {row} + 2048], tmm2",
                "tilestored [{sums} + {row} + 2112], tmm3",
                sums = in(reg) sums.0.as_mut_ptr(),
                row = in(reg) 128_usize,
                options(nostack),
            );
        }
    }
}
