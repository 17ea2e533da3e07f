//! Copies of parts of maps that tasks work on: panels of voxels, zero-padded, normalised on the way, so that neither a
//! padded nor a normalised map ever exists in memory.

use super::job::{Source, num_channels};
use crate::simd::Element;

/// Channels `first..first + len` of the maps that are read, at most one vector of them, all from one map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    /// Index of the map.
    pub(super) source: usize,
    /// First channel within the map.
    pub(super) first_of_source: usize,
    /// First channel among those of all maps.
    pub(super) first: usize,
    pub(super) len: usize,
}

/// All channels of maps that are read side by side, cut into vectors.
pub(super) fn lanes_of<T>(sources: &[Source<T>], lanes: usize) -> Vec<Lanes> {
    let mut all = Vec::new();
    let mut first = 0;
    for (source, s) in sources.iter().enumerate() {
        for first_of_source in (0..s.channels).step_by(lanes) {
            let len = lanes.min(s.channels - first_of_source);
            all.push(Lanes { source, first_of_source, first, len });
            first += len;
        }
    }
    all
}

/// Part of a run of positions that lies on an axis.
pub(super) struct Overlap {
    /// Positions of the run in front of the axis.
    pub(super) before: usize,
    /// First position on the axis that the run covers.
    pub(super) start: usize,
    /// Positions of the run on the axis.
    pub(super) count: usize,
}

/// Part of the `len` positions from `first` on that lies on an axis of `size` positions.
#[inline(always)]
pub(super) fn overlap(first: isize, len: usize, size: usize) -> Overlap {
    let before = ((-first).max(0) as usize).min(len);
    let start = first.max(0) as usize;
    Overlap { before, start, count: size.saturating_sub(start).min(len - before) }
}

/// Returns true if `position` lies on an axis of `size` positions.
pub(super) fn is_inside(position: isize, size: usize) -> bool {
    position >= 0 && (position as usize) < size
}

/// One row of voxels of maps that are read side by side.
#[derive(Clone, Copy)]
pub(super) struct MapRow<'a, T> {
    pub(super) sources: &'a [Source<'a, T>],
    pub(super) batch_idx: usize,
    /// Index of the row among the rows of all samples.
    pub(super) row: usize,
    /// Voxels of a row.
    pub(super) width: usize,
}

/// Copies the voxels from `first` on of a row to `dst`, `pitch` elements per voxel: zeros where the voxel lies outside the
/// row, else the channels of all maps side by side; elements between those and the next voxel keep their value.
#[inline(always)]
pub(super) fn pack_row<T: Element>(dst: &mut [T], map: MapRow<T>, first: isize, pitch: usize) {
    let MapRow { sources, batch_idx, row, width } = map;
    let voxels = dst.len() / pitch;
    let Overlap { before, start, count } = overlap(first, voxels, width);
    dst[..before * pitch].fill(T::ZERO);
    if before + count < voxels {
        dst[(before + count) * pitch..].fill(T::ZERO);
    }
    if count == 0 {
        return;
    }
    let dst = &mut dst[before * pitch..(before + count) * pitch];
    let mut at = 0;
    for s in sources {
        let n = s.channels;
        let src = &s.data[(row * width + start) * n..(row * width + start + count) * n];
        match s.norm {
            None if n == pitch => dst.copy_from_slice(src),
            None => {
                for (d, x) in dst.chunks_exact_mut(pitch).zip(src.chunks_exact(n)) {
                    d[at..at + n].copy_from_slice(x);
                }
            }
            Some(norm) => {
                let scale = &norm.scale[batch_idx * n..(batch_idx + 1) * n];
                let shift = &norm.shift[batch_idx * n..(batch_idx + 1) * n];
                for (d, x) in dst.chunks_exact_mut(pitch).zip(src.chunks_exact(n)) {
                    let d = &mut d[at..at + n];
                    for (((d, &x), &a), &b) in d.iter_mut().zip(x).zip(scale).zip(shift) {
                        let v = a * x + b;
                        *d = if v > T::ZERO { v } else { v * norm.slope };
                    }
                }
            }
        }
        if let Some(round) = s.round {
            dst.chunks_exact_mut(pitch).for_each(|d| round(&mut d[at..at + n]));
        }
        at += n;
    }
}

/// A box of voxels of one sample; it may reach outside the map.
#[derive(Clone, Copy)]
pub(super) struct VoxelBox {
    pub(super) batch_idx: usize,
    /// First voxel (D, H, W).
    pub(super) first: [isize; 3],
    /// Voxels along D, H, W.
    pub(super) size: [usize; 3],
}

/// Copies a box of maps of `input` voxels to `panel`, `[D][H][W][channel of all maps]`, each row zero-padded along W. Rows
/// that lie outside the map keep their value: whatever reads the panel skips them.
#[inline(always)]
pub(super) fn pack_panel<T: Element>(panel: &mut [T], sources: &[Source<T>], input: [usize; 3], voxels: VoxelBox) {
    let VoxelBox { batch_idx, first, size } = voxels;
    let channels = num_channels(sources);
    for (i, dst) in panel.chunks_exact_mut(size[2] * channels).enumerate() {
        let (d, h) = (first[0] + (i / size[1]) as isize, first[1] + (i % size[1]) as isize);
        if is_inside(d, input[0]) && is_inside(h, input[1]) {
            let row = (batch_idx * input[0] + d as usize) * input[1] + h as usize;
            pack_row(dst, MapRow { sources, batch_idx, row, width: input[2] }, first[2], channels);
        }
    }
}
