use candle_core::{DType, Device, Tensor, Var};
use serde_json::{Value, json};

use super::*;
use crate::optim::{Optimizer, OptimizerConfig, SgdConfig};
use crate::{Alone, BatchRequests, BoxError, Part, RunOptions};

/// Minimises (w - x)^2 where x is drawn per request; small enough to run hundreds of times.
struct Point {
    w: Var,
    optimizer: Box<dyn Optimizer>,
    /// Gradient norm that iteration 3 of epoch 1 reports, and value that it sets the parameters to.
    divergence: Option<(f64, f32)>,
}

impl Point {
    fn new() -> Self {
        let w = Var::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let config = OptimizerConfig::Sgd(SgdConfig { momentum: 0.9, weight_decay: 1e-3 });
        Self { optimizer: config.build([("w", &w)]), w, divergence: None }
    }

    fn bits(&self) -> Vec<u32> {
        self.w.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }
}

impl TrainingTask for Point {
    type HistoryRow = Value;

    fn iterate(&mut self, at: Position, batches: &[Batch]) -> Result<IterationReport> {
        let mut values = vec![];
        for batch in batches {
            let difference = (self.w.as_detached_tensor() - &batch.x)?;
            let loss = difference.sqr()?.sum_all()?.to_scalar::<f32>()?;
            self.optimizer.step(&[Some((difference * 2.0)?)], 0.05, 1.0)?;
            values.push(("loss", f64::from(loss)));
        }
        if let (Some((norm, parameter)), 1, 3) = (self.divergence, at.epoch, at.iteration) {
            values.push(("grad_norm", norm));
            self.w.set(&Tensor::full(parameter, 3, &Device::Cpu)?)?;
        }
        Ok(IterationReport { epoch: at.epoch, iteration: at.iteration, lr: 0.05, tau: None, values })
    }

    fn validate(&mut self, _: usize, next: &mut NextBatch<'_>) -> Result<DiceCounts> {
        let mut counts = DiceCounts::default();
        while let Some(batch) = next()? {
            let score = (batch.x.sum_all()?.to_scalar::<f32>()? > 0.0) as u8;
            let logits = Tensor::new(&[0.5f32, f32::from(score)], &Device::Cpu)?.reshape((1, 2, 1, 1, 1))?;
            counts.add(&logits, &Tensor::ones((1, 1, 1, 1), DType::U8, &Device::Cpu)?)?;
        }
        Ok(counts)
    }

    fn row(&mut self, epoch: usize, summary: EpochSummary<'_>) -> Result<Value> {
        assert!(summary.wall_s >= 0.0);
        Ok(json!({"epoch": epoch, "loss": summary.means.get("loss"), "dice": summary.dice, "bits": self.bits()}))
    }

    fn state(&self) -> Result<NamedTensors> {
        let mut state = self.optimizer.state()?;
        state.insert("parameter/w".into(), self.w.as_detached_tensor());
        Ok(state)
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.w.set(&state["parameter/w"])?;
        self.optimizer.load_state(state)
    }
}

/// Checks that requests come in the announced order.
#[derive(Default)]
struct RecordingSource {
    announced: Option<BatchRequests>,
    requested: Vec<BatchRequest>,
    fails_at: Option<usize>,
}

impl BatchSource for RecordingSource {
    fn announce(&mut self, requests: BatchRequests) -> Result<(), BoxError> {
        self.announced = Some(requests);
        Ok(())
    }

    fn batch(&mut self, request: BatchRequest) -> Result<Batch, BoxError> {
        if self.fails_at == Some(self.requested.len()) {
            return Err("hippocampus_007.nii.gz: truncated".into());
        }
        assert_eq!(self.announced.as_mut().unwrap().next(), Some(request));
        self.requested.push(request);
        let seed = request.epoch * 1000 + request.iteration * 10 + request.part as usize;
        let x: Vec<f32> = (0..3).map(|i| ((seed * 3 + i) as f32 * 1.7).sin()).collect();
        let x = Tensor::new(x, &Device::Cpu)?;
        Ok(Batch { target: x.clone(), x })
    }

    fn cases(&self, request: BatchRequest) -> Vec<String> {
        vec![format!("{:?}", request.part)]
    }
}

fn schedule() -> LoopSchedule {
    LoopSchedule {
        epochs: 4,
        iterations_per_epoch: 5,
        warmup_epochs: 1,
        warmup_parts: vec![Part::TrainA],
        parts: vec![Part::TrainA, Part::TrainB],
        validation_part: Part::TrainBPlain,
        validation_batches: 2,
        save_every_epochs: 1,
        save_every_iterations: 3,
    }
}

