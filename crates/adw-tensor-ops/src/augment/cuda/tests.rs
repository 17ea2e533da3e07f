//! Every transform beside msd-data's on the CPU, emulated.

use super::*;
use crate::augment::Noise;
use crate::testing::numbers;
use adw_cuda::emulated::{self, Emulator};
use adw_cuda::work::{Dry, Machine, Recording};
use msd_data::augment::{ChannelTransforms, DrawnTransforms, NoiseStream};

/// One chunk and several; axes of one, two and a few voxels, shorter than a blur reaches.
const SIZES: [[usize; 3]; 4] = [[5, 7, 9], [1, 6, 11], [2, 3, 4], [27, 19, 31]];

/// As what draws the parameters says it, plane by plane.
fn transforms(drawn: &DrawnTransforms, masked: &[bool]) -> Vec<Transforms> {
    let noise = drawn.noise.map(|(std, stream)| Noise { std, key: stream.key, position: stream.position });
    let of_channel = |(c, &masked): (&ChannelTransforms, &bool)| Transforms {
        noise,
        blur: c.blur,
        brightness: c.brightness,
        contrast: c.contrast,
        low_resolution: c.low_resolution,
        gamma_inverted: c.gamma_inverted,
        gamma: c.gamma,
        masked,
        mirror: drawn.mirror,
    };
    drawn.channels.iter().zip(masked).map(of_channel).collect()
}

/// Both sides on one batch of two channels, of which the second is masked.
fn check(what: &str, samples: &[DrawnTransforms], size: [usize; 3], tolerance: f32) {
    let (rt, channels, masked) = (Emulator::new(), 2, [false, true]);
    let voxels: usize = size.iter().product();
    let x: Vec<f32> = numbers(3, samples.len() * channels * voxels)
        .iter()
        .enumerate()
        // A mean that is not 0: squares must not cancel.
        .map(|(i, &v)| v as f32 + if i / voxels % 2 == 1 { 3.0 } else { -0.2 })
        .collect();
    let labels: Vec<i16> = (0..samples.len() * voxels).map(|i| [0, 1, -1, 2, 255, 0, -1][i * i % 7]).collect();
    let planes: Vec<Plane> =
        samples.iter().flat_map(|s| transforms(s, &masked)).map(|t| Plane::new(&t, size)).collect();
    let (table, x_d, labels_d) = (rt.upload(&planes), rt.upload(&x), rt.upload(&labels));
    let (out, target) = (rt.alloc(x.len() * 4).unwrap(), rt.alloc(labels.len()).unwrap());
    let batch = Batch {
        x: x_d.address(),
        labels: labels_d.address(),
        out: out.address(),
        target: target.address(),
        batch: samples.len(),
        channels,
        size,
    };
    // SAFETY: the buffers have the sizes of the batch.
    unsafe { apply(&rt, &batch, &planes, table.address()).unwrap() };
    let (out, target) = (out.read::<f32>(), target.read::<u8>());
    for (i, drawn) in samples.iter().enumerate() {
        let mut image = x[i * channels * voxels..][..channels * voxels].to_vec();
        let mut labels = labels[i * voxels..][..voxels].to_vec();
        drawn.apply(&mut image, &mut labels, size);
        for (v, label) in image[voxels..].iter_mut().zip(&labels) {
            *v = if *label < 0 { 0.0 } else { *v };
        }
        let expected: Vec<u8> = labels.iter().map(|&l| l.max(0) as u8).collect();
        assert_eq!(target[i * voxels..][..voxels], expected, "{what}, {size:?}: labels");
        for (j, e) in image.iter().enumerate() {
            let got = out[i * channels * voxels + j];
            assert!((got - e).abs() <= tolerance, "{what}, {size:?}: sample {i}, element {j} is {got}, expected {e}");
        }
    }
}

fn noise(position: u64) -> (f32, NoiseStream) {
    let key = std::array::from_fn(|i| i as u8 * 7 + 1);
    (0.1, NoiseStream { key, position })
}

/// The first sample transformed in its second channel only, the second in both.
fn samples(channel: ChannelTransforms) -> [DrawnTransforms; 2] {
    let nothing = ChannelTransforms::default();
    [vec![nothing, channel], vec![channel; 2]]
        .map(|channels| DrawnTransforms { channels, ..DrawnTransforms::default() })
}

