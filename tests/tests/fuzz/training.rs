//! The smallest training there is, for its checkpoint.

use std::path::Path;

use adw_search::config::RetrainConfig;
use adw_search::{Batch, BatchRequest, BatchSource, BoxError, RunOptions, retrain};
use adw_supernet::{Architecture, DiceCe, Unet};
use candle_core::{DType, Device, Tensor};

/// A network of three layers.
pub(crate) fn network() -> adw_supernet::Result<Unet> {
    let architecture = Architecture::new(1, 3, vec![[2; 3]], vec![[1; 3]; 2], vec![vec![2], vec![2], vec![2]])?;
    Unet::new(&architecture, 1, DType::F32, &Device::Cpu)
}

/// The same batch for every request.
struct OneBatch;

impl BatchSource for OneBatch {
    fn batch(&mut self, _: BatchRequest) -> Result<Batch, BoxError> {
        let x = Tensor::arange(0f32, 64.0, &Device::Cpu)?.reshape((1, 1, 4, 4, 4))?;
        let target = (&x / 30.0)?.to_dtype(DType::U8)?.reshape((1, 4, 4, 4))?;
        Ok(Batch { x, target })
    }
}

/// Trains for two epochs of one step, or continues that.
pub(crate) fn train(folder: &Path, resume: bool) -> adw_search::Result<()> {
    let config = RetrainConfig {
        epochs: 2,
        iterations_per_epoch: 1,
        batch_size: Some(1),
        validation_batches: 0,
        ..RetrainConfig::paper()
    };
    let options = RunOptions { directory: Some(folder.to_owned()), resume, ..RunOptions::default() };
    let mut network = network()?;
    let trained = retrain(&mut network, &DiceCe::default(), &config, &options, &mut OneBatch, &mut |_| {
        std::ops::ControlFlow::Continue(())
    });
    trained.map(drop)
}