/// Runs until the `stop_at`th (0: to the end) event, which is answered with `stop`.
fn go(point: &mut Point, options: &RunOptions, stop_at: usize, stop: Stop) -> (Result<()>, usize) {
    let (files, checkpoint) = RunFiles::open(options, &json!({"lr": 0.05}), &Device::Cpu).unwrap();
    let mut events = 0;
    let mut on_event = |_: &Event<'_, Value>| {
        events += 1;
        if events == stop_at { ControlFlow::Break(stop) } else { ControlFlow::Continue(()) }
    };
    let mut source = RecordingSource::default();
    let result = run(point, &schedule(), &files, checkpoint, &Alone, &mut source, &mut on_event);
    if result.is_ok() {
        assert_eq!(source.announced.unwrap().next(), None, "everything announced was requested");
    }
    (result, events)
}

fn options(dir: &tempfile::TempDir, resume: bool) -> RunOptions {
    RunOptions { directory: Some(dir.path().into()), resume, ..RunOptions::default() }
}

fn history(dir: &tempfile::TempDir) -> String {
    std::fs::read_to_string(dir.path().join("history.jsonl")).unwrap()
}

#[test]
fn stopping_at_any_event_and_resuming_gives_the_bits_of_an_unbroken_run() {
    let whole_dir = tempfile::tempdir().unwrap();
    let mut whole = Point::new();
    let (result, events) = go(&mut whole, &options(&whole_dir, false), 0, Stop::Immediately);
    result.unwrap();
    assert_eq!(history(&whole_dir).lines().count(), 4);
    for (stop, step) in [(Stop::Immediately, 1), (Stop::AfterSaving, 4)] {
        for stop_at in (1..=events).step_by(step) {
            let dir = tempfile::tempdir().unwrap();
            let (result, _) = go(&mut Point::new(), &options(&dir, false), stop_at, stop);
            if stop_at < events - 1 {
                assert!(matches!(result, Err(Error::Stopped { .. })), "event {stop_at} of {events}: {result:?}");
            }
            // Stopped again soon after, then to the end.
            let _ = go(&mut Point::new(), &options(&dir, true), 3, stop);
            let mut resumed = Point::new();
            go(&mut resumed, &options(&dir, true), 0, stop).0.unwrap();
            assert_eq!(resumed.bits(), whole.bits(), "{stop:?} at event {stop_at}");
            assert_eq!(history(&dir), history(&whole_dir), "{stop:?} at event {stop_at}");
        }
    }
}

#[test]
fn a_finished_run_resumes_to_its_result_without_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Point::new();
    go(&mut first, &options(&dir, false), 0, Stop::Immediately).0.unwrap();
    let before = history(&dir);
    let mut again = Point::new();
    let (result, events) = go(&mut again, &options(&dir, true), 0, Stop::Immediately);
    result.unwrap();
    assert_eq!((events, again.bits(), history(&dir)), (1, first.bits(), before));
}

#[test]
fn a_half_written_row_is_dropped_and_a_missing_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = Point::new();
    go(&mut whole, &options(&dir, false), 0, Stop::Immediately).0.unwrap();
    let expected = history(&dir);
    let path = dir.path().join("history.jsonl");
    std::fs::write(&path, format!("{expected}{{\"epoch\": 4, \"lo")).unwrap();
    go(&mut Point::new(), &options(&dir, true), 0, Stop::Immediately).0.unwrap();
    assert_eq!(history(&dir), expected);
    std::fs::write(&path, &expected[..expected.len() - 5]).unwrap();
    let error = RunFiles::open(&options(&dir, true), &json!({"lr": 0.05}), &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("3 rows, but the checkpoint is 4 epochs in"), "{error}");
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_and_another_runs_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    go(&mut Point::new(), &options(&dir, false), 0, Stop::Immediately).0.unwrap();
    let open = |options: &RunOptions, lr: f64| RunFiles::open(options, &json!({"lr": lr}), &Device::Cpu).unwrap_err();
    let error = open(&options(&dir, false), 0.05);
    assert!(matches!(&error, Error::AlreadyStarted { path } if path.ends_with("latest.safetensors")), "{error}");
    let error = open(&options(&dir, true), 0.1);
    assert!(error.to_string().contains("settings.lr: 0.05 in the checkpoint, 0.1 now"), "{error}");
    let identity = [("fold".to_string(), "1".to_string())].into();
    let error = open(&RunOptions { identity, ..options(&dir, true) }, 0.05);
    assert!(error.to_string().contains("run.fold: null in the checkpoint, \"1\" now"), "{error}");
}

