//! Means of scores with standard deviations and bootstrap intervals.

use std::collections::BTreeMap;

use adw_tensor_ops::philox::philox4x32_10;
use msd_data::metrics::LabelMetrics;
use serde::{Deserialize, Serialize};

/// Scores in nested groups, such as seeds of folds of cases. Scores of a group share a network, so that they are no independent
/// samples.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sample {
    Score(f64),
    Group(Vec<Sample>),
}

/// Mean of scores and its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Mean over all scores.
    pub(crate) mean: f64,
    /// Standard deviation of the scores, with n - 1 in the denominator; 0 for a single one.
    pub(crate) standard_deviation: f64,
    /// 2.5 and 97.5 % quantiles of the mean under the hierarchical bootstrap: of every group as many members as it has are drawn
    /// with replacement, level by level from the outermost.
    pub(crate) interval_95: [f64; 2],
    /// Number of scores.
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

impl Sample {
    /// Group of scores; those that are no number are left out.
    pub(crate) fn of_scores(scores: impl IntoIterator<Item = f64>) -> Self {
        Self::Group(scores.into_iter().filter(|score| score.is_finite()).map(Self::Score).collect())
    }

    /// Computes the mean and its uncertainty, which are the same in every call; none without a score.
    pub(crate) fn spread(&self) -> Option<Spread> {
        let mut scores = Vec::new();
        self.all(&mut scores);
        let n = scores.len();
        let mean = scores.iter().sum::<f64>() / n as f64;
        let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
        let mut draws = Draws::default();
        let mut means = Vec::new();
        while means.len() < NUM_DRAWS && n > 0 {
            scores.clear();
            self.draw(&mut draws, &mut scores);
            // Only empty groups may have been drawn.
            if !scores.is_empty() {
                means.push(scores.iter().sum::<f64>() / scores.len() as f64);
            }
        }
        means.sort_by(f64::total_cmp);
        let quantile = |q: f64| means[(q * (means.len() - 1) as f64).round() as usize];
        (n > 0).then(|| Spread {
            mean,
            standard_deviation: (squares / (n.max(2) - 1) as f64).sqrt(),
            interval_95: [quantile(0.025), quantile(0.975)],
            num_scores: n,
        })
    }

    fn all(&self, scores: &mut Vec<f64>) {
        match self {
            Self::Score(score) => scores.push(*score),
            Self::Group(members) => members.iter().for_each(|member| member.all(scores)),
        }
    }

    fn draw(&self, draws: &mut Draws, scores: &mut Vec<f64>) {
        match self {
            Self::Score(score) => scores.push(*score),
            Self::Group(members) => {
                for _ in members {
                    members[draws.below(members.len())].draw(draws, scores);
                }
            }
        }
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
    use super::*;

    #[test]
    fn independent_scores_have_the_interval_of_their_standard_error() {
        let sample = Sample::of_scores((0..400).map(|i| f64::from(i % 20)).chain([f64::NAN]));
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
        let fold = |score: f64| Sample::of_scores(vec![score; 100]);
        let folds = Sample::Group(vec![fold(0.6), fold(0.7), fold(0.8), fold(0.9)]);
        let [low, high] = folds.spread().unwrap().interval_95;
        assert!(high - low > 0.15, "{low} {high}");
        let cases = Sample::of_scores((0..400).map(|i| 0.6 + 0.1 * f64::from(i % 4)));
        let [low, high] = cases.spread().unwrap().interval_95;
        assert!(high - low < 0.03, "{low} {high}");
        assert_eq!(Sample::Group(vec![Sample::of_scores([])]).spread(), None);
        assert_eq!(Sample::of_scores([0.5]).spread().unwrap().interval_95, [0.5, 0.5]);
    }
}
