//! Learning rate and temperature as functions of epoch and iteration, so that a resumed run has the same values.

use serde::{Deserialize, Serialize};

/// Course of a learning rate between the end of its warm-up and the end of training; `p` runs from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// `1`.
    Constant,
    /// `(1 - p)^exponent`.
    Poly {
        /// nnU-Net: 0.9.
        exponent: f64,
    },
    /// `last + (1 - last) (1 + cos(pi p)) / 2`.
    Cosine {
        /// Fraction of the learning rate that is left at the end.
        #[serde(default)]
        last: f64,
    },
}

/// Interval at which the learning rate is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Once per epoch, as nnU-Net.
    Epoch,
    /// At every iteration: smoother when epochs are few.
    Iteration,
}

/// Learning rate over a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// Highest value, reached at the end of the warm-up.
    pub peak: f64,
    /// Course after the warm-up.
    pub decay: Decay,
    /// Epochs (also fractions) of linear rise from 0; 0 starts at the peak.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// Interval at which the rate changes.
    pub set_every: Granularity,
}

impl LearningRate {
    /// Learning rate in `epoch` (from 0) of `epochs`, at `iteration` (from 0) of `iterations` in it.
    ///
    /// With t the epochs passed, as a fraction for [`Granularity::Iteration`]: during the warm-up
    /// `peak (t + step) / warmup_epochs` (step: one setting, so that the first rate is not 0), then
    /// `peak * decay((t - warmup) / (epochs - warmup))`.
    ///
    /// ```
    /// use adw_search::schedule::{Decay, Granularity, LearningRate};
    /// let lr = LearningRate {
    ///     peak: 0.01,
    ///     decay: Decay::Poly { exponent: 0.9 },
    ///     warmup_epochs: 0.0,
    ///     set_every: Granularity::Epoch,
    /// };
    /// assert_eq!(lr.at(500, 17, 1000, 250), 0.01 * 0.5f64.powf(0.9));
    /// ```
    pub fn at(&self, epoch: usize, iteration: usize, epochs: usize, iterations: usize) -> f64 {
        let (t, step) = match self.set_every {
            Granularity::Epoch => (epoch as f64, 1.0),
            Granularity::Iteration => {
                let step = 1.0 / iterations as f64;
                (epoch as f64 + iteration as f64 * step, step)
            }
        };
        if t < self.warmup_epochs {
            return self.peak * ((t + step) / self.warmup_epochs).min(1.0);
        }
        let length = epochs as f64 - self.warmup_epochs;
        let p = if length > 0.0 { ((t - self.warmup_epochs) / length).min(1.0) } else { 1.0 };
        self.peak
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Poly { exponent } => (1.0 - p).powf(exponent),
                Decay::Cosine { last } => last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * p).cos()),
            }
    }
}

/// Temperature of the Gumbel-softmax.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Temperature {
    /// Value during the warm-up and in the first epoch after it.
    pub start: f64,
    /// Value in the last epoch; in between it falls by the same factor in every epoch.
    pub end: f64,
}

impl Temperature {
    /// `start * (end / start)^((epoch - warmup_epochs) / (epochs - 1 - warmup_epochs))`, `start` before; at least 1e-6, below
    /// which logits divided by it overflow.
    ///
    /// ```
    /// let tau = adw_search::schedule::Temperature { start: 8.0, end: 2.0 };
    /// assert_eq!([0, 9, 10, 11, 12].map(|epoch| tau.at(epoch, 13, 10)), [8.0, 8.0, 8.0, 4.0, 2.0]);
    /// ```
    pub fn at(&self, epoch: usize, epochs: usize, warmup_epochs: usize) -> f64 {
        let last = epochs.saturating_sub(1 + warmup_epochs).max(1);
        let factor = (self.end / self.start).powf(epoch.saturating_sub(warmup_epochs) as f64 / last as f64);
        (self.start * factor).max(1e-6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lr(decay: Decay, warmup_epochs: f64, set_every: Granularity) -> LearningRate {
        LearningRate { peak: 2.0, decay, warmup_epochs, set_every }
    }

    #[test]
    fn per_iteration_equals_per_epoch_at_epoch_starts_and_falls_between() {
        let poly = Decay::Poly { exponent: 0.9 };
        let (coarse, fine) = (lr(poly, 0.0, Granularity::Epoch), lr(poly, 0.0, Granularity::Iteration));
        for epoch in 0..10 {
            assert_eq!(coarse.at(epoch, 0, 10, 4), fine.at(epoch, 0, 10, 4));
            assert_eq!(coarse.at(epoch, 3, 10, 4), coarse.at(epoch, 0, 10, 4));
            assert!(fine.at(epoch, 3, 10, 4) < fine.at(epoch, 2, 10, 4));
        }
        assert_eq!(fine.at(0, 0, 10, 4), 2.0);
        assert!(fine.at(9, 3, 10, 4) > 0.0);
    }

    #[test]
    fn warm_up_rises_linearly_to_the_peak_and_cosine_ends_at_its_floor() {
        let cosine = lr(Decay::Cosine { last: 0.1 }, 2.0, Granularity::Iteration);
        assert_eq!(cosine.at(0, 0, 12, 4), 2.0 / 8.0);
        assert_eq!(cosine.at(1, 0, 12, 4), 2.0 * 5.0 / 8.0);
        assert_eq!(cosine.at(1, 3, 12, 4), 2.0);
        assert_eq!(cosine.at(2, 0, 12, 4), 2.0);
        assert!((cosine.at(7, 0, 12, 4) - 2.0 * 0.55).abs() < 1e-12, "half way");
        assert!((cosine.at(12, 0, 12, 4) - 0.2).abs() < 1e-12);
        // A warm-up longer than the training never passes the peak.
        let long = lr(Decay::Constant, 20.0, Granularity::Epoch);
        assert_eq!(long.at(9, 0, 10, 4), 1.0);
        assert_eq!(lr(Decay::Constant, 0.5, Granularity::Epoch).at(0, 0, 10, 4), 2.0);
    }
}