/// Flips bits in the middle of a file.
fn damage(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let whole_dir = tempfile::tempdir().unwrap();
    let mut whole = Point::new();
    let (_, events) = go(&mut whole, &options(&whole_dir, false), 0, Stop::Immediately);
    let open = |dir: &tempfile::TempDir| RunFiles::open(&options(dir, true), &json!({"lr": 0.05}), &Device::Cpu);
    for stop_at in [events / 2, events] {
        let dir = tempfile::tempdir().unwrap();
        let (latest, previous) =
            ["latest", "previous"].map(|name| dir.path().join(format!("checkpoint/{name}.safetensors"))).into();
        let _ = go(&mut Point::new(), &options(&dir, false), stop_at, Stop::Immediately);
        damage(&latest);
        let (files, _) = open(&dir).unwrap();
        let (fault, used) = files.damage().unwrap();
        assert_eq!(used, previous);
        assert!(fault.to_string().contains("latest.safetensors: not a checkpoint of this program (damaged"), "{fault}");
        drop(files);
        // Stopped as soon as the damaged file has been replaced: the one before is still whole.
        let before = std::fs::read(&previous).unwrap();
        let mut saves = 0;
        let (files, checkpoint) = open(&dir).unwrap();
        let mut on_event = |event: &Event<'_, Value>| {
            saves += usize::from(matches!(event, Event::Saved(_)));
            if saves == 1 { ControlFlow::Break(Stop::Immediately) } else { ControlFlow::Continue(()) }
        };
        let mut point = Point::new();
        let _ =
            run(&mut point, &schedule(), &files, checkpoint, &Alone, &mut RecordingSource::default(), &mut on_event);
        assert_eq!(saves, 1);
        assert!(before == std::fs::read(&previous).unwrap());
        drop(files);
        assert!(open(&dir).unwrap().0.damage().is_none());
        let mut resumed = Point::new();
        go(&mut resumed, &options(&dir, true), 0, Stop::Immediately).0.unwrap();
        assert_eq!((resumed.bits(), history(&dir)), (whole.bits(), history(&whole_dir)), "{stop_at}");

        // Killed between the two renames.
        std::fs::rename(&latest, &previous).unwrap();
        assert!(open(&dir).unwrap().1.is_some_and(|checkpoint| checkpoint.position.epoch == 4));
        std::fs::copy(&previous, &latest).unwrap();
        damage(&latest);
        damage(&previous);
        let message = open(&dir).unwrap_err().to_string();
        assert!(
            message.contains("latest.safetensors: not a") && message.contains("previous.safetensors: not a"),
            "{message}"
        );
        assert!(message.contains("remove ") && message.ends_with("to start again from the beginning"), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn a_folder_serves_one_run_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let open = || RunFiles::open(&options(&dir, true), &json!({}), &Device::Cpu);
    let first = open().unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("checkpoint: another process is running"), "{error}");
    drop(first);
    open().unwrap();
}

#[test]
fn batches_are_requested_by_phase_and_a_failing_source_is_named() {
    let mut source = RecordingSource::default();
    let (files, _) = RunFiles::open(&RunOptions::default(), &json!({}), &Device::Cpu).unwrap();
    let mut ignore = |_: &Event<'_, Value>| ControlFlow::Continue(());
    run(&mut Point::new(), &schedule(), &files, None, &Alone, &mut source, &mut ignore).unwrap();
    let of = |epoch| source.requested.iter().filter(move |r| r.epoch == epoch).map(|r| r.part);
    assert_eq!(of(0).filter(|p| *p == Part::TrainB).count(), 0, "none of B in the warm-up");
    assert_eq!(of(1).filter(|p| *p == Part::TrainB).count(), 5);
    assert_eq!(of(3).filter(|p| *p == Part::TrainBPlain).count(), 2);
    assert!(source.requested.iter().all(|r| r.part != Part::Validation));

    let mut failing = RecordingSource { fails_at: Some(8), ..RecordingSource::default() };
    let error = run(&mut Point::new(), &schedule(), &files, None, &Alone, &mut failing, &mut ignore).unwrap_err();
    assert_eq!(error.to_string(), "batch (TrainB, epoch 1, iteration 0): hippocampus_007.nii.gz: truncated");
}

#[test]
fn a_diverged_run_ends_and_the_last_good_checkpoint_stays() {
    for (report, parameter, iteration, expected) in [
        (f64::NAN, 0.0, 3, "grad_norm is NaN; lower the learning rate or check the data of TrainA, TrainB"),
        (1.0, f32::NAN, 4, "parameter/w has grown to NaN"),
        (1.0, 1e20, 4, "parameter/w has grown to 1.00000002004"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (files, _) = RunFiles::open(&options(&dir, false), &json!({"lr": 0.05}), &Device::Cpu).unwrap();
        let mut saves = 0;
        let mut count = |event: &Event<'_, Value>| {
            saves += usize::from(matches!(event, Event::Saved(_)));
            ControlFlow::Continue(())
        };
        let mut task = Point { divergence: Some((report, parameter)), ..Point::new() };
        let error =
            run(&mut task, &schedule(), &files, None, &Alone, &mut RecordingSource::default(), &mut count).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with(&format!("epoch 1, iteration {iteration}: {expected}")), "{message}");
        let latest = dir.path().join("checkpoint/latest.safetensors");
        assert!(message.ends_with(&format!("; the last good checkpoint is {}", latest.display())), "{message}");
        drop(files);
        let (_, checkpoint) = RunFiles::open(&options(&dir, true), &json!({"lr": 0.05}), &Device::Cpu).unwrap();
        let checkpoint = checkpoint.unwrap();
        assert_eq!(checkpoint.diverged().unwrap(), None);
        assert_eq!((checkpoint.position, saves), (Position { epoch: 1, iteration: 1 }, 3), "{message}");
    }
}
