//! Launches of `augment.cu`.

use super::Transforms;
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Module, Params, Result, Runtime, blocks};

#[cfg(test)]
mod tests;

/// The kernels' source.
pub const MODULE: Module = adw_cuda::module!("augment");

const THREADS: u32 = 256;
/// Voxels of a block.
const CHUNK: usize = 8192;
/// Random words of a block.
const WORDS: usize = 2048;
/// Bytes of the moments of a chunk.
const MOMENTS: usize = 32;
/// The farthest sample of a blur.
const MAX_REACH: usize = 3;

const NOISE: u32 = 1;
const BLUR: u32 = 2;
const BRIGHTNESS: u32 = 4;
const CONTRAST: u32 = 8;
const LOW_RESOLUTION: u32 = 16;
const GAMMA_INVERTED: u32 = 32;
const GAMMA: u32 = 64;
const MASKED: u32 = 128;
const MIRROR: u32 = 256;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Axis {
    weights: [f32; MAX_REACH + 1],
    reach: u32,
    coarse: u32,
}

/// [`Transforms`] as the kernels read them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Plane {
    axes: [Axis; 3],
    steps: u32,
    brightness: f32,
    contrast: f32,
    gamma_inverted: f32,
    gamma: f32,
    noise: f32,
    key: [u32; 8],
    position: u64,
}
// SAFETY: numbers without padding, laid out as in augment.cu.
unsafe impl Params for Plane {}

impl Plane {
    /// What is done to a plane of `size` (D, H, W).
    ///
    /// # Panics
    /// If a blur reaches farther than three voxels.
    pub fn new(t: &Transforms, size: [usize; 3]) -> Self {
        let mut axes = [Axis::default(); 3];
        for (i, axis) in axes.iter_mut().enumerate() {
            if let Some(sigma) = t.blur {
                let reach = (3.0 * sigma[i] + 0.25).floor() as usize;
                assert!(reach <= MAX_REACH, "a blur of {} voxels", sigma[i]);
                let gauss = |k: usize| (-0.5 * (k as f32 / sigma[i]).powi(2)).exp();
                let sum = gauss(0) + 2.0 * (1..=reach).map(gauss).sum::<f32>();
                axis.reach = reach as u32;
                for (k, weight) in axis.weights.iter_mut().enumerate().take(reach + 1) {
                    *weight = gauss(k) / sum;
                }
            }
            let scale = t.low_resolution.map_or(1.0, |scale| scale[i]);
            axis.coarse = ((size[i] as f32 * scale).round_ties_even() as u32).max(1);
        }
        let bit = |there: bool, bit: u32| if there { bit } else { 0 };
        let mirror = (0..3).map(|i| bit(t.mirror[i], MIRROR << i)).sum::<u32>();
        let mut key = [0; 8];
        if let Some(noise) = &t.noise {
            let (words, _) = noise.key.as_chunks::<4>();
            key = std::array::from_fn(|i| u32::from_le_bytes(words[i]));
        }
        Self {
            axes,
            steps: bit(t.noise.is_some(), NOISE)
                | bit(t.blur.is_some(), BLUR)
                | bit(t.brightness.is_some(), BRIGHTNESS)
                | bit(t.contrast.is_some(), CONTRAST)
                | bit(t.low_resolution.is_some(), LOW_RESOLUTION)
                | bit(t.gamma_inverted.is_some(), GAMMA_INVERTED)
                | bit(t.gamma.is_some(), GAMMA)
                | bit(t.masked, MASKED)
                | mirror,
            brightness: t.brightness.unwrap_or(1.0),
            contrast: t.contrast.unwrap_or(1.0),
            gamma_inverted: t.gamma_inverted.unwrap_or(1.0),
            gamma: t.gamma.unwrap_or(1.0),
            noise: t.noise.map_or(0.0, |n| n.std),
            key,
            position: t.noise.map_or(0, |n| n.position),
        }
    }
}

/// A batch on the device.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// `[B, C, D, H, W]` f32; overwritten.
    pub x: Address,
    /// `[B, D, H, W]` i16, below 0 outside.
    pub labels: Address,
    /// As `x`: written.
    pub out: Address,
    /// `[B, D, H, W]` u8: written, 0 outside.
    pub target: Address,
    /// B.
    pub batch: usize,
    /// C.
    pub channels: usize,
    /// D, H, W.
    pub size: [usize; 3],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct StepParams {
    planes: Address,
    from: Address,
    to: Address,
    labels: Address,
    target: Address,
    before: Address,
    after: Address,
    size: [i32; 3],
    voxels: u32,
    channels: u32,
    chunks: u32,
    axis: u32,
    step: u32,
}
// SAFETY: plain numbers, laid out as in augment.cu.
unsafe impl Params for StepParams {}

