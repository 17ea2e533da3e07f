//! Dice + cross-entropy on the processor.

use super::kernels::{DiceCe, DiceCeKernels, OP, ScaleLosses};
use super::target::{check, labels, resize_target, unknown_label};
use crate::backend::Cpu;
use crate::error::Result;
use crate::map::map_dims;
use crate::simd::Element;
use crate::storage::{read, tensor, with_element};
use candle_core::Tensor;
use rayon::prelude::*;

/// Voxels per task; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 4096;

impl DiceCeKernels for Cpu {
    fn dice_ce(
        &self,
        config: DiceCe,
        scales: &[(&Tensor, f64)],
        target: &Tensor,
    ) -> Result<(ScaleLosses, Vec<Tensor>)> {
        let (mut losses, mut gradients) = (Vec::with_capacity(scales.len()), Vec::with_capacity(scales.len()));
        for &(logits, weight) in scales {
            let (_, size, _) = map_dims(OP, "logits", logits)?;
            let target = resize_target(target, size)?;
            let (batch, _, classes) = check(logits, &target)?;
            let target = labels(&target, classes)?;
            let (loss, gradient) = with_element!(OP, logits, T => {
                let (x, t) = (read(OP, "logits", logits)?, read(OP, "target", &target)?);
                let voxels = LabelledLogits::<T>::new(x.slice()?, t.slice()?, batch, classes, config)?;
                let (sums, probabilities) = voxels.sums();
                Ok((voxels.loss(&sums), tensor(voxels.gradient(&sums, probabilities, weight), logits.shape())?))
            })?;
            losses.push(loss);
            gradients.push(gradient);
        }
        Ok((ScaleLosses::Known(losses), gradients))
    }

    fn dice_ce_loss(&self, config: DiceCe, logits: &Tensor, target: &Tensor) -> Result<f64> {
        let (batch, _, classes) = map_dims(OP, "logits", logits)?;
        let target = labels(target, classes)?;
        with_element!(OP, logits, T => {
            let (x, t) = (read(OP, "logits", logits)?, read(OP, "target", &target)?);
            let voxels = LabelledLogits::<T>::new(x.slice()?, t.slice()?, batch, classes, config)?;
            Ok(voxels.loss(&voxels.sums().0))
        })
    }
}

/// Logits `[B, voxels, K]` and the label of every voxel.
struct LabelledLogits<'a, T> {
    logits: &'a [T],
    target: &'a [u8],
    batch: usize,
    classes: usize,
    config: DiceCe,
}

/// Values of some voxels, of which the first has the index `first` in the batch.
struct Chunk<'v, T> {
    /// Index of the [`Sums`] that these voxels belong to.
    group: usize,
    first: usize,
    values: &'v mut [T],
}

/// Sums over the voxels of one sample; per class where it is a vector.
#[derive(Clone)]
struct SampleSums {
    intersection: Vec<f64>,
    predicted: Vec<f64>,
    reference: Vec<f64>,
    cross_entropy: f64,
}

impl SampleSums {
    fn new(classes: usize) -> Self {
        let zeros = || vec![0.0; classes];
        Self { intersection: zeros(), predicted: zeros(), reference: zeros(), cross_entropy: 0.0 }
    }

    fn add(&mut self, other: &Self) {
        for (a, b) in [
            (&mut self.intersection, &other.intersection),
            (&mut self.predicted, &other.predicted),
            (&mut self.reference, &other.reference),
        ] {
            for (a, b) in a.iter_mut().zip(b) {
                *a += b;
            }
        }
        self.cross_entropy += other.cross_entropy;
    }

    /// Numerator and denominator of the Dice of a class.
    fn dice(&self, class: usize, smooth: f64) -> (f64, f64) {
        (2.0 * self.intersection[class] + smooth, (self.predicted[class] + self.reference[class] + smooth).max(1e-8))
    }
}

/// Sums per sample, or of the whole batch with `batch_dice`.
struct Sums(Vec<SampleSums>);

/// Writes softmax(x) to `p` and returns `log sum exp(x)`.
#[inline]
fn softmax<T: Element>(x: &[T], p: &mut [T]) -> T {
    let max = x.iter().copied().fold(x[0], |a, b| if b > a { b } else { a });
    let mut sum = T::ZERO;
    for (p, &x) in p.iter_mut().zip(x) {
        *p = (x - max).exp();
        sum += *p;
    }
    let scale = T::ONE / sum;
    for p in p.iter_mut() {
        *p *= scale;
    }
    max + sum.ln()
}

