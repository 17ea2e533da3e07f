//! Comparison of a sweep's arms: mean scores, and paired differences over cases.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    config::{Arm, Difference},
    plan::Sweep,
    rows::Row,
};
use crate::{
    args::Stage,
    failure::bad_input,
    report::{
        html::study::{self, ArmDifference, ArmScores, Study, StudyDataset},
        progress::{emit, say},
        table::Table,
    },
    statistics::{CaseScores, Sample, Spread, dice_differences, mean, mean_over_labels},
};

/// Writes `rows.jsonl`, `summary.md`, a chart of each kind per dataset in `plots/` and `report.html`, and prints the tables.
///
/// # Errors
/// Those of [`report`].
pub(crate) fn summary(sweep: &Sweep, json: bool) -> Result<()> {
    let study = study(sweep)?;
    let mut text = String::new();
    for dataset in &study.datasets {
        let _ = writeln!(text, "# {}\n", dataset.name);
        text.push_str(&tables(dataset));
        if json {
            emit_scores(dataset);
        }
    }
    let _ = writeln!(text, "Trained on: {}.", study.processors.join("; "));
    let [done, all] = study.trainings;
    if all > done {
        let _ = writeln!(text, "{} of {all} trainings are not done.", all - done);
    }
    write(&sweep.folder.join("summary.md"), &text)?;
    adw_files::create_folders(&sweep.folder.join("plots"))?;
    for (name, svg) in study.datasets.iter().flat_map(study::plots) {
        write(&sweep.folder.join("plots").join(name), &svg)?;
    }
    let page = sweep.folder.join("report.html");
    write(&page, &study::page(&study))?;
    if !json {
        say(&text);
        say(&format!("{}\n{}\n", sweep.folder.join("rows.jsonl").display(), page.display()));
    }
    Ok(())
}

/// Writes the page about a sweep, and returns its path, `report.html` in the sweep's folder unless `output` names another.
///
/// # Errors
/// No training is done; arms that differ in more than their networks, unless an arm allows it; a disk that cannot be written to.
pub(crate) fn report(sweep: &Sweep, output: Option<&Path>) -> Result<PathBuf> {
    let path = output.map_or_else(|| sweep.folder.join("report.html"), Path::to_path_buf);
    write(&path, &study::page(&study(sweep)?))?;
    Ok(path)
}

