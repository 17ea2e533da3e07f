//! `adw retrain`: train an architecture, then segment and score the fold's validation cases.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use adw_inference::SlidingWindow;
use adw_search::{Event, ModelFile, Part, RetrainRow, RunOptions, retrain};
use adw_supernet::{Architecture, Unet};
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use msd_data::{EvaluationOptions, Report, evaluate_pairs, nifti::read_geometry, training_cases_bytes, write_labels};
use serde_json::json;

use crate::{
    architecture_choice::{self, architecture_in, searched_supernet},
    args::RetrainArgs,
    cases::Cases,
    device,
    ensemble::MODEL,
    failure::bad_input,
    fold::Fold,
    interrupt, memory, model, ranks,
    report::{
        drawing,
        forecast::Forecast,
        html, metrics,
        progress::{Progress, emit, note, say},
        run_data::is_baseline,
        tensorboard::EventFile,
        training,
    },
    run::{Run, RunRequest},
    run_config::{self, RunConfig, RunFacts},
    run_folder::{RunFolder, check_run_or_new, config_path, splits_path},
    runs::{RunChoice, choose_for_retrain, task_runs},
    segment::Segmenter,
    source::{PatchSource, Sampling},
    task::Task,
};

pub(crate) fn run(args: &RetrainArgs) -> Result<()> {
    let device = device::set_up(&args.device, &args.process)?;
    let mut args = args.clone();
    ranks::join("retrain", &mut args.config, &mut args.run, &mut args.resume)?;
    let args = &args;
    let (mut run, architecture) = open(args, &device)?;
    let training = Training { args, architecture, device };
    training.check_scoring(&run)?;
    match training.train(&mut run)? {
        Some(model_file) => training.score(&mut run, &model_file),
        None => Ok(()),
    }
}

/// Checks that the training of the command line is the one that was started before, if there is one.
///
/// # Errors
/// It has other settings or another architecture, or another process works on it.
pub(crate) fn check_same(args: &RetrainArgs, device: &Device) -> Result<()> {
    open(args, device).map(drop)
}

/// Checks the name of trainings, which becomes that of a folder.
///
/// # Errors
/// It is no plain name, or that of another folder of a run.
pub(crate) fn check_name(name: Option<&str>) -> Result<()> {
    /// Longest name, in bytes: file systems take 255.
    const MAX_BYTES: usize = 200;
    let is_plain = |name: &str| !name.contains(['/', '\\']) && !name.contains(char::is_control);
    let is_new = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.starts_with("fold_");
    match name.filter(|name| !is_plain(name) || !is_new(name) || name.len() > MAX_BYTES) {
        None => Ok(()),
        Some(name) => bad_input!(
            "--name {name}: expected the name of a new folder, of at most {MAX_BYTES} bytes, not beginning with `fold_` or a dot"
        ),
    }
}

/// Opens or prepares the run, with the settings and the architecture of the training.
fn open(args: &RetrainArgs, device: &Device) -> Result<(Run, Architecture)> {
    check_name(args.name.as_deref())?;
    let (choice, data) = choose_run(args)?;
    let request = RunRequest {
        root: &choice.root,
        data: data.as_deref(),
        config: &args.config,
        fold: args.fold.filter(|fold| *fold == Fold::All).or(choice.fold.map(Fold::Number)),
        fingerprint: args.fetch.fingerprint.as_deref(),
        memory: memory::limit(args.memory),
    };
    let mut run = Run::open(&request, device, may_change)?;
    let fold = run.fold;
    let earlier = run.existing_folder().map(|folder| folder.retrain(args.name.as_deref(), fold));
    let earlier = earlier.filter(|directory| directory.exists());
    if let Some(directory) = &earlier {
        if !args.resume {
            let result = if fold == Fold::All { model_in(directory) } else { directory.join("metrics.json") };
            let (state, advice) = if result.is_file() {
                ("is finished", "give another --name to train again")
            } else {
                ("was interrupted", "continue it with --resume")
            };
            bad_input!("{} {state}: {advice}", directory.display());
        }
        keep_settings(&mut run, directory, args)?;
    } else if args.resume {
        note(&format!("no such training to continue in {}: starting one", run.root.display()));
    }
    let architecture = architecture_choice::choose(&args.architecture, &run, earlier.as_deref())?;
    Ok((run, architecture))
}

