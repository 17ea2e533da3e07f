//! Data of a report: sizes, spacings, orientations, intensities, class volumes, and the plan with its reasons.

use std::collections::BTreeMap;
use std::fs;

use msd_data::{CaseFingerprint, Memory, Normalization, Plan, check_dataset};

use super::{
    chart::distribution,
    page::{Section, count, escape, facts, number, table, times},
    training::label_name,
};
use crate::report::run_data::RunData;

/// Largest dataset, bytes of its files, that is read again to be checked.
const MAX_CHECKED_BYTES: u64 = 100_000_000;

/// Most problems of a dataset that are listed.
const MAX_PROBLEMS: usize = 50;

/// Section about the dataset and its plan.
pub(super) fn section(run: &RunData) -> Section {
    let plan = &run.plan;
    let mut body = format!("<h3>Plan and why</h3>\n{}", plan_facts(plan, run));
    let cases = run.fingerprint.as_ref().map_or(&[][..], |fingerprint| &fingerprint.cases);
    if cases.is_empty() {
        body += "<p>This run has no fingerprint of its cases: it was made by an earlier version.</p>\n";
    } else {
        body += &distributions(cases, plan);
    }
    body += "<h3>Intensities of the foreground</h3>\n";
    let header = ["channel", "mean", "deviation", "0.5 %", "median", "99.5 %", "least", "greatest"];
    let rows = plan.modalities.iter().zip(&plan.intensity).map(|(name, i)| {
        let values = [i.mean, i.std, i.percentile_00_5, i.median, i.percentile_99_5, i.min, i.max];
        std::iter::once(escape(name)).chain(values.map(number)).collect()
    });
    body += &table("Every case weighs the same", &header, rows);
    body += &format!("<h3>Check</h3>\n{}", check(run));
    Section { id: "data".to_owned(), title: "Data and plan".to_owned(), body }
}

fn plan_facts(plan: &Plan, run: &RunData) -> String {
    let fingerprint = run.fingerprint.as_ref();
    let num_cases = run.splits.folds.first().map_or(0, |fold| fold.train.len() + fold.validation.len());
    let normalization = plan.modalities.iter().zip(&plan.normalization).map(|(name, how)| {
        let why = match how {
            Normalization::Ct => "clipped to 0.5 % and 99.5 % of the foreground, then its mean and deviation: CT numbers mean the same in every case",
            Normalization::ZScore => "each image by its own mean and deviation: its numbers have no common unit",
            Normalization::RescaleToUnit => "each image to 0 to 1, as its name in dataset.json demands",
            Normalization::RgbToUnit => "divided by 255, as its name in dataset.json demands",
            Normalization::None => "left as it is, as its name in dataset.json demands",
        };
        format!("{}: {why}", escape(name))
    });
    let settings = &run.config.settings.data;
    let spacing_why = if settings.spacing_mm.is_some() {
        "chosen in the configuration"
    } else {
        "the median of the cases along each axis (nnU-Net: a lower one along an axis that is much coarser than the others)"
    };
    let patch_why = if settings.patch_size.is_some() {
        "chosen in the configuration".to_owned()
    } else {
        format!(
            "the largest in the proportions of the median case ({}) that nnU-Net's network trains on in {} GB",
            times(&plan.median_shape.map(number)),
            number(settings.gpu_memory_gb)
        )
    };
    let orientation = plan.orientation.map_or("unknown".to_owned(), |orientation| orientation.to_string());
    facts(&[
        ("Dataset", format!("{}, {} with labels", escape(&plan.dataset_name), count(num_cases, "case"))),
        ("Labels", escape(&plan.labels.iter().map(|label| label.name.as_str()).collect::<Vec<_>>().join(", "))),
        ("Orientation", format!("{orientation}: that of most cases; all are brought to it")),
        ("Voxels", format!("{} mm: {spacing_why}", times(&plan.spacing_mm.map(number)))),
        ("Patch", format!("{} voxels: {patch_why}", times(&plan.patch_size))),
        ("Batch", format!("{} patches planned", plan.batch_size)),
        (
            "Poolings",
            format!(
                "{}: each axis is halved while it stays at least 4 voxels long and is not much coarser than the finest",
                plan.strides.iter().map(times).collect::<Vec<_>>().join(", ")
            ),
        ),
        (
            "Kernels",
            format!(
                "{}: 1 along an axis that is still much coarser than the others",
                plan.kernels.iter().map(times).collect::<Vec<_>>().join(", ")
            ),
        ),
        ("Normalisation", normalization.collect::<Vec<_>>().join("; ")),
        (
            "Cropping",
            fingerprint.map_or("–".to_owned(), |f| {
                format!(
                    "the nonzero region is {} % of an image in the median",
                    number(100.0 * f.median_relative_size_after_cropping)
                )
            }),
        ),
    ])
}

