//! Architecture search: warm-up, bilevel iterations, argmax.

use adw_supernet::{Architecture, BlockProbabilities, CostUnit, Loss, NoiseKey, Supernet, SupernetConfig};
use serde::{Deserialize, Serialize};

use crate::bilevel::{BilevelOptimizers, BilevelSettings, HalfBatches, bilevel_step, weight_step};
use crate::budget::CostPenalty;
use crate::checkpoint::Position;
use crate::config::{ArchBatches, Half, SearchConfig};
use crate::dice::{self, DiceCounts};
use crate::events::{IterationReport, OnEvent};
use crate::loop_schedule::LoopSchedule;
use crate::parameters::{self, PARAMETER_GROUP, TensorGroups};
use crate::ranks::{self, Ranks};
use crate::run_files::{RunFiles, RunOptions};
use crate::training_loop::{self, EpochSummary, NextBatch, TrainingTask};
use crate::{Batch, BatchSource, Error, NamedTensors, Part, Result};

/// Phase of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Weights are updated.
    Warmup,
    /// Weights, alpha and beta are updated.
    Search,
}

/// Figures of one epoch of a search: a line of `history.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchRow {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Warm-up or search.
    pub phase: Phase,
    /// Learning rate of the weights in the first iteration.
    pub lr: f64,
    /// Temperature.
    pub tau: f64,
    /// Mean loss of the weight steps.
    pub loss: Option<f64>,
    /// Mean gradient norm of the weight steps, before clipping.
    pub grad_norm: Option<f64>,
    /// Mean loss of the architecture steps on A.
    pub arch_loss_a: Option<f64>,
    /// Mean loss of the architecture steps on B.
    pub arch_loss_b: Option<f64>,
    /// Mean gradient norm of the architecture steps, cost penalty included, before clipping.
    pub arch_grad_norm: Option<f64>,
    /// Pseudo-Dice per foreground class on unaugmented patches of B, without noise.
    pub dice: Vec<Option<f64>>,
    /// Mean of the Dice over classes.
    pub mean_dice: Option<f64>,
    /// Mean Dice of the network of `blocks` with the supernet's weights ([`Supernet::subnet`]), on the same patches; after the
    /// warm-up, in every fifth epoch counted back from the last.
    #[serde(default)]
    pub argmax_dice: Option<f64>,
    /// Output channels of each conv of the most probable architecture; in the last epoch of the one that [`search`] returns.
    pub blocks: Vec<Vec<usize>>,
    /// Probability of every width and depth, `softmax(alpha)` and `softmax(beta)`, rounded to 1e-6. Empty in histories of
    /// earlier versions.
    #[serde(default)]
    pub probabilities: Vec<BlockProbabilities>,
    /// Mean entropy of softmax(alpha), 1 for uniform, 0 for decided.
    pub width_entropy: Option<f64>,
    /// Mean entropy of softmax(beta), 1 for uniform, 0 for decided.
    pub depth_entropy: Option<f64>,
    /// Unit of the two costs: that of the cost term, else MACs.
    pub cost_unit: CostUnit,
    /// Cost of the network of `blocks` for one patch.
    pub cost: u64,
    /// Expected cost under softmax(alpha / tau), softmax(beta / tau).
    pub expected_cost: f64,
    /// Seconds of this epoch (after a resume: since the resume). The one figure that is not reproducible.
    pub wall_s: f64,
}

