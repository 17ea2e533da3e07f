//! Zero-padded copies of the voxels that a block's tiles read.

use crate::conv3d::job::Source;
use crate::conv3d::packing::{Lanes, Overlap, VoxelBox, is_inside, overlap};
use crate::simd::{Element, Simd};

/// A box of voxels: `[vector of channels][D][H][W][lane]`.
pub(super) struct Panel<'a, T> {
    pub(super) data: &'a [T],
    /// Voxels along D, H, W.
    pub(super) size: [usize; 3],
}

/// Copies a box of voxels of maps of `input` voxels to `buffer`; voxels outside the maps are zero.
#[inline(always)]
pub(super) fn pack_panel<'a, S: Simd>(
    simd: S,
    buffer: &'a mut Vec<S::Elem>,
    sources: &[Source<S::Elem>],
    channels: &[Lanes],
    input: [usize; 3],
    voxels: VoxelBox,
) -> Panel<'a, S::Elem> {
    let VoxelBox { batch_idx, first, size } = voxels;
    let row_len = size[2] * S::LANES;
    buffer.resize(channels.len() * size[0] * size[1] * row_len, S::Elem::ZERO);
    let Overlap { before, start, count } = overlap(first[2], size[2], input[2]);
    for d in 0..size[0] {
        for h in 0..size[1] {
            let (id, ih) = (first[0] + d as isize, first[1] + h as isize);
            let has_voxels = count > 0 && is_inside(id, input[0]) && is_inside(ih, input[1]);
            for (v, lanes) in channels.iter().enumerate() {
                let row = &mut buffer[((v * size[0] + d) * size[1] + h) * row_len..][..row_len];
                if !has_voxels {
                    row.fill(S::Elem::ZERO);
                    continue;
                }
                row[..before * S::LANES].fill(S::Elem::ZERO);
                row[(before + count) * S::LANES..].fill(S::Elem::ZERO);
                let first = ((batch_idx * input[0] + id as usize) * input[1] + ih as usize) * input[2] + start;
                let dst = &mut row[before * S::LANES..(before + count) * S::LANES];
                let source = &sources[lanes.source];
                copy_lanes(simd, dst, source, lanes, batch_idx, first);
                if let Some(round) = source.round {
                    round(dst);
                }
            }
        }
    }
    Panel { data: buffer, size }
}

/// Copies some channels of the voxels from `first_voxel` on, normalised, to consecutive vectors until `dst` is full.
#[inline(always)]
fn copy_lanes<S: Simd>(
    simd: S,
    dst: &mut [S::Elem],
    source: &Source<S::Elem>,
    lanes: &Lanes,
    batch_idx: usize,
    first_voxel: usize,
) {
    let Lanes { first_of_source, len, .. } = *lanes;
    let pitch = source.channels;
    let count = dst.len() / S::LANES;
    let src = &source.data[first_voxel * pitch..(first_voxel + count) * pitch];
    assert!(first_of_source + len <= pitch && len <= S::LANES, "channels that the map does not have");
    // SAFETY: `src` has `count` voxels of `pitch` elements, among them `len` from `first_of_source` on; `dst` has room for
    // `count` vectors.
    unsafe {
        let (src, dst) = (src.as_ptr().add(first_of_source), dst.as_mut_ptr());
        match source.norm {
            None => {
                for i in 0..count {
                    simd.store(dst.add(i * S::LANES), simd.load_up_to(src.add(i * pitch), len));
                }
            }
            Some(norm) => {
                let at = batch_idx * pitch + first_of_source;
                let (scale, shift) = (simd.read(&norm.scale[at..][..len]), simd.read(&norm.shift[at..][..len]));
                let slope = simd.splat(norm.slope);
                for i in 0..count {
                    let x = simd.load_up_to(src.add(i * pitch), len);
                    simd.store(dst.add(i * S::LANES), simd.leaky(simd.mul_add(x, scale, shift), slope));
                }
            }
        }
    }
}
