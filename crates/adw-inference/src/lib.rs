//! Sliding-window inference, as nnU-Net does it, on images of any size.
//!
//! The image is padded with zeros to at least one patch, windows overlap by half a patch by default, and each window's
//! logits count with a Gaussian weight that favours its centre. Memory beside the image and one forward pass: 4 (K + 1)
//! bytes per voxel of a slab as thick as a window, for the weighted sums of K classes ([`SlidingWindow::planes`]);
//! [`SlidingWindow::logits`] holds 4 K bytes per voxel of the image besides.

use std::fmt;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

mod error;

pub use error::{BoxError, Error, Result};

/// Network for inference: images `[n, C, *patch]` to logits `[n, K, *patch]`.
pub type Predict<'a> = dyn FnMut(&Tensor) -> Result<Tensor, BoxError> + 'a;

/// Cutting of an image into windows.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingWindow {
    /// Size of a window in voxels (D, H, W): the patch size of training.
    pub patch: [usize; 3],
    /// Step between windows as a fraction of the patch, in (0, 1]. nnU-Net: 0.5.
    pub step: f64,
    /// Axes (D, H, W) along which windows are also predicted mirrored, the logits of all flips averaged: 2^n forward
    /// passes for n axes. Use only axes that were mirrored in training.
    pub mirror: [bool; 3],
    /// Windows per forward pass, of those that start on one plane. More use more memory; results differ by rounding at most.
    pub windows_per_forward: usize,
}

impl SlidingWindow {
    /// Settings with half-patch steps, no mirroring, and one window per forward pass.
    pub fn new(patch: [usize; 3]) -> Self {
        Self { patch, step: 0.5, mirror: [false; 3], windows_per_forward: 1 }
    }

    /// Logits `[1, K, D, H, W]` (F32, on the CPU) of `image` `[1, C, D, H, W]`: the mean over `models` (folds).
    ///
    /// `progress(done, total)` is called after every forward pass with numbers of windows.
    ///
    /// ```
    /// use adw_inference::{BoxError, SlidingWindow};
    /// use candle_core::{Device, Tensor};
    ///
    /// let image = Tensor::randn(0f32, 1., (1, 1, 10, 9, 7), &Device::Cpu)?;
    /// let mut double = |x: &Tensor| -> Result<Tensor, BoxError> { Ok((x * 2.0)?) };
    /// let logits = SlidingWindow::new([4, 4, 4]).logits(&image, &mut [&mut double], &mut |_, _| {})?;
    /// let difference = (logits - (image * 2.0)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    /// assert!(difference < 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If there is no model, a model fails or returns another shape than `[n, K, *patch]`, or the logits are not
    /// finite.
    pub fn logits(
        &self,
        image: &Tensor,
        models: &mut [&mut Predict<'_>],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Tensor> {
        let mut planes = self.planes(image)?;
        let [d, h, w] = planes.shape;
        let (mut logits, mut num_classes, mut done) = (vec![], 0, 0);
        while let Some(part) = planes.advance(models, progress)? {
            num_classes = part.dim(1)?;
            logits.resize(num_classes * d * h * w, 0.0);
            let voxels = part.elem_count() / num_classes;
            let values = part.flatten_all()?.to_vec1::<f32>()?;
            for (class, part) in logits.chunks_mut(d * h * w).zip(values.chunks(voxels)) {
                class[done..done + voxels].copy_from_slice(part);
            }
            done += voxels;
        }
        Ok(Tensor::from_vec(logits, (1, num_classes, d, h, w), &Device::Cpu)?)
    }

    /// Starts computing the logits of [`Self::logits`] part by part.
    ///
    /// # Errors
    /// If `image` has not the shape `[1, C, D, H, W]`, or no voxel.
    pub fn planes(&self, image: &Tensor) -> Result<LogitPlanes<'_>> {
        self.check()?;
        let shape = match *image.dims() {
            [1, _, d, h, w] if d * h * w > 0 => [d, h, w],
            ref other => return Err(shape_error("image", "[1, C, D, H, W] with at least one voxel", other)),
        };
        let (image, before) = self.pad(image, shape)?;
        let (_, _, d, h, w) = image.dims5()?;
        let [planes, rows, columns] =
            [(0, d), (1, h), (2, w)].map(|(axis, size)| window_starts(size, self.patch[axis], self.step));
        let in_plane = rows.iter().flat_map(|&h| columns.iter().map(move |&w| [h, w])).collect();
        let sums = WeightedSums::new([self.patch[0], h, w], self.patch)?;
        Ok(LogitPlanes { window: self, image, before, shape, planes, in_plane, sums, next: 0, is_within_part: false })
    }

