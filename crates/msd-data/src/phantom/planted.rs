//! Phantoms of textures, for which a network needs its capacity at full resolution by construction, so that a search can be
//! tested on them.

use ndarray::Array3;
use rand::{Rng, RngExt};

use crate::augment::add_noise;

/// Voxels per ball of a texture phantom.
const VOXELS_PER_BALL: usize = 460;

/// Image and labels of a texture phantom.
pub(super) fn texture(shape: [usize; 3], rng: &mut impl Rng) -> (Array3<f32>, Array3<u16>) {
    let (mut image, mut labels) = (Array3::zeros(shape), Array3::zeros(shape));
    add_noise(image.as_slice_mut().expect("a new array is contiguous"), 1.0, rng);
    draw_balls(&mut image, &mut labels, rng);
    (image, labels)
}

/// Balls of two to three voxels' radius in noise of their own strength. Inside one, a value of 0.7 changes its sign from voxel
/// to voxel along one axis: along z for label 1, along y for label 2, along x for no label. Means and variances are the
/// same, and the pattern is gone at half the resolution.
fn draw_balls(image: &mut Array3<f32>, labels: &mut Array3<u16>, rng: &mut impl Rng) {
    let (depth, height, width) = image.dim();
    for _ in 0..image.len() / VOXELS_PER_BALL {
        let centre = [depth, height, width].map(|n| rng.random_range(0.1..0.9) * n as f32);
        let radius = rng.random_range(2.0f32..3.4);
        let (axis, phase) = (rng.random_range(0..3usize), rng.random_range(0..2usize));
        let inside = ball([depth, height, width], centre, radius);
        if inside.iter().any(|&at| labels[at] > 0) {
            continue;
        }
        for at in inside {
            image[at] += if (at[axis] + phase) % 2 == 0 { 0.7 } else { -0.7 };
            labels[at] = if axis < 2 { axis as u16 + 1 } else { 0 };
        }
    }
}

/// Voxels inside a ball, of a volume of this shape.
pub(super) fn ball(shape: [usize; 3], centre: [f32; 3], radius: f32) -> Vec<[usize; 3]> {
    // A box around it, from 0 where it would begin before.
    let along = |a: usize| (centre[a] - radius) as usize..((centre[a] + radius) as usize + 2).min(shape[a]);
    let rows = along(0).flat_map(|z| along(1).map(move |y| (z, y)));
    let voxels = rows.flat_map(|(z, y)| along(2).map(move |x| [z, y, x]));
    voxels.filter(|&at| is_inside(at, centre, radius)).collect()
}

pub(super) fn is_inside(voxel: [usize; 3], centre: [f32; 3], radius: f32) -> bool {
    let r: f32 = voxel.iter().zip(centre).map(|(&i, c)| ((i as f32 - c) / radius).powi(2)).sum();
    r < 1.0
}