/// Searches the depths and widths of a U-Net: trains `net` in place on `loss` and returns its most probable architecture, with a
/// budget the most probable one within it ([`Supernet::architecture_within`]), if there is one among the likely ones: compare
/// [`Architecture::cost`] with the budget.
///
/// Epochs below `warmup_epochs` train the weights alone; then each iteration does one [`bilevel_step`]. Temperature,
/// learning rate, batches and noise are functions of (seed, epoch, iteration), and everything else is in the
/// checkpoint: a search that was killed and resumed ends with the bits of one that was not. (`loss` is not part of it:
/// name it in [`RunOptions::identity`] if runs may differ in it.) `patch` is the size of the batches' patches (D, H,
/// W), for which costs are counted; batches of another size are an error.
///
/// The network computes in the precision of `config` from then on.
///
/// Validation runs on [`Part::TrainBPlain`]; the fold's validation cases are never requested.
///
/// # Errors
/// If a setting makes no sense or needs what the processor lacks, the source fails, training diverges, a file cannot be
/// written, the folder holds another run, or the callback stops it.
pub fn search(
    net: &mut Supernet,
    patch: [usize; 3],
    loss: &dyn Loss,
    config: &SearchConfig,
    options: &RunOptions,
    source: &mut dyn BatchSource,
    on_event: &mut OnEvent<'_, SearchRow>,
) -> Result<Architecture> {
    config.check()?;
    let ranks = options.ranks();
    ranks::check(ranks, config.per_sample)?;
    let device = parameters::device(net.parameters());
    net.set_precision(config.precision);
    let net = &*net;
    let settings = SearchIdentity { kind: "search", patch, network: net.config(), config: determining(config) };
    let (files, checkpoint) = RunFiles::open(options, &settings, &device)?;
    let mut task = SearchTask {
        net,
        patch,
        loss,
        config,
        ranks,
        penalty: penalty(net, patch, config)?,
        optimizers: BilevelOptimizers::new(net, config),
        argmax_dice: None,
    };
    training_loop::run(&mut task, &schedule(config), &files, checkpoint, ranks, source, on_event)?;
    let mut architecture = task.found()?;
    let cost = architecture.cost(patch);
    let about = |key: &str, value: serde_json::Value| (key.to_owned(), value);
    architecture.provenance.extend(options.identity.iter().map(|(k, v)| about(k, v.clone().into())).chain([
        about("seed", config.seed.into()),
        about("mask", serde_json::json!(net.config().mask)),
        about("epochs", config.epochs.into()),
        about("macs_per_patch", cost.macs.into()),
        about("parameters", cost.parameters.into()),
    ]));
    Ok(architecture)
}

/// Settings that a checkpoint must agree with.
#[derive(Serialize)]
struct SearchIdentity<'a> {
    kind: &'static str,
    patch: [usize; 3],
    network: &'a SupernetConfig,
    config: SearchConfig,
}

/// Settings without the intervals of checkpoints, which do not change the result.
fn determining(config: &SearchConfig) -> SearchConfig {
    SearchConfig { checkpoint_every_epochs: 1, checkpoint_every_iterations: 0, ..config.clone() }
}

fn schedule(config: &SearchConfig) -> LoopSchedule {
    let half = match config.weights_on {
        Half::A => Part::TrainA,
        Half::B => Part::TrainB,
    };
    let a_is_used = config.weights_on == Half::A || config.arch_batches == ArchBatches::AAndB;
    LoopSchedule {
        epochs: config.epochs,
        iterations_per_epoch: config.iterations_per_epoch,
        warmup_epochs: config.warmup_epochs,
        warmup_parts: vec![half],
        parts: if a_is_used { vec![Part::TrainA, Part::TrainB] } else { vec![Part::TrainB] },
        validation_part: Part::TrainBPlain,
        validation_batches: config.validation_batches,
        save_every_epochs: config.checkpoint_every_epochs,
        save_every_iterations: config.checkpoint_every_iterations,
    }
}

fn penalty(net: &Supernet, patch: [usize; 3], config: &SearchConfig) -> Result<Option<CostPenalty>> {
    let Some(cost) = &config.cost else {
        return Ok(None);
    };
    let budget = cost.budget.of(net.config().largest()?.cost(patch).get(cost.unit));
    cost.check_for(net.config(), patch)?;
    Ok(Some(CostPenalty { unit: cost.unit, weight: cost.weight, budget, patch }))
}

struct SearchTask<'a> {
    net: &'a Supernet,
    patch: [usize; 3],
    loss: &'a dyn Loss,
    config: &'a SearchConfig,
    ranks: &'a dyn Ranks,
    penalty: Option<CostPenalty>,
    optimizers: BilevelOptimizers,
    /// Dice of the most probable architecture in the latest validation.
    argmax_dice: Option<f64>,
}

