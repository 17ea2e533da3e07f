//! Training in a report: curves, scores per label and case, cases to look at.

use std::path::Path;

use msd_data::metrics::{CaseReport, LabelMetrics, MeanMetrics};
use msd_data::{Label, Report};

use super::{
    chart::{LineChart, Series, distribution},
    page::{Section, count, duration, escape, number, table},
    viewer::{self, ShownCase},
};
use crate::{
    fold::Fold,
    report::run_data::{RunData, TrainingData},
    statistics::{dice_differences, mean},
};

/// Most cases in a table: the worst ones.
const MAX_ROWS: usize = 200;

/// A case with the mean of its Dice over the labels.
pub(super) struct ScoredCase<'a> {
    pub(super) id: &'a str,
    pub(super) dice: f64,
    report: &'a CaseReport,
}

/// Cases of a report, the worst first. Cases without a number, whose labels occur nowhere, are left out.
pub(super) fn scored(report: &Report) -> Vec<ScoredCase<'_>> {
    let mut cases: Vec<_> = report
        .metric_per_case
        .iter()
        .map(|case| ScoredCase {
            id: case_id(&case.prediction_file),
            dice: mean(case.metrics.values().map(|m| m.dice)),
            report: case,
        })
        .filter(|case| case.dice.is_finite())
        .collect();
    cases.sort_by(|a, b| a.dice.total_cmp(&b.dice).then(a.id.cmp(b.id)));
    cases
}

fn case_id(file: &Path) -> &str {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_suffix(".gz").unwrap_or(name).trim_end_matches(".nii")
}

/// Name of a label.
pub(super) fn label_name(labels: &[Label], value: u16) -> String {
    labels.iter().find(|label| label.value == value).map_or_else(|| value.to_string(), |label| label.name.clone())
}

/// Section about a training, with the elements of its viewer. `max_voxels` bounds each case shown; 0 shows none.
pub(super) fn section(run: &RunData, training: &TrainingData, id: &str, max_voxels: usize) -> (Section, String) {
    let (mut body, mut scripts) = (String::new(), String::new());
    let labels = &run.plan.labels;
    if let Some(report) = &training.metrics {
        body += &score_tables(report, labels);
        if let Some(dataset) = run.dataset().filter(|_| max_voxels > 0) {
            body += &format!("<h3 id=\"{id}-cases\">Best, median and worst case</h3>\n");
            body += "<p>Full lines are the reference, broken lines the prediction. Each view \
                     opens at the slice with most disagreement; arrow keys, the wheel, dragging or the slider move it.</p>\n";
            for (i, case) in shown_cases(report, &training.folder).iter().enumerate() {
                match viewer::figure(&dataset, labels, case, &format!("{id}-case{i}"), max_voxels) {
                    Ok((figure, script)) => (body, scripts) = (body + &figure, scripts + &script),
                    Err(error) => {
                        body += &format!("<p>{} is not shown: {}</p>\n", escape(case.id), escape(&error.to_string()));
                    }
                }
            }
        }
    } else {
        body += &format!("<p>{}.</p>\n", unscored(training));
    }
    body += &format!("<h3>Training</h3>\n<div class=\"charts\">{}</div>\n", curves(training, labels));
    (Section { id: id.to_owned(), title: format!("Training: {}", training.title()), body }, scripts)
}

/// Reason why a training has no scores.
pub(super) fn unscored(training: &TrainingData) -> &'static str {
    match (training.fold, training.is_finished()) {
        (Fold::All, true) => "Trained on every case: none is left to score",
        (Fold::All, false) => "The training is not finished",
        (Fold::Number(_), _) => "The training is not finished: no case has been scored",
    }
}

/// The best, the median and the worst case of the training in the folder `training`.
pub(super) fn shown_cases<'a>(report: &'a Report, training: &Path) -> Vec<ShownCase<'a>> {
    let cases = scored(report);
    let mut shown: Vec<usize> = Vec::new();
    let named = [("best", cases.len().saturating_sub(1)), ("median", cases.len() / 2), ("worst", 0)];
    let mut result = Vec::new();
    for (name, i) in named.into_iter().filter(|&(_, i)| i < cases.len()) {
        if !shown.contains(&i) {
            shown.push(i);
            let caption = format!("{name} of {}: Dice {:.3}", count(cases.len(), "case"), cases[i].dice);
            // The report's paths are those of the scoring; the run's folder may have been moved since.
            let file = cases[i].report.prediction_file.file_name().unwrap_or_default();
            let prediction = training.join("validation").join(file);
            result.push(ShownCase { id: cases[i].id, kind: name, caption, prediction });
        }
    }
    result
}

/// Value of one metric.
type Metric = fn(&LabelMetrics) -> f64;

