//! Parameters of a patch's transforms after the spatial one, as drawn at random, and their application.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::intensity::{self, BrightnessAndContrast, Gamma};
use super::patch::{Patch, mirror};
use super::probabilities::Augmentation;
use super::{filter, spatial};

/// Takes the random words for `len` elements of noise from a generator: the result begins at them, and `rng` behind them.
pub(super) fn take_noise(rng: &mut ChaCha8Rng, len: usize) -> ChaCha8Rng {
    let noise = rng.clone();
    // A block takes all its words, the last one too.
    rng.set_word_pos(rng.get_word_pos() + len.next_multiple_of(intensity::NOISE_BLOCK) as u128);
    noise
}

/// Transforms of a channel, applied in this order; None leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ChannelTransforms {
    /// Standard deviations of a Gaussian blur along D, H, W, in voxels.
    pub(crate) blur: Option<[f32; 3]>,
    /// Factor of intensities.
    pub(crate) brightness: Option<f32>,
    /// Factor of deviations from the mean; the result stays within the range before it.
    pub(crate) contrast: Option<f32>,
    /// Part of the resolution along D, H, W that is left: nearest voxels on the way down, linear interpolation up again.
    pub(crate) low_resolution: Option<[f32; 3]>,
    /// Exponent of a gamma correction of the negative, mean and deviation kept.
    pub(crate) gamma_inverted: Option<f32>,
    /// Exponent of a gamma correction, mean and deviation kept.
    pub(crate) gamma: Option<f32>,
}

/// Transforms of a patch after the spatial one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct DrawnTransforms {
    /// Additive noise: standard deviation and generator.
    pub(crate) noise: Option<(f32, ChaCha8Rng)>,
    /// Transforms of each channel.
    pub(crate) channels: Vec<ChannelTransforms>,
    /// Axes that are reversed: D, H, W.
    pub(crate) mirror: [bool; 3],
}

impl Augmentation {
    /// Draws the transforms after the spatial one for a patch of this shape.
    pub(crate) fn draw(&self, shape: [usize; 3], num_channels: usize, rng: &mut ChaCha8Rng) -> DrawnTransforms {
        let mut noise = None;
        if rng.random_bool(self.noise) {
            let std = rng.random_range(0.0f32..0.1);
            let len = num_channels * shape.iter().product::<usize>();
            noise = Some((std, take_noise(rng, len)));
        }
        let mut channels = vec![ChannelTransforms::default(); num_channels];
        if rng.random_bool(self.blur) {
            for channel in &mut channels {
                if !rng.random_bool(0.5) {
                    channel.blur = Some([0; 3].map(|_| rng.random_range(0.5f32..1.0)));
                }
            }
        }
        let (brighten, contrast) = (rng.random_bool(self.brightness), rng.random_bool(self.contrast));
        for channel in &mut channels {
            channel.brightness = brighten.then(|| around_one(0.75, 1.25, rng));
            channel.contrast = contrast.then(|| around_one(0.75, 1.25, rng));
        }
        if rng.random_bool(self.low_resolution) {
            let flat = spatial::is_flat(shape);
            for channel in &mut channels {
                if !rng.random_bool(0.5) {
                    let scale = rng.random_range(0.5f32..1.0);
                    channel.low_resolution = Some([if flat { 1.0 } else { scale }, scale, scale]);
                }
            }
        }
        if rng.random_bool(self.gamma_inverted) {
            for channel in &mut channels {
                channel.gamma_inverted = Some(around_one(0.7, 1.5, rng));
            }
        }
        if rng.random_bool(self.gamma) {
            for channel in &mut channels {
                channel.gamma = Some(around_one(0.7, 1.5, rng));
            }
        }
        // Every axis takes its number, so that the axes that are left out change nothing else.
        let drawn = [0; 3].map(|_| rng.random_bool(self.mirror));
        let axes = self.mirror_axes.patch_axes().unwrap_or_default();
        DrawnTransforms { noise, channels, mirror: [0, 1, 2].map(|axis| drawn[axis] && axes[axis]) }
    }
}

/// Draws a factor below or above 1 with equal probability.
fn around_one(low: f32, high: f32, rng: &mut impl Rng) -> f32 {
    if rng.random_bool(0.5) { rng.random_range(low..1.0) } else { rng.random_range(1.0..high) }
}

impl DrawnTransforms {
    /// Transforms an image `[C, D, H, W]` and its labels `[D, H, W]` in place. `shape` is D, H, W.
    /// Panics if the lengths do not fit the shape and the number of channels.
    pub(crate) fn apply(&self, image: &mut [f32], labels: &mut [i16], shape: [usize; 3]) {
        let voxels: usize = shape.iter().product();
        assert_eq!(
            (image.len(), labels.len()),
            (self.channels.len() * voxels, voxels),
            "an image of {} channels and its labels, both of {shape:?}",
            self.channels.len()
        );
        if let Some((std, rng)) = &self.noise {
            intensity::add_noise(image, *std, &mut rng.clone());
        }
        for (channel, t) in image.chunks_exact_mut(voxels).zip(&self.channels) {
            t.apply(channel, shape);
            mirror(channel, shape, self.mirror);
        }
        mirror(labels, shape, self.mirror);
    }

    pub(crate) fn apply_to(&self, patch: &mut Patch) {
        self.apply(&mut patch.image, &mut patch.labels, patch.shape);
    }
}

impl ChannelTransforms {
    fn apply(&self, channel: &mut [f32], shape: [usize; 3]) {
        if let Some(sigma) = self.blur {
            filter::blur(channel, shape, sigma);
        }
        if self.brightness.is_some() || self.contrast.is_some() {
            intensity::apply(BrightnessAndContrast { channel, brightness: self.brightness, contrast: self.contrast });
        }
        if let Some(scale) = self.low_resolution {
            filter::low_resolution(channel, shape, scale);
        }
        for (g, inverted) in [(self.gamma_inverted, true), (self.gamma, false)] {
            if let Some(g) = g {
                intensity::apply(Gamma { channel, g, inverted });
            }
        }
    }
}