/// Run of the training, and its dataset's folder unless that is the run's; a missing dataset is downloaded.
fn choose_run(args: &RetrainArgs) -> Result<(RunChoice, Option<PathBuf>)> {
    let named = Task::locate(&args.dataset)?;
    let provide = |task: &Task| task.provide_unless(args.dry_run, &args.fetch).map(ToOwned::to_owned);
    let fold = args.fold.and_then(|fold| if let Fold::Number(number) = fold { Some(number) } else { None });
    if let Some(root) = &args.run {
        check_run_or_new(root)?;
        let data = named.as_ref().map(provide).transpose()?;
        return Ok((RunChoice { root: root.clone(), fold, resume: false }, data));
    }
    let task = named.map_or_else(Task::phantom, Ok)?;
    let preset = args.config.preset.as_deref();
    let choice = choose_for_retrain(&task.name, &task_runs(&task.name), fold, preset, args.architecture.is_given())?;
    // The run has the folder of its dataset; one on the command line is for a dataset that moved.
    let data = if task.has_place || !RunFolder::exists(&choice.root) { Some(provide(&task)?) } else { None };
    Ok((choice, data))
}

/// Returns true for the settings that a training may change: those of training, prediction and augmentation.
pub(crate) fn may_change(key: &str) -> bool {
    ["retrain.", "predict.", "data.augmentation."].iter().any(|section| key.starts_with(section)) || key == "seed"
}

/// Replaces the run's settings by those that this training was started with; `[predict]` may change.
fn keep_settings(run: &mut Run, directory: &Path, args: &RetrainArgs) -> Result<()> {
    let path = config_path(directory);
    if !path.is_file() {
        return Ok(());
    }
    let (_, stored) = run_config::load(&path)?;
    let asked: RunConfig = stored.changed_by(&args.config)?;
    if let Some((key, was, is)) = stored.difference(&asked, |key| !key.starts_with("predict.")) {
        bad_input!(
            "{} was started with {key} = {was}, not {is}: {}, or give another --name",
            directory.display(),
            ranks::remedy(&key)
        );
    }
    run.config = asked;
    Ok(())
}

/// Training of one architecture, and its scores.
struct Training<'a> {
    args: &'a RetrainArgs,
    architecture: Architecture,
    device: Device,
}