    fn check(&self) -> Result<()> {
        let bad = |key, value, expected| Err(Error::Config { key, value, expected });
        if self.patch.contains(&0) {
            return bad("patch", format!("{:?}", self.patch), "three sizes of at least 1");
        }
        if !(self.step > 0.0 && self.step <= 1.0) {
            return bad("step", self.step.to_string(), "a fraction of the patch above 0, at most 1");
        }
        if self.windows_per_forward == 0 {
            return bad("windows_per_forward", "0".into(), "at least 1");
        }
        Ok(())
    }

    /// Pads the image with zeros to at least a patch, as many voxels before as after, or one more after. Returns it
    /// with the numbers of voxels added before.
    fn pad(&self, image: &Tensor, shape: [usize; 3]) -> Result<(Tensor, [usize; 3])> {
        let mut padded = image.clone();
        let mut before = [0; 3];
        for axis in 0..3 {
            let missing = self.patch[axis].saturating_sub(shape[axis]);
            before[axis] = missing / 2;
            if missing > 0 {
                padded = padded.pad_with_zeros(2 + axis, before[axis], missing - before[axis])?;
            }
        }
        Ok((padded, before))
    }

    fn cut(&self, image: &Tensor, start: [usize; 3]) -> Result<Tensor> {
        let mut window = image.clone();
        for (axis, (start, size)) in start.into_iter().zip(self.patch).enumerate() {
            window = window.narrow(2 + axis, start, size)?;
        }
        Ok(window.contiguous()?)
    }

    /// Mean of `model`'s logits over all flips of the mirrored axes.
    fn forward(&self, windows: &Tensor, model: &mut Predict<'_>) -> Result<Tensor> {
        let mut sum = self.checked(windows, model)?;
        let axes: Vec<usize> = (0..3).filter(|a| self.mirror[*a]).map(|a| a + 2).collect();
        for subset in 1..1usize << axes.len() {
            let flipped: Vec<usize> = (0..axes.len()).filter(|i| subset >> i & 1 == 1).map(|i| axes[i]).collect();
            let logits = self.checked(&windows.flip(&flipped)?, model)?;
            sum = (sum + logits.flip(&flipped)?)?;
        }
        if axes.is_empty() {
            return Ok(sum);
        }
        Ok((sum / (1usize << axes.len()) as f64)?)
    }

    fn checked(&self, windows: &Tensor, model: &mut Predict<'_>) -> Result<Tensor> {
        // The network's layout is its own (ours is channels last); flips need candle's.
        let logits = model(windows).map_err(Error::Network)?.detach().contiguous()?;
        let [d, h, w] = self.patch;
        match *logits.dims() {
            [n, classes, ld, lh, lw] if n == windows.dim(0)? && classes > 0 && [ld, lh, lw] == self.patch => Ok(logits),
            ref other => {
                let expected = format!("[{}, K, {d}, {h}, {w}]", windows.dim(0)?);
                Err(shape_error("logits of a window", &expected, other))
            }
        }
    }
}

/// Logits of an image in parts, planes that follow each other along D: a part is returned when no later window touches it.
pub struct LogitPlanes<'a> {
    window: &'a SlidingWindow,
    /// Padded image, and the voxels in front of the image itself.
    image: Tensor,
    before: [usize; 3],
    shape: [usize; 3],
    /// First planes of the windows, and their first rows and columns.
    planes: Vec<usize>,
    in_plane: Vec<[usize; 2]>,
    /// Sums in the slab of the windows that come next.
    sums: WeightedSums,
    next: usize,
    /// True from the beginning of a part to its end: after an error, some of its windows are in the sums.
    is_within_part: bool,
}

