//! Means of scores with standard deviations and bootstrap intervals.

use std::collections::BTreeMap;

use adw_tensor_ops::philox::philox4x32_10;
use msd_data::metrics::LabelMetrics;
use serde::{Deserialize, Serialize};

/// Scores of a case, one for each label; not a number where there is none.
pub(crate) type CaseScores = Vec<f64>;

/// Scores of networks: by seed, fold and case. All seeds have the same folds and cases, so that more seeds tell nothing more of how
/// cases differ; cases of a fold share a network, so that they are no independent samples.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) seeds: Vec<Vec<Vec<CaseScores>>>,
}

/// Mean of scores and its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Mean over the labels of their means over cases, as nnU-Net's.
    pub(crate) mean: f64,
    /// Standard deviation of the cases' means over labels, with n - 1 in the denominator; 0 for a single one.
    pub(crate) standard_deviation: f64,
    /// 2.5 and 97.5 % quantiles of the mean under a bootstrap: as many folds as there are, of each as many cases as it has, and as
    /// many seeds are drawn with replacement; every seed that is drawn has the same folds and cases.
    pub(crate) interval_95: [f64; 2],
    /// Number of cases with a score, counted once per seed.
    pub(crate) num_scores: usize,
}

/// Mean of a metric of a case over the labels for which it is a number.
pub(crate) fn mean_over_labels(case: &BTreeMap<u16, LabelMetrics>, metric: fn(&LabelMetrics) -> f64) -> f64 {
    mean(case.values().map(metric))
}

/// Mean of the scores that are numbers; not a number without one.
pub(crate) fn mean(scores: impl IntoIterator<Item = f64>) -> f64 {
    let scores: Vec<f64> = scores.into_iter().filter(|score| score.is_finite()).collect();
    scores.iter().sum::<f64>() / scores.len() as f64
}

/// Number of bootstrap samples.
const NUM_DRAWS: usize = 2000;

/// Differences of Dice by label. A label that is rightly absent, which has no Dice, counts as 1: beside one that is wrongly there,
/// whose Dice is 0, and beside another that is absent.
pub(crate) fn dice_differences(a: &BTreeMap<u16, LabelMetrics>, b: &BTreeMap<u16, LabelMetrics>) -> CaseScores {
    let difference = |a: f64, b: f64| match (a.is_finite(), b.is_finite()) {
        (true, false) => a - 1.0,
        (false, true) => 1.0 - b,
        (false, false) => 0.0,
        (true, true) => a - b,
    };
    a.iter().filter_map(|(label, of)| Some(difference(of.dice, b.get(label)?.dice))).collect()
}

/// Mean over the labels of their means over cases; labels without a score are left out.
fn mean_of_labels<'a>(cases: impl Iterator<Item = &'a CaseScores>) -> f64 {
    let mut labels: Vec<(f64, f64)> = Vec::new();
    for case in cases {
        labels.resize(labels.len().max(case.len()), (0.0, 0.0));
        for ((sum, count), score) in labels.iter_mut().zip(case).filter(|(_, score)| score.is_finite()) {
            *sum += score;
            *count += 1.0;
        }
    }
    mean(labels.into_iter().map(|(sum, count)| sum / count))
}

impl Sample {
    /// Computes the mean and its uncertainty, which are the same in every call; none without a score.
    pub(crate) fn spread(&self) -> Option<Spread> {
        let cases = || self.seeds.iter().flatten().flatten();
        let by_case: Vec<f64> =
            cases().map(|case| mean(case.iter().copied())).filter(|mean| mean.is_finite()).collect();
        let n = by_case.len();
        let mean_of_cases = mean(by_case.iter().copied());
        let squares: f64 = by_case.iter().map(|score| (score - mean_of_cases).powi(2)).sum();
        let mut draws = Draws::default();
        let mut means = Vec::new();
        while means.len() < NUM_DRAWS && n > 0 {
            let drawn = self.draw(&mut draws);
            // Only cases without a score may have been drawn.
            if drawn.is_finite() {
                means.push(drawn);
            }
        }
        means.sort_by(f64::total_cmp);
        let quantile = |q: f64| means[(q * (means.len() - 1) as f64).round() as usize];
        (n > 0).then(|| Spread {
            mean: mean_of_labels(cases()),
            standard_deviation: (squares / (n.max(2) - 1) as f64).sqrt(),
            interval_95: [quantile(0.025), quantile(0.975)],
            num_scores: n,
        })
    }

    /// Mean of a bootstrap sample.
    fn draw(&self, draws: &mut Draws) -> f64 {
        let num_folds = self.seeds.iter().map(Vec::len).max().unwrap_or(0);
        let mut cases = Vec::new();
        for _ in 0..num_folds {
            let fold = draws.below(num_folds);
            // Trainings of a seed may be missing.
            let num_cases = self.seeds.iter().filter_map(|folds| folds.get(fold)).map(Vec::len).max().unwrap_or(0);
            cases.extend((0..num_cases).map(|_| (fold, draws.below(num_cases))));
        }
        let seeds: Vec<_> = self.seeds.iter().map(|_| &self.seeds[draws.below(self.seeds.len())]).collect();
        let scores = seeds.into_iter().flat_map(|folds| {
            cases.iter().filter_map(move |&(fold, case): &(usize, usize)| folds.get(fold)?.get(case))
        });
        mean_of_labels(scores)
    }
}

