//! Cross-validation in a report: scores of all cases of all folds together.

use std::path::Path;

use msd_data::{Label, postprocess::Structure};

use super::{
    page::{Section, count, duration, escape, facts, number, quoted, table},
    training::{fixed, label_name, score_tables},
};
use crate::{
    fold::Fold,
    report::run_data::{CrossvalData, RunData, SearchData, TrainingData},
    statistics::mean,
};

/// Section about a cross-validation.
pub(super) fn section(run: &RunData, of: &CrossvalData, id: &str) -> Section {
    let labels = &run.plan.labels;
    let trainings = || run.trainings.iter().filter(|training| of.covers(training) && training.metrics.is_some());
    let search = |fold: Fold| run.searches.iter().find(|search| Fold::Number(search.fold) == fold);
    let mut rows = Vec::new();
    if let Some(dice) = of.scores.spread.get("foreground_mean").and_then(|metrics| metrics.get("Dice")) {
        let [low, high] = dice.interval_95;
        rows.push((
            "Dice, mean over labels",
            format!(
                "{:.4}, 95 % interval {low:.4} to {high:.4}, standard deviation {:.4} over {}",
                dice.mean,
                dice.standard_deviation,
                count(dice.num_scores, "case")
            ),
        ));
    }
    rows.push(("Searches", escape(&of.scores.searches)));
    rows.push(("Postprocessing", postprocessing(of, labels)));
    let training_s: f64 = trainings().map(TrainingData::wall_s).sum();
    let searches: f64 = if of.searches() { run.searches.iter().map(SearchData::wall_s).sum() } else { 0.0 };
    rows.push(("Time", format!("searches {}, trainings {}", duration(searches), duration(training_s))));
    let mut body = facts(&rows);
    let spreads = of.scores.spread.iter().filter_map(|(label, metrics)| {
        let dice = metrics.get("Dice")?;
        let label = label.parse().map_or_else(|_| "mean".to_owned(), |value| label_name(labels, value));
        let [low, high] = dice.interval_95;
        let cells = [fixed(dice.mean), fixed(dice.standard_deviation), format!("{low:.3} to {high:.3}")];
        Some([escape(&label)].into_iter().chain(cells).collect())
    });
    body += &table("Dice over all cases of all folds", &["label", "Dice", "SD of cases", "95 % interval"], spreads);
    let folds = trainings().map(|training| {
        let report = training.metrics.as_ref().expect("only scored trainings are listed");
        let mean = report.foreground_mean;
        let search = search(training.fold).filter(|_| of.searches());
        vec![
            training.fold.to_string(),
            report.metric_per_case.len().to_string(),
            fixed(mean.dice),
            number(mean.hd95_mm),
            fixed(mean.nsd),
            search.map_or("–".to_owned(), |search| duration(search.wall_s())),
            duration(training.wall_s()),
        ]
    });
    body += &table("Folds", &["fold", "cases", "Dice", "HD95 mm", "NSD", "search", "training"], folds);
    body += &score_tables(&of.report, labels);
    let network = trainings().next().map_or("", TrainingData::network);
    Section { id: id.to_owned(), title: format!("Cross-validation: {network}"), body }
}

fn postprocessing(of: &CrossvalData, labels: &[Label]) -> String {
    let found = &of.scores.postprocessing;
    let kept = found.postprocessing.keep_largest.iter().map(|structure| match structure {
        Structure::Foreground => "all labels together".to_owned(),
        Structure::Label(value) => escape(&label_name(labels, *value)),
    });
    let kept: Vec<String> = kept.collect();
    if kept.is_empty() {
        return "none: keeping the largest component raises no label's Dice".to_owned();
    }
    let [before, after] = [0, 1].map(|i| fixed(mean(found.dice.values().filter_map(|dice| dice[i]))));
    format!("largest component of {}: Dice {after} after, {before} before", kept.join(", "))
}

/// Command that repeats a cross-validation with the dataset `data`, a path for a shell.
pub(super) fn command(run: &RunData, of: &CrossvalData, data: &str) -> String {
    let first = run.trainings.iter().find(|training| of.covers(training));
    let folder = first.map_or(".".to_owned(), |training| quoted(&training.folder));
    // Settings of a training may differ from the run's.
    let mut command = format!("adw crossval --data {data} --preset {folder}/config.toml --run REPEATED");
    if !of.searches() {
        // One architecture for all folds.
        command += &format!(" --architecture {folder}/architecture.json");
    } else if of.scores.searches.starts_with("one,") {
        command += " --search once";
    }
    command + &of.name.as_ref().map_or(String::new(), |name| format!(" --name {}", quoted(Path::new(name))))
}
