//! Settings of a search and of a training, as TOML or JSON files hold them. Unknown keys are errors.

use adw_supernet::{CostUnit, Precision, SupernetConfig};
use serde::{Deserialize, Serialize};

use crate::optim::{AdamConfig, EmaConfig, OptimizerConfig, SgdConfig};
use crate::schedule::{Decay, Granularity, LearningRate, Temperature};
use crate::{Error, Result};

/// Half of a fold's training cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// Half A.
    A,
    /// Half B.
    B,
}

/// Batches on which alpha and beta are updated in each iteration after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchBatches {
    /// One update on a batch of A, then one on a batch of B: the paper.
    AAndB,
    /// One update, on a batch of B: two thirds of the time per iteration, and no architecture step on cases the weights
    /// are fitted to (DARTS, Liu et al. 2019).
    BOnly,
}

/// Largest cost of the found network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Number in the unit of the cost, for one patch.
    Absolute(f64),
    /// Fraction of the cost of the largest network of the search space.
    Fraction(f64),
}

impl Budget {
    /// Budget in the unit of `largest`, the cost of the largest network of the search space.
    pub fn of(self, largest: u64) -> f64 {
        match self {
            Self::Absolute(budget) => budget,
            Self::Fraction(fraction) => fraction * largest as f64,
        }
    }
}

/// Cost term of a search; see [`crate::CostPenalty`] for its formula.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostConfig {
    /// Unit of the costs.
    pub unit: CostUnit,
    /// Factor of the penalty, which is added to a loss of order 1.
    pub weight: f64,
    /// Cost up to which there is no penalty, and which the found network exceeds only if none of the likely ones
    /// keeps to it.
    pub budget: Budget,
    /// Part of the budget that the found network costs at least, above 0 and at most 1; none: as little as the search chooses.
    /// For comparisons of networks of equal cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
}

impl CostConfig {
    /// Refuses a number as a budget that is below the cost of the smallest network of `space` for one `patch`, D H W. A fraction, which
    /// presets have for spaces of any kind, may be: the penalty then never ends, and the most probable network is found. Refuses a
    /// part of a budget that the largest network does not cost.
    ///
    /// # Errors
    /// [`Error::Config`] for such a budget or part; a space without networks.
    pub fn check_for(&self, space: &SupernetConfig, patch: [usize; 3]) -> Result<()> {
        let smallest = space.smallest()?.cost(patch).get(self.unit);
        let largest = space.largest()?.cost(patch).get(self.unit) as f64;
        let part = self.at_least.unwrap_or(0.0);
        match self.budget {
            Budget::Absolute(budget) if part * budget > largest => {
                let expected = "at most the cost of the largest network of the search space";
                fail("cost.at_least", &format!("{part} of {budget}, above {largest}"), expected)
            }
            Budget::Absolute(budget) if budget < smallest as f64 => {
                let expected = "at least the cost of the smallest network of the search space";
                fail("cost.budget", &format!("{budget}, below {smallest}"), expected)
            }
            _ => Ok(()),
        }
    }
}

/// Settings of [`crate::search`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchConfig {
    /// Epochs, warm-up included.
    pub epochs: usize,
    /// Iterations per epoch.
    pub iterations_per_epoch: usize,
    /// Epochs at the start that train weights only.
    pub warmup_epochs: usize,
    /// Patches per batch, of which the batch source decides alone; those of the plan if none.
    #[serde(default)]
    pub batch_size: Option<usize>,
    /// Learning rate of alpha and beta.
    pub arch_lr: f64,
    /// Adam for alpha and beta.
    #[serde(default)]
    pub arch_optimizer: AdamConfig,
    /// Learning rate of the weights.
    pub lr: LearningRate,
    /// Optimiser of the weights.
    pub optimizer: OptimizerConfig,
    /// Largest L2 norm of the gradient of the parameters being updated.
    pub clip: f64,
    /// Temperature of the Gumbel-softmax.
    pub tau: Temperature,
    /// Half that the weights are trained on.
    pub weights_on: Half,
    /// Batches that the architecture is updated on.
    pub arch_batches: ArchBatches,
    /// Cost term; none unless given.
    #[serde(default)]
    pub cost: Option<CostConfig>,
    /// Passes of one sample of a batch at a time, whose gradients are summed in the order of the samples, instead of passes of
    /// the whole batch: the same bits on any number of [`crate::Ranks`], with other roundings of the sum.
    #[serde(default)]
    pub per_sample: bool,
    /// Precision of the convolutions, also in validation.
    #[serde(default)]
    pub precision: Precision,
    /// Validation batches per epoch (from half B, without noise); 0 for none.
    pub validation_batches: usize,
    /// Epochs from one checkpoint to the next; one is always written after the last epoch.
    #[serde(default = "one")]
    pub checkpoint_every_epochs: usize,
    /// Iterations, counted over the run, from one checkpoint to the next; 0 for none between epochs.
    #[serde(default)]
    pub checkpoint_every_iterations: usize,
    /// Seed of every random draw.
    pub seed: u64,
}

