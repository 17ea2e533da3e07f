//! Jobs of a convolution, independent of the algorithm that computes them.
//!
//! A [`Correlation`] is the loop behind forward pass, input gradient and transposed convolution, a [`WeightGradient`] the
//! one behind the weight gradient. Both read maps through three [`Axis`] values, the only place that interprets stride,
//! padding and dilation.

use crate::geometry::Conv3dGeometry;
use std::ops::Range;

/// A map that a convolution reads: `[B, D, H, W, channels]`, as it is or normalised while it is read.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) channels: usize,
    /// Normalisation applied to every element that is read.
    pub(crate) norm: Option<Norm<'a, T>>,
    /// Rounding applied to numbers that are read, after the normalisation.
    pub(crate) round: Option<fn(&mut [T])>,
}

/// Element-wise map `x -> leaky(scale[b][c] * x + shift[b][c])`.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a, T> {
    /// `[B, C]`
    pub(crate) scale: &'a [T],
    /// `[B, C]`
    pub(crate) shift: &'a [T],
    /// Slope of LeakyReLU for negative arguments.
    pub(crate) slope: T,
}

/// Number of channels of maps that are read side by side.
pub(super) fn num_channels<T>(sources: &[Source<T>]) -> usize {
    sources.iter().map(|s| s.channels).sum()
}

/// Shapes of a convolution, the same for all three passes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvShape {
    pub(crate) batch: usize,
    /// Spatial size of the convolution's input (D, H, W).
    pub(crate) input: [usize; 3],
    /// Spatial size of the convolution's output (D, H, W).
    pub(crate) output: [usize; 3],
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) geometry: Conv3dGeometry,
}

impl ConvShape {
    /// Kernel elements of one pair of channels.
    pub(super) fn num_taps(&self) -> usize {
        self.geometry.kernel.iter().product()
    }

    /// Distances in the weight tensor `[Cout, Cin, kD, kH, kW]` between neighbouring taps along D, H, W, in elements.
    fn tap_strides(&self) -> [usize; 3] {
        let [_, kh, kw] = self.geometry.kernel;
        [kh * kw, kw, 1]
    }

    /// Axes of the forward pass, which the weight gradient shares.
    fn forward_axes(&self) -> [Axis; 3] {
        [0, 1, 2].map(|i| Axis::forward(&self.geometry, i, self.input[i], self.output[i]))
    }
}

/// One element of the kernel along an axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tap {
    /// Position of the element that is read, relative to that of the output.
    pub(crate) offset: isize,
    /// Index of the kernel element along this axis.
    pub(crate) weight: usize,
}

/// One axis of a job: output `q`, stored at `q * output_step + output_offset`, reads the inputs `q * step + tap.offset`.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// Positions of the maps that are read.
    pub(crate) input_size: usize,
    pub(crate) step: usize,
    /// Taps in the order of their offsets; without any, the outputs are zero.
    pub(crate) taps: Vec<Tap>,
    /// Outputs that the job computes.
    pub(crate) num_outputs: usize,
    /// Positions of the map that is written.
    pub(crate) output_size: usize,
    pub(crate) output_step: usize,
    pub(crate) output_offset: usize,
}

impl Axis {
    /// Axis number `axis` of the forward pass.
    fn forward(geometry: &Conv3dGeometry, axis: usize, input: usize, output: usize) -> Self {
        let tap = |k: usize| Tap { offset: geometry.tap_offset(axis, k), weight: k };
        Self {
            input_size: input,
            step: geometry.stride[axis],
            taps: (0..geometry.kernel[axis]).map(tap).collect(),
            num_outputs: output,
            output_size: output,
            output_step: 1,
            output_offset: 0,
        }
    }

    /// Axis number `axis` of the input gradient, for the input positions `i = residue + stride * q`.
    fn grad_input(geometry: &Conv3dGeometry, axis: usize, input: usize, output: usize, residue: usize) -> Self {
        let stride = geometry.stride[axis];
        let tap = |k| geometry.transposed_tap_offset(axis, residue, k).map(|offset| Tap { offset, weight: k });
        Self {
            input_size: output,
            step: 1,
            taps: (0..geometry.kernel[axis]).rev().filter_map(tap).collect(),
            num_outputs: input.saturating_sub(residue).div_ceil(stride),
            output_size: input,
            output_step: stride,
            output_offset: residue,
        }
    }

    /// Offset of the first tap, 0 without taps.
    pub(super) fn first_offset(&self) -> isize {
        self.taps.first().map_or(0, |t| t.offset)
    }

    /// Position of tap number `tap` relative to the first tap.
    pub(super) fn tap_position(&self, tap: usize) -> usize {
        (self.taps[tap].offset - self.first_offset()) as usize
    }

    /// Input positions from the first to the last that `outputs` neighbouring outputs read.
    pub(super) fn extent(&self, outputs: usize) -> usize {
        let last_tap = self.taps.len().checked_sub(1).map_or(0, |last| self.tap_position(last));
        (outputs - 1) * self.step + last_tap + 1
    }

    /// Position of output `q` in the map that is written.
    pub(super) fn output_position(&self, q: usize) -> usize {
        q * self.output_step + self.output_offset
    }

    /// Longest ranges of taps that read neighbouring positions: a single one unless the convolution is dilated.
    pub(super) fn tap_runs(&self) -> Vec<Range<usize>> {
        let runs = self.taps.chunk_by(|a, b| b.offset == a.offset + 1);
        runs.scan(0, |start, run| {
            let first = std::mem::replace(start, *start + run.len());
            Some(first..first + run.len())
        })
        .collect()
    }

