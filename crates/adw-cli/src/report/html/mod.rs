//! Report of a run as one HTML file: figures, tables and a slice viewer, readable offline.
//!
//! The file is a function of the run's files alone: a report that is made again has the same bytes.
#![allow(
    clippy::format_push_string,
    clippy::format_collect,
    reason = "a page is made once: an allocation costs nothing"
)]

mod chart;
mod crossval;
mod data;
mod intervals;
mod page;
mod search;
pub(crate) mod study;
mod training;
mod viewer;

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use msd_data::{Dataset, Report};

use self::page::{Section, duration, escape, facts, number, quoted};
use crate::{
    architecture_choice::search_space,
    report::{
        png::{self, Picture},
        progress::note,
        run_data::{CrossvalData, RunData, SearchData, TrainingData},
    },
};

/// Most voxels of all viewers of a report, in each of the image and the two label maps: some 3 MB of base64.
const VIEWER_VOXELS: usize = 2_400_000;

/// Most trainings with a viewer.
const MAX_VIEWERS: usize = 3;

/// Makes the report of the run in `root` and returns its path, `report.html` in that folder unless `output` names another.
///
/// # Errors
/// No run, a damaged file, a disk that cannot be written to.
pub(crate) fn write(root: &Path, output: Option<&Path>) -> Result<PathBuf> {
    let path = output.map_or_else(|| root.join("report.html"), Path::to_path_buf);
    let run = RunData::load(root)?;
    warn_of_cut_histories(&run);
    let html = render(&run);
    adw_files::write_bytes(&path, html.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Warns of finished searches and trainings whose histories have lost epochs.
fn warn_of_cut_histories(run: &RunData) {
    let searches = run.searches.iter().filter(|search| search.architecture.is_some());
    let searches =
        searches.map(|it| (format!("search, fold {}", it.fold), it.rows.len(), run.config.settings.search.epochs));
    let trainings = run.trainings.iter().filter(|training| training.metrics.is_some());
    let trainings = trainings.map(|it| (it.title(), it.rows.len(), it.num_epochs));
    for (name, found, expected) in searches.chain(trainings).filter(|(_, found, expected)| found < expected) {
        note(&format!("warning: {name}: history.jsonl has {found} of {expected} epochs, the rest is lost"));
    }
}

/// Makes the report at the end of a search or training. A report that cannot be made is a warning: the result is there.
pub(crate) fn write_at_end(root: &Path) -> Option<PathBuf> {
    write(root, None).inspect_err(|error| note(&format!("warning: no report: {error:#}"))).ok()
}

/// Pictures of the best, the median and the worst case of the training in `folder`, by their names.
/// Cases that cannot be read are left out.
pub(crate) fn overlays(report: &Report, dataset: &Dataset, folder: &Path) -> Vec<Picture> {
    let cases = training::shown_cases(report, folder);
    cases.iter().filter_map(|case| viewer::overlays(dataset, case).ok()).flatten().collect()
}

fn render(run: &RunData) -> String {
    let mut sections = vec![overview(run)];
    let crossvals = run.crossvals.iter().enumerate();
    sections.extend(crossvals.map(|(i, crossval)| crossval::section(run, crossval, &format!("crossval-{i}"))));
    sections.extend(run.searches.iter().map(|search| search::section(run, search)));
    let with_scores = run.trainings.iter().filter(|training| training.metrics.is_some()).count();
    let voxels = VIEWER_VOXELS / 3 / with_scores.clamp(1, MAX_VIEWERS);
    let mut scripts = String::new();
    let mut viewers = 0;
    for (i, training) in run.trainings.iter().enumerate() {
        let shows = training.metrics.is_some() && viewers < MAX_VIEWERS;
        viewers += usize::from(shows);
        let (section, script) =
            training::section(run, training, &format!("training-{i}"), if shows { voxels } else { 0 });
        sections.push(section);
        scripts += &script;
    }
    sections.push(data::section(run));
    sections.push(repetition(run));
    scripts += &format!("<script>\n{}</script>\n", include_str!("viewer.js"));
    let name = run.root.canonicalize().unwrap_or_else(|_| run.root.clone());
    let name = name.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    page::page(&format!("{} – {name}", run.plan.dataset_name), &sections, &scripts)
}

/// Answers to the questions that readers have first.
fn overview(run: &RunData) -> Section {
    let space = search_space(&run.plan, &run.config.settings.network);
    let mut rows = Vec::new();
    for search in &run.searches {
        let choices = search::choices(&search.rows, &space);
        let sure = choices.iter().filter(|choice| choice.is_sure()).count();
        let least = choices.iter().min_by(|a, b| a.margin().total_cmp(&b.margin()));
        let least = least.map_or(String::new(), |choice| format!("; least sure: {}", escape(&choice.contest())));
        let sure = format!("{sure} of {}{least}. Dice on half B: {}", choices.len(), search::last_dice(&search.rows));
        rows.push((format!("Which choices are sure? <a href=\"#search-{0}\">Search, fold {0}</a>", search.fold), sure));
    }
    rows.push(("What did it cost?".to_owned(), costs(run)));
    if let Some((i, training)) = main_training(run) {
        rows.push((
            format!("Where does it fail? <a href=\"#training-{i}\">{}</a>", escape(&training.title())),
            failures(run, training),
        ));
    }
    if let Some((_, training)) = main_training(run) {
        rows.push(("Against what is it better?".to_owned(), comparison(run, training)));
    }
    rows.push((
        "How do I repeat it?".to_owned(),
        format!("<code>{}</code> <a href=\"#repeat\">more</a>", escape(&commands(run)[0])),
    ));
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let mut body = facts(&rows);
    if !run.trainings.is_empty() {
        body += &training::comparison(run);
    }
    Section { id: "overview".to_owned(), title: "At a glance".to_owned(), body }
}

fn costs(run: &RunData) -> String {
    let (searches, trainings) = (&run.searches, &run.trainings);
    let mut parts = Vec::new();
    if !searches.is_empty() {
        parts.push(format!("search {}", duration(searches.iter().map(SearchData::wall_s).sum())));
    }
    if !trainings.is_empty() {
        parts.push(format!("training {}", duration(trainings.iter().map(TrainingData::wall_s).sum())));
    }
    if parts.is_empty() {
        parts.push("nothing yet".to_owned());
    }
    format!("{} of wall time, data preparation and scoring left out, on {}", parts.join(", "), machine(&run.facts))
}

fn machine(facts: &crate::run_config::RunFacts) -> String {
    let processor = if facts.processor.is_empty() { "an unknown processor" } else { &facts.processor };
    if facts.device == "cpu" { escape(processor) } else { escape(&format!("{} ({processor})", facts.device)) }
}

fn failures(run: &RunData, training: &TrainingData) -> String {
    let Some(report) = &training.metrics else { return training::unscored(training).to_owned() };
    let worst_label =
        report.mean.iter().filter(|(_, mean)| mean.dice.is_finite()).min_by(|a, b| a.1.dice.total_cmp(&b.1.dice));
    let label = worst_label.map_or(String::new(), |(value, mean)| {
        format!(
            "Worst label: {} (Dice {:.3}, HD95 {} mm). ",
            escape(&training::label_name(&run.plan.labels, *value)),
            mean.dice,
            number(mean.hd95_mm)
        )
    });
    let cases = training::scored(report);
    let worst: Vec<_> = cases.iter().take(3).map(|case| format!("{} ({:.3})", escape(case.id), case.dice)).collect();
    format!("{label}Worst cases by mean Dice: {}", worst.join(", "))
}

/// First training that is scored, else the first, with its index.
fn main_training(run: &RunData) -> Option<(usize, &TrainingData)> {
    let all = || run.trainings.iter().enumerate();
    all().find(|(_, training)| training.metrics.is_some()).or_else(|| all().next())
}

fn comparison(run: &RunData, first: &TrainingData) -> String {
    let others: Vec<_> = run
        .trainings
        .iter()
        .filter(|other| other.folder != first.folder && other.fold == first.fold && other.metrics.is_some())
        .map(|other| {
            let mut line = format!(
                "{}: Dice {} than {}",
                escape(&first.title()),
                training::difference(first, other),
                escape(&other.title())
            );
            if first.steps() != other.steps() {
                let _ = write!(line, "; {} and {} steps", first.steps(), other.steps());
            }
            let weights = |training| if run.is_warm(training) { "those of its search" } else { "random" };
            if weights(first) != weights(other) {
                let _ = write!(line, "; first weights {} and {}", weights(first), weights(other));
            }
            line
        })
        .collect();
    if others.is_empty() {
        "No baseline was trained in this run: <code>adw retrain --run RUN --plain nnunet --name nnunet</code> trains nnU-Net's network.".to_owned()
    } else {
        others.join("<br>")
    }
}

/// Commands that repeat the run: the first needs `config.toml`, which the report holds.
fn commands(run: &RunData) -> Vec<String> {
    let data = quoted(&run.facts.data);
    let mut commands: Vec<_> = run.crossvals.iter().map(|of| crossval::command(run, of, &data)).collect();
    // A cross-validation repeats its searches and trainings.
    if !run.crossvals.iter().any(CrossvalData::searches) {
        let search = |fold| format!("adw search --data {data} --preset config.toml --fold {fold} --run REPEATED");
        commands.extend(run.searches.iter().map(|of| search(of.fold)));
    }
    for training in run.trainings.iter().filter(|training| !run.crossvals.iter().any(|of| of.covers(training))) {
        let folder = quoted(&training.folder);
        let name = training.name.as_ref().map_or(String::new(), |name| format!(" --name {}", quoted(Path::new(name))));
        commands.push(format!(
            "adw retrain --data {data} --preset {folder}/config.toml --architecture {folder}/architecture.json --fold {} --run REPEATED{name}",
            training.fold
        ));
    }
    if commands.is_empty() {
        commands.push(format!("adw search --data {data} --preset config.toml --run REPEATED"));
    }
    commands
}

/// Section with all that a repetition needs.
fn repetition(run: &RunData) -> Section {
    let commands: String = commands(run).iter().map(|command| format!("{}\n", escape(command))).collect();
    let mut rows = vec![
        ("Program", format!("adw {}", escape(&run.facts.version))),
        ("Seed", run.config.settings.seed.to_string()),
        ("Processor", machine(&run.facts)),
        ("Dataset", escape(&run.facts.data.display().to_string())),
    ];
    for training in run.trainings.iter().filter(|training| {
        (&training.facts.version, &training.facts.processor) != (&run.facts.version, &run.facts.processor)
    }) {
        rows.push((
            "Training",
            format!(
                "{}: adw {} on {}",
                escape(&training.title()),
                escape(&training.facts.version),
                machine(&training.facts)
            ),
        ));
    }
    let file = png::data_url("text/plain", run.config_text.as_bytes());
    let body = format!(
        "{}<p>Save the configuration as <a download=\"config.toml\" href=\"{file}\">config.toml</a>; then</p>\n<pre tabindex=\"0\">{commands}</pre>\n\
         <p>The same program, seed and kind of processor give the same bits, with any number of threads.</p>\n\
         <details><summary>Configuration</summary><pre tabindex=\"0\">{}</pre></details>\n",
        facts(&rows),
        run.config_text.lines().map(|line| format!("{}\n", escape(line))).collect::<String>()
    );
    Section { id: "repeat".to_owned(), title: "Repeat it".to_owned(), body }
}
