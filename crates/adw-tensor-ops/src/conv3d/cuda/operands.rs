//! Operands of a convolution as a library takes them: one plain map `[B, voxels, C]`, weights `[Cout, taps, Cin]` of the
//! map's element type.

use super::maps::{SourceMap, Sources, maps_bytes};
use super::shape::MODULE;
use super::weights::{Order, Weights, pack};
use crate::cuda::variant;
use crate::precision::Precision;
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Result, Runtime, blocks, params};
use std::ops::Range;

const THREADS: usize = 256;
/// Voxels for which a thread keeps the coefficients of its channels.
const VOXELS_OF_A_THREAD: usize = 16;

params! {
    struct GatherParams {
        sources: Sources,
        out: Address,
        voxels: u32,
        chunk: u32,
    }
}

/// One plain map: a source map itself, or a copy.
pub(super) struct Plain<B> {
    pub(super) address: Address,
    /// Memory of the copy, if there is one.
    #[cfg_attr(not(test), expect(dead_code, reason = "memory is given back when it is dropped"))]
    pub(super) memory: Option<B>,
}

/// Returns true if [`plain`] supports these maps.
pub(super) fn supports(maps: &[SourceMap], precision: Precision) -> bool {
    channels(maps) <= THREADS * precision.piece_len()
}

fn channels(maps: &[SourceMap]) -> usize {
    maps.iter().map(|m| m.channels).sum()
}

/// The maps side by side and normalised: a copy, unless they are one plain map.
///
/// # Safety
/// The addresses are those of maps of `batch` samples of `voxels` voxels.
pub(super) unsafe fn plain<R: Runtime>(
    rt: &R,
    maps: &[SourceMap],
    batch: usize,
    voxels: usize,
    precision: Precision,
) -> Result<Plain<R::Buffer>> {
    if let [one @ SourceMap { norm: None, .. }] = maps {
        return Ok(Plain { address: one.data, memory: None });
    }
    let len = batch * voxels * channels(maps);
    let memory = rt.alloc(len * precision.element_bytes())?;
    let rows = THREADS / channels(maps).div_ceil(precision.piece_len());
    let chunk = rows * VOXELS_OF_A_THREAD;
    let normalised = maps.iter().filter(|m| m.norm.is_some());
    // A product, a sum and a product with the slope.
    let operations = 3 * batch * voxels * normalised.map(|m| m.channels).sum::<usize>();
    let work = Work::new(maps_bytes(maps, batch, voxels, precision) + len * precision.element_bytes(), operations);
    // SAFETY: `memory` has room for the result; the caller guarantees the maps' addresses.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("conv_gather", precision),
            grid: [blocks(voxels, chunk), batch as u32, 1],
            threads: THREADS as u32,
            shared: 0,
            work,
            params: GatherParams {
                sources: Sources::new(maps, precision),
                out: memory.address(),
                voxels: voxels as u32,
                chunk: chunk as u32,
            },
        })?;
    }
    Ok(Plain { address: memory.address(), memory: Some(memory) })
}

/// Weights `[Cout, taps, wanted]` of the input channels `wanted`.
///
/// # Safety
/// The weights' address is valid.
pub(super) unsafe fn filter<R: Runtime>(
    rt: &R,
    weights: &Weights,
    taps: usize,
    wanted: &Range<usize>,
    precision: Precision,
) -> Result<R::Buffer> {
    let dims = [weights.co, taps, wanted.len()];
    let out = rt.alloc(dims.iter().product::<usize>() * precision.element_bytes())?;
    let order = Order { dims, num: dims, strides: [weights.ci * taps, 1, taps], base: wanted.start * taps };
    let from = (weights.data, Precision::Full);
    // SAFETY: `out` has room for the result; the caller guarantees the weights' address.
    unsafe { pack(rt, from, (out.address(), precision), &order)? };
    Ok(out)
}

/// Copies a library's weight gradient `[Cout, taps, Cin]` to `[Cout, Cin, taps]` f32.
///
/// # Safety
/// Both addresses are valid for these shapes.
pub(super) unsafe fn weight_gradient<R: Runtime>(
    rt: &R,
    filter: Address,
    precision: Precision,
    [co, ci, taps]: [usize; 3],
    out: Address,
) -> Result<()> {
    let dims = [co, ci, taps];
    let order = Order { dims, num: dims, strides: [taps * ci, 1, ci], base: 0 };
    // SAFETY: the caller guarantees the addresses.
    unsafe { pack(rt, (filter, precision), (out, Precision::Full), &order) }
}
