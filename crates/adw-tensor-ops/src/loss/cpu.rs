use super::DiceCe;
use crate::error::Result;
use crate::simd::Element;
use rayon::prelude::*;

/// Voxels per task; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 4096;

pub(super) struct Job<'a, T> {
    logits: &'a [T],
    target: &'a [u8],
    batch: usize,
    classes: usize,
    config: DiceCe,
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

/// Per sample, or one for the whole batch with `batch_dice`.
pub(super) struct Sums(Vec<SampleSums>);

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

impl<'a, T: Element> Job<'a, T> {
    pub(super) fn new(logits: &'a [T], target: &'a [u8], batch: usize, classes: usize, config: DiceCe) -> Result<Self> {
        if let Some(&label) = target.iter().find(|&&t| usize::from(t) >= classes) {
            return Err(super::unknown_label(label.into(), classes));
        }
        Ok(Self { logits, target, batch, classes, config })
    }

    fn voxels(&self) -> usize {
        self.target.len() / self.batch
    }

    pub(super) fn sums(&self) -> Sums {
        let (k, voxels) = (self.classes, self.voxels());
        let parts: Vec<(usize, SampleSums)> = self
            .chunks()
            .into_par_iter()
            .map(|(b, first, n)| {
                let mut s = SampleSums::new(k);
                let mut p = vec![T::ZERO; k];
                let at = b * voxels + first;
                for (x, &t) in self.logits[at * k..(at + n) * k].chunks_exact(k).zip(&self.target[at..at + n]) {
                    let t = usize::from(t);
                    let log_sum = softmax(x, &mut p);
                    s.cross_entropy += (log_sum - x[t]).to_f64();
                    s.intersection[t] += p[t].to_f64();
                    s.reference[t] += 1.0;
                    for (s, p) in s.predicted.iter_mut().zip(&p) {
                        *s += p.to_f64();
                    }
                }
                (if self.config.batch_dice { 0 } else { b }, s)
            })
            .collect();
        let mut sums = vec![SampleSums::new(k); if self.config.batch_dice { 1 } else { self.batch }];
        for (group, part) in parts {
            sums[group].add(&part);
        }
        Sums(sums)
    }

    /// `(sample, first voxel, voxels)`
    fn chunks(&self) -> Vec<(usize, usize, usize)> {
        let voxels = self.voxels();
        (0..self.batch).flat_map(|b| (0..voxels).step_by(CHUNK).map(move |i| (b, i, CHUNK.min(voxels - i)))).collect()
    }

    pub(super) fn loss(&self, sums: &Sums) -> f64 {
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

    /// Of `weight * loss` by the logits: with `q_k = d loss / d p_k` of the Dice part,
    /// `p_k (q_k - sum_j p_j q_j) + (p_k - t_k) / voxels`.
    pub(super) fn gradient(&self, sums: &Sums, weight: f64) -> Vec<T> {
        let (k, voxels) = (self.classes, self.voxels());
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
        let mut grad = vec![T::ZERO; self.logits.len()];
        let mut rest = grad.as_mut_slice();
        let mut jobs = Vec::new();
        for (b, first, n) in self.chunks() {
            let (out, after) = rest.split_at_mut(n * k);
            rest = after;
            jobs.push((b, b * voxels + first, n, out));
        }
        jobs.into_par_iter().for_each(|(b, at, n, out)| {
            let (everywhere, on_target) = &q[if self.config.batch_dice { 0 } else { b }];
            let x = &self.logits[at * k..(at + n) * k];
            for ((g, x), &t) in out.chunks_exact_mut(k).zip(x.chunks_exact(k)).zip(&self.target[at..at + n]) {
                let t = usize::from(t);
                softmax(x, g);
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
        grad
    }
}
