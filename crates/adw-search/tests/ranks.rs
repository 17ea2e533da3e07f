//! Searches and trainings that several ranks share, with threads in place of processes.
#![allow(clippy::unwrap_used, reason = "in a test, a failure with its place is what is wanted")]

mod cubes;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use adw_search::config::{ArchBatches, Half};
use adw_search::schedule::Temperature;
use adw_search::{
    Alone, Batch, BatchRequest, BatchSource, BilevelOptimizers, BilevelSettings, BoxError, Error, Event, Part, Ranks,
    RetrainConfig, RetrainRow, RunOptions, SearchConfig, SearchRow, Stop, arch_step, retrain, search, weight_step,
};
use adw_supernet::{DiceCe, NoiseKey, Parameter, Supernet, Unet};
use adw_testing::{assert_close, tolerance};
use candle_core::{DType, Device};

use cubes::{Cubes, PATCH, history, supernet_config};

const BATCH: usize = 4;

/// A rank whose peers are threads.
#[derive(Debug)]
struct Thread {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl Ranks for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn all_to_all(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, BoxError> {
        for (to, part) in self.to.iter().zip(parts) {
            // A rank that has ended is found when its part is received.
            let _ = to.send(part);
        }
        let receive = |(rank, from): (usize, &Mutex<Receiver<Vec<u8>>>)| {
            from.lock().unwrap().recv().map_err(|_| BoxError::from(format!("rank {rank} has ended")))
        };
        self.from.iter().enumerate().map(receive).collect()
    }
}

/// Calls `work` in `size` threads, and returns the results in the order of the ranks.
fn on_ranks<T: Send>(size: usize, work: impl Fn(Arc<dyn Ranks>) -> T + Sync) -> Vec<T> {
    let mut ranks: Vec<Thread> = (0..size).map(|rank| Thread { rank, to: vec![], from: vec![] }).collect();
    for from in 0..size {
        for to in 0..size {
            let (sender, receiver) = channel();
            ranks[from].to.push(sender);
            ranks[to].from.push(Mutex::new(receiver));
        }
    }
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || work(Arc::new(rank)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn bits(parameters: &[Parameter]) -> Vec<u32> {
    let values = |p: &Parameter| p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    parameters.iter().flat_map(values).map(f32::to_bits).collect()
}

fn values(parameters: &[Parameter]) -> Vec<f64> {
    parameters.iter().flat_map(|p| p.var.flatten_all().unwrap().to_vec1::<f64>().unwrap()).collect()
}

fn search_config() -> SearchConfig {
    SearchConfig {
        epochs: 2,
        iterations_per_epoch: 2,
        warmup_epochs: 1,
        validation_batches: 3,
        arch_lr: 0.05,
        tau: Temperature { start: 2.0, end: 1.6 },
        checkpoint_every_iterations: 1,
        per_sample: true,
        seed: 7,
        ..SearchConfig::paper()
    }
}

/// Rank and event, from 1, at which a search is stopped, and the way in which it is.
type StopAt = Option<(usize, usize, Stop)>;

/// Searches in `directory` and returns the bits of all parameters.
fn run_search(
    ranks: Arc<dyn Ranks>,
    batch_dice: bool,
    directory: &Path,
    source: &mut dyn BatchSource,
    stop: StopAt,
) -> Result<Vec<u32>, Error> {
    let rank = ranks.rank();
    let mut events = 0;
    let mut on_event = |_: &Event<'_, SearchRow>| {
        events += 1;
        match stop {
            Some((on, at, how)) if (on, at) == (rank, events) => ControlFlow::Break(how),
            _ => ControlFlow::Continue(()),
        }
    };
    let options =
        RunOptions { ranks: Some(ranks), directory: Some(directory.into()), resume: true, ..RunOptions::default() };
    let mut net = Supernet::new(supernet_config(), 3, DType::F32, &Device::Cpu).unwrap();
    let loss = DiceCe { batch_dice, ..DiceCe::default() };
    search(&mut net, PATCH, &loss, &search_config(), &options, source, &mut on_event)?;
    Ok(bits(net.parameters()))
}

fn run_retrain(ranks: Arc<dyn Ranks>, batch_dice: bool) -> (Vec<u32>, Vec<Option<f64>>) {
    let config = RetrainConfig {
        epochs: 2,
        iterations_per_epoch: 2,
        validation_batches: 2,
        per_sample: true,
        ..RetrainConfig::paper()
    };
    let architecture = Supernet::new(supernet_config(), 3, DType::F32, &Device::Cpu).unwrap().architecture().unwrap();
    let mut net = Unet::new(&architecture, 5, DType::F32, &Device::Cpu).unwrap();
    let loss = DiceCe { batch_dice, ..DiceCe::default() };
    let mut dice = vec![];
    let mut on_event = |event: &Event<'_, RetrainRow>| {
        if let Event::Epoch(row) = event {
            dice.extend(row.dice.clone());
        }
        ControlFlow::Continue(())
    };
    let options = RunOptions { ranks: Some(ranks), ..RunOptions::default() };
    retrain(&mut net, &loss, &config, &options, &mut Cubes::new(BATCH), &mut on_event).unwrap();
    (bits(net.parameters()), dice)
}

/// Rows of the history without times, and the bytes of the last checkpoint.
fn files(directory: &Path) -> (Vec<serde_json::Value>, Vec<u8>) {
    (history(directory), std::fs::read(directory.join("checkpoint/latest.safetensors")).unwrap())
}

#[test]
fn any_number_of_ranks_gives_the_bits_of_one_also_when_it_changes_on_the_way() {
    for batch_dice in [false, true] {
        let whole = tempfile::tempdir().unwrap();
        let expected = run_search(Arc::new(Alone), batch_dice, whole.path(), &mut Cubes::new(BATCH), None).unwrap();
        for (first, stop, then) in [
            (2, Some((1, 3, Stop::AfterSaving)), 4),
            (3, Some((0, 7, Stop::Immediately)), 2),
            (4, Some((2, 5, Stop::AfterSaving)), 1),
            (0, None, 3),
        ] {
            let folder = tempfile::tempdir().unwrap();
            if stop.is_some() {
                let stopped = on_ranks(first, |ranks| {
                    run_search(ranks, batch_dice, folder.path(), &mut Cubes::new(BATCH), stop).unwrap_err()
                });
                assert!(stopped.iter().all(|error| matches!(error, Error::Stopped { .. })), "{stopped:?}");
                let places: Vec<String> = stopped.iter().map(ToString::to_string).collect();
                assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
            }
            let found = on_ranks(then, |ranks| {
                run_search(ranks, batch_dice, folder.path(), &mut Cubes::new(BATCH), None).unwrap()
            });
            assert!(found.iter().all(|found| *found == expected), "{batch_dice:?}, {then} ranks after {stop:?}");
            assert!(files(folder.path()) == files(whole.path()), "{batch_dice:?}, {then} ranks after {stop:?}");
        }
    }
}

#[test]
fn a_training_on_several_ranks_has_the_bits_of_one() {
    for batch_dice in [false, true] {
        let expected = run_retrain(Arc::new(Alone), batch_dice);
        for size in [2, 4] {
            let found = on_ranks(size, |ranks| run_retrain(ranks, batch_dice));
            assert!(found.iter().all(|found| *found == expected), "{size} ranks");
        }
    }
}

/// In f64, where roundings are far below what a wrong weight or order would make.
#[test]
fn steps_sample_by_sample_are_those_of_the_whole_batch_but_for_roundings() {
    let search = SearchConfig::paper();
    for batch_dice in [false, true] {
        let loss = DiceCe { batch_dice, ..DiceCe::default() };
        let steps = |ranks: Option<&dyn Ranks>| {
            let net = Supernet::new(supernet_config(), 3, DType::F64, &Device::Cpu).unwrap();
            let mut optimizers = BilevelOptimizers::new(&net, &search);
            let settings = BilevelSettings {
                loss: &loss,
                arch_lr: 0.01,
                lr: 0.1,
                clip: 12.0,
                tau: 1.0,
                weights_on: Half::A,
                arch_batches: ArchBatches::BOnly,
                penalty: None,
                ranks,
            };
            let request = BatchRequest { part: Part::TrainA, epoch: 0, iteration: 0 };
            let Batch { x, target } = Cubes::new(3).batch(request).unwrap();
            let batch = Batch { x: x.to_dtype(DType::F64).unwrap(), target };
            let noise = net.sample(NoiseKey { seed: 1, epoch: 0, iteration: 0, pass: 0 }, 1.0).unwrap();
            let arch = arch_step(&net, &mut optimizers, &settings, &batch, &noise).unwrap();
            let weights = weight_step(&net, &mut optimizers, &settings, &batch, &noise).unwrap();
            let reports = [arch.loss, arch.grad_norm, weights.loss, weights.grad_norm];
            (reports, values(net.parameters()))
        };
        let ((whole, expected), (apart, found)) = (steps(None), steps(Some(&Alone)));
        assert_close("reports", &apart, &whole, tolerance::F64_LONG_SUM);
        assert_close("parameters", &found, &expected, tolerance::F64_LONG_SUM);
        let first = Supernet::new(supernet_config(), 3, DType::F64, &Device::Cpu).unwrap();
        assert_ne!(found, values(first.parameters()), "the steps changed something");
    }
}

/// A source that fails on one of the ranks.
struct Failing(Cubes, bool);

impl BatchSource for Failing {
    fn batch(&mut self, request: BatchRequest) -> Result<Batch, BoxError> {
        let fails = self.1 && (request.epoch, request.iteration) == (1, 1);
        if fails { Err("liver_7.nii.gz: truncated".into()) } else { self.0.batch(request) }
    }
}

#[test]
fn a_rank_that_fails_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let errors = on_ranks(3, |ranks| {
        let source = &mut Failing(Cubes::new(BATCH), ranks.rank() == 1);
        run_search(ranks, false, folder.path(), source, None).unwrap_err().to_string()
    });
    assert_eq!(errors[1], "batch (TrainA, epoch 1, iteration 1): liver_7.nii.gz: truncated");
    assert!(errors[0].ends_with("has ended") && errors[2].ends_with("has ended"), "{errors:?}");
}

