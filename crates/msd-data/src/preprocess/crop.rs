//! The nonzero region of an image.

use std::ops::Range;

use ndarray::{Array3, ArrayView4, Axis, Zip};

/// Where any channel is not 0, with holes filled: zeros that no 6-connected path of zeros joins to the border count
/// as inside. `[C, z, y, x]` to `[z, y, x]`.
pub(crate) fn nonzero_mask(image: &ArrayView4<f32>) -> Array3<bool> {
    let (_, d, h, w) = image.dim();
    let mut mask = Array3::from_elem((d, h, w), false);
    for channel in image.axis_iter(Axis(0)) {
        Zip::from(&mut mask)
            .and(&channel)
            .for_each(|m, &v| *m |= v != 0.0);
    }
    fill_holes(&mut mask);
    mask
}

/// Flood-fills the outside from the border; what it does not reach is inside.
fn fill_holes(mask: &mut Array3<bool>) {
    let (d, h, w) = mask.dim();
    if !mask.iter().any(|&m| !m) {
        return;
    }
    let solid = mask.as_slice_mut().expect("made in standard layout");
    let mut outside = vec![false; solid.len()];
    let mut stack = Vec::new();
    let mut visit = |at: usize, stack: &mut Vec<usize>| {
        if !solid[at] && !outside[at] {
            outside[at] = true;
            stack.push(at);
        }
    };
    for z in 0..d {
        for y in 0..h {
            let whole_row = z == 0 || z == d - 1 || y == 0 || y == h - 1;
            let step = if whole_row { 1 } else { (w - 1).max(1) };
            for x in (0..w).step_by(step) {
                visit((z * h + y) * w + x, &mut stack);
            }
        }
    }
    while let Some(at) = stack.pop() {
        let (z, y, x) = (at / (h * w), at / w % h, at % w);
        for (inside, neighbour) in [
            (x > 0, at.wrapping_sub(1)),
            (x + 1 < w, at + 1),
            (y > 0, at.wrapping_sub(w)),
            (y + 1 < h, at + w),
            (z > 0, at.wrapping_sub(h * w)),
            (z + 1 < d, at + h * w),
        ] {
            if inside {
                visit(neighbour, &mut stack);
            }
        }
    }
    for (m, outside) in solid.iter_mut().zip(outside) {
        *m = !outside;
    }
}

/// The smallest box around the mask, half-open; the whole grid if the mask is empty.
pub(crate) fn nonzero_bounds(mask: &Array3<bool>) -> [Range<usize>; 3] {
    let shape = [mask.dim().0, mask.dim().1, mask.dim().2];
    let mut bounds = [0, 1, 2].map(|axis| shape[axis]..0);
    let rows = (0..shape[0]).flat_map(|z| (0..shape[1]).map(move |y| (z, y)));
    for ((z, y), lane) in rows.zip(mask.rows()) {
        let Some(first) = lane.iter().position(|&m| m) else {
            continue;
        };
        let last = lane.iter().rposition(|&m| m).expect("the row has a first");
        for (bound, (low, high)) in bounds.iter_mut().zip([(z, z), (y, y), (first, last)]) {
            *bound = bound.start.min(low)..bound.end.max(high + 1);
        }
    }
    if bounds[0].is_empty() {
        shape.map(|n| 0..n)
    } else {
        bounds
    }
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
        let mask = nonzero_mask(&image.view());
        assert!(mask[[2, 3, 4]] && !mask[[2, 3, 6]] && mask[[0, 3, 3]]);
        assert_eq!(nonzero_bounds(&mask), [0..5, 1..6, 2..7]);
    }

    #[test]
    fn an_empty_image_is_not_cropped() {
        let mask = nonzero_mask(&Array4::zeros((1, 3, 4, 5)).view());
        assert_eq!(nonzero_bounds(&mask), [0..3, 0..4, 0..5]);
    }
}
