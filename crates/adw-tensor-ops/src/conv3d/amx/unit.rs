//! The matrix unit: detection, set-up, and products of tiles.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::mem::offset_of;
use std::sync::OnceLock;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;
/// Factors in a row of a tile.
pub(super) const DEPTH: usize = 32;

/// Matrix unit of this processor, which this process may use. Only [`Amx::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(());

impl Amx {
    /// The unit, if the processor has it and the operating system lets this process use it.
    pub(crate) fn detect() -> Option<Self> {
        static FOUND: OnceLock<Option<Amx>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let vectors = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bf16");
            if !vectors {
                return None;
            }
            // Bits of CPUID leaf 7: AMX-BF16 and AMX-TILE.
            let bits = __cpuid_count(7, 0).edx;
            let has_unit = bits & (1 << 22) != 0 && bits & (1 << 24) != 0;
            (has_unit && request_permission()).then_some(Self(()))
        })
    }

    /// Configures the unit on this thread: eight tiles of full size.
    #[allow(clippy::unused_self)] // The value is the proof that the unit may be used.
    pub(super) fn configure(self) -> ConfiguredAmx {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut row_bytes = [0; 16];
        let mut rows = [0; 16];
        row_bytes[..8].fill(64);
        rows[..8].fill(ROWS as u8);
        let configuration = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
        // SAFETY: an `Amx` exists only where the unit does and may be used; the 64 bytes have the layout that Intel's manual
        // demands.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        }
        ConfiguredAmx(())
    }
}

/// Requests the unit's state from Linux; a grant holds for all threads of the process.
fn request_permission() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: a request with two numbers.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// The unit, configured on this thread; released when dropped.
pub(super) struct ConfiguredAmx(());

impl Drop for ConfiguredAmx {
    fn drop(&mut self) {
        // SAFETY: `Amx::configure`, which alone makes this value, has configured the unit.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// 32 factors: a row of a tile, and a line of the cache, of which a row that is not aligned would take two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u16; DEPTH]);

impl Line {
    pub(super) const ZERO: Self = Self([0; DEPTH]);
}

/// Factors of consecutive lines.
pub(super) fn factors(lines: &mut [Line]) -> &mut [u16] {
    // SAFETY: a line consists of 32 factors.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * DEPTH) }
}

/// First factors of a segment of the sum, in bytes from the operands' first rows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct ByteSegment {
    pub(super) a: usize,
    pub(super) b: usize,
}

/// Product of up to two tiles of rows by up to two of columns.
pub(super) struct Product<'a> {
    /// Left operand: the first row.
    pub(super) a: *const u16,
    /// Bytes from row to row.
    pub(super) a_row: usize,
    /// Bytes to the second tile of rows.
    pub(super) a_tile: usize,
    /// Right operand: one tile per step, in this order.
    pub(super) b: *const Line,
    /// Bytes to the second tile of columns.
    pub(super) b_tile: usize,
    pub(super) segments: &'a [ByteSegment],
    /// Steps of 32 factors in every segment.
    pub(super) steps: usize,
    /// Sums of the first row, first column; the second tile of columns is 16 further, that of rows 16 rows.
    pub(super) sums: *mut f32,
    /// Bytes from row to row of the sums.
    pub(super) sum_bytes: usize,
    /// Add to the sums that are there.
    pub(super) accumulate: bool,
}