#[test]
fn too_many_ranks_other_folders_and_passes_of_the_whole_batch_are_refused() {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let run = |ranks: Arc<dyn Ranks>, batch, folder: usize| {
        run_search(ranks, false, folders[folder].path(), &mut Cubes::new(batch), Some((0, 3, Stop::AfterSaving)))
    };
    let errors = on_ranks(3, |ranks| run(ranks, 2, 0).unwrap_err().to_string());
    assert_eq!(errors[2], "3 ranks for batches of 2 samples: expected at most one rank per sample");

    assert!(matches!(run(Arc::new(Alone), BATCH, 0), Err(Error::Stopped { .. })));
    let errors = on_ranks(2, |ranks| {
        let folder = ranks.rank();
        run(ranks, BATCH, folder).unwrap_err().to_string()
    });
    assert!(errors[1].contains("rank 1 reads another checkpoint here than rank 0"), "{errors:?}");

    let errors = on_ranks(2, |ranks| {
        let config = SearchConfig { per_sample: false, ..search_config() };
        let options = RunOptions { ranks: Some(ranks), ..RunOptions::default() };
        let mut net = Supernet::new(supernet_config(), 3, DType::F32, &Device::Cpu).unwrap();
        let (loss, source) = (DiceCe::default(), &mut Cubes::new(BATCH));
        let mut on_event = |_: &Event<'_, SearchRow>| ControlFlow::Continue(());
        search(&mut net, PATCH, &loss, &config, &options, source, &mut on_event).unwrap_err().to_string()
    });
    assert_eq!(errors[0], "per_sample = false: expected true on several ranks");
}
