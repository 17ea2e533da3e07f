//! Phantoms of textures, for which a network needs its capacity at full resolution by construction, so that a search can be
//! tested on them, and of sizes.

use ndarray::Array3;
use rand::{Rng, RngExt};

use crate::augment::add_noise;

/// Voxels per ball of a texture phantom.
const VOXELS_PER_BALL: usize = 460;

/// Voxels per attempt to place an ellipsoid of a size phantom.
const VOXELS_PER_ELLIPSOID: usize = 300;

/// Image and labels of a texture phantom.
pub(super) fn texture(shape: [usize; 3], rng: &mut impl Rng) -> (Array3<f32>, Array3<u16>) {
    let (mut image, mut labels) = (noise(shape, 1.0, rng), Array3::zeros(shape));
    draw_balls(&mut image, &mut labels, rng);
    (image, labels)
}

/// Image and labels of a size phantom.
pub(super) fn size(shape: [usize; 3], rng: &mut impl Rng) -> (Array3<f32>, Array3<u16>) {
    let (mut image, mut labels) = (noise(shape, 0.8, rng), Array3::zeros(shape));
    draw_ellipsoids(&mut image, &mut labels, rng);
    (image, labels)
}

fn noise(shape: [usize; 3], std: f32, rng: &mut impl Rng) -> Array3<f32> {
    let mut image = Array3::zeros(shape);
    add_noise(image.as_slice_mut().expect("a new array is contiguous"), std, rng);
    image
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
        let inside = ball(image, centre, [radius; 3]);
        if inside.iter().any(|&at| labels[at] > 0) {
            continue;
        }
        for at in inside {
            image[at] += if (at[axis] + phase) % 2 == 0 { 0.7 } else { -0.7 };
            labels[at] = if axis < 2 { axis as u16 + 1 } else { 0 };
        }
    }
}

/// Bright ellipsoids that do not touch; those with radii of 2.6 to 3.8 voxels have label 1, those with radii of 4.6 to 6.2 label 2. A
/// voxel's label shows at the far side of its ellipsoid alone.
fn draw_ellipsoids(image: &mut Array3<f32>, labels: &mut Array3<u16>, rng: &mut impl Rng) {
    let (depth, height, width) = image.dim();
    let mut drawn: Vec<([f32; 3], f32)> = Vec::new();
    for _ in 0..image.len() / VOXELS_PER_ELLIPSOID {
        let label = rng.random_range(1..=2u16);
        let radii =
            [0; 3].map(|_| if label == 1 { rng.random_range(2.6f32..3.8) } else { rng.random_range(4.6f32..6.2) });
        let centre = [depth, height, width].map(|n| rng.random_range(2.0..n as f32 - 2.0));
        let radius = radii.into_iter().fold(0.0, f32::max);
        let distance = |other: &[f32; 3]| centre.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        if drawn.iter().any(|(other, other_radius)| distance(other) < radius + other_radius + 1.5) {
            continue;
        }
        drawn.push((centre, radius));
        for at in ball(image, centre, radii) {
            image[at] += 2.0;
            labels[at] = label;
        }
    }
}

/// Voxels inside an ellipsoid.
fn ball(image: &Array3<f32>, centre: [f32; 3], radii: [f32; 3]) -> Vec<[usize; 3]> {
    let inside = |(z, y, x): (usize, usize, usize)| {
        let r: f32 = [z, y, x].iter().zip(centre).zip(radii).map(|((&i, c), r)| ((i as f32 - c) / r).powi(2)).sum();
        (r < 1.0).then_some([z, y, x])
    };
    image.indexed_iter().filter_map(|(at, _)| inside(at)).collect()
}