/// Settings of [`crate::retrain`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrainConfig {
    /// Epochs.
    pub epochs: usize,
    /// Iterations per epoch.
    pub iterations_per_epoch: usize,
    /// Patches per batch, of which the batch source decides alone; those of the plan if none.
    #[serde(default)]
    pub batch_size: Option<usize>,
    /// Learning rate.
    pub lr: LearningRate,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Largest L2 norm of the gradient.
    pub clip: f64,
    /// Start a found architecture from the weights that its search has shared among all networks, instead of random ones. Not read by
    /// [`crate::retrain`], which trains the network that it is given: [`adw_supernet::Supernet::subnet`] makes one with such weights.
    #[serde(default)]
    pub warm_start: bool,
    /// Running average of the weights, for validation and as the result; none unless given.
    #[serde(default)]
    pub ema: Option<EmaConfig>,
    /// Passes of one sample of a batch at a time, whose gradients are summed in the order of the samples, instead of passes of
    /// the whole batch: the same bits on any number of [`crate::Ranks`], with other roundings of the sum.
    #[serde(default)]
    pub per_sample: bool,
    /// Precision of the convolutions, also in validation.
    #[serde(default)]
    pub precision: Precision,
    /// Validation batches per epoch; 0 for none.
    pub validation_batches: usize,
    /// Epochs from one checkpoint to the next; one is always written after the last epoch.
    #[serde(default = "one")]
    pub checkpoint_every_epochs: usize,
    /// Iterations, counted over the run, from one checkpoint to the next; 0 for none between epochs.
    #[serde(default)]
    pub checkpoint_every_iterations: usize,
    /// Seed of every random draw.
    pub seed: u64,
}

fn one() -> usize {
    1
}

/// nnU-Net's optimiser (paper, section 3.1: "SGD with Nesterov momentum 0.99, decay 3e-5").
fn nnunet_optimizer() -> OptimizerConfig {
    OptimizerConfig::Sgd(SgdConfig { momentum: 0.99, weight_decay: 3e-5 })
}

/// nnU-Net's learning rate: 0.01 (1 - epoch / epochs)^0.9.
fn nnunet_lr() -> LearningRate {
    LearningRate { peak: 1e-2, decay: Decay::Poly { exponent: 0.9 }, warmup_epochs: 0.0, set_every: Granularity::Epoch }
}

impl SearchConfig {
    /// Published settings (Huang et al., MIDL 2022).
    pub fn paper() -> Self {
        Self {
            // Published code: 250 epochs, architecture steps from epoch 100 on.
            epochs: 250,
            warmup_epochs: 100,
            // nnU-Net: 250 iterations per epoch, 50 validation batches, the planner's batch size.
            iterations_per_epoch: 250,
            batch_size: None,
            validation_batches: 50,
            // Paper: Adam, learning rate 4e-4, no decay.
            arch_lr: 4e-4,
            arch_optimizer: AdamConfig::default(),
            lr: nnunet_lr(),
            optimizer: nnunet_optimizer(),
            // nnU-Net.
            clip: 12.0,
            // Paper: tau starts at 5 and falls by 0.97 per epoch, so to 5 * 0.97^149.
            tau: Temperature { start: 5.0, end: 0.05345 },
            // Paper; the published code trains on B.
            weights_on: Half::A,
            arch_batches: ArchBatches::AAndB,
            cost: None,
            per_sample: false,
            precision: Precision::Full,
            checkpoint_every_epochs: 1,
            checkpoint_every_iterations: 0,
            seed: 1,
        }
    }

    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// [`Error::Config`] for the first of them.
    pub fn check(&self) -> Result<()> {
        at_least_one("epochs", self.epochs)?;
        at_least_one("iterations_per_epoch", self.iterations_per_epoch)?;
        self.batch_size.map_or(Ok(()), |n| at_least_one("batch_size", n))?;
        if self.warmup_epochs > self.epochs {
            return fail("warmup_epochs", &self.warmup_epochs, "at most the epochs");
        }
        above_zero("arch_lr", self.arch_lr)?;
        check_adam("arch_optimizer", &self.arch_optimizer)?;
        check_lr(&self.lr)?;
        check_optimizer(&self.optimizer)?;
        above_zero("clip", self.clip)?;
        above_zero("tau.start", self.tau.start)?;
        above_zero("tau.end", self.tau.end)?;
        let Some(cost) = &self.cost else {
            return Ok(());
        };
        at_least_zero("cost.weight", cost.weight)?;
        cost.at_least.map_or(Ok(()), |part| up_to_one("cost.at_least", part))?;
        match cost.budget {
            Budget::Absolute(budget) => above_zero("cost.budget", budget),
            Budget::Fraction(fraction) => up_to_one("cost.budget", fraction),
        }
    }
}

