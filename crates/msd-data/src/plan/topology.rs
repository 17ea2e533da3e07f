//! Patch, poolings and kernels for a voxel size and a memory budget.

/// A U-Net's shape. The patch is in f64 because a median shape may end in .5 until it is padded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Topology {
    /// Patch, padded up to a multiple of `divisor`.
    pub(crate) patch: [f64; 3],
    /// Per pooling.
    pub(crate) strides: Vec<[usize; 3]>,
    /// Per stage.
    pub(crate) kernels: Vec<[usize; 3]>,
    /// Product of the strides along each axis.
    divisor: [f64; 3],
}

/// Shortest edge that pooling may leave.
const MIN_EDGE: f64 = 4.0;

impl Topology {
    /// Pools while it can: an axis with at least twice the minimal edge and a voxel size less than twice the finest
    /// is halved; an axis gets kernel 3 for good once its voxel size is less than twice the finest.
    pub(crate) fn of(spacing: [f64; 3], patch: [f64; 3]) -> Self {
        let (mut spacing, mut size, mut kernel) = (spacing, patch, [1; 3]);
        let (mut strides, mut kernels, mut divisor) = (Vec::new(), Vec::new(), [1.0; 3]);
        loop {
            let finest = |axes: &[usize]| axes.iter().map(|&a| spacing[a]).fold(f64::MAX, f64::min);
            let mut axes: Vec<usize> = (0..3).filter(|&a| size[a] >= 2.0 * MIN_EDGE).collect();
            let limit = 2.0 * finest(&axes);
            axes.retain(|&a| spacing[a] < limit);
            if axes.is_empty() || (axes.len() == 1 && size[axes[0]] < 3.0 * MIN_EDGE) {
                break;
            }
            let limit = 2.0 * finest(&[0, 1, 2]);
            let mut stride = [1; 3];
            for a in 0..3 {
                if spacing[a] < limit {
                    kernel[a] = 3;
                }
            }
            for a in axes {
                stride[a] = 2;
                spacing[a] *= 2.0;
                size[a] = (size[a] / 2.0).ceil();
                divisor[a] *= 2.0;
            }
            strides.push(stride);
            kernels.push(kernel);
        }
        kernels.push([3; 3]);
        let patch = [0, 1, 2].map(|a| (patch[a] / divisor[a]).ceil() * divisor[a]);
        Self { patch, strides, kernels, divisor }
    }

    /// The patch in voxels.
    pub(crate) fn patch(&self) -> [usize; 3] {
        self.patch.map(|n| n as usize)
    }

    /// nnU-Net's estimate of memory: output elements of the convolutions for one sample, with
    /// min(320, 32 2^s) channels at stage s. Per stage two convolutions, two in the decoder and one transposed.
    pub(crate) fn elements(&self, num_labels: usize) -> f64 {
        let mut voxels: f64 = self.patch.iter().product();
        let mut total = num_labels as f64 * voxels;
        for (stage, stride) in self.strides.iter().enumerate() {
            total += 5.0 * features(stage) * voxels;
            voxels /= stride.iter().product::<usize>() as f64;
        }
        total + 2.0 * features(self.strides.len()) * voxels
    }
}

fn features(stage: usize) -> f64 {
    (32.0 * f64::powi(2.0, stage as i32)).min(320.0)
}

/// Starts from a patch of the physical shape of a 256^3 cube of mean voxels, cut to the median case, and shortens
/// its relatively longest edge until the estimate is within `reference`. Returns the estimate too.
pub(crate) fn fit_to_memory(spacing: [f64; 3], median: [f64; 3], num_labels: usize, reference: f64) -> (Topology, f64) {
    let scale = (256f64.powi(3) * spacing.iter().product::<f64>()).cbrt();
    let initial = [0, 1, 2].map(|a| (scale / spacing[a]).round_ties_even().min(median[a]));
    let mut topology = Topology::of(spacing, initial);
    loop {
        let elements = topology.elements(num_labels);
        let relative = [0, 1, 2].map(|a| topology.patch[a] / median[a]);
        let longest = (1..3).fold(0, |best, a| if relative[a] >= relative[best] { a } else { best });
        let mut patch = topology.patch;
        patch[longest] -= topology.divisor[longest];
        if elements <= reference || patch[longest] <= 0.0 {
            return (topology, elements);
        }
        // The step is the divisor of the smaller patch, which may pool less.
        let step = Topology::of(spacing, patch).divisor[longest];
        patch[longest] = topology.patch[longest] - step;
        topology = Topology::of(spacing, patch);
    }
}
