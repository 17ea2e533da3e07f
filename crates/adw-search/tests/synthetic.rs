//! Whole searches and trainings on a tiny synthetic problem.
#![allow(clippy::unwrap_used, reason = "in a test, a failure with its place is what is wanted")]

mod cubes;

use adw_search::config::{ArchBatches, Budget, CostConfig, Half, RetrainConfig, SearchConfig};
use adw_search::optim::{AdamConfig, EmaConfig, OptimizerConfig};
use adw_search::schedule::{Decay, Granularity, LearningRate, Temperature};
use adw_search::{
    Batch, BatchRequest, BatchSource, Error, Event, Part, Phase, RetrainRow, RunOptions, SearchRow, Stop, Trained,
    load_shared_weights, pseudo_dice, retrain, search,
};
use adw_supernet::{
    Architecture, CostUnit, DiceCe, FixedSizes, Parameter, Precision, Role, Supernet, SupernetConfig, Unet,
    width_options,
};
use candle_core::{DType, Device, Tensor};
use std::ops::ControlFlow;

use cubes::{Cubes, PATCH, history, supernet_config};

fn search_config() -> SearchConfig {
    SearchConfig {
        epochs: 3,
        iterations_per_epoch: 3,
        warmup_epochs: 1,
        validation_batches: 1,
        arch_lr: 0.05,
        tau: Temperature { start: 2.0, end: 1.6 },
        checkpoint_every_iterations: 2,
        seed: 7,
        ..SearchConfig::paper()
    }
}

fn retrain_config() -> RetrainConfig {
    RetrainConfig {
        epochs: 3,
        iterations_per_epoch: 4,
        lr: LearningRate {
            peak: 1e-2,
            decay: Decay::Cosine { last: 0.0 },
            warmup_epochs: 0.5,
            set_every: Granularity::Iteration,
        },
        optimizer: OptimizerConfig::Adam(AdamConfig::default()),
        ema: Some(EmaConfig { decay: 0.9 }),
        validation_batches: 1,
        checkpoint_every_iterations: 3,
        ..RetrainConfig::paper()
    }
}

fn supernet() -> Supernet {
    Supernet::new(supernet_config(), 3, DType::F32, &Device::Cpu).unwrap()
}

fn unet() -> Unet {
    let architecture = supernet().architecture().unwrap();
    Unet::new(&architecture, 5, DType::F32, &Device::Cpu).unwrap()
}

/// All parameters of a role (or of both), bit by bit.
fn bits(parameters: &[Parameter], role: Option<Role>) -> Vec<(String, Vec<u32>)> {
    let of_role = parameters.iter().filter(|p| role.is_none_or(|r| p.role == r));
    let values = |p: &Parameter| p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bits = |p: &Parameter| values(p).into_iter().map(f32::to_bits).collect();
    of_role.map(|p| (p.name.clone(), bits(p))).collect()
}

/// Number of the event, from 1, at which a run ends early, and the way in which it does.
type StopAt = Option<(usize, Stop)>;

