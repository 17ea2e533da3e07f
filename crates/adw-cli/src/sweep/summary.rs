//! Comparison of a sweep's arms: mean scores, and paired differences over cases.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    config::{Arm, Difference},
    plan::Sweep,
    rows::Row,
};
use crate::{
    failure::bad_input,
    report::{
        progress::{emit, say},
        table::Table,
    },
    statistics::{Sample, Spread, mean_over_labels},
};

/// Writes `rows.jsonl` and `summary.md`, and prints the tables.
///
/// # Errors
/// No training is done; arms that differ in more than their networks, unless an arm allows it; a disk that cannot be written to.
pub(crate) fn summary(sweep: &Sweep, json: bool) -> Result<()> {
    let rows = sweep.rows()?;
    if rows.is_empty() {
        bad_input!("{}: no training is done yet", sweep.folder.display());
    }
    let lines = rows.iter().map(|row| Ok(serde_json::to_string(row)? + "\n")).collect::<Result<String>>()?;
    write(sweep, "rows.jsonl", &lines)?;
    check_comparable(&rows, &sweep.config.arms)?;
    let mut text = String::new();
    for dataset in &sweep.datasets {
        let of_dataset: Vec<&Row> = rows.iter().filter(|row| row.dataset == dataset.name).collect();
        if !of_dataset.is_empty() {
            let _ = writeln!(text, "# {}\n", dataset.name);
            text.push_str(&tables(&of_dataset, &sweep.config.arms, json));
        }
    }
    let processors: BTreeSet<&str> = rows.iter().map(|row| row.processor.as_str()).collect();
    let _ = writeln!(text, "Trained on: {}.", processors.into_iter().collect::<Vec<_>>().join("; "));
    let all = sweep.tasks.iter().filter(|task| task.stage == crate::args::Stage::Retrain).count();
    if all > rows.len() {
        let _ = writeln!(text, "{} of {all} trainings are not done.", all - rows.len());
    }
    write(sweep, "summary.md", &text)?;
    if !json {
        say(&text);
        say(&format!("{}\n", sweep.folder.join("rows.jsonl").display()));
    }
    Ok(())
}

fn write(sweep: &Sweep, name: &str, text: &str) -> Result<()> {
    let path = sweep.folder.join(name);
    adw_files::write_bytes(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
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

/// Groups scores of cases by seed and fold. `scores` returns those of a network.
fn by_network<'a>(rows: &[&'a Row], scores: impl Fn(&'a Row) -> Vec<f64>) -> Option<Spread> {
    let mut seeds = BTreeMap::<u64, Vec<Sample>>::new();
    for row in rows {
        seeds.entry(row.seed).or_default().push(Sample::of_scores(scores(row)));
    }
    Sample::Group(seeds.into_values().map(Sample::Group).collect()).spread()
}

/// Differences of Dice between two arms over the cases that both have scored, by seed and fold.
fn paired(arm: &[&Row], other: &[&Row]) -> Option<Spread> {
    by_network(arm, |row| {
        let partner = other.iter().find(|other| (other.seed, other.fold) == (row.seed, row.fold));
        let differences = |partner: &&Row| row.cases.keys().map(|case| dice(row, case) - dice(partner, case)).collect();
        partner.map(differences).unwrap_or_default()
    })
}

fn tables(rows: &[&Row], arms: &[Arm], json: bool) -> String {
    let of_arm = |arm: &Arm| rows.iter().copied().filter(|row| row.arm == arm.name).collect::<Vec<_>>();
    let mean =
        |rows: &[&Row], value: &dyn Fn(&Row) -> f64| rows.iter().map(|row| value(row)).sum::<f64>() / rows.len() as f64;
    let by_arm: Vec<(&str, Vec<&Row>)> = arms.iter().map(|arm| (arm.name.as_str(), of_arm(arm))).collect();
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
    let mut differences = Table::of_numbers(["difference of Dice", "cases", "mean", "95 % from", "to"]);
    for (index, (name, of_arm)) in by_arm.iter().enumerate() {
        let all = by_network(of_arm, |row| row.cases.keys().map(|case| dice(row, case)).collect());
        let Some(Spread { mean: score, standard_deviation, interval_95: [low, high], .. }) = all else { continue };
        if json {
            emit("arm", &json!({ "dataset": rows[0].dataset, "arm": name, "networks": of_arm.len(), "dice": all }));
        }
        let seconds = |value: &dyn Fn(&Row) -> f64| format!("{:.1}", mean(of_arm, value) / 60.0);
        scores.row([
            (*name).to_owned(),
            of_arm.len().to_string(),
            format!("{score:.4}"),
            format!("{standard_deviation:.4}"),
            format!("{low:.4}"),
            format!("{high:.4}"),
            format!("{:.3}", mean(of_arm, &|row| row.macs_per_patch as f64) / 1e9),
            format!("{:.0}", mean(of_arm, &|row| row.steps as f64)),
            seconds(&|row| row.search_s.unwrap_or(0.0)),
            seconds(&|row| row.retrain_s),
        ]);
        for (other, of_other) in &by_arm[index + 1..] {
            let Some(found) = paired(of_arm, of_other) else { continue };
            if json {
                emit("difference", &json!({ "dataset": rows[0].dataset, "arms": [name, other], "dice": found }));
            }
            let [low, high] = found.interval_95;
            differences.row([
                format!("{name} - {other}"),
                found.num_scores.to_string(),
                format!("{:+.4}", found.mean),
                format!("{low:+.4}"),
                format!("{high:+.4}"),
            ]);
        }
    }
    format!(
        "```\n{}```\n\n```\n{}```\n\nMean over the foreground labels of a case; intervals of a bootstrap over seeds, folds and cases.\n\n",
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
        let text = tables(&all, &arms, false);
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
