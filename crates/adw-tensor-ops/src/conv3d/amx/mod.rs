//! Convolutions in bfloat16 on the processor's matrix unit (Intel AMX): factors rounded to bf16, products summed in f32.
//!
//! A tile of the unit holds 16 rows of 64 bytes. One instruction multiplies 16 rows of 32 factors with 32 rows of 16 (stored
//! as 16 rows of pairs) and adds to 16 x 16 sums: 16 times what a multiply-add of AVX-512 does, so the direct sum beats
//! Winograd's transforms here, and nothing but the factors is rounded.
//!
//! ```text
//! c[r][j] += sum over segments s, k < 32 steps:  a[s][r][k] * b[s][k][j]
//! ```
//! Two tiles of rows by two of columns stay in the unit for the whole sum.
//!
//! Rust has no stable functions for these instructions, hence the assembler. Linux only: the system has to be asked for the
//! unit's state first.

// Small matrices, indexed as in the formulas.
#![allow(clippy::needless_range_loop)]

pub(super) mod correlate;
pub(super) mod grad_weight;

use crate::conv3d::tile::{Lanes, Source, lanes_of};
use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, __m256i, __m512, _mm256_mask_storeu_epi16, _mm512_cvtneps_pbh, _mm512_maskz_loadu_ps,
};
use std::mem::{offset_of, transmute};
use std::sync::OnceLock;

/// Rows of a tile.
const ROWS: usize = 16;
/// Factors in a row of a tile.
const DEPTH: usize = 32;

/// The matrix unit, which this processor has and this process may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(());

impl Amx {
    /// Asks processor and system.
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
            (has_unit && permitted()).then_some(Self(()))
        })
    }

    /// Sets the unit up on this thread: eight tiles of full size.
    #[allow(clippy::unused_self)] // The value is the proof that the unit may be used.
    fn start(self) -> Started {
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
        // SAFETY: an `Amx` exists only where the unit does and may be used; the 64 bytes are as its manual has them.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        }
        Started(())
    }
}