impl Training<'_> {
    /// Refuses validation cases that will be too large to be segmented, and a fold without any.
    fn check_scoring(&self, run: &Run) -> Result<()> {
        let limit = memory::limit(self.args.memory);
        let ids = run.splits.fold(run.fold)?.validation;
        if ids.is_empty() && run.fold != Fold::All {
            bad_input!(
                "{}: fold {} has no validation case; `--fold all` trains on all cases",
                splits_path(&run.root).display(),
                run.fold
            );
        }
        for id in ids {
            let files = &run.dataset.training_case(&id)?.image;
            let (geometry, _) = read_geometry(&files[0])?;
            memory::check_segmentation(
                limit,
                (&files[0], &geometry),
                &run.plan,
                &[&self.architecture],
                &self.device,
                false,
            )?;
        }
        Ok(())
    }

    fn directory(&self, run: &mut Run) -> Result<PathBuf> {
        let fold = run.fold;
        Ok(run.folder()?.retrain(self.args.name.as_deref(), fold))
    }

    /// Trains unless the model exists, and returns the path of the model; none for a forecast, and on a follower.
    fn train(&self, run: &mut Run) -> Result<Option<PathBuf>> {
        let mut settings = run.config.settings.clone();
        let split = run.splits.fold(run.fold)?;
        if let Some(folder) = run.existing_folder() {
            let directory = folder.retrain(self.args.name.as_deref(), run.fold);
            let path = model_in(&directory);
            if path.is_file() {
                self.take_up_test_time(run, &directory)?;
                model::update_test_time(&path, &settings)?;
                return Ok(Some(path));
            }
        }
        let batch_size = *settings.retrain.batch_size.get_or_insert(run.plan.batch_size);
        ranks::check(batch_size)?;
        let need =
            memory::Need::new(&self.architecture, &run.plan, batch_size, settings.retrain.precision, &self.device);
        let patch = run.plan.patch_size;
        let left = memory::check(need, patch, batch_size, self.args.memory, &self.device)?;
        let all = [split.train.as_slice(), &split.validation].concat();
        let workload = training::Workload::of_training(&settings.retrain);
        if self.args.dry_run {
            let cases = training_cases_bytes(&run.dataset, &all, &run.plan)?;
            let net = Unet::new(&self.architecture, settings.seed, DType::F32, &self.device)?;
            let architecture = &self.architecture;
            let forecast = Forecast { run, workload, batch_size, architecture, need, left, cases };
            forecast.print(&self.device, self.args.process.json, |x| net.predict(x))?;
            return Ok(None);
        }
        let mut cases = Cases::new(run, &all, left, &self.args.scratch)?;
        let mut parts = vec![(Part::Train, cases.prepare(run, &split.train)?)];
        if split.validation.is_empty() {
            settings.retrain.validation_batches = 0;
        } else {
            parts.push((Part::Validation, cases.prepare(run, &split.validation)?));
        }
        let sampling =
            Sampling { plan: &run.plan, batch_size, augmentation: settings.data.augmentation, seed: settings.seed };
        let mut source = PatchSource::new(parts, sampling, &self.device)?;
        let mut net = self.network(run)?;

        let directory = self.directory(run)?;
        let is_follower = ranks::is_follower();
        if !is_follower {
            adw_files::create_folders(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
            self.write_beginning(run, &directory)?;
            ranks::lead(&run.root)?;
        }
        let identity = run.identity()?;
        // The folder was seen to be new, or --resume was given.
        let options = RunOptions { ranks: ranks::shared(), directory: Some(directory.clone()), resume: true, identity };
        let mut reporter = training::Reporter::new("retrain", workload, self.args.process.json);
        let mut events = (!is_follower).then(|| EventFile::new(&directory));
        let mut on_event = |event: &Event<'_, RetrainRow>| {
            reporter.event(event);
            if let (Event::Epoch(row), Some(events)) = (event, &mut events) {
                events.training(row, &run.plan.labels);
            }
            interrupt::stop()
        };
        let trained = interrupt::stopping_itself(|| {
            retrain(&mut net, &run.loss(), &settings.retrain, &options, &mut source, &mut on_event)
        });
        drop(reporter);
        let weights = trained?.weights;
        if is_follower {
            return Ok(None);
        }
        let info = model::info(&run.plan, &settings, run.fold)?;
        let model = ModelFile { architecture: self.architecture.clone(), weights, info };
        let path = model_in(&directory);
        model.save(&path)?;
        interrupt::end_if_interrupted();
        Ok(Some(path))
    }

    /// The network with its initial weights: random, or for the architecture of the run's search, with `retrain.warm_start`, those
    /// that the search has shared among its networks. Baselines begin with random ones, also where a search finds the same network.
    fn network(&self, run: &Run) -> Result<Unet> {
        let settings = &run.config.settings;
        let search = run.existing_folder().map(|folder| folder.search(run.search_fold()));
        // By the architecture, not by the command line: a resumed training names none.
        let found = search.map(|search| (architecture_in(&search), search)).filter(|(file, _)| file.is_file());
        if let Some((file, search)) = found
            && settings.retrain.warm_start
            && !is_baseline(&self.architecture)
            && Architecture::load(&file)?.is_same_network(&self.architecture)
        {
            let subnet = searched_supernet(run, &search, &self.device)
                .and_then(|supernet| Ok(supernet.subnet(&self.architecture)?));
            return subnet.with_context(|| {
                let file = file.display();
                format!(
                    "{file}: the weights of the search; `--set retrain.warm_start=false` trains from random weights instead"
                )
            });
        }
        Ok(Unet::new(&self.architecture, settings.seed, DType::F32, &self.device)?)
    }

    /// Writes the architecture and the settings, which a resumed training takes up: the settings last, because without an
    /// architecture they would apply to another one.
    fn write_beginning(&self, run: &Run, directory: &Path) -> Result<()> {
        drawing::save(&self.architecture, run.plan.patch_size, &directory.join("architecture.svg"))?;
        self.architecture.save(&architecture_in(directory))?;
        let path = config_path(directory);
        // The version and processor that the training began with: resuming or scoring it elsewhere changes neither.
        let facts = if path.is_file() {
            run_config::load(&path)?.0
        } else {
            RunFacts::new(run.facts.data.clone(), run.search_fold(), &self.device)
        };
        let config = run_config::render(&facts, &run.config)?;
        adw_files::write_bytes(&path, config.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the label maps and scores of a finished training if they were made with other settings of `[predict]`, and
    /// keeps the new ones: after the removal, because maps beside settings are taken for theirs.
    fn take_up_test_time(&self, run: &Run, directory: &Path) -> Result<()> {
        let config = config_path(directory);
        if ranks::is_follower()
            || !config.is_file()
            || run_config::load(&config)?.1.difference(&run.config, |_| true).is_none()
        {
            return Ok(());
        }
        let gone = |removed: io::Result<()>| {
            removed.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
        };
        gone(fs::remove_file(directory.join("metrics.json")))
            .and_then(|()| gone(fs::remove_dir_all(directory.join("validation"))))
            .with_context(|| format!("cannot remove the scores in {}", directory.display()))?;
        self.write_beginning(run, directory)
    }

    /// Segments the validation cases like new images, one file each, and scores the files.
    fn score(&self, run: &mut Run, model_file: &Path) -> Result<()> {
        let directory = self.directory(run)?;
        if run.fold == Fold::All {
            note(&format!("trained on all cases, none is left to score: {}", model_file.display()));
            html::write_at_end(&run.root);
            return Ok(());
        }
        let predict = &run.config.settings.predict;
        let files = [model_file.to_owned()];
        let loaded = model::load(&files, predict.precision, &self.device)?;
        let window = SlidingWindow { windows_per_forward: predict.windows_per_forward, ..loaded.window(None, None)? };
        let segmenter = Segmenter { models: &loaded.networks, window };
        let ids = run.splits.fold(run.fold)?.validation;
        let validation = directory.join("validation");
        adw_files::create_folders(&validation).with_context(|| format!("cannot create {}", validation.display()))?;
        let mut num_new = 0;
        let progress = Progress::new("validation", 0, ids.len() as u64, self.args.process.json);
        for (done, id) in ids.iter().enumerate() {
            progress.step(done as u64, || id.clone());
            let path = validation.join(format!("{id}.nii.gz"));
            if path.is_file() {
                continue;
            }
            num_new += 1;
            let case = run.dataset.training_case(id)?;
            let image = run.dataset.load_image(&case.image)?;
            let geometry = image.geometry.clone();
            let prepared = msd_data::preprocess(image, None, &loaded.plan)?;
            let labels = segmenter.segment(prepared, &mut |_, _| {})?;
            write_labels(&path, &labels.view(), &geometry)?;
        }
        drop(progress);
        let report = self.evaluate(run, &directory)?;
        if num_new > 0 {
            let images = html::overlays(&report, &run.dataset, &directory);
            EventFile::new(&directory).images(run.config.settings.retrain.epochs, images);
        }
        html::write_at_end(&run.root);
        self.report(run, &report, &directory);
        Ok(())
    }

    /// Scores the label maps, and saves the scores.
    fn evaluate(&self, run: &Run, directory: &Path) -> Result<Report> {
        let ids = run.splits.fold(run.fold)?.validation;
        let validation = directory.join("validation");
        let pair = |id: &String| {
            let reference = run.dataset.training_case(id)?.label.clone();
            Ok((validation.join(format!("{id}.nii.gz")), reference))
        };
        let pairs = ids.iter().map(pair).collect::<Result<Vec<_>>>()?;
        let labels = run.plan.labels.iter().map(|label| label.value).filter(|&value| value > 0).collect();
        let options = EvaluationOptions {
            labels: Some(labels),
            positions: run.dataset.positions,
            memory: memory::limit(self.args.memory),
            ..EvaluationOptions::default()
        };
        let report = evaluate_pairs(&pairs, &options)?;
        report.save(&directory.join("metrics.json"))?;
        Ok(report)
    }

    fn report(&self, run: &Run, report: &Report, directory: &Path) {
        if self.args.process.json {
            let scores = json!({ "foreground_mean": report.foreground_mean, "mean": report.mean });
            emit("metrics", &json!({ "file": directory.join("metrics.json"), "metrics": scores }));
        } else {
            say(&metrics::table(report, &run.plan.labels));
            say(&format!("{}\n", model_in(directory).display()));
        }
    }
}

fn model_in(directory: &Path) -> PathBuf {
    directory.join(MODEL)
}