fn distributions(cases: &[CaseFingerprint], plan: &Plan) -> String {
    let axes = ["x", "y", "z"];
    let along = |value: &dyn Fn(&CaseFingerprint, usize) -> f64| {
        [2, 1, 0].map(|a| (axes[2 - a].to_owned(), cases.iter().map(|case| value(case, a)).collect::<Vec<_>>()))
    };
    let mut orientations = BTreeMap::<String, usize>::new();
    for case in cases {
        *orientations.entry(case.orientation.map_or("unknown".to_owned(), |o| o.to_string())).or_default() += 1;
    }
    let orientations: Vec<_> = orientations.iter().map(|(name, n)| format!("{name}: {}", count(*n, "case"))).collect();
    let millilitres = |case: &CaseFingerprint, label: u16| {
        let voxel = case.spacing_mm.iter().product::<f64>();
        case.label_voxels.get(&label).map_or(f64::NAN, |n| *n as f64 * voxel / 1000.0)
    };
    let foreground = || plan.labels.iter().filter(|label| label.value > 0).take(24);
    let volumes: Vec<_> = foreground()
        .map(|label| {
            (label_name(&plan.labels, label.value), cases.iter().map(|case| millilitres(case, label.value)).collect())
        })
        .collect();
    let absent: Vec<_> = foreground()
        .filter_map(|label| {
            let n = cases.iter().filter(|case| !case.label_voxels.contains_key(&label.value)).count();
            (n > 0).then(|| format!("{} in {}", escape(&label.name), count(n, "case")))
        })
        .collect();
    let intensities = plan.modalities.iter().enumerate().flat_map(|(c, name)| {
        ["5 %", "median", "95 %"].into_iter().enumerate().map(move |(q, what)| {
            let values = cases.iter().filter_map(|case| Some(case.intensity.get(c).copied().flatten()?[q])).collect();
            (if plan.modalities.len() == 1 { what.to_owned() } else { format!("{name} {what}") }, values)
        })
    });
    let intensities: Vec<(String, Vec<f64>)> = intensities.take(24).collect();
    let absent = if absent.is_empty() { "none".to_owned() } else { absent.join(", ") };
    format!(
        "<h3>Cases</h3>\n{}<div class=\"charts\">{}{}{}{}</div>\n",
        facts(&[("Orientations", escape(&orientations.join(", "))), ("Labels that a case lacks", absent)]),
        distribution("Sizes", "voxels along the file's axes", &along(&|case, a| case.shape[a] as f64)),
        distribution("Spacings", "mm along the file's axes", &along(&|case, a| case.spacing_mm[a])),
        distribution("Class volumes", "ml per case", &volumes),
        distribution("Foreground intensities", "percentiles of each case", &intensities)
    )
}

/// Result of `adw check`, for datasets that are read in a moment.
fn check(run: &RunData) -> String {
    let Some(dataset) = run.dataset() else {
        return "<p>The dataset is no longer where the run found it.</p>\n".to_owned();
    };
    let bytes: u64 = dataset
        .training
        .iter()
        .flat_map(|case| &case.image)
        .filter_map(|file| fs::metadata(file).ok())
        .map(|m| m.len())
        .sum();
    if bytes > MAX_CHECKED_BYTES {
        return "<p>The dataset is too large to be checked again here: run <code>adw check</code>.</p>\n".to_owned();
    }
    let problems = check_dataset(&dataset.root, dataset.positions, Memory::unlimited());
    if problems.is_empty() {
        return "<p>No error and no warning.</p>\n".to_owned();
    }
    let rest = if problems.len() > MAX_PROBLEMS {
        format!("<li>and {} more</li>", problems.len() - MAX_PROBLEMS)
    } else {
        String::new()
    };
    let items: String = problems
        .iter()
        .take(MAX_PROBLEMS)
        .map(|problem| format!("<li>{}</li>\n", escape(&problem.to_string())))
        .collect();
    format!("<ul>{items}{rest}</ul>\n")
}