    /// Returns true if all taps read neighbouring positions.
    pub(super) fn is_contiguous(&self) -> bool {
        self.tap_runs().len() <= 1
    }
}

/// Position of the elements `[k channel][lane channel][tap]` in a weight tensor, in elements. Sums run over k channels;
/// lane channels are those of the result.
#[derive(Clone, Copy)]
pub(crate) struct WeightLayout {
    pub(crate) base: usize,
    pub(crate) k_stride: usize,
    pub(crate) lane_stride: usize,
    pub(crate) tap_strides: [usize; 3],
}

/// `out[b, output, co] = sum over ci, taps: in[b, q * step + offset, ci] * weight[ci, co, tap]`: forward pass and input
/// gradient. An input gradient with a stride is one correlation per residue of the input position.
pub(crate) struct Correlation<'a, T> {
    pub(crate) batch: usize,
    pub(crate) axes: [Axis; 3],
    pub(crate) sources: &'a [Source<'a, T>],
    pub(crate) out_channels: usize,
    pub(crate) weight: &'a [T],
    pub(crate) layout: WeightLayout,
    /// Rounding applied to weights that are read.
    pub(crate) round_weight: Option<fn(&mut [T])>,
}

impl<'a, T> Correlation<'a, T> {
    /// The forward pass. `weight`: `[Cout, Cin, kD, kH, kW]`.
    pub(super) fn forward(shape: &ConvShape, sources: &'a [Source<'a, T>], weight: &'a [T]) -> Self {
        let taps = shape.num_taps();
        Self {
            batch: shape.batch,
            axes: shape.forward_axes(),
            sources,
            out_channels: shape.out_channels,
            weight,
            layout: WeightLayout {
                base: 0,
                k_stride: taps,
                lane_stride: shape.in_channels * taps,
                tap_strides: shape.tap_strides(),
            },
            round_weight: None,
        }
    }

    /// The correlations that together compute the gradient of the input channels `channels`: one per residue of the input
    /// position modulo the stride. `weight`: `[Cout, Cin, kD, kH, kW]`.
    pub(super) fn grad_input(
        shape: &'a ConvShape,
        grad_output: &'a [Source<'a, T>],
        weight: &'a [T],
        channels: &Range<usize>,
    ) -> impl Iterator<Item = Self> {
        let taps = shape.num_taps();
        let layout = WeightLayout {
            base: channels.start * taps,
            k_stride: shape.in_channels * taps,
            lane_stride: taps,
            tap_strides: shape.tap_strides(),
        };
        let axes = [0, 1, 2].map(|i| {
            let residues = 0..shape.geometry.stride[i].min(shape.input[i]);
            residues.map(move |r| Axis::grad_input(&shape.geometry, i, shape.input[i], shape.output[i], r))
        });
        let [axes_d, axes_h, axes_w] = axes;
        let axes = axes_d.flat_map(move |d| {
            let axes_w = axes_w.clone();
            axes_h.clone().flat_map(move |h| {
                let d = d.clone();
                axes_w.clone().map(move |w| [d.clone(), h.clone(), w])
            })
        });
        let (batch, out_channels) = (shape.batch, channels.len());
        axes.map(move |axes| Self {
            batch,
            axes,
            sources: grad_output,
            out_channels,
            weight,
            layout,
            round_weight: None,
        })
    }

    /// Channels that the sums run over.
    pub(super) fn k_channels(&self) -> usize {
        num_channels(self.sources)
    }

    /// Returns true if there is no output to compute.
    pub(super) fn is_empty(&self) -> bool {
        self.batch == 0 || self.axes.iter().any(|a| a.num_outputs == 0)
    }

    /// Offsets of the taps `[D][H][W]` from the first element of a pair of channels, in elements of the weight tensor.
    pub(super) fn tap_offsets(&self) -> Vec<usize> {
        let [sd, sh, sw] = self.layout.tap_strides;
        let [d, h, w] = &self.axes;
        let mut offsets = Vec::new();
        for td in &d.taps {
            for th in &h.taps {
                for tw in &w.taps {
                    offsets.push(td.weight * sd + th.weight * sh + tw.weight * sw);
                }
            }
        }
        offsets
    }
}

/// `dW[co, ci, tap] = sum over b, q: in[b, q * step + offset, ci] * grad_output[b, q, co]`, with the axes of the forward
/// pass.
pub(crate) struct WeightGradient<'a, T> {
    pub(crate) batch: usize,
    pub(crate) axes: [Axis; 3],
    pub(crate) sources: &'a [Source<'a, T>],
    pub(crate) grad_output: Source<'a, T>,
}

impl<'a, T> WeightGradient<'a, T> {
    pub(super) fn new(shape: &ConvShape, sources: &'a [Source<'a, T>], grad_output: Source<'a, T>) -> Self {
        Self { batch: shape.batch, axes: shape.forward_axes(), sources, grad_output }
    }

    pub(super) fn in_channels(&self) -> usize {
        num_channels(self.sources)
    }

    pub(super) fn out_channels(&self) -> usize {
        self.grad_output.channels
    }

    /// Number of taps along D, H, W.
    pub(super) fn kernel(&self) -> [usize; 3] {
        self.axes.each_ref().map(|a| a.taps.len())
    }

    /// Spatial size of the maps that are read.
    pub(super) fn input_size(&self) -> [usize; 3] {
        self.axes.each_ref().map(|a| a.input_size)
    }

    /// Spatial size of the gradient of the output.
    pub(super) fn output_size(&self) -> [usize; 3] {
        self.axes.each_ref().map(|a| a.output_size)
    }
}