impl<'a, T: Element> LabelledLogits<'a, T> {
    fn new(logits: &'a [T], target: &'a [u8], batch: usize, classes: usize, config: DiceCe) -> Result<Self> {
        if let Some(&label) = target.iter().find(|&&t| usize::from(t) >= classes) {
            return Err(unknown_label(label.into(), classes));
        }
        Ok(Self { logits, target, batch, classes, config })
    }

    fn voxels(&self) -> usize {
        self.target.len() / self.batch
    }

    /// Sums, and the probabilities `[B, voxels, K]` that they are of.
    fn sums(&self) -> (Sums, Vec<T>) {
        let k = self.classes;
        let mut probabilities = vec![T::ZERO; self.logits.len()];
        let parts: Vec<(usize, SampleSums)> = self
            .chunks(&mut probabilities)
            .into_par_iter()
            .map(|chunk| {
                let mut s = SampleSums::new(k);
                let logits = self.logits[chunk.first * k..].chunks_exact(k);
                for ((p, x), &t) in chunk.values.chunks_exact_mut(k).zip(logits).zip(&self.target[chunk.first..]) {
                    let t = usize::from(t);
                    let log_sum = softmax(x, p);
                    s.cross_entropy += (log_sum - x[t]).to_f64();
                    s.intersection[t] += p[t].to_f64();
                    s.reference[t] += 1.0;
                    for (s, p) in s.predicted.iter_mut().zip(p) {
                        *s += p.to_f64();
                    }
                }
                (chunk.group, s)
            })
            .collect();
        let mut sums = vec![SampleSums::new(k); if self.config.batch_dice { 1 } else { self.batch }];
        for (group, part) in parts {
            sums[group].add(&part);
        }
        (Sums(sums), probabilities)
    }

    /// Chunks of values `[B, voxels, K]`, none with voxels of two samples.
    fn chunks<'v>(&self, values: &'v mut [T]) -> Vec<Chunk<'v, T>> {
        let (k, voxels) = (self.classes, self.voxels());
        let of_sample = |(b, sample): (usize, &'v mut [T])| {
            let group = if self.config.batch_dice { 0 } else { b };
            let chunks = sample.chunks_mut(CHUNK * k).enumerate();
            chunks.map(move |(i, values)| Chunk { group, first: b * voxels + i * CHUNK, values })
        };
        values.chunks_mut(voxels * k).enumerate().flat_map(of_sample).collect()
    }

    fn loss(&self, sums: &Sums) -> f64 {
        let cross_entropy: f64 = sums.0.iter().map(|s| s.cross_entropy).sum();
        let mut dice = 0.0;
        for s in &sums.0 {
            for k in 1..self.classes {
                let (n, d) = s.dice(k, self.config.smooth);
                dice += n / d;
            }
        }
        cross_entropy / self.target.len() as f64 - dice / (sums.0.len() * (self.classes - 1)) as f64
    }

    /// Gradient of `weight * loss` by the logits: with `q_k = d loss / d p_k` of the Dice part,
    /// `p_k (q_k - sum_j p_j q_j) + (p_k - t_k) / voxels`. Takes the place of the probabilities.
    fn gradient(&self, sums: &Sums, mut probabilities: Vec<T>, weight: f64) -> Vec<T> {
        let k = self.classes;
        let share = weight / (sums.0.len() * (k - 1)) as f64;
        // q_k = everywhere[k] + (on_target[k] where the target is k), per group.
        let q: Vec<(Vec<T>, Vec<T>)> = sums
            .0
            .iter()
            .map(|s| {
                let (mut everywhere, mut on_target) = (vec![T::ZERO; k], vec![T::ZERO; k]);
                for class in 1..k {
                    let (n, d) = s.dice(class, self.config.smooth);
                    everywhere[class] = T::from_f64(share * n / (d * d));
                    on_target[class] = T::from_f64(-2.0 * share / d);
                }
                (everywhere, on_target)
            })
            .collect();
        let ce = T::from_f64(weight / self.target.len() as f64);
        self.chunks(&mut probabilities).into_par_iter().for_each(|chunk| {
            let (everywhere, on_target) = &q[chunk.group];
            for (g, &t) in chunk.values.chunks_exact_mut(k).zip(&self.target[chunk.first..]) {
                let t = usize::from(t);
                let mut dot = g[t] * on_target[t];
                for (p, q) in g.iter().zip(everywhere) {
                    dot += *p * *q;
                }
                let extra = g[t] * on_target[t] - ce;
                for (p, q) in g.iter_mut().zip(everywhere) {
                    *p *= *q - dot + ce;
                }
                g[t] += extra;
            }
        });
        probabilities
    }
}