/// Random numbers of the bootstrap, always the same.
#[derive(Default)]
struct Draws {
    position: u64,
    words: Vec<u32>,
}

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        if self.words.is_empty() {
            let counter = [self.position as u32, (self.position >> 32) as u32, 0, 0];
            self.words.extend(philox4x32_10(counter, [0x626f_6f74, 0]));
            self.position += 1;
        }
        let word = self.words.pop().unwrap_or_default();
        ((u64::from(word) * n as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Folds of one seed, by the scores of their cases in one label.
    fn folds(folds: impl IntoIterator<Item = Vec<f64>>) -> Vec<Vec<CaseScores>> {
        folds.into_iter().map(|fold| fold.into_iter().map(|score| vec![score]).collect()).collect()
    }

    fn of_one_seed(scores: impl IntoIterator<Item = Vec<f64>>) -> Sample {
        Sample { seeds: vec![folds(scores)] }
    }

    fn width(sample: &Sample) -> f64 {
        let [low, high] = sample.spread().unwrap().interval_95;
        high - low
    }

    #[test]
    fn independent_scores_have_the_interval_of_their_standard_error() {
        let sample = of_one_seed([(0..400).map(|i| f64::from(i % 20)).chain([f64::NAN]).collect()]);
        let spread = sample.spread().unwrap();
        assert_eq!((spread.mean, spread.num_scores), (9.5, 400));
        assert!((spread.standard_deviation - 5.7735).abs() < 1e-3, "{spread:?}");
        let half = 1.96 * spread.standard_deviation / 20.0;
        for (bound, expected) in spread.interval_95.iter().zip([9.5 - half, 9.5 + half]) {
            assert!((bound - expected).abs() < 0.05, "{spread:?}");
        }
        assert_eq!(sample.spread(), Some(spread), "the same numbers each time");
    }

    #[test]
    fn scores_that_share_a_network_tell_less() {
        // Four folds that differ, without a difference within.
        assert!(width(&of_one_seed([0.6, 0.7, 0.8, 0.9].map(|score| vec![score; 100]))) > 0.15);
        assert!(width(&of_one_seed([(0..400).map(|i| 0.6 + 0.1 * f64::from(i % 4)).collect()])) < 0.03);
        assert_eq!(of_one_seed([vec![]]).spread(), None);
        assert_eq!(of_one_seed([vec![0.5]]).spread().unwrap().interval_95, [0.5, 0.5]);
    }

    #[test]
    fn more_seeds_on_the_same_cases_tell_nothing_more_of_the_cases() {
        let seed = || folds([0.6, 0.7, 0.8, 0.9].map(|score| vec![score; 10]));
        let (one, four) =
            (width(&Sample { seeds: vec![seed()] }), width(&Sample { seeds: vec![seed(), seed(), seed(), seed()] }));
        assert!((one - four).abs() < 0.02, "{one} {four}");
        // Seeds that differ while their cases do not.
        let seeds = Sample { seeds: [0.7, 0.8].map(|score| folds([vec![score; 10], vec![score; 10]])).into() };
        assert!(width(&seeds) > 0.09);
        // A seed with a fold less.
        let incomplete = Sample { seeds: vec![seed(), seed().into_iter().take(2).collect()] };
        assert_eq!(incomplete.spread().unwrap().num_scores, 60);
    }

    #[test]
    fn labels_count_the_same_however_many_cases_have_them() {
        let mut cases = vec![vec![0.9, 0.5]; 5];
        cases.extend(vec![vec![0.9, f64::NAN]; 5]);
        assert!((Sample { seeds: vec![vec![cases]] }.spread().unwrap().mean - 0.7).abs() < 1e-12);
    }

    #[test]
    fn a_label_that_is_rightly_absent_counts_as_one() {
        let of = |dice: f64| {
            let counts = json!({ "TP": 0, "FP": 0, "FN": 0, "TN": 0, "n_pred": 0, "n_ref": 0 });
            let mut metrics = json!({ "Dice": dice, "IoU": dice, "HD95": 0.0, "NSD": dice });
            metrics.as_object_mut().unwrap().extend(counts.as_object().unwrap().clone());
            BTreeMap::from([(1, serde_json::from_value(metrics).unwrap())])
        };
        let differences = [(0.5, 0.25), (0.0, f64::NAN), (f64::NAN, 0.0), (f64::NAN, f64::NAN)]
            .map(|(a, b)| dice_differences(&of(a), &of(b))[0]);
        assert_eq!(differences, [0.25, -1.0, 1.0, 0.0]);
    }
}