/// Calls `run` with a function that gets a run's events; returns its result and the rows of the history.
fn watched<R: Clone, T>(
    stop: StopAt,
    run: impl FnOnce(&mut dyn FnMut(&Event<'_, R>) -> ControlFlow<Stop>) -> Result<T, Error>,
) -> Result<(T, Vec<R>), Error> {
    let (mut rows, mut events) = (vec![], 0);
    let result = run(&mut |event| {
        if let Event::Epoch(row) = event {
            rows.push((*row).clone());
        }
        events += 1;
        match stop {
            Some((at, stop)) if at == events => ControlFlow::Break(stop),
            _ => ControlFlow::Continue(()),
        }
    })?;
    Ok((result, rows))
}

fn run_search(
    net: &mut Supernet,
    config: &SearchConfig,
    options: &RunOptions,
    stop: StopAt,
) -> Result<(Architecture, Vec<SearchRow>), Error> {
    let source = &mut Cubes::new(2);
    watched(stop, |on_event| search(net, PATCH, &DiceCe::default(), config, options, source, on_event))
}

fn run_retrain(
    net: &mut Unet,
    config: &RetrainConfig,
    options: &RunOptions,
    stop: StopAt,
) -> Result<(Trained, Vec<RetrainRow>), Error> {
    watched(stop, |on_event| retrain(net, &DiceCe::default(), config, options, &mut Cubes::new(2), on_event))
}

fn options(dir: &tempfile::TempDir, resume: bool) -> RunOptions {
    RunOptions {
        directory: Some(dir.path().into()),
        resume,
        identity: [("task".to_string(), "cubes".to_string())].into(),
        ..RunOptions::default()
    }
}

#[test]
fn a_search_stopped_anywhere_and_resumed_equals_an_unbroken_one() {
    let config = search_config();
    let whole_dir = tempfile::tempdir().unwrap();
    let mut whole = supernet();
    let (architecture, rows) = run_search(&mut whole, &config, &options(&whole_dir, false), None).unwrap();
    assert_eq!(rows.len(), 3);
    for stop in [(3, Stop::Immediately), (8, Stop::Immediately), (10, Stop::AfterSaving), (13, Stop::Immediately)] {
        let dir = tempfile::tempdir().unwrap();
        let stopped = run_search(&mut supernet(), &config, &options(&dir, false), Some(stop));
        assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stop:?}");
        let mut resumed = supernet();
        let (again, _) = run_search(&mut resumed, &config, &options(&dir, true), None).unwrap();
        assert_eq!(again, architecture, "{stop:?}");
        assert_eq!(bits(resumed.parameters(), None), bits(whole.parameters(), None), "{stop:?}");
        assert_eq!(history(dir.path()), history(whole_dir.path()), "{stop:?}");
    }
}

#[test]
fn a_warm_up_trains_all_weights_alone_and_leaves_them_to_start_from() {
    let config = SearchConfig { epochs: 1, iterations_per_epoch: 1, ..search_config() };
    let mut net = supernet();
    let before = bits(net.parameters(), None);
    let dir = tempfile::tempdir().unwrap();
    run_search(&mut net, &config, &options(&dir, false), None).unwrap();
    for (parameter, (before, after)) in net.parameters().iter().zip(before.iter().zip(bits(net.parameters(), None))) {
        assert_eq!(*before != after, parameter.role == Role::Weight, "{}", parameter.name);
    }
    let fresh = Supernet::new(supernet_config(), 99, DType::F32, &Device::Cpu).unwrap();
    load_shared_weights(&fresh, dir.path()).unwrap();
    assert_eq!(bits(fresh.parameters(), None), bits(net.parameters(), None));
    let largest = net.config().largest().unwrap();
    assert!(pseudo_dice(&fresh, &largest, &[plain_batch()]).unwrap().is_some());
}

fn plain_batch() -> Batch {
    Cubes::new(2).batch(BatchRequest { part: Part::TrainBPlain, epoch: 0, iteration: 0 }).unwrap()
}

#[test]
fn a_training_stopped_anywhere_and_resumed_equals_an_unbroken_one() {
    let whole_dir = tempfile::tempdir().unwrap();
    let mut whole = unet();
    run_retrain(&mut whole, &retrain_config(), &options(&whole_dir, false), None).unwrap();
    for stop in [(4, Stop::Immediately), (7, Stop::AfterSaving), (12, Stop::Immediately), (17, Stop::Immediately)] {
        let dir = tempfile::tempdir().unwrap();
        let stopped = run_retrain(&mut unet(), &retrain_config(), &options(&dir, false), Some(stop));
        assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stop:?}");
        let mut resumed = unet();
        run_retrain(&mut resumed, &retrain_config(), &options(&dir, true), None).unwrap();
        assert_eq!(bits(resumed.parameters(), None), bits(whole.parameters(), None), "{stop:?}");
        assert_eq!(history(dir.path()), history(whole_dir.path()), "{stop:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads_and_another_seed_does_not() {
    let run = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut net = supernet();
            let config = SearchConfig { seed, ..search_config() };
            run_search(&mut net, &config, &RunOptions::default(), None).unwrap();
            bits(net.parameters(), None)
        })
    };
    let one = run(1, 7);
    assert_eq!(one, run(1, 7));
    assert_eq!(one, run(3, 7));
    assert_ne!(one, run(1, 8), "the seed reaches the noise");
}

