//! Data augmentation: nnU-Net's list, each transform a pure function of parameters drawn beforehand.
//!
//! Ranges are nnU-Net's (batchgeneratorsv2 as of nnU-Net 2.8); [`Augmentation`] holds the probabilities. The order is
//! rotation and scaling, noise, blur, brightness, contrast, low resolution, inverted gamma, gamma, mirroring.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

mod filter;
mod intensity;
mod spatial;
mod vector_math;

use intensity::{BrightnessAndContrast, Gamma};

pub(crate) use filter::blur;
pub(crate) use intensity::add_noise;
pub(crate) use spatial::SpatialTransform;

/// How often each transform is applied to a patch; each has its own coin.
///
/// ```
/// use msd_data::Augmentation;
/// let gentle = Augmentation { blur: 0.05, ..Augmentation::light() };
/// assert_eq!(gentle.rotation, 0.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Rotation by up to 30 degrees about each axis (180 in-plane for very flat patches).
    pub rotation: f64,
    /// Scaling of space by 0.7 to 1.4, the same along each axis.
    pub scaling: f64,
    /// Gaussian noise of standard deviation up to 0.1.
    pub noise: f64,
    /// Gaussian blur of 0.5 to 1 voxels.
    pub blur: f64,
    /// Intensities times 0.75 to 1.25.
    pub brightness: f64,
    /// Deviations from the mean times 0.75 to 1.25, within the old range.
    pub contrast: f64,
    /// Down to 0.5 to 1 of the resolution and up again.
    pub low_resolution: f64,
    /// Gamma correction of the negative.
    pub gamma_inverted: f64,
    /// Gamma correction by 0.7 to 1.5 with mean and deviation kept.
    pub gamma: f64,
    /// Mirroring along each axis, independently.
    pub mirror: f64,
}

impl Augmentation {
    /// Plain patches, for validation.
    pub fn none() -> Self {
        Self {
            rotation: 0.0,
            scaling: 0.0,
            noise: 0.0,
            blur: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            low_resolution: 0.0,
            gamma_inverted: 0.0,
            gamma: 0.0,
            mirror: 0.0,
        }
    }

    /// What costs next to nothing: mirroring, brightness, contrast, gamma and noise, as often as nnU-Net.
    pub fn light() -> Self {
        let full = Self::full();
        Self {
            rotation: 0.0,
            scaling: 0.0,
            blur: 0.0,
            low_resolution: 0.0,
            ..full
        }
    }

    /// nnU-Net's list and probabilities.
    pub fn full() -> Self {
        Self {
            rotation: 0.2,
            scaling: 0.2,
            noise: 0.1,
            blur: 0.2,
            brightness: 0.15,
            contrast: 0.15,
            low_resolution: 0.25,
            gamma_inverted: 0.1,
            gamma: 0.3,
            mirror: 0.5,
        }
    }

