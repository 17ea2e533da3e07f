//! Separable linear filters of one channel: blur and loss of resolution.

/// Input samples and their weights, for each output sample of an axis.
type FilterTaps = Vec<Vec<(usize, f32)>>;

/// Gaussian blur with `sigma` voxels along each axis; kernels reach about 3 sigma, edges are mirrored.
pub(crate) fn blur(channel: &mut [f32], shape: [usize; 3], sigma: [f32; 3]) {
    let mut values = channel.to_vec();
    for axis in 0..3 {
        // The odd number nearest to 6 sigma + 0.5: 3, 5 or 7 samples.
        let reach = (3.0 * sigma[axis] + 0.25).floor() as isize;
        let gauss = |k: isize| (-0.5 * (k as f32 / sigma[axis]).powi(2)).exp();
        let sum: f32 = (-reach..=reach).map(gauss).sum();
        let n = shape[axis];
        let taps: FilterTaps =
            (0..n).map(|i| (-reach..=reach).map(|k| (mirrored(i as isize + k, n), gauss(k) / sum)).collect()).collect();
        values = along(&values, shape, axis, &taps);
    }
    channel.copy_from_slice(&values);
}

/// Samples the nearest voxels on a grid of round(size scale) and interpolates linearly back to the old grid.
pub(crate) fn low_resolution(channel: &mut [f32], shape: [usize; 3], scale: [f32; 3]) {
    let mut values = channel.to_vec();
    for axis in 0..3 {
        let n = shape[axis];
        let coarse = ((n as f32 * scale[axis]).round_ties_even() as usize).max(1);
        if coarse == n {
            continue;
        }
        let nearest = |i: usize| ((i as f32 + 0.5) * n as f32 / coarse as f32) as usize;
        let taps: FilterTaps = (0..n)
            .map(|i| {
                let x = ((i as f32 + 0.5) * coarse as f32 / n as f32 - 0.5).clamp(0.0, (coarse - 1) as f32);
                let (low, t) = (x as usize, x.fract());
                let high = (low + 1).min(coarse - 1);
                vec![(nearest(low).min(n - 1), 1.0 - t), (nearest(high).min(n - 1), t)]
            })
            .collect();
        values = along(&values, shape, axis, &taps);
    }
    channel.copy_from_slice(&values);
}

/// Index of sample `i` of a line that is mirrored about its end samples, as often as needed.
fn mirrored(i: isize, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let period = 2 * (n as isize - 1);
    let i = i.rem_euclid(period);
    i.min(period - i) as usize
}

/// Filters a volume along one axis.
fn along(values: &[f32], shape: [usize; 3], axis: usize, taps: &FilterTaps) -> Vec<f32> {
    let inner: usize = shape[axis + 1..].iter().product();
    let block = shape[axis] * inner;
    let mut out = vec![0.0; values.len()];
    for (from, to) in values.chunks_exact(block).zip(out.chunks_exact_mut(block)) {
        if inner == 1 {
            for (to, taps) in to.iter_mut().zip(taps) {
                *to = taps.iter().map(|&(i, w)| from[i] * w).sum();
            }
            continue;
        }
        for (to, taps) in to.chunks_exact_mut(inner).zip(taps) {
            for &(i, weight) in taps {
                for (to, from) in to.iter_mut().zip(&from[i * inner..(i + 1) * inner]) {
                    *to += weight * from;
                }
            }
        }
    }
    out
}
