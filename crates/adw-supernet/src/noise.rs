//! Gumbel noise of a supernet's choices.

use crate::error::{Error, Result};
use crate::space::{NUM_WIDTHS, SupernetConfig};
use adw_tensor_ops::gumbel_softmax;
use adw_tensor_ops::philox::{Purpose, Stream};
use candle_core::{DType, Device, Tensor};

/// Key of the Gumbel noise of one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseKey {
    /// Seed of the run.
    pub seed: u64,
    /// Training epoch.
    pub epoch: u32,
    /// Iteration of the epoch; below 2^29.
    pub iteration: u32,
    /// Pass within the iteration; below 8.
    pub pass: u32,
}

impl NoiseKey {
    /// Refuses keys whose counter would be that of another key.
    pub(crate) fn check(&self) -> Result<()> {
        if self.pass < 8 && self.iteration < 1 << 29 {
            return Ok(());
        }
        Err(Error::Input(format!("noise of {self:?}, expected a pass below 8 and an iteration below 2^29")))
    }

    /// [`Stream::iteration`] of the pass.
    ///
    /// # Errors
    /// If it is that of another key.
    pub(crate) fn counter(&self) -> Result<u32> {
        self.check()?;
        Ok(self.iteration * 8 + self.pass)
    }

    fn stream(&self, purpose: Purpose, index: usize) -> Result<Stream> {
        let iteration = self.counter()?;
        Ok(Stream { seed: self.seed, purpose, epoch: self.epoch, iteration, index: index as u32 })
    }
}

/// Noise of one block.
#[derive(Clone, Debug)]
pub struct BlockNoise {
    /// Per layer, over the candidate widths: `[5]`.
    pub width: Vec<Tensor>,
    /// Over the depths: `[num_layers]`.
    pub depth: Tensor,
}

/// Gumbel noise of one pass.
#[derive(Clone, Debug)]
pub enum GumbelNoise {
    /// Zero noise, as in evaluation.
    Zero,
    /// Drawn by counter: a function of the key, the same on every device.
    Keyed(NoiseKey),
    /// Given numbers, per block.
    Given(Vec<BlockNoise>),
}

/// Noise and temperature of the softmaxes of one pass: the input of a pass beside the batch.
#[derive(Clone, Debug)]
pub struct GumbelSample {
    /// Noise of all softmaxes.
    pub noise: GumbelNoise,
    /// Temperature of all softmaxes.
    pub tau: f64,
}

impl GumbelNoise {
    /// Numbers of the noise, per block of the search space, on the host.
    ///
    /// # Errors
    /// If given noise does not fit the space, or a key is out of range.
    pub(crate) fn blocks(&self, config: &SupernetConfig, dtype: DType) -> Result<Vec<BlockNoise>> {
        if let Self::Given(blocks) = self {
            check_given(blocks, config)?;
            return Ok(blocks.clone());
        }
        let noise = |purpose, index, n| -> Result<Tensor> {
            Ok(match self {
                Self::Keyed(key) => gumbel_softmax::noise(key.stream(purpose, index)?, n, dtype, &Device::Cpu)?,
                _ => Tensor::zeros(n, dtype, &Device::Cpu)?,
            })
        };
        let depth = config.num_layers();
        (0..config.num_blocks())
            .map(|i| {
                let width =
                    (0..depth).map(|l| noise(Purpose::WidthNoise, i * depth + l, NUM_WIDTHS)).collect::<Result<_>>()?;
                let depth = noise(Purpose::DepthNoise, i, depth)?;
                Ok(BlockNoise { width, depth })
            })
            .collect()
    }
}

fn check_given(blocks: &[BlockNoise], config: &SupernetConfig) -> Result<()> {
    let (num_blocks, depth) = (config.num_blocks(), config.num_layers());
    if blocks.len() != num_blocks {
        return Err(Error::Input(format!("noise for {} blocks, but the supernet has {num_blocks}", blocks.len())));
    }
    match blocks.iter().find(|b| b.width.len() != depth) {
        None => Ok(()),
        Some(block) => {
            let got = block.width.len();
            Err(Error::Input(format!("noise for {got} layers of a block, but the supernet has {depth}")))
        }
    }
}
