//! Launches that are recorded and not run: their work, and what blocks take of a device.

use super::correlate::{forward, grad_input};
use super::grad_weight::{grad_weight, splits};
use super::maps::SourceMap;
use super::shape::{ConvShape, MAX_SHARED, supports};
use super::weights::Weights;
use crate::geometry::Conv3dGeometry;
use crate::precision::Precision;
use adw_cuda::Address;
use adw_cuda::recording::DryRun;
use adw_cuda::work::{Machine, Recorder};

/// Work of the launches of the three passes; the addresses are never read.
fn work_of(
    channels: &[(usize, bool)],
    co: usize,
    batch: usize,
    size: [usize; 3],
    geometry: Conv3dGeometry,
    precision: Precision,
) -> Recorder {
    let rt = DryRun::new(Machine::H100);
    let maps: Vec<_> = channels
        .iter()
        .map(|&(channels, normalised)| SourceMap {
            norm: normalised.then_some((Address(1), Address(1), 0.01)),
            ..SourceMap::plain(Address(1), channels)
        })
        .collect();
    let ci = channels.iter().map(|c| c.0).sum();
    let weights = Weights { data: Address(1), co, ci };
    let (grad, a) = (SourceMap::plain(Address(1), co), Address(1));
    let layer = ConvShape { batch, size, geometry, precision };
    // SAFETY: nothing runs.
    unsafe {
        forward(&rt, &layer, &maps, &weights, a, true).unwrap();
        grad_input(&rt, &layer, grad, &weights, 0..ci, a).unwrap();
        grad_weight(&rt, &layer, &maps, grad, a).unwrap();
    }
    rt.recorder()
}

fn assert_work(recorder: &Recorder, kernel: &str, launches: u64, bytes: u64, operations: u64) {
    let r = recorder.records()[kernel];
    assert_eq!((r.launches, r.bytes, r.operations), (launches, bytes, operations), "{kernel}");
}

#[test]
fn work_equals_numbers_by_hand() {
    // Two maps of 192 voxels (16 channels, normalised, and 8) and two samples; outputs of 4 x 3 x 4 = 48 voxels.
    let geometry = Conv3dGeometry::same([3; 3], [1, 2, 2]);
    let maps = 2 * 192 * 24 * 2 + 2 * 16 * 8;
    let weights = 27 * 24 * 12;
    let output = 2 * 48 * 12 * 2;
    let products = 2 * weights * 48 * 2;
    let work = work_of(&[(16, true), (8, false)], 12, 2, [4, 6, 8], geometry, Precision::Bf16);
    // All 48 outputs fit one box: moments of 12 channels and a count per sample.
    let moments = 2 * (12 * 2 + 1) * 4;
    let forward = maps + weights * 2 + output + moments;
    assert_eq!((forward, products), (36_744, 1_492_992));
    // The gradient falls into 1 x 2 x 2 classes. Along a strided axis the even class has the tap in the middle, which
    // reaches all outputs, the odd one the other two, which reach them all. Each class reads the gradient and its taps,
    // 3 (1 + 2) (1 + 2) = 27 in all, for half of the positions along each strided axis: 48 per sample.
    let grad_input = 4 * output + weights * 2 + 2 * 192 * 24 * 2;
    assert_work(&work, "conv_correlate_bf16_n16", 1 + 4, forward + grad_input, 2 * products);
    let floor = work.records()["conv_correlate_bf16_n16"].floor_seconds;
    assert!((floor - (forward + grad_input) as f64 / 3e12).abs() < 1e-15);
    // Two shares, one for each box; one part, as 27 taps fill a block.
    assert_work(&work, "conv_grad_weight_bf16", 1, maps + output + 2 * weights * 4, products);
    assert_work(&work, "conv_grad_weight_finish", 1, 3 * weights * 4, 2 * weights);
    // Forward: 24 x 12 channels padded to 32 x 16; backward: 12 x 24 to 32 x 32.
    assert_work(&work, "conv_pack_bf16", 2, 2 * weights * 4 + 27 * (32 * 16 + 32 * 32) * 2, 0);
}

/// A kernel smaller than its stride reads one voxel in eight, and leaves seven classes of the gradient without taps.
#[test]
fn voxels_that_no_tap_reaches_are_no_work() {
    let geometry = Conv3dGeometry::same([1; 3], [2; 3]);
    let work = work_of(&[(4, false)], 4, 1, [5; 3], geometry, Precision::Full);
    let (map, weights, moments) = (27 * 4 * 4, 16 * 4, (2 * 4 + 1) * 4);
    let forward = map + weights + map + moments;
    let grad_input = map + weights + 125 * 4 * 4;
    assert_work(&work, "conv_correlate_f32_n16", 1 + 8, forward + grad_input, 2 * 2 * 16 * 27);
}

/// Shares fill the multiprocessors as long as their sums are not more work than that saves.
#[test]
fn shares_of_the_weight_gradient() {
    let bf16 = |blocks, boxes, ci: usize, co: usize| splits(blocks, boxes, 128, 27 * ci * co * 4, Precision::Bf16);
    // 48 to 48 channels on the finest maps: a block for each multiprocessor, no more sums than that.
    assert_eq!(bf16(3, 6300, 48, 48), 44);
    // 384 to 384 on the coarsest: 192 blocks take two rounds, shares of half as many boxes three.
    assert!((1..=2).contains(&bf16(192, 36, 384, 384)));
    // Never more shares than boxes.
    assert_eq!(bf16(1, 2, 8, 8), 2);
}

/// Shared memory of consumer devices is enough for every layer that a network may have.
#[test]
fn shared_memory_of_real_layers() {
    let (a, size) = (Address(16), [40, 56, 40]);
    for precision in [Precision::Full, Precision::Bf16] {
        for (kernel, stride) in [
            ([3, 3, 3], [1, 1, 1]),
            ([3, 3, 3], [2, 2, 2]),
            ([1, 3, 3], [1, 2, 2]),
            ([3, 3, 3], [1, 2, 2]),
            ([2, 2, 2], [2, 2, 2]),
            ([1, 1, 1], [1, 1, 1]),
            ([8, 1, 1], [4, 1, 1]),
        ] {
            let dense = Conv3dGeometry::new(kernel, stride, kernel.map(|k| k / 2));
            let dilated = Conv3dGeometry { dilation: [2; 3], ..dense };
            for geometry in [dense, dilated].into_iter().filter(supports) {
                let layer = ConvShape { batch: 1, size, geometry, precision };
                for (ci, co) in [(1, 48), (48, 48), (96, 48), (48, 96), (768, 384), (384, 768)] {
                    let rt = DryRun::new(Machine::H100);
                    let weights = Weights { data: a, co, ci };
                    let (map, grad) = (SourceMap::plain(a, ci), SourceMap::plain(a, co));
                    // SAFETY: nothing runs.
                    unsafe {
                        forward(&rt, &layer, &[map], &weights, a, true).unwrap();
                        let all = 0..ci;
                        grad_input(&rt, &layer, grad, &weights, all, a).unwrap();
                        grad_weight(&rt, &layer, &[map], grad, a).unwrap();
                    }
                    let most = rt.most_shared() as usize;
                    assert!(most > 0 && most <= MAX_SHARED, "{precision:?}, {ci} to {co}, {geometry:?}: {most}");
                }
            }
        }
    }
}