#[test]
fn each_transform_as_on_the_cpu() {
    if !emulated::is_available("each_transform_as_on_the_cpu") {
        return;
    }
    let none = ChannelTransforms::default();
    let cases = [
        ("nothing", none, 0.0),
        ("blur", ChannelTransforms { blur: Some([0.5, 0.99, 0.7]), ..none }, 2e-6),
        ("brightness", ChannelTransforms { brightness: Some(1.2), ..none }, 0.0),
        ("contrast", ChannelTransforms { contrast: Some(1.25), ..none }, 2e-6),
        ("brightness and contrast", ChannelTransforms { brightness: Some(0.8), contrast: Some(1.25), ..none }, 2e-6),
        ("low resolution", ChannelTransforms { low_resolution: Some([0.5, 0.8, 0.63]), ..none }, 0.0),
        ("low resolution in-plane", ChannelTransforms { low_resolution: Some([1.0, 0.55, 0.55]), ..none }, 0.0),
        ("inverted gamma", ChannelTransforms { gamma_inverted: Some(1.4), ..none }, 1e-5),
        ("gamma", ChannelTransforms { gamma: Some(0.75), ..none }, 1e-5),
    ];
    for size in SIZES {
        for (what, channel, tolerance) in &cases {
            check(what, &samples(*channel), size, *tolerance);
        }
        for axes in 0..8 {
            let mut samples = samples(none);
            samples[1].mirror = [0, 1, 2].map(|i| axes >> i & 1 == 1);
            check("mirroring", &samples, size, 0.0);
        }
    }
}

/// The same numbers, not only the same distribution; streams that begin anywhere in a block of the generator.
#[test]
fn noise_as_on_the_cpu() {
    if !emulated::is_available("noise_as_on_the_cpu") {
        return;
    }
    for size in SIZES {
        for position in [0, 5, 16, 1003, (1 << 36) + 7] {
            let mut samples = samples(ChannelTransforms::default());
            samples[1].noise = Some(noise(position));
            check("noise", &samples, size, 1e-6);
        }
    }
}

#[test]
fn all_transforms_together() {
    if !emulated::is_available("all_transforms_together") {
        return;
    }
    let mut samples = samples(ChannelTransforms {
        blur: Some([0.6, 0.7, 0.9]),
        brightness: Some(1.1),
        contrast: Some(0.8),
        low_resolution: Some([0.7; 3]),
        gamma_inverted: Some(0.8),
        gamma: Some(1.3),
    });
    samples[0].noise = Some(noise(40));
    samples[0].mirror = [true, false, true];
    samples[1].mirror = [false, true, true];
    for size in SIZES {
        check("all", &samples, size, 5e-5);
    }
}

#[test]
fn a_batch_takes_only_the_launches_that_were_drawn() {
    let rt = Recording::new(Dry, Machine::H100);
    let size = [8, 10, 12];
    let launches = |t: &[Transforms]| {
        let planes: Vec<_> = t.iter().map(|t| Plane::new(t, size)).collect();
        let a = Address(1);
        let batch = Batch { x: a, labels: a, out: a, target: a, batch: 2, channels: 1, size };
        // SAFETY: nothing runs.
        unsafe { apply(&rt, &batch, &planes, a).unwrap() };
        rt.take()
    };
    let plain = Transforms::default();
    let recorded = launches(&[plain; 2]);
    assert_eq!(recorded.total().launches, 1);
    // Images read and written in f32; labels read as i16, written as u8.
    assert_eq!(recorded.total().bytes, 2 * 960 * (4 + 4 + 2 + 1));
    let gamma = Transforms { gamma: Some(1.2), ..plain };
    let recorded = launches(&[plain, gamma]);
    assert_eq!(recorded.total().launches, 4);
    // Of the one plane: read for its moments, twice read and written; a chunk's moments of 32 bytes move 1 + 2 + 2 times.
    assert_eq!(recorded.total().bytes, 2 * 960 * 11 + 5 * 960 * 4 + 5 * 32);
}
