//! Table of segmentation metrics.

use std::fmt::Write;

use msd_data::{Label, Report, metrics::MeanMetrics};

use super::table::Table;

/// Formats a row per label, and their mean. Labels that `names` lacks are called by their value.
pub(crate) fn table(report: &Report, names: &[Label]) -> String {
    let nsd = format!("NSD {} mm", report.nsd_tolerance_mm);
    let mut table = Table::of_numbers(["label", "Dice", "IoU", "HD95 mm", &nsd]);
    for (value, metrics) in &report.mean {
        let name = names.iter().find(|label| label.value == *value);
        table.row(row(name.map_or_else(|| value.to_string(), |label| label.name.clone()), metrics));
    }
    table.row(row("mean".to_owned(), &report.foreground_mean));
    let cases = match report.metric_per_case.len() {
        1 => "1 case".to_owned(),
        number => format!("{number} cases"),
    };
    let mut text = format!("{}{cases}\n", table.render());
    if report.foreground_mean.hd95_infinite > 0 {
        let _ = writeln!(
            text,
            "HD95 leaves out {} labels that only one of prediction and reference has",
            report.foreground_mean.hd95_infinite
        );
    }
    if !report.references_without_prediction.is_empty() {
        let _ = writeln!(text, "{} references have no prediction", report.references_without_prediction.len());
    }
    text
}

fn row(name: String, metrics: &MeanMetrics) -> [String; 5] {
    let number = |value: f64, digits: usize| {
        if value.is_finite() { format!("{value:.digits$}") } else { "-".to_owned() }
    };
    let MeanMetrics { dice, iou, hd95_mm, nsd, .. } = *metrics;
    [name, number(dice, 4), number(iou, 4), number(hd95_mm, 2), number(nsd, 4)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn labels_have_their_names_and_what_is_no_number_is_a_dash() {
        let good = MeanMetrics { dice: 0.91234, iou: 0.85, hd95_mm: 1.5, nsd: 0.97, hd95_infinite: 0 };
        let absent = MeanMetrics { dice: f64::NAN, iou: f64::NAN, hd95_mm: f64::NAN, nsd: f64::NAN, hd95_infinite: 2 };
        let report = Report {
            foreground_mean: absent,
            mean: BTreeMap::from([(1, good), (2, absent)]),
            metric_per_case: Vec::new(),
            nsd_tolerance_mm: 1.0,
            references_without_prediction: vec!["a".into()],
        };
        let text = table(&report, &[Label { value: 1, name: "Anterior".into() }]);
        let rows: Vec<Vec<&str>> = text.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["Anterior", "0.9123", "0.8500", "1.50", "0.9700"]);
        assert_eq!(rows[1], ["2", "-", "-", "-", "-"]);
        assert!(text.contains("HD95 leaves out 2 labels") && text.contains("1 references have no prediction"));
    }
}
