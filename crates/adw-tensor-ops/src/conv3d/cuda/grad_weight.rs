//! Launches of the weight gradient of a convolution.

use super::maps::{SourceMap, Sources, maps_bytes};
use super::shape::{BOX, ConvShape, MAX_SHARED, MAX_TAPS, MODULE};
use super::tiling::{Tiling, reached};
use crate::cuda::variant;
use crate::precision::Precision;
use adw_cuda::work::{Machine, Work};
use adw_cuda::{Address, Buffer, Launch, Result, Runtime, blocks, params};

/// Input channels of a block.
const INPUT_CHANNELS: usize = 16;
/// Output channels of a block.
const OUTPUT_CHANNELS: usize = 48;

params! {
    struct GradWeightParams {
        sources: Sources,
        grad: Sources,
        partial: Address,
        tiling: Tiling,
        kernel: [i32; 3],
        dilation: [i32; 3],
        batch: u32,
        parts: u32,
        buffers: u32,
    }
}

params! {
    struct GradWeightFinishParams {
        partial: Address,
        out: Address,
        parts: u32,
        taps: u32,
        ci: u32,
        co: u32,
    }
}

/// Number of shares that the boxes are split into: the number with the least time on an H100, with one block resident on
/// each multiprocessor, products at half of the peak, and every share's sums written and read once. A function of shapes
/// only, and so is the order of sums.
pub(super) fn splits(
    blocks_per_share: usize,
    boxes: usize,
    positions: usize,
    share_bytes: usize,
    precision: Precision,
) -> usize {
    const MULTIPROCESSORS: usize = 132;
    let work = |bytes, operations| {
        Work::new(bytes, operations).on_tensor_cores(precision == Precision::Bf16).floor(&Machine::H100)
    };
    let products = 2 * positions * MAX_TAPS * INPUT_CHANNELS * OUTPUT_CHANNELS;
    let box_seconds = work(0, products) * (2 * MULTIPROCESSORS) as f64;
    let seconds = |splits: usize| {
        let waves = (blocks_per_share * splits).div_ceil(MULTIPROCESSORS);
        (waves * boxes.div_ceil(splits)) as f64 * box_seconds + work(2 * splits * share_bytes, 0)
    };
    (1..=boxes.min(2 * MULTIPROCESSORS)).min_by(|&a, &b| seconds(a).total_cmp(&seconds(b))).unwrap_or(1)
}

/// Sizes of the launch, functions of the shapes only.
struct Plan {
    tiling: Tiling,
    /// Parts that the taps of a block's sums are split into.
    parts: usize,
    /// Shares of the boxes, each summed by its own blocks.
    splits: usize,
    /// Bytes of the sums of one share.
    share_bytes: usize,
    /// Boxes in shared memory at a time.
    buffers: usize,
    shared_bytes: usize,
    blocks: [u32; 2],
}

impl Plan {
    fn new(shape: &ConvShape, ci: usize, co: usize) -> Self {
        let ConvShape { batch, size, geometry, precision } = *shape;
        let (element_bytes, piece) = (precision.element_bytes(), precision.piece_len());
        let row_bytes = (INPUT_CHANNELS + piece) * element_bytes;
        let shared = |buffers: usize, region_voxels: usize| {
            let tables = BOX * 4 + (BOX + region_voxels) * 8;
            let gradients = BOX * (OUTPUT_CHANNELS + piece) * element_bytes;
            tables.next_multiple_of(16) + buffers * (gradients + region_voxels * row_bytes)
        };
        let first = [0, 1, 2].map(|i| geometry.tap_offset(i, 0) as i32);
        let (reach, one_buffer) = ([0, 1, 2].map(|i| geometry.reach(i)), |region_voxels| shared(1, region_voxels));
        let tiling = Tiling::new(shape.output(), geometry.stride, first, reach, size, one_buffer);
        let taps: usize = geometry.kernel.iter().product();
        let parts = (MAX_TAPS / taps).min(tiling.positions() / 16);
        let blocks = [blocks(ci, INPUT_CHANNELS), blocks(co, OUTPUT_CHANNELS)];
        let share_bytes = parts * taps * ci * co * 4;
        let (boxes, positions) = (tiling.num_tiles() * batch, tiling.positions());
        let splits = splits((blocks[0] * blocks[1]) as usize, boxes, positions, share_bytes, precision);
        let buffers = if shared(2, tiling.region_voxels()) <= MAX_SHARED { 2 } else { 1 };
        let shared_bytes = shared(buffers, tiling.region_voxels());
        Self { tiling, parts, splits, share_bytes, buffers, shared_bytes, blocks }
    }
}

/// Gradient of the convolution by its weight, `[Cout, Cin, kD, kH, kW]` f32.
///
/// # Safety
/// The addresses are those of maps `[batch, size, C]`, of a map `[batch, output size, Cout]`, and of room for the result.
///
/// # Errors
/// If a launch fails or the device has no memory left.
///
/// # Panics
/// If the geometry is not supported or the kernel does not fit the input: callers have checked.
pub(super) unsafe fn grad_weight<R: Runtime>(
    rt: &R,
    shape: &ConvShape,
    maps: &[SourceMap],
    grad_output: SourceMap,
    out: Address,
) -> Result<()> {
    let ConvShape { batch, size, geometry, precision } = *shape;
    let (sources, grad) = (Sources::new(maps, precision), Sources::new(&[grad_output], precision));
    let (ci, co) = (maps.iter().map(|m| m.channels).sum::<usize>(), grad_output.channels);
    let Plan { tiling, parts, splits, share_bytes, buffers, shared_bytes, blocks: [ci_blocks, co_blocks] } =
        Plan::new(shape, ci, co);
    let taps: usize = geometry.kernel.iter().product();
    let partial = rt.alloc(splits * share_bytes)?;
    let output = shape.output();
    let outputs: usize = output.iter().product();
    let reached = |i: usize| {
        let (first, reach) = (geometry.tap_offset(i, 0) as i32, geometry.reach(i));
        reached(first, reach, geometry.stride[i], output[i], size[i])
    };
    let maps_read = maps_bytes(maps, batch, (0..3).map(reached).product(), precision);
    let gradient_read = maps_bytes(&[grad_output], batch, outputs, precision);
    let work = Work::new(maps_read + gradient_read + splits * share_bytes, 2 * taps * ci * co * outputs * batch);
    // SAFETY: `partial` has room for every share; the caller guarantees the other addresses.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: variant!("conv_grad_weight", precision),
            grid: [ci_blocks, co_blocks, splits as u32],
            threads: 288,
            shared: shared_bytes as u32,
            work: work.on_tensor_cores(precision == Precision::Bf16),
            params: GradWeightParams {
                sources,
                grad,
                partial: partial.address(),
                tiling,
                kernel: geometry.kernel.map(|k| k as i32),
                dilation: geometry.dilation.map(|d| d as i32),
                batch: batch as u32,
                parts: parts as u32,
                buffers: buffers as u32,
            },
        })?;
        rt.launch(&Launch {
            module: MODULE,
            kernel: "conv_grad_weight_finish",
            grid: [blocks(taps * ci * co, 256), 1, 1],
            threads: 256,
            shared: 0,
            work: Work::new((splits * parts + 1) * taps * ci * co * 4, splits * parts * taps * ci * co),
            params: GradWeightFinishParams {
                partial: partial.address(),
                out,
                parts: (splits * parts) as u32,
                taps: taps as u32,
                ci: ci as u32,
                co: co as u32,
            },
        })
    }
}
