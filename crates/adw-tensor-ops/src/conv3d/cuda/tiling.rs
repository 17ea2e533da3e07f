//! Boxes of output voxels that blocks of threads compute, and the regions of the input that they read.

use super::shape::{BOX, MAX_SHARED};
use adw_cuda::params;

/// Number of positions of an axis of `size` that `count` outputs reach. Output `o` reaches the `taps` consecutive positions
/// from `first + o * step` on.
pub(super) fn reached(first: i32, taps: usize, step: usize, count: usize, size: usize) -> usize {
    let (first, size) = (first as isize, size as isize);
    let (taps, step, count) = (taps as isize, step as isize, count as isize);
    if count == 0 || taps == 0 {
        return 0;
    }
    let within = |from: isize, to: isize| to.min(size) - from.max(0);
    if taps >= step {
        return within(first, first + step * (count - 1) + taps).max(0) as usize;
    }
    let outputs = (0..count).map(|o| within(first + o * step, first + o * step + taps).max(0));
    outputs.sum::<isize>() as usize
}

params! {
    pub(super) struct Tiling {
        log_size: [i32; 3],
        tiles: [i32; 3],
        count: [i32; 3],
        step: [i32; 3],
        first: [i32; 3],
        region: [i32; 3],
        map: [i32; 3],
    }
}

impl Tiling {
    /// Tiling with the least to load (each box loads its region, and weights for its products), of the largest boxes whose
    /// region fits into shared memory. `shared`: bytes of shared memory that a block needs for a region of so many voxels.
    pub(super) fn new(
        count: [usize; 3],
        step: [usize; 3],
        first: [i32; 3],
        reach: [usize; 3],
        map: [usize; 3],
        shared: impl Fn(usize) -> usize,
    ) -> Self {
        const LOG: usize = BOX.ilog2() as usize;
        /// A place in the region has ten bits per axis.
        const MAX_REGION: usize = 1024;
        let region = |log: [usize; 3]| [0, 1, 2].map(|i| ((1usize << log[i]) - 1) * step[i] + reach[i]);
        let boxes = |all: usize| (0..=all).flat_map(move |d| (0..=all - d).map(move |h| [d, h, all - d - h]));
        let best = (LOG - 2..=LOG)
            .flat_map(boxes)
            .filter(|&log| region(log).iter().all(|&r| r < MAX_REGION))
            .min_by_key(|&log| {
                let tiles: usize = (0..3).map(|i| count[i].div_ceil(1 << log[i])).product();
                let voxels: usize = region(log).iter().product();
                let smaller = LOG - log.iter().sum::<usize>();
                (shared(voxels).saturating_sub(MAX_SHARED), smaller, tiles * (voxels + 4 * BOX))
            })
            .expect("strides of at most `MAX_STRIDE` leave boxes");
        let int = |v: [usize; 3]| v.map(|v| v as i32);
        Self {
            log_size: int(best),
            tiles: int([0, 1, 2].map(|i| count[i].div_ceil(1 << best[i]))),
            count: int(count),
            step: int(step),
            first,
            region: int(region(best)),
            map: int(map),
        }
    }

    /// Number of positions of a box.
    pub(super) fn positions(&self) -> usize {
        1 << self.log_size.iter().sum::<i32>()
    }

    pub(super) fn num_tiles(&self) -> usize {
        self.tiles.iter().map(|&t| t as usize).product()
    }

    pub(super) fn region_voxels(&self) -> usize {
        self.region.iter().map(|&r| r as usize).product()
    }
}
