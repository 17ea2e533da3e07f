//! Label maps from logits, and the pseudo-Dice that validation reports during training.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::ranks::{Ranks, all_gather};
use crate::{Error, Result};

/// Voxels per parallel task.
const CHUNK: usize = 1 << 14;

/// Class of every voxel: argmax over K of `logits` `[B, K, D, H, W]`, the lowest class on ties; B * D * H * W
/// values in C order.
///
/// # Errors
/// If `logits` has another number of axes or more than 65536 classes.
pub fn argmax_labels(logits: &Tensor) -> Result<Vec<u16>> {
    let [batch, classes, voxels] = match *logits.dims() {
        [b, k, d, h, w] if (1..=1 << 16).contains(&k) => [b, k, d * h * w],
        ref other => {
            return Err(Error::Shape {
                what: "logits".into(),
                expected: "[B, K, D, H, W] with K up to 65536".into(),
                got: format!("{other:?}"),
            });
        }
    };
    let values = logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let mut labels = vec![0u16; batch * voxels];
    for (labels, values) in labels.chunks_mut(voxels.max(1)).zip(values.chunks((classes * voxels).max(1))) {
        labels.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, labels)| {
            let start = chunk * CHUNK;
            let mut best = values[start..start + labels.len()].to_vec();
            for class in 1..classes {
                let candidates = &values[class * voxels + start..][..labels.len()];
                for ((label, best), v) in labels.iter_mut().zip(&mut best).zip(candidates) {
                    if *v > *best {
                        *best = *v;
                        *label = class as u16;
                    }
                }
            }
        });
    }
    Ok(labels)
}

/// True positives, false positives and false negatives per foreground class, summed over batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiceCounts {
    /// One entry per class 1, 2, ...
    classes: Vec<[u64; 3]>,
}

impl DiceCounts {
    /// Adds the voxels of one batch: `logits` `[B, K, D, H, W]` against `target` `[B, D, H, W]` (u8).
    ///
    /// # Errors
    /// If the shapes or types do not fit, K is not that of earlier batches, or `target` holds a class that `logits` lacks.
    pub fn add(&mut self, logits: &Tensor, target: &Tensor) -> Result<()> {
        let predicted = argmax_labels(logits)?;
        let dims = logits.dims();
        let target_dims = [&dims[..1], &dims[2..]].concat();
        if target.dims() != target_dims {
            return Err(Error::Shape {
                what: "target".into(),
                expected: format!("{target_dims:?}"),
                got: format!("{:?}", target.dims()),
            });
        }
        let classes = dims[1];
        if !self.classes.is_empty() && self.classes.len() != classes - 1 {
            return Err(Error::Shape {
                what: "logits".into(),
                expected: format!("{} classes, as before", self.classes.len() + 1),
                got: format!("{classes}"),
            });
        }
        // Other types are refused: a conversion would wrap labels around to classes.
        let target = target.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<u8>()?;
        self.classes.resize(classes - 1, [0; 3]);
        for (p, t) in predicted.into_iter().zip(target) {
            let (p, t) = (usize::from(p), usize::from(t));
            if t >= classes {
                return Err(Error::UnknownClass { class: t, num_classes: classes });
            }
            match (p == t, p, t) {
                (true, 0, 0) => {}
                (true, p, _) => self.classes[p - 1][0] += 1,
                (false, p, t) => {
                    if p > 0 {
                        self.classes[p - 1][1] += 1;
                    }
                    if t > 0 {
                        self.classes[t - 1][2] += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sum of the counts of all ranks.
    pub(crate) fn of_all(&self, ranks: &dyn Ranks) -> Result<Self> {
        let mut sum = Self::default();
        for counts in all_gather(ranks, self.classes.as_flattened().iter().flat_map(|n| n.to_le_bytes()).collect())? {
            let (counts, _) = counts.as_chunks();
            // A rank without a batch has no classes.
            sum.classes.resize(sum.classes.len().max(counts.len() / 3), [0; 3]);
            for (sum, count) in sum.classes.as_flattened_mut().iter_mut().zip(counts) {
                *sum += u64::from_le_bytes(*count);
            }
        }
        Ok(sum)
    }

    /// `2 tp / (2 tp + fp + fn)` per foreground class; `None` where a class was neither present nor predicted.
    pub fn dice(&self) -> Vec<Option<f64>> {
        let dice = |&[tp, fp, fneg]: &[u64; 3]| {
            let total = 2 * tp + fp + fneg;
            (total > 0).then(|| 2.0 * tp as f64 / total as f64)
        };
        self.classes.iter().map(dice).collect()
    }
}

/// Mean over the classes that have a value.
pub(crate) fn mean(dice: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = dice.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Logits whose argmax is `labels`, [1, classes, 1, 1, n].
    fn logits(labels: &[usize], classes: usize) -> Tensor {
        let n = labels.len();
        let mut v = vec![0f32; classes * n];
        for (i, l) in labels.iter().enumerate() {
            v[l * n + i] = 1.0;
        }
        Tensor::from_vec(v, (1, classes, 1, 1, n), &Device::Cpu).unwrap()
    }

    fn target(labels: &[u8]) -> Tensor {
        Tensor::from_slice(labels, (1, 1, 1, labels.len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn counts_add_up_over_batches() {
        let mut counts = DiceCounts::default();
        counts.add(&logits(&[0, 1, 1, 2, 0], 4), &target(&[0, 1, 2, 2, 1])).unwrap();
        counts.add(&logits(&[1, 2], 4), &target(&[1, 0])).unwrap();
        // class 1: tp 2, fp 1, fn 1; class 2: tp 1, fp 1, fn 1; class 3: absent everywhere.
        assert_eq!(counts.dice(), [Some(4.0 / 6.0), Some(2.0 / 4.0), None]);
        assert_eq!(mean(&counts.dice()), Some(f64::midpoint(4.0 / 6.0, 0.5)));
        assert_eq!(mean(&[None]), None);
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_keeps_samples_apart() {
        let n = 40_000;
        let one: Vec<usize> = (0..n).map(|i| (i * 7) % 3).collect();
        let two: Vec<usize> = (0..n).map(|i| (i / 11) % 3).collect();
        let both = Tensor::cat(&[logits(&one, 3), logits(&two, 3)], 0).unwrap();
        let expected: Vec<u16> = one.iter().chain(&two).map(|l| *l as u16).collect();
        assert_eq!(argmax_labels(&both).unwrap(), expected);
        let ties = Tensor::zeros((1, 3, 1, 1, 2), DType::F64, &Device::Cpu).unwrap();
        assert_eq!(argmax_labels(&ties).unwrap(), [0, 0]);
    }

    #[test]
    fn unknown_classes_and_other_shapes_are_errors() {
        let mut counts = DiceCounts::default();
        assert!(
            counts
                .add(&logits(&[0, 1], 2), &target(&[0, 2]))
                .unwrap_err()
                .to_string()
                .contains("class 2, but the logits have 2 classes")
        );
        assert!(counts.add(&logits(&[0, 1], 2), &target(&[0])).is_err());
        let wide = Tensor::new(&[0i64, 257], &Device::Cpu).unwrap().reshape((1, 1, 1, 2)).unwrap();
        assert!(counts.add(&logits(&[0, 1], 2), &wide).is_err());
        counts.add(&logits(&[0, 1], 2), &target(&[0, 1])).unwrap();
        assert!(counts.add(&logits(&[0, 1], 3), &target(&[0, 1])).unwrap_err().to_string().contains("2 classes"));
    }
}