/// Collects the results of a sweep, and writes them to `rows.jsonl`.
fn study(sweep: &Sweep) -> Result<Study> {
    let rows = sweep.rows()?;
    if rows.is_empty() {
        bad_input!("{}: no training is done yet", sweep.folder.display());
    }
    let lines = rows.iter().map(|row| Ok(serde_json::to_string(row)? + "\n")).collect::<Result<String>>()?;
    write(&sweep.folder.join("rows.jsonl"), &lines)?;
    check_comparable(&rows, &sweep.config.arms)?;
    let of_dataset = |name: &String| rows.iter().filter(|row| row.dataset == *name).collect::<Vec<_>>();
    let datasets = sweep.datasets.iter().map(|dataset| (&dataset.name, of_dataset(&dataset.name)));
    let processors: BTreeSet<&String> = rows.iter().map(|row| &row.processor).collect();
    let all = sweep.tasks.iter().filter(|task| task.stage == Stage::Retrain).count();
    let name = sweep.folder.file_name().map_or_else(|| "sweep".into(), |name| name.to_string_lossy().into_owned());
    Ok(Study {
        datasets: datasets
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(name, rows)| compared(name, &rows, &sweep.config.arms))
            .collect(),
        trainings: [rows.len(), all],
        processors: processors.into_iter().cloned().collect(),
        file: [format!("{name}.toml"), toml::to_string(&sweep.config)?],
        name,
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    adw_files::write_bytes(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Refuses arms whose trainings or scores differ in a condition that neither of them allows.
fn check_comparable(rows: &[Row], arms: &[Arm]) -> Result<()> {
    let allows =
        |name: &str, kind: Difference| arms.iter().any(|arm| arm.name == name && arm.allow_difference.contains(&kind));
    let mut seen = BTreeMap::<(&str, usize), Vec<(&str, &str)>>::new();
    for row in rows {
        for (index, (kind, value)) in row.conditions.iter().enumerate() {
            let others = seen.entry((&row.dataset, index)).or_default();
            for (arm, other) in others.iter() {
                if other != value && !allows(arm, *kind) && !allows(&row.arm, *kind) {
                    let key = json!(kind);
                    bad_input!(
                        "{}: the arms {arm} and {} differ in {key}, {other} and {value}: a difference of their scores could \
                         come from that; if it is meant, give one of them allow_difference = [{key}]",
                        row.dataset,
                        row.arm
                    );
                }
            }
            if !others.contains(&(&row.arm, value)) {
                others.push((&row.arm, value));
            }
        }
    }
    Ok(())
}

/// Foreground Dice of a case.
fn dice(row: &Row, case: &str) -> f64 {
    row.cases.get(case).map_or(f64::NAN, |case| mean_over_labels(case, |metrics| metrics.dice))
}

/// Spread of scores of networks, which `scores` returns by case.
fn by_network<'a>(rows: &[&'a Row], scores: impl Fn(&'a Row) -> BTreeMap<&'a String, CaseScores>) -> Option<Spread> {
    let of_rows: Vec<_> = rows.iter().map(|row| ((row.seed, row.fold), scores(row))).collect();
    // Cases of each fold, in the same order for all seeds.
    let mut folds = BTreeMap::<usize, BTreeSet<&String>>::new();
    for ((_, fold), cases) in &of_rows {
        folds.entry(*fold).or_default().extend(cases.keys());
    }
    let seeds: BTreeSet<u64> = rows.iter().map(|row| row.seed).collect();
    let of_fold = |seed: u64, fold: usize, cases: &BTreeSet<&String>| {
        let network = of_rows.iter().find(|(network, _)| *network == (seed, fold));
        let of_case = |case| network.and_then(|(_, scores)| scores.get(case)).cloned().unwrap_or_default();
        cases.iter().map(of_case).collect()
    };
    let of_seed = |seed| folds.iter().map(|(fold, cases)| of_fold(seed, *fold, cases)).collect();
    Sample { seeds: seeds.into_iter().map(of_seed).collect() }.spread()
}

/// Differences of Dice between two arms over the cases that both have, by seed and fold.
fn paired(arm: &[&Row], other: &[&Row]) -> Option<Spread> {
    let partner = |row: &Row| other.iter().find(|other| (other.seed, other.fold) == (row.seed, row.fold));
    // Folds that one of the arms does not have are none of the bootstrap's.
    let of_both: Vec<&Row> = arm.iter().copied().filter(|row| partner(row).is_some()).collect();
    by_network(&of_both, |row| {
        let difference = |(case, of)| Some((case, dice_differences(of, partner(row)?.cases.get(case)?)));
        row.cases.iter().filter_map(difference).collect()
    })
}

/// Compares the arms in a dataset by the rows of its networks.
fn compared(dataset: &str, rows: &[&Row], arms: &[Arm]) -> StudyDataset {
    let (mut scores, mut by_arm) = (Vec::new(), Vec::<(&String, Vec<&Row>)>::new());
    for arm in arms {
        let name = &arm.name;
        let rows: Vec<&Row> = rows.iter().copied().filter(|row| row.arm == *name).collect();
        let all = by_network(&rows, |row| {
            let labels = row.cases.iter().map(|(case, of)| (case, of.values().map(|metrics| metrics.dice).collect()));
            labels.collect()
        });
        let Some(all) = all else { continue };
        let of_networks = |value: &dyn Fn(&Row) -> f64| mean(rows.iter().map(|row| value(row)));
        scores.push(ArmScores {
            name: name.clone(),
            num_networks: rows.len(),
            num_searches: if arm.searches() { rows.len() } else { 0 },
            dice: all,
            macs_per_patch: of_networks(&|row| row.macs_per_patch as f64),
            steps: of_networks(&|row| row.steps as f64),
            search_s: of_networks(&|row| row.search_s.unwrap_or(0.0)),
            retrain_s: of_networks(&|row| row.retrain_s),
        });
        by_arm.push((name, rows));
    }
    let mut differences = Vec::new();
    for (index, (name, of_arm)) in by_arm.iter().enumerate() {
        differences.extend(by_arm[index + 1..].iter().filter_map(|(other, of_other)| {
            Some(ArmDifference { arms: [name, other].map(|name| (*name).clone()), dice: paired(of_arm, of_other)? })
        }));
    }
    let names: BTreeSet<&String> = rows.iter().flat_map(|row| row.cases.keys()).collect();
    let of_case = |case| by_arm.iter().map(|(_, rows)| mean(rows.iter().map(|row| dice(row, case)))).collect();
    let mut cases: Vec<(String, Vec<f64>)> = names.into_iter().map(|case| (case.clone(), of_case(case))).collect();
    cases.sort_by(|(_, a), (_, b)| mean(a.iter().copied()).total_cmp(&mean(b.iter().copied())));
    StudyDataset { name: dataset.to_owned(), arms: scores, differences, cases }
}

fn emit_scores(dataset: &StudyDataset) {
    for arm in &dataset.arms {
        let fields =
            json!({ "dataset": dataset.name, "arm": arm.name, "networks": arm.num_networks, "dice": arm.dice });
        emit("arm", &fields);
    }
    for ArmDifference { arms, dice } in &dataset.differences {
        emit("difference", &json!({ "dataset": dataset.name, "arms": arms, "dice": dice }));
    }
}

fn tables(dataset: &StudyDataset) -> String {
    let mut scores = Table::of_numbers([
        "arm",
        "networks",
        "Dice",
        "SD",
        "95 % from",
        "to",
        "G multiply-adds",
        "steps",
        "search min",
        "training min",
    ]);
    for arm in &dataset.arms {
        let Spread { mean, standard_deviation, interval_95: [low, high], .. } = arm.dice;
        scores.row([
            arm.name.clone(),
            arm.num_networks.to_string(),
            format!("{mean:.4}"),
            format!("{standard_deviation:.4}"),
            format!("{low:.4}"),
            format!("{high:.4}"),
            format!("{:.3}", arm.macs_per_patch / 1e9),
            format!("{:.0}", arm.steps),
            format!("{:.1}", arm.search_s / 60.0),
            format!("{:.1}", arm.retrain_s / 60.0),
        ]);
    }
    let mut differences = Table::of_numbers(["difference of Dice", "cases", "mean", "95 % from", "to"]);
    for ArmDifference { arms: [arm, other], dice } in &dataset.differences {
        let [low, high] = dice.interval_95;
        differences.row([
            format!("{arm} - {other}"),
            dice.num_scores.to_string(),
            format!("{:+.4}", dice.mean),
            format!("{low:+.4}"),
            format!("{high:+.4}"),
        ]);
    }
    format!(
        "```\n{}```\n\n```\n{}```\n\nMeans over the foreground labels of their means over cases; intervals of a bootstrap over seeds, and over folds and cases, which seeds share.\n\n",
        scores.render(),
        differences.render()
    )
}

#[cfg(test)]
mod tests {
    use msd_data::metrics::LabelMetrics;

    use super::*;

    fn row(arm: &str, seed: u64, fold: usize, steps: usize, dice: [f64; 2]) -> Row {
        let metrics = |dice| LabelMetrics {
            dice,
            iou: 0.0,
            hd95_mm: 0.0,
            nsd: 0.0,
            true_positives: 0,
            false_positives: 0,
            false_negatives: 0,
            true_negatives: 0,
            n_pred: 0,
            n_ref: 0,
        };
        let case = |(i, dice): (usize, f64)| (format!("case_{fold}_{i}"), BTreeMap::from([(1, metrics(dice))]));
        Row {
            dataset: "heart".into(),
            arm: arm.into(),
            seed,
            fold,
            cases: dice.into_iter().enumerate().map(case).collect(),
            macs_per_patch: 1_000_000_000,
            parameters: 1,
            steps,
            search_s: None,
            retrain_s: 60.0,
            processor: "P".into(),
            host: "h".into(),
            conditions: vec![(Difference::Steps, steps.to_string())],
        }
    }

    #[test]
    fn differences_are_paired_by_seed_fold_and_case() {
        // Cases differ far more than the arms do.
        let a: Vec<_> = (0..2).map(|fold| row("a", 1, fold, 9, [0.30, 0.92])).collect();
        let b: Vec<_> = (0..3).map(|fold| row("b", 1, fold, 9, [0.31, 0.94])).collect();
        let rows = |rows: &'static [Row]| rows.iter().collect::<Vec<_>>();
        let (a, b): (&'static [Row], &'static [Row]) = (a.leak(), b.leak());
        let found = paired(&rows(b), &rows(a)).unwrap();
        assert_eq!(found.num_scores, 4, "fold 2 has no partner");
        assert!((found.mean - 0.015).abs() < 1e-12 && found.interval_95[0] > 0.0, "{found:?}");
        let arms = ["a", "b"].map(|name| Arm { name: name.into(), ..Arm::default() });
        let all: Vec<_> = a.iter().chain(b).collect();
        let compared = compared("heart", &all, &arms);
        assert_eq!(compared.cases[0], ("case_0_0".to_owned(), vec![0.30, 0.31]), "the worst case first");
        let text = tables(&compared);
        assert!(text.contains("a - b") && text.contains("-0.0150") && text.contains("0.6250"), "{text}");
    }

    #[test]
    fn arms_that_differ_in_more_than_their_networks_are_not_compared_unless_they_say_so() {
        let rows = [row("a", 1, 0, 100, [0.5; 2]), row("b", 1, 0, 200, [0.5; 2])];
        let mut arms = ["a", "b"].map(|name| Arm { name: name.into(), ..Arm::default() });
        let message = check_comparable(&rows, &arms).unwrap_err().to_string();
        assert!(message.contains("differ in \"steps\", 100 and 200"), "{message}");
        arms[1].allow_difference = vec![Difference::Batch];
        assert!(check_comparable(&rows, &arms).is_err());
        arms[1].allow_difference = vec![Difference::Steps];
        check_comparable(&rows, &arms).unwrap();
    }
}
