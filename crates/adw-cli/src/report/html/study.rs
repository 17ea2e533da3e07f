//! Page about a study of many networks: arms compared within each dataset.

use super::{
    intervals::{Chart, Point, intervals, over_cost},
    page::{self, Section, count, duration, escape, facts, number, table},
};
use crate::{report::png, statistics::Spread};

/// Results of a study.
pub(crate) struct Study {
    pub(crate) name: String,
    pub(crate) datasets: Vec<StudyDataset>,
    /// Trainings that are done, and all.
    pub(crate) trainings: [usize; 2],
    pub(crate) processors: Vec<String>,
    /// TOML file of the study, and its name.
    pub(crate) file: [String; 2],
}

/// Comparison of the arms of a study in one dataset.
pub(crate) struct StudyDataset {
    pub(crate) name: String,
    pub(crate) arms: Vec<ArmScores>,
    pub(crate) differences: Vec<ArmDifference>,
    /// Cases with the mean Dice of each arm's networks, the worst first; not a number where an arm has not scored the case.
    pub(crate) cases: Vec<(String, Vec<f64>)>,
}

/// Scores of an arm's networks and their means of cost and time.
pub(crate) struct ArmScores {
    pub(crate) name: String,
    pub(crate) num_networks: usize,
    /// Searches of the arm's own: arms can train the networks of others' searches.
    pub(crate) num_searches: usize,
    pub(crate) dice: Spread,
    pub(crate) macs_per_patch: f64,
    pub(crate) steps: f64,
    pub(crate) search_s: f64,
    pub(crate) retrain_s: f64,
}

/// Difference of Dice between two arms, paired by case.
pub(crate) struct ArmDifference {
    pub(crate) arms: [String; 2],
    pub(crate) dice: Spread,
}

/// Most cases in a table.
const MAX_CASES: usize = 20;

/// Page of a study.
pub(crate) fn page(study: &Study) -> String {
    let mut sections = vec![overview(study)];
    sections.extend(study.datasets.iter().enumerate().map(|(index, dataset)| section(index, dataset)));
    sections.push(repetition(study));
    page::page(&format!("Study {}", study.name), &sections, "")
}

/// Names and contents of the SVG files of a dataset's charts.
pub(crate) fn plots(dataset: &StudyDataset) -> [(String, String); 2] {
    let [dice, cost] = charts(dataset);
    [(format!("{}-dice.svg", dataset.name), dice.file()), (format!("{}-cost.svg", dataset.name), cost.file())]
}

fn charts(dataset: &StudyDataset) -> [Chart; 2] {
    let point = |arm: &ArmScores| Point {
        name: arm.name.clone(),
        mean: arm.dice.mean,
        interval: arm.dice.interval_95,
        cost: Some(arm.macs_per_patch),
    };
    let points: Vec<Point> = dataset.arms.iter().map(point).collect();
    [
        intervals(&format!("Dice, {}", dataset.name), "mean and 95 % interval", &points, false),
        over_cost(&format!("Dice over cost, {}", dataset.name), "mean and 95 % interval", &points),
    ]
}

fn overview(study: &Study) -> Section {
    let best = |dataset: &StudyDataset| {
        let best = dataset.arms.iter().max_by(|a, b| a.dice.mean.total_cmp(&b.dice.mean));
        best.map_or(String::new(), |best| {
            let [low, high] = best.dice.interval_95;
            format!("{}: {:.4}, 95 % interval {low:.4} to {high:.4}", escape(&best.name), best.dice.mean)
        })
    };
    let mut rows: Vec<(String, String)> = Vec::new();
    for (index, dataset) in study.datasets.iter().enumerate() {
        rows.push((format!("Highest Dice, <a href=\"#dataset-{index}\">{}</a>", escape(&dataset.name)), best(dataset)));
    }
    let clear: Vec<String> = study
        .datasets
        .iter()
        .flat_map(|dataset| dataset.differences.iter().map(move |d| (dataset, d)))
        .filter(|(_, difference)| difference.dice.interval_95[0] > 0.0 || difference.dice.interval_95[1] < 0.0)
        .map(|(dataset, ArmDifference { arms: [a, b], dice })| {
            format!("{}: {} less {} {:+.4}", escape(&dataset.name), escape(a), escape(b), dice.mean)
        })
        .collect();
    let clear = if clear.is_empty() { "none".to_owned() } else { clear.join("<br>") };
    let num_pairs: usize = study.datasets.iter().map(|dataset| dataset.differences.len()).sum();
    let title = format!(
        "Of {num_pairs} differences those whose interval leaves out 0; what other seeds or folds would give is in an interval only as far as there are several"
    );
    rows.push((title, clear));
    let [done, all] = study.trainings;
    let unfinished = if done < all { ": the rest is not in these tables" } else { "" };
    rows.push(("Trainings".to_owned(), format!("{done} of {all}{unfinished}")));
    let seconds: f64 = study
        .datasets
        .iter()
        .flat_map(|dataset| &dataset.arms)
        .map(|arm| arm.search_s * arm.num_searches as f64 + arm.retrain_s * arm.num_networks as f64)
        .sum();
    rows.push((
        "Time".to_owned(),
        format!("{} of searches and trainings, preparation and scoring left out", duration(seconds)),
    ));
    rows.push(("Trained on".to_owned(), escape(&study.processors.join("; "))));
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    Section { id: "overview".to_owned(), title: "At a glance".to_owned(), body: facts(&rows) }
}

