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
    // One entry per run of zeros, not per voxel, which would take several times the image's memory.
    let mut stack: Vec<_> = Vec::new();
    for seed in border() {
        stack.push(seed);
        while let Some((z, y, x)) = stack.pop() {
            if !zero[[z, y, x]] || outside[[z, y, x]] {
                continue;
            }
            let first = (0..x).rev().take_while(|&x| zero[[z, y, x]]).last().unwrap_or(x);
            let end = (x..w).find(|&x| !zero[[z, y, x]]).unwrap_or(w);
            (first..end).for_each(|x| outside[[z, y, x]] = true);
            for (exists, z, y) in [
                (y > 0, z, y.wrapping_sub(1)),
                (y + 1 < h, z, y + 1),
                (z > 0, z.wrapping_sub(1), y),
                (z + 1 < d, z + 1, y),
            ] {
                let is_open = |x: usize| zero[[z, y, x]] && !outside[[z, y, x]];
                if exists {
                    let starts = (first..end).filter(|&x| is_open(x) && (x == first || !is_open(x - 1)));
                    stack.extend(starts.map(|x| (z, y, x)));
                }
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
    fn what_is_outside_is_connected_to_the_border_voxel_by_voxel() {
        for seed in 0..40u64 {
            let (d, h, w) = (5, 6, 9);
            let mut state = seed + 1;
            let image = Array4::from_shape_fn((1, d, h, w), |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                f32::from(u8::from((state >> 33) % 20 < seed / 4 + 6))
            });
            let mut expected = Array3::from_elem((d, h, w), false);
            loop {
                let mut grown = false;
                for (z, y, x) in ndarray::indices((d, h, w)) {
                    let is_border = z == 0 || y == 0 || x == 0 || z == d - 1 || y == h - 1 || x == w - 1;
                    let near = |expected: &Array3<bool>| {
                        expected
                            .indexed_iter()
                            .any(|((a, b, c), &o)| o && a.abs_diff(z) + b.abs_diff(y) + c.abs_diff(x) == 1)
                    };
                    if image[[0, z, y, x]] == 0.0 && !expected[[z, y, x]] && (is_border || near(&expected)) {
                        expected[[z, y, x]] = true;
                        grown = true;
                    }
                }
                if !grown {
                    break;
                }
            }
            let found = outside(&image.view()).unwrap_or_else(|| Array3::from_elem((d, h, w), false));
            assert_eq!(found, expected, "seed {seed}");
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
