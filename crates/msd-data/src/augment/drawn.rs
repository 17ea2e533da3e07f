//! Parameters of a patch's transforms after the spatial one, as drawn at random, and their application.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::intensity::{self, BrightnessAndContrast, Gamma};
use super::{Augmentation, Patch, filter, spatial};

/// Position of the random numbers of Gaussian noise in a generator's stream.
///
/// Element `e` of the image `[C, D, H, W]` belongs to pair `i = e mod 64` of block `k = e / 128`. With `w(n)` the 32-bit word
/// `position + 128 k + n` of the `ChaCha8` stream of `key` (stream 0), `u = (w(i) >> 8) / 2^24 + 2^-25` and
/// `v = (w(64 + i) >> 8) / 2^24`, the noise is `std sqrt(-2 ln u)` times `cos(2 pi v)` for the first 64 elements of the block
/// and `sin(2 pi v)` for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoiseStream {
    /// The key, eight words of four bytes each, least significant first.
    pub key: [u8; 32],
    /// Index of the first word.
    pub position: u64,
}

impl NoiseStream {
    /// Takes the words for `len` elements from a generator.
    pub(super) fn take(rng: &mut ChaCha8Rng, len: usize) -> Self {
        let position = rng.get_word_pos();
        // A block takes all its words, the last one too.
        rng.set_word_pos(position + len.next_multiple_of(intensity::NOISE_BLOCK) as u128);
        Self {
            key: rng.get_seed(),
            position: u64::try_from(position).expect("a patch takes far fewer than 2^64 words"),
        }
    }

    fn generator(&self) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::from_seed(self.key);
        rng.set_word_pos(u128::from(self.position));
        rng
    }
}

/// Transforms of a channel, applied in this order; None leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ChannelTransforms {
    /// Standard deviations of a Gaussian blur along D, H, W, in voxels.
    pub blur: Option<[f32; 3]>,
    /// Factor of intensities.
    pub brightness: Option<f32>,
    /// Factor of deviations from the mean; the result stays within the range before it.
    pub contrast: Option<f32>,
    /// Part of the resolution along D, H, W that is left: nearest voxels on the way down, linear interpolation up again.
    pub low_resolution: Option<[f32; 3]>,
    /// Exponent of a gamma correction of the negative, mean and deviation kept.
    pub gamma_inverted: Option<f32>,
    /// Exponent of a gamma correction, mean and deviation kept.
    pub gamma: Option<f32>,
}

/// Transforms of a patch after the spatial one.
///
/// ```
/// use msd_data::augment::{ChannelTransforms, DrawnTransforms};
/// let drawn = DrawnTransforms {
///     noise: None,
///     channels: vec![ChannelTransforms { brightness: Some(2.0), ..ChannelTransforms::default() }],
///     mirror: [false, false, true],
/// };
/// let (mut image, mut labels) = (vec![1.0, 2.0, 3.0], vec![0, 1, 2]);
/// drawn.apply(&mut image, &mut labels, [1, 1, 3]);
/// assert_eq!((image, labels), (vec![6.0, 4.0, 2.0], vec![2, 1, 0]));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DrawnTransforms {
    /// Additive noise: standard deviation and random numbers.
    pub noise: Option<(f32, NoiseStream)>,
    /// Transforms of each channel.
    pub channels: Vec<ChannelTransforms>,
    /// Axes that are reversed: D, H, W.
    pub mirror: [bool; 3],
}

impl Augmentation {
    /// Draws the transforms after the spatial one for a patch of this shape.
    pub(crate) fn draw(&self, shape: [usize; 3], num_channels: usize, rng: &mut ChaCha8Rng) -> DrawnTransforms {
        let mut noise = None;
        if rng.random_bool(self.noise) {
            let std = rng.random_range(0.0f32..0.1);
            let len = num_channels * shape.iter().product::<usize>();
            noise = Some((std, NoiseStream::take(rng, len)));
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
        DrawnTransforms { noise, channels, mirror: [0; 3].map(|_| rng.random_bool(self.mirror)) }
    }
}

/// Draws a factor below or above 1 with equal probability.
fn around_one(low: f32, high: f32, rng: &mut impl Rng) -> f32 {
    if rng.random_bool(0.5) { rng.random_range(low..1.0) } else { rng.random_range(1.0..high) }
}

impl DrawnTransforms {
    /// Transforms an image `[C, D, H, W]` and its labels `[D, H, W]` in place. `shape` is D, H, W.
    ///
    /// # Panics
    /// On lengths that do not fit the shape and the number of channels.
    pub fn apply(&self, image: &mut [f32], labels: &mut [i16], shape: [usize; 3]) {
        let voxels: usize = shape.iter().product();
        assert_eq!(
            (image.len(), labels.len()),
            (self.channels.len() * voxels, voxels),
            "an image of {} channels and its labels, both of {shape:?}",
            self.channels.len()
        );
        if let Some((std, stream)) = &self.noise {
            intensity::add_noise(image, *std, &mut stream.generator());
        }
        for (channel, t) in image.chunks_exact_mut(voxels).zip(&self.channels) {
            t.apply(channel, shape);
            super::mirror(channel, shape, self.mirror);
        }
        super::mirror(labels, shape, self.mirror);
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