impl fmt::Debug for LogitPlanes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { window, shape, next, .. } = self;
        f.debug_struct("LogitPlanes")
            .field("window", window)
            .field("shape", shape)
            .field("next", next)
            .finish_non_exhaustive()
    }
}

impl LogitPlanes<'_> {
    /// The next logits, `[1, K, planes, H, W]` (F32, on the CPU): the mean over `models`, the same ones in every call; `None` after
    /// the last. `progress(done, total)` as in [`SlidingWindow::logits`].
    ///
    /// # Errors
    /// Those of [`SlidingWindow::logits`]; after an error, every call is one.
    pub fn advance(
        &mut self,
        models: &mut [&mut Predict<'_>],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Tensor>> {
        let Some(&start) = self.planes.get(self.next) else { return Ok(None) };
        if std::mem::replace(&mut self.is_within_part, true) {
            return Err(shape_error("windows", "no call after one that failed", &[self.next]));
        }
        let [first, others @ ..] = models else { return Err(shape_error("models", "at least one", &[0])) };
        let total = self.planes.len() * self.in_plane.len();
        let mut done = self.next * self.in_plane.len();
        for group in self.in_plane.chunks(self.window.windows_per_forward) {
            let cut = |&[h, w]: &[usize; 2]| self.window.cut(&self.image, [start, h, w]);
            let windows = Tensor::cat(&group.iter().map(cut).collect::<Result<Vec<_>>>()?, 0)?;
            let mut mean = self.window.forward(&windows, &mut **first)?;
            for model in &mut *others {
                mean = (mean + self.window.forward(&windows, &mut **model)?)?;
            }
            if !others.is_empty() {
                mean = (mean / (others.len() + 1) as f64)?;
            }
            self.sums.add(&mean, group)?;
            done += group.len();
            progress(done, total);
        }
        self.next += 1;
        let end = self.planes.get(self.next).copied().unwrap_or(start + self.window.patch[0]);
        let [first, last] = [start.max(self.before[0]), end.min(self.before[0] + self.shape[0])];
        let [_, h, w] = self.before;
        let [_, height, width] = self.shape;
        let logits = self.sums.mean([first - start, h, w], [last - first, height, width])?;
        self.sums.forget(end - start);
        self.is_within_part = false;
        Ok(Some(logits))
    }
}

fn shape_error(what: &'static str, expected: &str, got: &[usize]) -> Error {
    Error::Shape { what, expected: expected.into(), got: format!("{got:?}") }
}

/// First voxels of the windows along one axis: k = ceil((size - patch) / (step patch)) + 1 windows, at
/// round(i (size - patch) / (k - 1)), half to even. One window at 0 when `size <= patch`.
pub fn window_starts(size: usize, patch: usize, step: f64) -> Vec<usize> {
    let rest = size.saturating_sub(patch);
    if rest == 0 {
        return vec![0];
    }
    // Steps below a voxel, which only tiny patches have, would repeat windows.
    let last = ((rest as f64 / (patch as f64 * step)).ceil() as usize).min(rest);
    let spacing = rest as f64 / last as f64;
    let start = |i: usize| (i as f64 * spacing).round_ties_even() as usize;
    (0..=last).map(start).collect()
}

/// Weights of the voxels of a window, `[D, H, W]`: `10 prod_axes exp(-((i - p/2) / (p/8))^2 / 2)`, rounded to f16 as
/// nnU-Net keeps it; weights that round to zero take the smallest other value.
pub fn gaussian_weights(patch: [usize; 3]) -> Result<Tensor> {
    let axis = |p: usize| -> Vec<f64> {
        let sigma = p as f64 / 8.0;
        let at = |i: usize| (-0.5 * ((i as f64 - (p / 2) as f64) / sigma).powi(2)).exp();
        (0..p).map(at).collect()
    };
    let [d, h, w] = patch.map(axis);
    let mut weights = Vec::with_capacity(patch.iter().product());
    for d in &d {
        for h in &h {
            weights.extend(w.iter().map(|w| 10.0 * d * h * w));
        }
    }
    let rounded = Tensor::from_vec(weights, &patch, &Device::Cpu)?.to_dtype(DType::F16)?;
    let mut values = rounded.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let nonzero = values.iter().copied().filter(|v| *v > 0.0);
    let smallest = nonzero.fold(f32::INFINITY, f32::min);
    for v in values.iter_mut().filter(|v| **v == 0.0) {
        *v = smallest;
    }
    Ok(Tensor::from_vec(values, &patch, &Device::Cpu)?)
}