/// Mean scores of each label, their distributions and the scores of every case.
pub(super) fn score_tables(report: &Report, labels: &[Label]) -> String {
    let nsd = format!("NSD at {} mm", number(report.nsd_tolerance_mm));
    let header = ["label", "Dice", "IoU", "HD95 mm", &nsd, "cases without HD95"];
    let row = |name: String, MeanMetrics { dice, iou, hd95_mm, nsd, hd95_infinite }: &MeanMetrics| {
        vec![escape(&name), fixed(*dice), fixed(*iou), number(*hd95_mm), fixed(*nsd), hd95_infinite.to_string()]
    };
    let mut rows: Vec<_> = report.mean.iter().map(|(value, mean)| row(label_name(labels, *value), mean)).collect();
    rows.push(row("mean".to_owned(), &report.foreground_mean));
    let mut body = table("Mean scores", &header, rows);
    body += "<div class=\"charts\">\n";
    let kinds: [(&str, &str, Metric); 3] = [
        ("Dice per case", "a dot per case, box: quartiles, line: median", |m| m.dice),
        ("HD95 per case", "mm, 95 % Hausdorff distance", |m| m.hd95_mm),
        (&nsd, "surface Dice", |m| m.nsd),
    ];
    for (title, unit, value) in kinds {
        let values =
            |label: &u16| report.metric_per_case.iter().filter_map(|case| case.metrics.get(label)).map(value).collect();
        let rows: Vec<_> =
            report.mean.keys().take(24).map(|label| (label_name(labels, *label), values(label))).collect();
        body += &distribution(title, unit, &rows);
    }
    body += "</div>\n";
    let cases = scored(report);
    let shown: Vec<u16> = report.mean.keys().copied().take(8).collect();
    let names: Vec<String> = shown.iter().map(|label| format!("Dice {}", label_name(labels, *label))).collect();
    let header: Vec<&str> =
        ["case", "mean Dice"].into_iter().chain(names.iter().map(String::as_str)).chain(["HD95 mm", "NSD"]).collect();
    let rows = cases.iter().take(MAX_ROWS).map(|case| {
        let metrics = &case.report.metrics;
        let mut row = vec![escape(case.id), fixed(case.dice)];
        row.extend(shown.iter().map(|label| fixed(metrics.get(label).map_or(f64::NAN, |m| m.dice))));
        row.push(number(mean(metrics.values().map(|m| m.hd95_mm))));
        row.push(fixed(mean(metrics.values().map(|m| m.nsd))));
        row
    });
    let caption = if cases.len() > MAX_ROWS {
        format!("The {MAX_ROWS} worst of {} cases, worst first; metrics.json has all", cases.len())
    } else {
        format!("{}, worst first", count(cases.len(), "case"))
    };
    let rows = table(&caption, &header, rows);
    body + &format!("<details><summary>Scores of every case</summary>\n{rows}</details>\n")
}

/// Three decimals, which is what differences of Dice are told by.
pub(super) fn fixed(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "–".to_owned() }
}

fn curves(training: &TrainingData, labels: &[Label]) -> String {
    let rows = &training.rows;
    let chart = |title, y, series| LineChart { title, y, series, levels: vec![], warmup: 0 }.render();
    let mut dice = vec![Series::over_epochs("mean", rows.iter().map(|row| row.mean_dice))];
    if labels.len() > 2 {
        dice.extend(labels.iter().skip(1).take(5).enumerate().map(|(class, label)| {
            Series::over_epochs(&label.name, rows.iter().map(|row| row.dice.get(class).copied().flatten()))
        }));
    }
    [
        chart("Loss", "mean of each epoch", vec![Series::over_epochs("training", rows.iter().map(|row| row.loss))]),
        chart("Dice on validation patches", "watched, nothing is chosen by it", dice),
        chart(
            "Learning rate",
            "first step of each epoch",
            vec![Series::over_epochs("learning rate", rows.iter().map(|row| Some(row.lr)))],
        ),
    ]
    .concat()
}

/// Table that compares the trainings of a run, each with the first of its fold.
pub(super) fn comparison(run: &RunData) -> String {
    let header = [
        "training",
        "multiply-adds",
        "parameters",
        "steps",
        "first weights",
        "time",
        "Dice",
        "HD95 mm",
        "NSD",
        "Dice less that of the first",
    ];
    let rows = run.trainings.iter().map(|training| {
        let cost = training.architecture.cost(run.plan.patch_size);
        let scores = training.metrics.as_ref().map(|metrics| metrics.foreground_mean);
        let score = |value: fn(MeanMetrics) -> f64| scores.map_or(f64::NAN, value);
        let first = run.trainings.iter().find(|other| other.fold == training.fold && other.metrics.is_some());
        vec![
            escape(&training.title()),
            number(cost.macs as f64),
            number(cost.parameters as f64),
            training.steps().to_string(),
            if run.is_warm(training) { "of the search" } else { "random" }.to_owned(),
            duration(training.wall_s()),
            fixed(score(|m| m.dice)),
            number(score(|m| m.hd95_mm)),
            fixed(score(|m| m.nsd)),
            first
                .filter(|first| first.folder != training.folder)
                .map_or("–".to_owned(), |first| difference(training, first)),
        ]
    });
    table("Trainings of this run", &header, rows)
}

/// Mean difference of the cases' Dice, and the number of cases where `training` is better.
pub(super) fn difference(training: &TrainingData, other: &TrainingData) -> String {
    let (Some(a), Some(b)) = (&training.metrics, &other.metrics) else { return "–".to_owned() };
    let of_other = |id: &str| b.metric_per_case.iter().find(|other| case_id(&other.prediction_file) == id);
    let difference = |case: &CaseReport| {
        let other = of_other(case_id(&case.prediction_file))?;
        Some(mean(dice_differences(&case.metrics, &other.metrics))).filter(|difference| difference.is_finite())
    };
    let pairs: Vec<f64> = a.metric_per_case.iter().filter_map(difference).collect();
    if pairs.is_empty() {
        return "–".to_owned();
    }
    let better = pairs.iter().filter(|d| **d > 0.0).count();
    format!("{:+.3}, better in {better} of {}", mean(pairs.iter().copied()), count(pairs.len(), "case"))
}
