//! Panel of the input voxels that a block of output rows reads.

use crate::conv3d::job::{Axis, Source, num_channels};
use crate::conv3d::packing::{VoxelBox, is_inside, pack_panel};
use crate::conv3d::partition::RowBlock;
use crate::simd::Element;

/// Copies the voxels that the rows read into the panel.
#[inline(always)]
pub(super) fn pack_rows<T: Element>(
    panel: &mut Vec<T>,
    sources: &[Source<T>],
    axes: &[Axis; 3],
    rows: &RowBlock,
) -> VoxelBox {
    let [d, h, w] = axes;
    let size = [d.extent(rows.d.len()), h.extent(rows.h.len()), w.extent(w.num_outputs)];
    let first = [
        (rows.d.start * d.step) as isize + d.first_offset(),
        (rows.h.start * h.step) as isize + h.first_offset(),
        w.first_offset(),
    ];
    let voxels = VoxelBox { batch_idx: rows.batch_idx, first, size };
    panel.resize(size.iter().product::<usize>() * num_channels(sources), T::ZERO);
    pack_panel(panel, sources, axes.each_ref().map(|a| a.input_size), voxels);
    voxels
}

/// Index of the panel's row that the output row `(d, h)` reads at a tap along D and H; none if it lies outside the map.
pub(super) fn panel_row(
    [d, h, _]: &[Axis; 3],
    rows: &RowBlock,
    voxels: VoxelBox,
    (qd, qh): (usize, usize),
    [td, th]: [usize; 2],
) -> Option<usize> {
    let panel_d = (qd - rows.d.start) * d.step + d.tap_position(td);
    let panel_h = (qh - rows.h.start) * h.step + h.tap_position(th);
    let inside = is_inside(voxels.first[0] + panel_d as isize, d.input_size)
        && is_inside(voxels.first[1] + panel_h as isize, h.input_size);
    inside.then_some(panel_d * voxels.size[1] + panel_h)
}
