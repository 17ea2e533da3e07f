//! Optimisers on the processor.

use candle_core::Tensor;

use super::backend::{Clipping, Cpu, OptimKernels, Scale};
use super::clip::global_norm;
use super::config::{AdamConfig, SgdConfig};
use super::in_place::{self, InPlace, Real, updates};
use super::slots::Update;
use crate::{Error, Result};

/// The number of a factor.
///
/// # Errors
/// If the factor lies on a device, and so the gradients do.
fn known(scale: &Scale) -> Result<f64> {
    match scale {
        Scale::Known(scale) => Ok(*scale),
        Scale::OnDevice(scale) => Err(Error::Shape {
            what: "gradients".into(),
            expected: "tensors in the host's memory, as their parameters".into(),
            got: format!("tensors on {:?}", scale.device().location()),
        }),
    }
}

impl OptimKernels for Cpu {
    fn sgd(&self, updates: &[Update<1>], config: &SgdConfig, lr: f64, scale: &Scale) -> Result<()> {
        let scale = known(scale)?;
        let SgdConfig { momentum, weight_decay: decay } = *config;
        for Update { weight, gradient, state: [velocity], .. } in updates {
            velocity.inplace_op3(gradient, weight, &InPlace(SgdVelocity { momentum, decay, scale }))?;
            weight.inplace_op3(gradient, velocity, &InPlace(SgdWeight { lr, momentum, decay, scale }))?;
        }
        Ok(())
    }

    fn adam(&self, updates: &[Update<2>], config: &AdamConfig, lr: f64, scale: &Scale) -> Result<()> {
        let scale = known(scale)?;
        let AdamConfig { beta1, beta2, eps } = *config;
        for Update { weight, gradient, state: [mean, square], steps } in updates {
            let (one_minus_beta1, one_minus_beta2) = (1.0 - beta1, 1.0 - beta2);
            mean.inplace_op3(gradient, gradient, &InPlace(AdamMean { beta1, one_minus_beta1, scale }))?;
            square.inplace_op3(gradient, gradient, &InPlace(AdamSquare { beta2, one_minus_beta2, scale }))?;
            let step_size = lr / (1.0 - beta1.powi(*steps));
            let root_correction = (1.0 - beta2.powi(*steps)).sqrt();
            weight.inplace_op3(mean, square, &InPlace(AdamWeight { step_size, root_correction, eps }))?;
        }
        Ok(())
    }

    fn ema(&self, pairs: &[(&Tensor, &Tensor)], decay: f64) -> Result<()> {
        for (weight, average) in pairs {
            average.inplace_op3(weight, weight, &InPlace(EmaAverage { decay, one_minus_decay: 1.0 - decay }))?;
        }
        Ok(())
    }

    fn clip(&self, gradients: &[Option<Tensor>], _: f64) -> Result<Clipping> {
        Ok(Clipping::Known(global_norm(gradients)?))
    }
}

// An update of two tensors only takes the second one twice.
updates! {
    /// v <- momentum v + (scale g + decay w)
    SgdVelocity { momentum, decay, scale }: |v, g, w| momentum * v + (g * scale + decay * w);

    /// w <- w - lr (scale g + decay w + momentum v)
    SgdWeight { lr, momentum, decay, scale }: |w, g, v| w - lr * (g * scale + decay * w + momentum * v);

    /// m <- beta1 m + (1 - beta1) g
    AdamMean { beta1, one_minus_beta1, scale }: |m, g, _same| beta1 * m + one_minus_beta1 * (g * scale);

    /// v <- beta2 v + (1 - beta2) g^2
    AdamSquare { beta2, one_minus_beta2, scale }: |v, g, _same| beta2 * v + one_minus_beta2 * (g * scale * (g * scale));

    /// w <- w - `step_size` m / (sqrt(v) / `root_correction` + eps)
    AdamWeight { step_size, root_correction, eps }: |w, m, v| w - step_size * m / (v.sqrt() / root_correction + eps);

    /// average <- decay average + (1 - decay) w
    EmaAverage { decay, one_minus_decay }: |average, w, _same| decay * average + one_minus_decay * w;
}