#[test]
fn the_warm_up_leaves_the_architecture_alone_and_the_search_moves_it() {
    let mut net = supernet();
    let before = bits(net.parameters(), Some(Role::Architecture));
    let weights = bits(net.parameters(), Some(Role::Weight));
    let warmup = SearchConfig { epochs: 1, ..search_config() };
    let (_, rows) = run_search(&mut net, &warmup, &RunOptions::default(), None).unwrap();
    assert_eq!(bits(net.parameters(), Some(Role::Architecture)), before);
    assert_ne!(bits(net.parameters(), Some(Role::Weight)), weights);
    assert_eq!(rows[0].phase, Phase::Warmup);
    assert_eq!((rows[0].arch_loss_a, rows[0].arch_loss_b), (None, None));
    assert!((rows[0].width_entropy.unwrap() - 1.0).abs() < 1e-6, "alpha starts uniform");
    assert_eq!(rows[0].argmax_dice, None, "nothing is chosen yet");

    let b_only = SearchConfig { warmup_epochs: 0, arch_batches: ArchBatches::BOnly, weights_on: Half::B, ..warmup };
    let (architecture, rows) = run_search(&mut net, &b_only, &RunOptions::default(), None).unwrap();
    assert_ne!(bits(net.parameters(), Some(Role::Architecture)), before);
    assert_eq!(rows[0].phase, Phase::Search);
    assert!(rows[0].arch_loss_a.is_none() && rows[0].arch_loss_b.is_some());
    assert!(rows[0].width_entropy.unwrap() < 1.0 && rows[0].depth_entropy.unwrap() < 1.0);
    assert_eq!(rows[0].blocks, architecture.blocks);
    assert!(rows[0].argmax_dice.is_some(), "the last epoch validates the argmax architecture");
    for (block, p) in rows[0].probabilities.iter().enumerate() {
        let most_probable = |p: &[f64]| (0..p.len()).rev().max_by(|&i, &j| p[i].total_cmp(&p[j])).unwrap();
        let depth = p.depth.as_deref().map(most_probable).unwrap() + 1;
        assert_eq!(depth, architecture.blocks[block].len());
        let options = width_options(net.config().block_max_width(block));
        let widths = p.width[..depth].iter().map(|p| options[most_probable(p.as_deref().unwrap())]);
        assert_eq!(widths.collect::<Vec<_>>(), architecture.blocks[block]);
    }
    architecture.check().unwrap();
}

#[test]
fn a_budget_is_kept_and_one_that_never_binds_changes_nothing() {
    let search = |cost| {
        let config = SearchConfig {
            epochs: 2,
            iterations_per_epoch: 20,
            warmup_epochs: 0,
            validation_batches: 0,
            cost,
            ..search_config()
        };
        let (_, mut rows) = run_search(&mut supernet(), &config, &RunOptions::default(), None).unwrap();
        rows.swap_remove(1)
    };
    let largest = supernet_config().largest().unwrap();
    let budget = (0.25 * largest.cost(PATCH).macs as f64) as u64;
    let free = search(None);
    assert!(free.cost > budget, "the test needs a budget that binds: {free:?}");
    let cost = CostConfig { unit: CostUnit::Macs, weight: 10.0, budget: Budget::Fraction(0.25), at_least: None };
    let bound = search(Some(cost.clone()));
    assert!(bound.cost <= budget, "{budget} {bound:?}");
    let spent = search(Some(CostConfig { at_least: Some(0.9), ..cost.clone() }));
    assert!((budget * 9 / 10..=budget).contains(&spent.cost), "{budget} {spent:?}");
    assert_eq!(spent.probabilities, bound.probabilities);
    let budget = Budget::Fraction(1.0);
    let slack = search(Some(CostConfig { budget, ..cost }));
    assert_eq!((slack.cost, slack.loss), (free.cost, free.loss));
}