/// Number of epochs from one validation of the most probable architecture to the next.
const ARGMAX_EVERY: usize = 5;

impl SearchTask<'_> {
    fn phase(&self, epoch: usize) -> Phase {
        if epoch < self.config.warmup_epochs { Phase::Warmup } else { Phase::Search }
    }

    fn tau(&self, epoch: usize) -> f64 {
        self.config.tau.at(epoch, self.config.epochs, self.config.warmup_epochs)
    }

    /// Most probable architecture; after the last epoch the one that is found.
    fn architecture(&self, epoch: usize) -> Result<Architecture> {
        if epoch + 1 == self.config.epochs {
            return self.found();
        }
        Ok(self.net.architecture()?)
    }

    /// Most probable architecture; with a cost term the most probable one within its budget, or, where there is none among the
    /// likely ones, the most probable one.
    fn found(&self) -> Result<Architecture> {
        let within = self.penalty.as_ref().zip(self.config.cost.as_ref()).map(|(penalty, config)| {
            let CostPenalty { unit, budget, patch, .. } = *penalty;
            let most = budget.floor() as u64;
            let least = (config.at_least.unwrap_or(0.0) * budget).ceil() as u64;
            self.net.architecture_within(patch, unit, least.min(most)..=most)
        });
        match within.transpose()?.flatten() {
            Some(architecture) => Ok(architecture),
            None => Ok(self.net.architecture()?),
        }
    }

    fn lr(&self, Position { epoch, iteration }: Position) -> f64 {
        let c = self.config;
        c.lr.at(epoch, iteration, c.epochs, c.iterations_per_epoch)
    }
}

/// Probabilities rounded to 1e-6.
fn rounded(mut block: BlockProbabilities) -> BlockProbabilities {
    for p in block.width.iter_mut().flatten().chain(&mut block.depth).flatten() {
        *p = (*p * 1e6).round() / 1e6;
    }
    block
}

/// Mean of `H(p) / ln n` over distributions of `n > 1` options: 1 for uniform, 0 for decided; none where there is nothing to
/// choose.
fn mean_entropy<'a>(distributions: impl Iterator<Item = &'a Vec<f64>>) -> Option<f64> {
    let entropy = |p: &Vec<f64>| {
        let terms = p.iter().filter(|p| **p > 0.0);
        terms.map(|p| -p * p.ln()).sum::<f64>() / (p.len() as f64).ln()
    };
    let entropies: Vec<f64> = distributions.filter(|p| p.len() > 1).map(entropy).collect();
    let count = entropies.len();
    (count > 0).then(|| entropies.iter().sum::<f64>() / count as f64)
}