/// Sums of weighted logits and of weights at every voxel of a slab as thick as a window.
struct WeightedSums {
    shape: [usize; 3],
    patch: [usize; 3],
    window: Vec<f32>,
    weights: Vec<f32>,
    /// One map per class; empty until the first window.
    logits: Vec<Vec<f32>>,
}

impl WeightedSums {
    fn new(shape: [usize; 3], patch: [usize; 3]) -> Result<Self> {
        Ok(Self {
            shape,
            patch,
            window: gaussian_weights(patch)?.flatten_all()?.to_vec1()?,
            weights: vec![0.0; shape.iter().product()],
            logits: vec![],
        })
    }

    /// Adds the logits `[n, K, *patch]` of windows that start at these rows and columns.
    fn add(&mut self, logits: &Tensor, starts: &[[usize; 2]]) -> Result<()> {
        let classes = logits.dim(1)?;
        if self.logits.is_empty() {
            self.logits = vec![vec![0.0; self.weights.len()]; classes];
        } else if self.logits.len() != classes {
            let known = self.logits.len().to_string();
            return Err(shape_error("classes of a window", &known, &[classes]));
        }
        let values = logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let (shape, patch, window) = (self.shape, self.patch, &self.window);
        for (&[h, w], values) in starts.iter().zip(values.chunks(classes * window.len())) {
            let start = [0, h, w];
            let maps = self.logits.par_iter_mut().zip(values.par_chunks(window.len()));
            maps.for_each(|(sum, values)| {
                for_each_row(shape, patch, start, |image, row| {
                    let terms = values[row.clone()].iter().zip(&window[row]);
                    for (s, (v, w)) in sum[image].iter_mut().zip(terms) {
                        *s += v * w;
                    }
                });
            });
            let weights = &mut self.weights;
            for_each_row(shape, patch, start, |image, row| {
                for (s, w) in weights[image].iter_mut().zip(&window[row]) {
                    *s += w;
                }
            });
        }
        Ok(())
    }

    /// Weighted means in the box of size `shape` at `start`, `[1, K, *shape]`.
    fn mean(&self, start: [usize; 3], shape: [usize; 3]) -> Result<Tensor> {
        let means = self.logits.par_iter().map(|map| {
            let mut means = Vec::with_capacity(shape.iter().product());
            for_each_row(self.shape, shape, start, |slab, _| {
                means.extend(map[slab.clone()].iter().zip(&self.weights[slab]).map(|(v, w)| v / w));
            });
            means.iter().all(|v: &f32| v.is_finite()).then_some(means)
        });
        let means: Option<Vec<_>> = means.collect();
        let [d, h, w] = shape;
        let means = means.ok_or(Error::NotFinite)?.concat();
        Ok(Tensor::from_vec(means, (1, self.logits.len(), d, h, w), &Device::Cpu)?)
    }

    /// Drops the first `planes` of the slab, and moves the others to its beginning.
    fn forget(&mut self, planes: usize) {
        let voxels = planes * self.shape[1] * self.shape[2];
        self.logits.par_iter_mut().chain([&mut self.weights]).for_each(|map| {
            map.copy_within(voxels.., 0);
            let kept = map.len() - voxels;
            map[kept..].fill(0.0);
        });
    }
}

/// Calls `f` for every row (along W) of a box of size `size` at `start`, with the row's flat range in the image and in
/// the box.
fn for_each_row(
    image: [usize; 3],
    size: [usize; 3],
    start: [usize; 3],
    mut f: impl FnMut(std::ops::Range<usize>, std::ops::Range<usize>),
) {
    for d in 0..size[0] {
        for h in 0..size[1] {
            let at = ((start[0] + d) * image[1] + start[1] + h) * image[2] + start[2];
            let row = (d * size[1] + h) * size[2];
            f(at..at + size[2], row..row + size[2]);
        }
    }
}

#[cfg(test)]
mod tests;