/// Asks Linux for the unit's state in this process; granted once, it holds for all threads.
fn permitted() -> bool {
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

/// The unit, set up on this thread; let go of when dropped.
struct Started(());

impl Drop for Started {
    fn drop(&mut self) {
        // SAFETY: the unit was set up by whoever made this.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// 32 factors: a row of a tile, and a line of the cache, of which a row that is not aligned would take two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; DEPTH]);

impl Line {
    const ZERO: Self = Self([0; DEPTH]);
}

/// The factors of lines one after the other.
fn factors(lines: &mut [Line]) -> &mut [u16] {
    // SAFETY: a line is 32 factors and nothing else.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * DEPTH) }
}

/// Where a segment of the sum begins, in bytes behind the operands' first rows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Segment {
    a: usize,
    b: usize,
}

/// One product of up to two tiles of rows by up to two of columns.
struct Product<'a> {
    /// Left operand: the first row.
    a: *const u16,
    /// Bytes from row to row.
    a_row: usize,
    /// Bytes to the second tile of rows.
    a_tile: usize,
    /// Right operand: one tile per step, in this order.
    b: *const Line,
    /// Bytes to the second tile of columns.
    b_tile: usize,
    segments: &'a [Segment],
    /// Of every segment.
    steps: usize,
    /// Sums of the first row, first column; the second tile of columns is 16 further, that of rows 16 rows.
    sums: *mut f32,
    /// Bytes from row to row of the sums.
    sum_bytes: usize,
    /// Add to the sums that are there.
    accumulate: bool,
}

macro_rules! product_kernel {
    ($name:ident, first: [$($first:literal),*], load: [$($load:literal),*], last: [$($last:literal),*], zero: [$($zero:literal),*], multiply: [$($multiply:literal),*]) => {
        /// # Safety
        /// The unit is set up on this thread; all addresses of the product are valid, for whole tiles.
        unsafe fn $name(p: &Product) {
            let segments = p.segments.as_ptr_range();
            // SAFETY: as the caller vouches. The compiler has no use of its own for the tiles.
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

impl Started {
    /// Computes a product of `row_tiles` by `column_tiles`, each 1 or 2.
    ///
    /// # Safety
    /// All addresses of the product are valid, for whole tiles; there are segments and steps.
    #[allow(clippy::unused_self)] // The value is the proof that the unit is set up.
    unsafe fn multiply(&self, row_tiles: usize, column_tiles: usize, p: &Product) {
        debug_assert!(!p.segments.is_empty() && p.steps > 0);
        // SAFETY: the unit is set up as long as `self` exists; the rest as the caller vouches.
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

/// The cheapest block of at most `d` x `h` rows among those that are allowed, one row if none is.
fn cheapest_block(
    [d, h]: [usize; 2],
    is_allowed: impl Fn([usize; 2]) -> bool,
    cost: impl Fn([usize; 2]) -> usize,
) -> [usize; 2] {
    let blocks = (1..=d).flat_map(|nd| (1..=h).map(move |nh| [nd, nh]));
    blocks.filter(|&block| is_allowed(block)).min_by_key(|&block| cost(block)).unwrap_or([1, 1])
}

/// 16 values, rounded to the nearest bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round(x: __m512) -> __m256i {
    // SAFETY: both are 32 bytes of plain data.
    unsafe { transmute(_mm512_cvtneps_pbh(x)) }
}

/// The first `n <= 16` values from `p`.
///
/// # Safety
/// They are valid for reading.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
    // SAFETY: masked values are not read; the rest as the caller vouches.
    unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p) }
}

/// Writes the first `n <= 16` values to `p`.
///
/// # Safety
/// They are valid for writing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn store_first(p: *mut u16, x: __m256i, n: usize) {
    // SAFETY: masked values are not written; the rest as the caller vouches.
    unsafe { _mm256_mask_storeu_epi16(p.cast(), ((1u32 << n) - 1) as u16, x) }
}

/// At most a vector of channels of one map, which no tile of 16 channels cuts in two, and how they are normalised.
struct Channels<'a> {
    source: &'a Source<'a, f32>,
    lanes: Lanes,
    norm: Option<(__m512, __m512, __m512)>,
}

/// All channels of maps that lie side by side.
#[target_feature(enable = "avx512f")]
fn channels<'a>(sources: &'a [Source<'a, f32>], batch_idx: usize) -> Vec<Channels<'a>> {
    use std::arch::x86_64::_mm512_set1_ps;
    let mut all = Vec::new();
    for whole in lanes_of(sources, ROWS) {
        let head = whole.len.min(ROWS - whole.first % ROWS);
        for (skip, len) in [(0, head), (head, whole.len - head)] {
            if len == 0 {
                continue;
            }
            let lanes =
                Lanes { first_of_source: whole.first_of_source + skip, first: whole.first + skip, len, ..whole };
            let source = &sources[lanes.source];
            let norm = source.norm.map(|norm| {
                let i = batch_idx * source.channels + lanes.first_of_source;
                let (scale, shift) = (&norm.scale[i..][..len], &norm.shift[i..][..len]);
                // SAFETY: the slices are that long.
                unsafe {
                    (load_first(scale.as_ptr(), len), load_first(shift.as_ptr(), len), _mm512_set1_ps(norm.slope))
                }
            });
            all.push(Channels { source, lanes, norm });
        }
    }
    all
}

impl Channels<'_> {
    /// These channels of one voxel (of all samples), normalised.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn read(&self, voxel: usize) -> __m512 {
        use std::arch::x86_64::{
            _CMP_GT_OQ, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_mask_mul_ps, _mm512_setzero_ps,
        };
        let Lanes { first_of_source, len, .. } = self.lanes;
        let values = &self.source.data[voxel * self.source.channels + first_of_source..][..len];
        // SAFETY: the slice is that long.
        let x = unsafe { load_first(values.as_ptr(), len) };
        match self.norm {
            None => x,
            Some((scale, shift, slope)) => {
                let y = _mm512_fmadd_ps(x, scale, shift);
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, _mm512_setzero_ps());
                _mm512_mask_mul_ps(y, !positive, y, slope)
            }
        }
    }
}