/// Trains a network of this width until it has learnt the problem.
fn train(width: usize, precision: Precision) -> (Unet, Trained, Vec<RetrainRow>) {
    let architecture =
        Architecture::uniform(1, 3, vec![[2; 3]], vec![[3; 3]; 2], FixedSizes::with_width(width)).unwrap();
    let mut net = Unet::new(&architecture, 5, DType::F32, &Device::Cpu).unwrap();
    let config = RetrainConfig {
        epochs: 4,
        iterations_per_epoch: 40,
        lr: LearningRate { peak: 3e-2, ..retrain_config().lr },
        precision,
        ..retrain_config()
    };
    let (trained, rows) = run_retrain(&mut net, &config, &RunOptions::default(), None).unwrap();
    (net, trained, rows)
}

#[test]
fn training_learns_the_problem_and_delivers_the_average() {
    let (net, trained, rows) = train(6, Precision::Full);
    let (first, last) = (&rows[0], &rows[3]);
    assert!(last.loss.unwrap() < first.loss.unwrap() - 0.3, "{first:?} {last:?}");
    assert!(last.mean_dice.unwrap() > 0.8, "{last:?}");
    for p in net.parameters() {
        let held = p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(held, trained.weights[&p.name].flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    let head = |w: &adw_search::NamedTensors| w["head.0.weight"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_ne!(head(&trained.weights), head(&trained.last_weights));
}

/// Mean squared error between the finest probabilities and the one-hot target, differentiated by candle.
fn brier_score(logits: &[Tensor], target: &Tensor) -> candle_core::Result<Tensor> {
    let exp = logits[0].broadcast_sub(&logits[0].detach().max_keepdim(1)?)?.exp()?;
    let p = exp.broadcast_div(&exp.sum_keepdim(1)?)?;
    let classes = Tensor::arange(0u8, p.dim(1)? as u8, p.device())?.reshape((1, (), 1, 1, 1))?;
    let one_hot = target.unsqueeze(1)?.broadcast_eq(&classes)?.to_dtype(p.dtype())?;
    (p - one_hot)?.sqr()?.mean_all()
}

#[test]
fn a_search_and_a_training_take_any_loss() {
    let (config, options) = (SearchConfig { iterations_per_epoch: 10, ..search_config() }, RunOptions::default());
    let (mut net, source) = (supernet(), &mut Cubes::new(2));
    let before = bits(net.parameters(), Some(Role::Architecture));
    let (_, rows) =
        watched(None, |on_event| search(&mut net, PATCH, &brier_score, &config, &options, source, on_event)).unwrap();
    assert!(rows[2].loss.unwrap() < 0.9 * rows[0].loss.unwrap(), "{rows:?}");
    assert_ne!(bits(net.parameters(), Some(Role::Architecture)), before);

    let config = RetrainConfig { iterations_per_epoch: 10, ..retrain_config() };
    let (_, rows) =
        watched(None, |on_event| retrain(&mut unet(), &brier_score, &config, &options, source, on_event)).unwrap();
    assert!(rows[2].loss.unwrap() < 0.9 * rows[0].loss.unwrap(), "{rows:?}");
}

#[test]
fn a_search_learns_the_problem_too() {
    let config = SearchConfig { epochs: 3, iterations_per_epoch: 25, ..search_config() };
    let (_, rows) = run_search(&mut supernet(), &config, &RunOptions::default(), None).unwrap();
    assert!(rows[2].loss.unwrap() < rows[0].loss.unwrap() - 0.7, "{rows:?}");
}

#[test]
fn a_checkpoint_of_another_network_or_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run_search(&mut supernet(), &search_config(), &options(&dir, false), None).unwrap();
    let changed = SearchConfig { arch_lr: 0.1, ..search_config() };
    let error = run_search(&mut supernet(), &changed, &options(&dir, true), None).unwrap_err();
    assert!(error.to_string().contains("settings.config.arch_lr: 0.05 in the checkpoint, 0.1 now"), "{error}");
    // How often checkpoints are written changes nothing else.
    let often = SearchConfig { checkpoint_every_iterations: 1, ..search_config() };
    run_search(&mut supernet(), &often, &options(&dir, true), None).unwrap();
}

#[test]
fn a_search_never_sees_the_validation_cases_and_a_training_never_learns_from_them() {
    let mut source = Cubes::new(1);
    let (mut net, options, loss) = (supernet(), RunOptions::default(), DiceCe::default());
    watched(None, |f| search(&mut net, PATCH, &loss, &search_config(), &options, &mut source, f)).unwrap();
    assert_eq!(source.requested, [Part::TrainA, Part::TrainB, Part::TrainBPlain].into());

    let mut source = Cubes::new(1);
    let with = |validation_batches| RetrainConfig { epochs: 1, validation_batches, ..retrain_config() };
    let (mut one, mut other) = (unet(), unet());
    watched(None, |f| retrain(&mut one, &loss, &with(1), &options, &mut source, f)).unwrap();
    assert_eq!(source.requested, [Part::Train, Part::Validation].into());
    watched(None, |f| retrain(&mut other, &loss, &with(0), &options, &mut source, f)).unwrap();
    assert_eq!(bits(one.parameters(), None), bits(other.parameters(), None));
}

/// Wide enough to be rounded, which layers below 16 channels are not.
fn wide() -> Supernet {
    let config = SupernetConfig { max_width: 24, ..supernet_config() };
    Supernet::new(config, 3, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn bf16_reaches_the_layers_and_survives_a_resume() {
    let with = |precision| SearchConfig { precision, ..search_config() };
    let run = |precision, options: &RunOptions, stop: StopAt| {
        let mut net = wide();
        run_search(&mut net, &with(precision), options, stop)?;
        Ok::<_, Error>(bits(net.parameters(), None))
    };
    let nowhere = RunOptions::default();
    let (full, bf16) = (run(Precision::Full, &nowhere, None), run(Precision::Bf16, &nowhere, None));
    let bf16 = bf16.unwrap();
    assert_ne!(bf16, full.unwrap(), "the setting reaches the layers");
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| run(Precision::Bf16, &nowhere, None)).unwrap();
        assert_eq!(again, bf16, "{threads} threads");
    }

    let dir = tempfile::tempdir().unwrap();
    let stopped = run(Precision::Bf16, &options(&dir, false), Some((9, Stop::Immediately)));
    assert!(matches!(stopped, Err(Error::Stopped { .. })));
    let error = run(Precision::Full, &options(&dir, true), None).unwrap_err();
    let difference = "settings.config.precision: \"bf16\" in the checkpoint, \"full\" now";
    assert!(error.to_string().contains(difference), "{error}");
    assert_eq!(run(Precision::Bf16, &options(&dir, true), None).unwrap(), bf16);
}

#[test]
fn a_training_in_bf16_learns_the_problem() {
    let [full, bf16] = [Precision::Full, Precision::Bf16].map(|precision| train(16, precision).2);
    assert_ne!(full[0].loss, bf16[0].loss, "the setting reaches the layers");
    assert!(bf16[3].mean_dice.unwrap() > 0.8, "{bf16:?}");
}