impl RetrainConfig {
    /// Settings of nnU-Net, which the paper uses for the found networks: 1000 epochs of 250 iterations.
    pub fn paper() -> Self {
        Self {
            epochs: 1000,
            iterations_per_epoch: 250,
            batch_size: None,
            lr: nnunet_lr(),
            optimizer: nnunet_optimizer(),
            clip: 12.0,
            warm_start: false,
            ema: None,
            per_sample: false,
            precision: Precision::Full,
            validation_batches: 50,
            checkpoint_every_epochs: 1,
            checkpoint_every_iterations: 0,
            seed: 1,
        }
    }

    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// [`Error::Config`] for the first of them.
    pub fn check(&self) -> Result<()> {
        at_least_one("epochs", self.epochs)?;
        at_least_one("iterations_per_epoch", self.iterations_per_epoch)?;
        self.batch_size.map_or(Ok(()), |n| at_least_one("batch_size", n))?;
        check_lr(&self.lr)?;
        check_optimizer(&self.optimizer)?;
        above_zero("clip", self.clip)?;
        let ema = self.ema.as_ref();
        ema.map_or(Ok(()), |ema| below_one("ema.decay", ema.decay))
    }
}

fn check_lr(lr: &LearningRate) -> Result<()> {
    above_zero("lr.peak", lr.peak)?;
    at_least_zero("lr.warmup_epochs", lr.warmup_epochs)?;
    match lr.decay {
        Decay::Constant | Decay::Cosine { last: 0.0 } => Ok(()),
        Decay::Poly { exponent } => above_zero("lr.decay.exponent", exponent),
        Decay::Cosine { last } => up_to_one("lr.decay.last", last),
    }
}

fn check_optimizer(optimizer: &OptimizerConfig) -> Result<()> {
    match optimizer {
        OptimizerConfig::Sgd(sgd) | OptimizerConfig::Muon(sgd) => {
            below_one("optimizer.momentum", sgd.momentum)?;
            at_least_zero("optimizer.weight_decay", sgd.weight_decay)
        }
        OptimizerConfig::Adam(adam) => check_adam("optimizer", adam),
    }
}

fn check_adam(at: &str, adam: &AdamConfig) -> Result<()> {
    below_one(&format!("{at}.beta1"), adam.beta1)?;
    below_one(&format!("{at}.beta2"), adam.beta2)?;
    above_zero(&format!("{at}.eps"), adam.eps)
}

fn fail<T>(key: &str, value: &dyn std::fmt::Display, expected: &'static str) -> Result<T> {
    Err(Error::Config { key: key.into(), value: value.to_string(), expected })
}

fn at_least_one(key: &str, v: usize) -> Result<()> {
    if v >= 1 { Ok(()) } else { fail(key, &v, "at least 1") }
}

fn above_zero(key: &str, v: f64) -> Result<()> {
    if v > 0.0 && v.is_finite() { Ok(()) } else { fail(key, &v, "a number above 0") }
}

fn at_least_zero(key: &str, v: f64) -> Result<()> {
    if v >= 0.0 && v.is_finite() { Ok(()) } else { fail(key, &v, "a number of at least 0") }
}

fn below_one(key: &str, v: f64) -> Result<()> {
    if (0.0..1.0).contains(&v) { Ok(()) } else { fail(key, &v, "a number from 0 to below 1") }
}

fn up_to_one(key: &str, v: f64) -> Result<()> {
    if v > 0.0 && v <= 1.0 { Ok(()) } else { fail(key, &v, "a number above 0, at most 1") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paper_settings_pass_their_own_check_and_survive_toml() {
        let search = SearchConfig::paper();
        search.check().unwrap();
        assert_eq!(toml::from_str::<SearchConfig>(&toml::to_string(&search).unwrap()).unwrap(), search);
        let retrain = RetrainConfig::paper();
        retrain.check().unwrap();
        assert_eq!(toml::from_str::<RetrainConfig>(&toml::to_string(&retrain).unwrap()).unwrap(), retrain);
    }

    #[test]
    fn a_budget_reads_as_a_table_and_unknown_keys_are_refused() {
        let cost = "unit = \"macs\"\nweight = 1.0\nbudget = { fraction = 0.4 }";
        assert_eq!(toml::from_str::<CostConfig>(cost).unwrap().budget, Budget::Fraction(0.4));
        let text = toml::to_string(&SearchConfig::paper()).unwrap();
        let error = toml::from_str::<SearchConfig>(&format!("epoch = 3\n{text}")).unwrap_err().to_string();
        assert!(error.contains("unknown field `epoch`"), "{error}");
    }

    #[test]
    fn senseless_values_are_named() {
        let message = |edit: &dyn Fn(&mut SearchConfig)| {
            let mut config = SearchConfig::paper();
            edit(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert_eq!(message(&|c| c.warmup_epochs = 251), "warmup_epochs = 251: expected at most the epochs");
        assert_eq!(message(&|c| c.tau.end = 0.0), "tau.end = 0: expected a number above 0");
        assert_eq!(message(&|c| c.lr.peak = f64::NAN), "lr.peak = NaN: expected a number above 0");
        assert_eq!(message(&|c| c.iterations_per_epoch = 0), "iterations_per_epoch = 0: expected at least 1");
    }
}