macro_rules! product_kernel {
    ($name:ident, first: [$($first:literal),*], load: [$($load:literal),*], last: [$($last:literal),*], zero: [$($zero:literal),*], multiply: [$($multiply:literal),*]) => {
        /// # Safety
        /// The unit is configured on this thread; all addresses of the product are valid, for whole tiles.
        unsafe fn $name(p: &Product) {
            let segments = p.segments.as_ptr_range();
            // SAFETY: the caller guarantees configuration and addresses. The compiler does not use the tiles itself.
            unsafe {
                if p.accumulate {
                    asm!($($first,)* c0 = in(reg) p.sums, c1 = in(reg) p.sums.byte_add(ROWS * p.sum_bytes),
                         pitch = in(reg) p.sum_bytes, options(nostack));
                } else {
                    asm!($($zero,)* options(nostack, nomem));
                }
                asm!(
                    "2:",
                    "mov {a0}, [{segment}]",
                    "mov {b0}, [{segment} + 8]",
                    "add {a0}, [{p} + {a}]",
                    "add {b0}, [{p} + {b}]",
                    "mov {a1}, [{p} + {a_tile}]",
                    "mov {b1}, [{p} + {b_tile}]",
                    "add {a1}, {a0}",
                    "add {b1}, {b0}",
                    "mov {step}, [{p} + {steps}]",
                    "3:",
                    $($load,)*
                    $($multiply,)*
                    "add {a0}, 64",
                    "add {a1}, 64",
                    "add {b0}, 1024",
                    "add {b1}, 1024",
                    "dec {step}",
                    "jnz 3b",
                    "add {segment}, 16",
                    "cmp {segment}, {end}",
                    "jne 2b",
                    a0 = out(reg) _,
                    a1 = out(reg) _,
                    b0 = out(reg) _,
                    b1 = out(reg) _,
                    step = out(reg) _,
                    segment = inout(reg) segments.start => _,
                    end = in(reg) segments.end,
                    p = in(reg) p,
                    a_pitch = in(reg) p.a_row,
                    b_pitch = in(reg) 64usize,
                    a = const offset_of!(Product<'static>, a),
                    b = const offset_of!(Product<'static>, b),
                    a_tile = const offset_of!(Product<'static>, a_tile),
                    b_tile = const offset_of!(Product<'static>, b_tile),
                    steps = const offset_of!(Product<'static>, steps),
                    options(nostack),
                );
                asm!($($last,)* c0 = in(reg) p.sums, c1 = in(reg) p.sums.byte_add(ROWS * p.sum_bytes),
                     pitch = in(reg) p.sum_bytes, options(nostack));
            }
        }
    };
}

product_kernel!(product_2x2,
    first: ["tileloadd tmm0, [{c0} + {pitch}]", "tileloadd tmm1, [{c0} + {pitch} + 64]",
            "tileloadd tmm2, [{c1} + {pitch}]", "tileloadd tmm3, [{c1} + {pitch} + 64]"],
    load: ["tileloadd tmm4, [{a0} + {a_pitch}]", "tileloadd tmm6, [{b0} + {b_pitch}]",
           "tileloadd tmm5, [{a1} + {a_pitch}]", "tileloadd tmm7, [{b1} + {b_pitch}]"],
    last: ["tilestored [{c0} + {pitch}], tmm0", "tilestored [{c0} + {pitch} + 64], tmm1",
           "tilestored [{c1} + {pitch}], tmm2", "tilestored [{c1} + {pitch} + 64], tmm3"],
    zero: ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
    multiply: ["tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
               "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7"]);
product_kernel!(product_2x1,
    first: ["tileloadd tmm0, [{c0} + {pitch}]", "tileloadd tmm2, [{c1} + {pitch}]"],
    load: ["tileloadd tmm4, [{a0} + {a_pitch}]", "tileloadd tmm6, [{b0} + {b_pitch}]",
           "tileloadd tmm5, [{a1} + {a_pitch}]"],
    last: ["tilestored [{c0} + {pitch}], tmm0", "tilestored [{c1} + {pitch}], tmm2"],
    zero: ["tilezero tmm0", "tilezero tmm2"],
    multiply: ["tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6"]);
product_kernel!(product_1x2,
    first: ["/* {c1} */", "tileloadd tmm0, [{c0} + {pitch}]", "tileloadd tmm1, [{c0} + {pitch} + 64]"],
    load: ["tileloadd tmm4, [{a0} + {a_pitch}]", "tileloadd tmm6, [{b0} + {b_pitch}]",
           "tileloadd tmm7, [{b1} + {b_pitch}]"],
    last: ["/* {c1} */", "tilestored [{c0} + {pitch}], tmm0", "tilestored [{c0} + {pitch} + 64], tmm1"],
    zero: ["tilezero tmm0", "tilezero tmm1"],
    multiply: ["tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7"]);
product_kernel!(product_1x1,
    first: ["/* {c1} */", "tileloadd tmm0, [{c0} + {pitch}]"],
    load: ["tileloadd tmm4, [{a0} + {a_pitch}]", "tileloadd tmm6, [{b0} + {b_pitch}]"],
    last: ["/* {c1} */", "tilestored [{c0} + {pitch}], tmm0"],
    zero: ["tilezero tmm0"],
    multiply: ["tdpbf16ps tmm0, tmm4, tmm6"]);

impl ConfiguredAmx {
    /// Computes a product of `row_tiles` by `column_tiles`, each 1 or 2.
    ///
    /// # Safety
    /// All addresses of the product are valid, for whole tiles; there are segments and steps.
    #[allow(clippy::unused_self)] // The value is the proof that the unit is configured.
    pub(super) unsafe fn multiply(&self, row_tiles: usize, column_tiles: usize, p: &Product) {
        debug_assert!(!p.segments.is_empty() && p.steps > 0);
        // SAFETY: the unit is configured as long as `self` exists; the caller guarantees the addresses.
        unsafe {
            match (row_tiles, column_tiles) {
                (2, 2) => product_2x2(p),
                (2, _) => product_2x1(p),
                (_, 2) => product_1x2(p),
                _ => product_1x1(p),
            }
        }
    }
}
