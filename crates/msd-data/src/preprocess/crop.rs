//! Nonzero region of an image.

use std::ops::Range;

use ndarray::{Array3, ArrayView2, ArrayView4, Axis, Zip, parallel::prelude::*};

/// Smallest box, half-open, around the voxels of `[C, z, y, x]` where any channel is not 0; the whole grid if there are none.
pub(crate) fn nonzero_bounds(image: &ArrayView4<f32>) -> [Range<usize>; 3] {
    let (_, d, h, w) = image.dim();
    let slices = (0..d).into_par_iter().filter_map(|z| {
        let channels = image.axis_iter(Axis(0));
        let in_plane = channels.filter_map(|channel| bounds_of_slice(&channel.index_axis(Axis(0), z)));
        let [y, x] = in_plane.reduce(|a, b| [union(&a[0], &b[0]), union(&a[1], &b[1])])?;
        Some([z..z + 1, y, x])
    });
    let all = slices.reduce_with(|a, b| [0, 1, 2].map(|axis| union(&a[axis], &b[axis])));
    all.unwrap_or([0..d, 0..h, 0..w])
}

fn union(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.min(b.start)..a.end.max(b.end)
}

fn bounds_of_slice(slice: &ArrayView2<f32>) -> Option<[Range<usize>; 2]> {
    let rows = slice.outer_iter().enumerate().filter_map(|(y, row)| {
        let first = row.iter().position(|&v| v != 0.0)?;
        let last = row.iter().rposition(|&v| v != 0.0)?;
        Some([y..y + 1, first..last + 1])
    });
    rows.reduce(|a, b| [union(&a[0], &b[0]), union(&a[1], &b[1])])
}

/// Marks the voxels outside the imaged region of `[C, z, y, x]`: those where every channel is 0 and a 6-connected path of
/// such voxels leads to the border. Zeros in holes are inside. None if no voxel is outside.
///
/// An image cut to its nonzero box gives the same marks as the whole one, since all that was cut off is outside.
pub(crate) fn outside(image: &ArrayView4<f32>) -> Option<Array3<bool>> {
    let (_, d, h, w) = image.dim();
    let border = || {
        let rows = (0..d).flat_map(move |z| (0..h).map(move |y| (z, y)));
        rows.flat_map(move |(z, y)| {
            let whole_row = z == 0 || z == d - 1 || y == 0 || y == h - 1;
            let step = if whole_row { 1 } else { (w - 1).max(1) };
            (0..w).step_by(step).map(move |x| (z, y, x))
        })
    };
    let is_zero = |(z, y, x)| image.axis_iter(Axis(0)).all(|channel| channel[[z, y, x]] == 0.0);
    border().find(|&at| is_zero(at))?;

    let mut zero = Array3::from_elem((d, h, w), true);
    for channel in image.axis_iter(Axis(0)) {
        Zip::from(&mut zero).and(&channel).par_for_each(|zero, &v| *zero &= v == 0.0);
    }
    let mut outside = Array3::from_elem((d, h, w), false);
    let mut stack = Vec::new();
    let mut visit = |at: (usize, usize, usize), stack: &mut Vec<_>| {
        if zero[at] && !outside[at] {
            outside[at] = true;
            stack.push(at);
        }
    };
    border().for_each(|at| visit(at, &mut stack));
    while let Some((z, y, x)) = stack.pop() {
        for (exists, neighbour) in [
            (x > 0, (z, y, x.wrapping_sub(1))),
            (x + 1 < w, (z, y, x + 1)),
            (y > 0, (z, y.wrapping_sub(1), x)),
            (y + 1 < h, (z, y + 1, x)),
            (z > 0, (z.wrapping_sub(1), y, x)),
            (z + 1 < d, (z + 1, y, x)),
        ] {
            if exists {
                visit(neighbour, &mut stack);
            }
        }
    }
    Some(outside)
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;

    #[test]
    fn holes_belong_to_the_inside_and_channels_are_united() {
        let mut image = Array4::from_shape_fn((2, 6, 7, 8), |(c, z, y, x)| {
            let organ = c == 0 && (1..5).contains(&z) && (1..6).contains(&y) && (2..7).contains(&x);
            let hole = (z, y, x) == (2, 3, 4);
            let dent = (z, y, x) == (2, 3, 6);
            f32::from(u8::from(organ && !hole && !dent))
        });
        image[[1, 0, 3, 3]] = -1.0;
        let found = outside(&image.view()).unwrap();
        assert!(!found[[2, 3, 4]] && found[[2, 3, 6]] && !found[[0, 3, 3]]);
        assert_eq!(nonzero_bounds(&image.view()), [0..5, 1..6, 2..7]);
        let cut = image.slice_each_axis(|ax| match ax.axis {
            Axis(0) => ndarray::Slice::from(..),
            Axis(a) => ndarray::Slice::from([0..5, 1..6, 2..7][a - 1].clone()),
        });
        let cut = outside(&cut).unwrap();
        for ((z, y, x), &outside) in cut.indexed_iter() {
            assert_eq!(outside, found[[z, y + 1, x + 2]], "{z} {y} {x}");
        }
    }

    #[test]
    fn an_empty_image_is_not_cropped_and_a_full_one_has_no_outside() {
        let zeros = Array4::zeros((1, 3, 4, 5));
        assert_eq!(nonzero_bounds(&zeros.view()), [0..3, 0..4, 0..5]);
        assert!(outside(&zeros.view()).unwrap().iter().all(|&v| v));
        let mut full = Array4::ones((1, 3, 4, 5));
        full[[0, 1, 2, 2]] = 0.0;
        assert_eq!(outside(&full.view()), None);
    }
}
