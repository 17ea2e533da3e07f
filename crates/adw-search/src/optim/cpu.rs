//! Optimisers on the processor.

use candle_core::Tensor;

use super::backend::{Clipping, Cpu, OptimKernels, Scale};
use super::clip::global_norm;
use super::config::{AdamConfig, SgdConfig};
use super::in_place::{InPlace, Real, Update2, Update3};
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
            mean.inplace_op2(gradient, &InPlace(AdamMean { beta1, scale }))?;
            square.inplace_op2(gradient, &InPlace(AdamSquare { beta2, scale }))?;
            let step_size = lr / (1.0 - beta1.powi(*steps));
            let root_correction = (1.0 - beta2.powi(*steps)).sqrt();
            weight.inplace_op3(mean, square, &InPlace(AdamWeight { step_size, root_correction, eps }))?;
        }
        Ok(())
    }

    fn ema(&self, pairs: &[(&Tensor, &Tensor)], decay: f64) -> Result<()> {
        for (weight, average) in pairs {
            average.inplace_op2(weight, &InPlace(EmaAverage { decay }))?;
        }
        Ok(())
    }

    fn clip(&self, gradients: &[Option<Tensor>], _: f64) -> Result<Clipping> {
        Ok(Clipping::Known(global_norm(gradients)?))
    }
}

/// v <- momentum v + (scale g + decay w)
struct SgdVelocity {
    momentum: f64,
    decay: f64,
    scale: f64,
}

impl Update3 for SgdVelocity {
    const NAME: &'static str = "sgd-velocity";
    fn apply<T: Real>(&self, v: T, g: T, w: T) -> T {
        T::of(self.momentum) * v + (g * T::of(self.scale) + T::of(self.decay) * w)
    }
}

/// w <- w - lr (scale g + decay w + momentum v)
struct SgdWeight {
    lr: f64,
    momentum: f64,
    decay: f64,
    scale: f64,
}

impl Update3 for SgdWeight {
    const NAME: &'static str = "sgd-weight";
    fn apply<T: Real>(&self, w: T, g: T, v: T) -> T {
        let g = g * T::of(self.scale) + T::of(self.decay) * w;
        w - T::of(self.lr) * (g + T::of(self.momentum) * v)
    }
}

/// m <- beta1 m + (1 - beta1) g
struct AdamMean {
    beta1: f64,
    scale: f64,
}

impl Update2 for AdamMean {
    const NAME: &'static str = "adam-mean";
    fn apply<T: Real>(&self, m: T, g: T) -> T {
        T::of(self.beta1) * m + T::of(1.0 - self.beta1) * (g * T::of(self.scale))
    }
}

/// v <- beta2 v + (1 - beta2) g^2
struct AdamSquare {
    beta2: f64,
    scale: f64,
}

impl Update2 for AdamSquare {
    const NAME: &'static str = "adam-square";
    fn apply<T: Real>(&self, v: T, g: T) -> T {
        let g = g * T::of(self.scale);
        T::of(self.beta2) * v + T::of(1.0 - self.beta2) * (g * g)
    }
}

/// w <- w - `step_size` m / (sqrt(v) / `root_correction` + eps)
struct AdamWeight {
    step_size: f64,
    root_correction: f64,
    eps: f64,
}

impl Update3 for AdamWeight {
    const NAME: &'static str = "adam-weight";
    fn apply<T: Real>(&self, w: T, m: T, v: T) -> T {
        let denominator = v.sqrt() / T::of(self.root_correction) + T::of(self.eps);
        w - T::of(self.step_size) * m / denominator
    }
}

/// average <- decay average + (1 - decay) w
struct EmaAverage {
    decay: f64,
}

impl Update2 for EmaAverage {
    const NAME: &'static str = "ema";
    fn apply<T: Real>(&self, average: T, w: T) -> T {
        T::of(self.decay) * average + T::of(1.0 - self.decay) * w
    }
}
