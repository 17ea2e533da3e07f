//! A convolution's operands as a library takes them: one plain map `[B, voxels, C]`, weights `[Cout, taps, Cin]` of the
//! map's element type.

use super::cuda::{MODULE, Order, SourceMap, Sources, Weights, maps_bytes, pack};
use crate::cuda::ElementType;
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Params, Result, Runtime, blocks};
use std::ops::Range;

const THREADS: usize = 256;
/// Voxels for which a thread keeps what normalises its channels.
const VOXELS_OF_A_THREAD: usize = 16;

#[derive(Clone, Copy)]
#[repr(C)]
struct GatherParams {
    sources: Sources,
    out: Address,
    voxels: u32,
    chunk: u32,
}
// SAFETY: plain numbers, laid out as in conv3d.cu.
unsafe impl Params for GatherParams {}

/// One plain map, that of the caller or one of its own.
pub(super) struct Plain<B> {
    pub(super) address: Address,
    /// Keeps what was written, if something was.
    #[cfg_attr(not(test), expect(dead_code, reason = "memory is given back when it is dropped"))]
    pub(super) memory: Option<B>,
}

/// Whether [`plain`] takes these maps.
pub(super) fn supports(maps: &[SourceMap], element: ElementType) -> bool {
    channels(maps) <= THREADS * element.piece()
}

fn channels(maps: &[SourceMap]) -> usize {
    maps.iter().map(|m| m.channels).sum()
}

/// The maps side by side and normalised: themselves if they are one plain map, else written anew.
///
/// The caller vouches that the addresses are those of maps of `batch` samples of `voxels` voxels.
pub(super) unsafe fn plain<R: Runtime>(
    rt: &R,
    maps: &[SourceMap],
    batch: usize,
    voxels: usize,
    element: ElementType,
) -> Result<Plain<R::Buffer>> {
    if let [one @ SourceMap { norm: None, .. }] = maps {
        return Ok(Plain { address: one.data, memory: None });
    }
    let len = batch * voxels * channels(maps);
    let memory = rt.alloc(len * element.size())?;
    let rows = THREADS / channels(maps).div_ceil(element.piece());
    let chunk = rows * VOXELS_OF_A_THREAD;
    let normalised = maps.iter().filter(|m| m.norm.is_some());
    // A product, a sum and a product with the slope.
    let operations = 3 * batch * voxels * normalised.map(|m| m.channels).sum::<usize>();
    let work = Work::new(maps_bytes(maps, batch, voxels, element) + len * element.size(), operations);
    // SAFETY: `memory` has room for the result; the caller vouches for the maps.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: match element {
                ElementType::F32 => "conv_gather_f32",
                ElementType::Bf16 => "conv_gather_bf16",
            },
            grid: [blocks(voxels, chunk), batch as u32, 1],
            threads: THREADS as u32,
            shared: 0,
            work,
            params: GatherParams {
                sources: Sources::new(maps, element),
                out: memory.address(),
                voxels: voxels as u32,
                chunk: chunk as u32,
            },
        })?;
    }
    Ok(Plain { address: memory.address(), memory: Some(memory) })
}

/// Weights `[Cout, taps, wanted]` for input channels `wanted`.
///
/// The caller vouches for the weights' address.
pub(super) unsafe fn filter<R: Runtime>(
    rt: &R,
    weights: &Weights,
    taps: usize,
    wanted: &Range<usize>,
    element: ElementType,
) -> Result<R::Buffer> {
    let dims = [weights.co, taps, wanted.len()];
    let out = rt.alloc(dims.iter().product::<usize>() * element.size())?;
    let order = Order { dims, num: dims, strides: [weights.ci * taps, 1, taps], base: wanted.start * taps };
    let from = (weights.data, ElementType::F32);
    // SAFETY: `out` has room for the result; the caller vouches for the weights.
    unsafe { pack(rt, from, (out.address(), element), &order)? };
    Ok(out)
}

/// The gradient `[Cout, taps, Cin]` that a library left as `[Cout, Cin, taps]` f32.
///
/// The caller vouches for both addresses.
pub(super) unsafe fn weight_gradient<R: Runtime>(
    rt: &R,
    filter: Address,
    element: ElementType,
    [co, ci, taps]: [usize; 3],
    out: Address,
) -> Result<()> {
    let dims = [co, ci, taps];
    let order = Order { dims, num: dims, strides: [taps * ci, 1, ci], base: 0 };
    // SAFETY: as the caller vouches.
    unsafe { pack(rt, (filter, element), (out, ElementType::F32), &order) }
}