impl TrainingTask for SearchTask<'_> {
    type HistoryRow = SearchRow;

    fn iterate(&mut self, at: Position, batches: &[Batch]) -> Result<IterationReport> {
        let Position { epoch, iteration } = at;
        let (net, tau, lr) = (self.net, self.tau(epoch), self.lr(at));
        if let Some(other) = batches.iter().find(|batch| batch.x.dims().get(2..) != Some(&self.patch)) {
            return Err(Error::Shape {
                what: "patches of a batch".into(),
                expected: format!("{:?}", self.patch),
                got: format!("{:?}", other.x.dims()),
            });
        }
        let seed = self.config.seed;
        let mut sample = |pass: usize| {
            let key = NoiseKey { seed, epoch: epoch as u32, iteration: iteration as u32, pass: pass as u32 };
            Ok(net.sample(key, tau)?)
        };
        let settings = BilevelSettings {
            loss: self.loss,
            arch_lr: self.config.arch_lr,
            lr,
            clip: self.config.clip,
            tau,
            weights_on: self.config.weights_on,
            arch_batches: self.config.arch_batches,
            penalty: self.penalty.clone(),
            ranks: self.config.per_sample.then_some(self.ranks),
        };
        let values = match self.phase(epoch) {
            Phase::Warmup => {
                let step = weight_step(net, &mut self.optimizers, &settings, &batches[0], &sample(2)?)?;
                vec![("loss", step.loss), ("grad_norm", step.grad_norm)]
            }
            Phase::Search => {
                // Without requests of A there is one batch, and no step uses `a`.
                let halves = HalfBatches { a: &batches[0], b: &batches[batches.len() - 1] };
                let report = bilevel_step(net, &mut self.optimizers, &settings, halves, &mut sample)?;
                let mut values = vec![
                    ("loss", report.weights.loss),
                    ("grad_norm", report.weights.grad_norm),
                    ("arch_loss_b", report.arch_b.loss),
                    ("arch_grad_norm", report.arch_b.grad_norm),
                ];
                if let Some(a) = report.arch_a {
                    values.extend([("arch_loss_a", a.loss), ("arch_grad_norm", a.grad_norm)]);
                }
                values
            }
        };
        Ok(IterationReport { epoch, iteration, lr, tau: Some(tau), values })
    }

    fn validate(&mut self, epoch: usize, next: &mut NextBatch<'_>) -> Result<DiceCounts> {
        let sample = self.net.no_noise(self.tau(epoch));
        let is_due =
            self.phase(epoch) == Phase::Search && (self.config.epochs - 1 - epoch).is_multiple_of(ARGMAX_EVERY);
        let argmax = if is_due { Some(self.net.subnet(&self.architecture(epoch)?)?) } else { None };
        let (mut counts, mut argmax_counts) = (DiceCounts::default(), DiceCounts::default());
        while let Some(batch) = next()? {
            counts.add(&self.net.predict(&batch.x, &sample)?, &batch.target)?;
            if let Some(argmax) = &argmax {
                argmax_counts.add(&argmax.predict(&batch.x)?, &batch.target)?;
            }
        }
        self.argmax_dice = dice::mean(&argmax_counts.of_all(self.ranks)?.dice());
        counts.of_all(self.ranks)
    }

    fn row(&mut self, epoch: usize, summary: EpochSummary<'_>) -> Result<SearchRow> {
        let tau = self.tau(epoch);
        let architecture = self.architecture(epoch)?;
        let probabilities = self.net.probabilities()?;
        let cost_unit = self.config.cost.as_ref().map_or(CostUnit::Macs, |c| c.unit);
        let (expected_cost, _) = self.net.expected_cost(self.patch, cost_unit, &self.net.no_noise(tau))?;
        Ok(SearchRow {
            epoch,
            phase: self.phase(epoch),
            lr: self.lr(Position { epoch, iteration: 0 }),
            tau,
            loss: summary.means.get("loss"),
            grad_norm: summary.means.get("grad_norm"),
            arch_loss_a: summary.means.get("arch_loss_a"),
            arch_loss_b: summary.means.get("arch_loss_b"),
            arch_grad_norm: summary.means.get("arch_grad_norm"),
            mean_dice: dice::mean(&summary.dice),
            argmax_dice: self.argmax_dice,
            dice: summary.dice,
            width_entropy: mean_entropy(probabilities.iter().flat_map(|p| p.width.iter().flatten())),
            depth_entropy: mean_entropy(probabilities.iter().filter_map(|p| p.depth.as_ref())),
            cost_unit,
            cost: architecture.cost(self.patch).get(cost_unit),
            expected_cost,
            blocks: architecture.blocks,
            probabilities: probabilities.into_iter().map(rounded).collect(),
            wall_s: summary.wall_s,
        })
    }

    fn state(&self) -> Result<NamedTensors> {
        let mut groups = TensorGroups::default();
        groups.insert(PARAMETER_GROUP, parameters::values(self.net.parameters())?);
        groups.insert("arch_optimizer", self.optimizers.arch.state()?);
        groups.insert("optimizer", self.optimizers.weights.state()?);
        Ok(groups.0)
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        parameters::set(self.net.parameters(), &TensorGroups::get(state, PARAMETER_GROUP))?;
        self.optimizers.arch.load_state(&TensorGroups::get(state, "arch_optimizer"))?;
        self.optimizers.weights.load_state(&TensorGroups::get(state, "optimizer"))
    }
}