fn section(index: usize, dataset: &StudyDataset) -> Section {
    let [dice, cost] = charts(dataset);
    let mut body = format!("<div class=\"charts\">{}{}", dice.figure(), cost.figure());
    let point = |ArmDifference { arms: [a, b], dice }: &ArmDifference| Point {
        name: format!("{a} - {b}"),
        mean: dice.mean,
        interval: dice.interval_95,
        cost: None,
    };
    let points: Vec<Point> = dataset.differences.iter().map(point).collect();
    if !points.is_empty() {
        body += &intervals("Differences of Dice", "paired by case, mean and 95 % interval", &points, true).figure();
    }
    body += "</div>\n";
    let rows = dataset.arms.iter().map(|arm| {
        let [low, high] = arm.dice.interval_95;
        vec![
            escape(&arm.name),
            arm.num_networks.to_string(),
            format!("{:.4}", arm.dice.mean),
            format!("{:.4}", arm.dice.standard_deviation),
            format!("{low:.4} to {high:.4}"),
            number(arm.macs_per_patch),
            number(arm.steps),
            duration(arm.search_s),
            duration(arm.retrain_s),
        ]
    });
    let header =
        ["arm", "networks", "Dice", "SD of cases", "95 % interval", "multiply-adds", "steps", "search", "training"];
    body += &table("Means over cases and networks; times are of one network", &header, rows);
    let rows = dataset.differences.iter().map(|ArmDifference { arms: [a, b], dice }| {
        let [low, high] = dice.interval_95;
        vec![
            format!("{} - {}", escape(a), escape(b)),
            dice.num_scores.to_string(),
            format!("{:+.4}", dice.mean),
            format!("{low:+.4} to {high:+.4}"),
        ]
    });
    if !dataset.differences.is_empty() {
        body += &table("Differences of Dice between arms", &["arms", "cases", "mean", "95 % interval"], rows);
    }
    let header: Vec<&str> = ["case"].into_iter().chain(dataset.arms.iter().map(|arm| arm.name.as_str())).collect();
    let rows = dataset.cases.iter().take(MAX_CASES).map(|(case, scores)| {
        let scores = scores.iter().map(|score| if score.is_finite() { format!("{score:.3}") } else { "–".to_owned() });
        [escape(case)].into_iter().chain(scores).collect()
    });
    let caption = format!("Worst of {}: Dice, mean over labels and networks", count(dataset.cases.len(), "case"));
    body += &format!("<details><summary>Worst cases</summary>\n{}</details>\n", table(&caption, &header, rows));
    body += "<p>Dice is the mean over the foreground labels of their means over cases. Intervals are of a bootstrap over seeds, and over folds and cases, which seeds share.</p>\n";
    Section { id: format!("dataset-{index}"), title: dataset.name.clone(), body }
}

fn repetition(study: &Study) -> Section {
    let [file, text] = &study.file;
    let url = png::data_url("text/plain", text.as_bytes());
    let name = escape(file);
    let body = format!(
        "<p>Save the study as <a download=\"{name}\" href=\"{url}\">{name}</a>; then</p>\n<pre tabindex=\"0\">adw sweep run {name}</pre>\n\
         <p>The same program, seeds and kind of processor give the same bits, with any number of workers and threads.</p>\n\
         <details><summary>{name}</summary><pre tabindex=\"0\">{}</pre></details>\n",
        text.lines().map(|line| format!("{}\n", escape(line))).collect::<String>()
    );
    Section { id: "repeat".to_owned(), title: "Repeat it".to_owned(), body }
}
