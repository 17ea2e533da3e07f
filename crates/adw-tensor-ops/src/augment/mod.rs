//! Augmentation of batches on a device, so that the processors beside it only draw parameters and interpolate patches.
//!
//! Of a plane, that is one channel of one sample of a batch `[B, C, D, H, W]`, in this order:
//!
//! | transform | value at a voxel |
//! |---|---|
//! | noise | `v + std n`, `n` normal: the numbers of a `ChaCha8` stream, as on the CPU |
//! | blur | per axis `sum_k w_k v_(i + k)`, `w_k ~ exp(-k^2 / 2 sigma^2)`, `abs k <= 3 sigma + 1/4`, mirrored about the ends |
//! | brightness, contrast | `b v`; `(b v - b mean) c + b mean` within `b [min, max]` |
//! | low resolution | per axis of n samples, the nearest of `m = round(n scale)`, interpolated linearly back to n |
//! | gamma | `u = ((s v - min) / (max - min))^g (max - min) + min`, then `s (u - mean u) std v / std u + mean v`; `s = -1` if inverted |
//! | masking, mirroring | 0 where the label is below 0; axes reversed, of the labels too |
//!
//! Ranges, probabilities and order are nnU-Net's; the reference is `msd_data::augment`, which also draws the parameters.

pub mod cuda;
#[cfg(feature = "cuda")]
pub mod on_device;

/// Standard deviation of additive noise, and its random numbers: `ChaCha8`, stream 0 of a key, from a word on. One word per
/// element of a sample, in groups of 128 elements: the first 64 words give the radii of 64 pairs, the others the angles;
/// cosines go to the first 64 elements and sines to the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Standard deviation.
    pub std: f32,
    /// The key, eight words of four bytes each, least significant first.
    pub key: [u8; 32],
    /// Index of the first word.
    pub position: u64,
}

/// What is done to one channel of one sample; absent: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Transforms {
    /// The same for all channels of a sample.
    pub noise: Option<Noise>,
    /// Standard deviations along D, H, W, in voxels; above 0 and at most 1.
    pub blur: Option<[f32; 3]>,
    /// A factor.
    pub brightness: Option<f32>,
    /// A factor of deviations from the mean.
    pub contrast: Option<f32>,
    /// Parts of the resolution along D, H, W.
    pub low_resolution: Option<[f32; 3]>,
    /// Exponent for the negative.
    pub gamma_inverted: Option<f32>,
    /// Exponent.
    pub gamma: Option<f32>,
    /// Whether it is 0 outside.
    pub masked: bool,
    /// The same for all channels of a sample: axes D, H, W that are reversed.
    pub mirror: [bool; 3],
}
