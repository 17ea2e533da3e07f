//! Settings of the optimisers.

use serde::{Deserialize, Serialize};

/// Settings of [`Sgd`](super::Sgd) and [`Muon`](super::Muon).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SgdConfig {
    /// Momentum in [0, 1).
    pub momentum: f64,
    /// Weight decay: `weight_decay * w` is added to the gradient, or to the step of a kernel that `Muon` orthogonalises.
    pub weight_decay: f64,
}

/// Settings of [`Adam`](super::Adam); the defaults are those of `torch.optim.Adam`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Number added to the denominator.
    pub eps: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// Settings of [`Ema`](super::Ema).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Decay per update after the first ones, in [0, 1).
    pub decay: f64,
}