    /// The preset called `none`, `light` or `full`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another name.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::none()),
            "light" => Ok(Self::light()),
            "full" => Ok(Self::full()),
            _ => Err(Error::Invalid(format!(
                "augmentation {name:?}; expected none, light or full"
            ))),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (name, p) in [
            ("rotation", self.rotation),
            ("scaling", self.scaling),
            ("noise", self.noise),
            ("blur", self.blur),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("low_resolution", self.low_resolution),
            ("gamma_inverted", self.gamma_inverted),
            ("gamma", self.gamma),
            ("mirror", self.mirror),
        ] {
            if !(0.0..=1.0).contains(&p) {
                return Err(Error::Invalid(format!(
                    "augmentation: {name} is {p}; a probability is from 0 to 1"
                )));
            }
        }
        Ok(())
    }

    /// Voxels of the image that a patch can need once rotated and scaled; the patch itself if it never is.
    pub(crate) fn enlarged_patch(&self, patch: [usize; 3]) -> [usize; 3] {
        if self.rotation == 0.0 && self.scaling == 0.0 {
            patch
        } else {
            spatial::enlarged(patch)
        }
    }

    /// Everything after the spatial transform.
    pub(crate) fn apply(&self, patch: &mut Patch, rng: &mut impl Rng) {
        let shape = patch.shape;
        if rng.random_bool(self.noise) {
            let std = rng.random_range(0.0f32..0.1);
            intensity::add_noise(&mut patch.image, std, rng);
        }
        if rng.random_bool(self.blur) {
            for channel in patch.channels_mut() {
                if rng.random_bool(0.5) {
                    continue;
                }
                let sigma = [0; 3].map(|_| rng.random_range(0.5f32..1.0));
                filter::blur(channel, shape, sigma);
            }
        }
        let (brighten, contrast) = (
            rng.random_bool(self.brightness),
            rng.random_bool(self.contrast),
        );
        if brighten || contrast {
            patch.channels_mut().for_each(|channel| {
                let mut factor = |drawn: bool| drawn.then(|| around_one(0.75, 1.25, rng));
                let (brightness, contrast) = (factor(brighten), factor(contrast));
                intensity::apply(BrightnessAndContrast {
                    channel,
                    brightness,
                    contrast,
                });
            });
        }
        if rng.random_bool(self.low_resolution) {
            let flat = spatial::is_flat(shape);
            for channel in patch.channels_mut() {
                if rng.random_bool(0.5) {
                    continue;
                }
                let scale = rng.random_range(0.5f32..1.0);
                filter::low_resolution(
                    channel,
                    shape,
                    [if flat { 1.0 } else { scale }, scale, scale],
                );
            }
        }
        for (probability, inverted) in [(self.gamma_inverted, true), (self.gamma, false)] {
            if rng.random_bool(probability) {
                patch.channels_mut().for_each(|channel| {
                    let g = around_one(0.7, 1.5, rng);
                    intensity::apply(Gamma {
                        channel,
                        g,
                        inverted,
                    });
                });
            }
        }
        let axes = [0; 3].map(|_| rng.random_bool(self.mirror));
        patch.mirror(axes);
    }
}

/// A factor below or above 1 with equal probability.
fn around_one(low: f32, high: f32, rng: &mut impl Rng) -> f32 {
    if rng.random_bool(0.5) {
        rng.random_range(low..1.0)
    } else {
        rng.random_range(1.0..high)
    }
}

/// An image patch and its labels while they are being transformed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Patch {
    /// `[C, D, H, W]`
    pub(crate) image: Vec<f32>,
    /// `[D, H, W]`; -1 outside the image or its nonzero region.
    pub(crate) labels: Vec<i16>,
    pub(crate) shape: [usize; 3],
}

impl Patch {
    fn channels_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let voxels = self.shape.iter().product();
        self.image.chunks_exact_mut(voxels)
    }

    /// Reverses the axes that are set.
    pub(crate) fn mirror(&mut self, axes: [bool; 3]) {
        let shape = self.shape;
        self.channels_mut()
            .for_each(|channel| mirror(channel, shape, axes));
        mirror(&mut self.labels, shape, axes);
    }

    /// Sets the channels that are marked to 0 where the label is -1, as they were before noise and gamma.
    pub(crate) fn clear_outside(&mut self, masked_channels: &[bool]) {
        let Self { image, labels, .. } = self;
        let channels = image.chunks_exact_mut(labels.len()).zip(masked_channels);
        for (channel, _) in channels.filter(|(_, masked)| **masked) {
            for (v, _) in channel
                .iter_mut()
                .zip(&*labels)
                .filter(|(_, label)| **label < 0)
            {
                *v = 0.0;
            }
        }
    }
}

fn mirror<T>(values: &mut [T], [_, h, w]: [usize; 3], axes: [bool; 3]) {
    // Reversing everything within blocks of an axis and its inner ones reverses all of them; undo the inner ones.
    let [d_flip, h_flip, w_flip] = axes;
    if d_flip {
        values.reverse();
    }
    if h_flip != d_flip {
        values.chunks_exact_mut(h * w).for_each(<[T]>::reverse);
    }
    if w_flip != h_flip {
        values.chunks_exact_mut(w).for_each(<[T]>::reverse);
    }
}

#[cfg(test)]
mod tests;