/// Transforms a batch: from one launch (mirroring) to 16, if every transform was drawn for some plane. `planes` are
/// those of the batch, `[B, C]`, and `table` the address of the same on the device.
///
/// # Safety
/// The addresses in `batch` are those of maps and labels of its sizes, `out` not that of `x`; `table` is that of the planes.
///
/// # Errors
/// If a launch fails or the device has no memory left.
///
/// # Panics
/// If the number of planes is not B C, or a sample has 2^30 elements or more.
pub unsafe fn apply<R: Runtime>(rt: &R, batch: &Batch, planes: &[Plane], table: Address) -> Result<()> {
    let voxels: usize = batch.size.iter().product();
    assert_eq!(planes.len(), batch.batch * batch.channels, "planes");
    assert!(voxels * batch.channels < 1 << 30, "patches of {:?} are too large", batch.size);
    if planes.is_empty() || voxels == 0 {
        return Ok(());
    }
    let chunks = blocks(voxels, CHUNK);
    let bits = planes.iter().fold(0, |all, p| all | p.steps);
    let with = |step: u32| planes.iter().filter(|p| p.steps & step != 0).count();
    let alloc = |wanted: bool, bytes: usize| wanted.then(|| rt.alloc(bytes)).transpose();
    let address = |b: &Option<R::Buffer>| b.as_ref().map_or(Address::NONE, Buffer::address);
    let moments = planes.len() * chunks as usize * MOMENTS;
    let scratch = alloc(bits & (BLUR | LOW_RESOLUTION) != 0, planes.len() * voxels * 4)?;
    let before = alloc(bits & (CONTRAST | GAMMA_INVERTED | GAMMA) != 0, moments)?;
    let after = alloc(bits & (GAMMA_INVERTED | GAMMA) != 0, moments)?;
    let base = StepParams {
        planes: table,
        from: batch.x,
        to: batch.x,
        labels: batch.labels,
        target: batch.target,
        before: address(&before),
        after: address(&after),
        size: batch.size.map(|n| n as i32),
        voxels: voxels as u32,
        channels: batch.channels as u32,
        chunks,
        axis: 0,
        step: 0,
    };
    let launch = |kernel, grid: [u32; 2], shared: usize, work, params| {
        // SAFETY: the buffers are as large as the kernels' indices go; the caller vouches for the rest.
        unsafe {
            rt.launch(&Launch {
                module: MODULE,
                kernel,
                grid: [grid[0], grid[1], 1],
                threads: THREADS,
                shared: shared as u32,
                work,
                params,
            })
        }
    };
    let grid = [chunks, planes.len() as u32];
    let reduction = THREADS as usize * MOMENTS;
    // Of `n` planes, `maps` maps read or written, `parts` sets of moments and `operations` per voxel.
    let work = |n: usize, maps: usize, parts: usize, operations: usize| {
        Work::new(n * (maps * voxels * 4 + parts * chunks as usize * MOMENTS), n * voxels * operations)
    };
    if bits & NOISE != 0 {
        launch(
            "augment_noise",
            [blocks(voxels * batch.channels, WORDS), batch.batch as u32],
            (WORDS / 16 + 1) * 17 * 4,
            work(with(NOISE), 2, 0, 24),
            base,
        )?;
    }
    // Three passes end where they began.
    let along = |kernel, step, operations| {
        let places = [batch.x, batch.out, address(&scratch), batch.x];
        (0..3).try_for_each(|axis| {
            let params = StepParams { from: places[axis], to: places[axis + 1], axis: axis as u32, ..base };
            launch(kernel, grid, 0, work(with(step), 2, 0, operations), params)
        })
    };
    let moments_of = |step| {
        let params = StepParams { step, ..base };
        launch("augment_moments", grid, reduction, work(with(step), 1, 1, 6), params)
    };
    if bits & BLUR != 0 {
        along("augment_blur", BLUR, 2 * (2 * MAX_REACH + 1))?;
    }
    if bits & CONTRAST != 0 {
        moments_of(CONTRAST)?;
    }
    if bits & (BRIGHTNESS | CONTRAST) != 0 {
        launch("augment_contrast", grid, reduction, work(with(BRIGHTNESS | CONTRAST), 2, 1, 6), base)?;
    }
    if bits & LOW_RESOLUTION != 0 {
        along("augment_low_resolution", LOW_RESOLUTION, 16)?;
    }
    for step in [GAMMA_INVERTED, GAMMA] {
        if bits & step == 0 {
            continue;
        }
        moments_of(step)?;
        let params = StepParams { step, ..base };
        let n = with(step);
        launch("augment_gamma_power", grid, reduction, work(n, 2, 2, 45), params)?;
        launch("augment_gamma_rescale", grid, reduction, work(n, 2, 2, 4), params)?;
    }
    let labels = batch.batch * voxels;
    launch(
        "augment_finish",
        grid,
        0,
        Work::new(planes.len() * voxels * 8 + labels * 3, 0),
        StepParams { to: batch.out, ..base },
    )
}
