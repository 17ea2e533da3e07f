//! Every pass beside the op on the CPU, emulated; and those of the transposed convolution, which are the same kernels.

use super::correlate::{forward, grad_input};
use super::grad_weight::grad_weight;
use super::maps::SourceMap;
use super::operands;
use super::shape::ConvShape;
use super::weights::Weights;
use crate::conv_transpose3d;
use crate::conv3d::{self, Input};
use crate::cuda::testing::{compare, tensor, tolerance, upload, values};
use crate::geometry::Conv3dGeometry;
use crate::norm_act::cuda::forward::coefficients;
use crate::norm_act::cuda::operands::AffineAddresses;
use crate::norm_act::{self, NormAct, NormCoefficients};
use crate::precision::Precision;
use adw_cuda::emulated::{self, EmulatedBuffer, Emulator};
use adw_cuda::{Buffer, Runtime};
use adw_testing::tolerance::EXACT;
use candle_core::Tensor;

struct Case {
    batch: usize,
    /// Channels of one or two maps side by side.
    ci: &'static [usize],
    co: usize,
    size: [usize; 3],
    geometry: Conv3dGeometry,
}

const fn case(
    batch: usize,
    ci: &'static [usize],
    co: usize,
    size: [usize; 3],
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
) -> Case {
    let geometry = Conv3dGeometry::new(kernel, stride, padding);
    Case { batch, ci, co, size, geometry }
}

const fn dilated(mut case: Case, dilation: [usize; 3]) -> Case {
    case.geometry.dilation = dilation;
    case
}

impl Case {
    fn layer(&self, precision: Precision) -> ConvShape {
        ConvShape { batch: self.batch, size: self.size, geometry: self.geometry, precision }
    }
}

/// Odd sizes; channels that divide into pieces, slices and tiles, and that do not; every kind of layer of a network.
const CASES: &[Case] = &[
    case(2, &[1], 5, [3, 4, 5], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    case(1, &[48], 48, [5, 3, 9], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    case(2, &[16, 24], 56, [3, 6, 5], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    case(2, &[7], 33, [5, 6, 7], [3, 3, 3], [2, 2, 2], [1, 1, 1]),
    case(1, &[17], 12, [4, 9, 10], [1, 3, 3], [1, 2, 2], [0, 1, 1]),
    case(1, &[40], 3, [6, 5, 4], [1, 1, 1], [1, 1, 1], [0, 0, 0]),
    case(1, &[8], 72, [4, 4, 6], [2, 2, 2], [2, 2, 2], [0, 0, 0]),
    case(1, &[5, 3], 9, [7, 8, 9], [3, 3, 1], [3, 1, 2], [2, 0, 0]),
    case(2, &[8], 100, [3, 2, 1], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    dilated(case(1, &[5, 16], 20, [6, 7, 9], [3, 3, 3], [1, 1, 1], [2, 1, 2]), [2, 1, 2]),
    dilated(case(2, &[8], 9, [9, 4, 6], [3, 1, 2], [1, 1, 1], [4, 0, 1]), [2, 1, 3]),
    // More boxes than shares of the weight gradient, with two buffers and with one.
    case(2, &[40], 100, [9, 20, 20], [1, 1, 3], [1, 1, 1], [0, 0, 1]),
    case(1, &[40], 100, [20, 40, 40], [3, 1, 1], [2, 2, 2], [1, 0, 0]),
];

/// Maps, with what normalises them, on both sides.
struct Maps {
    cpu: Vec<Tensor>,
    cpu_norms: Vec<NormCoefficients>,
    device: Vec<EmulatedBuffer>,
    device_norms: Vec<(EmulatedBuffer, EmulatedBuffer)>,
    channels: Vec<usize>,
}

impl Maps {
    fn new(rt: &Emulator, seed: u32, batch: usize, size: [usize; 3], channels: &[usize], precision: Precision) -> Self {
        let mut maps = Self {
            cpu: Vec::new(),
            cpu_norms: Vec::new(),
            device: Vec::new(),
            device_norms: Vec::new(),
            channels: channels.to_vec(),
        };
        for (i, &c) in channels.iter().enumerate() {
            let seed = seed + 10 * i as u32;
            let x = values(seed, batch * size.iter().product::<usize>() * c, precision);
            let map = tensor(&x, &[batch, size[0], size[1], size[2], c]);
            let parameter = |seed| tensor(&values(seed, c, Precision::Full), &[c]);
            let moments = norm_act::moments(&map).unwrap();
            let gamma = (parameter(seed + 1) + 2.0).unwrap();
            let norm = NormAct::default().coefficients(&moments, &gamma, &parameter(seed + 2), None).unwrap();
            let vector = |t: &Tensor| rt.upload(&t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            maps.device_norms.push((vector(&norm.scale), vector(&norm.shift)));
            maps.device.push(upload(rt, precision, &x));
            maps.cpu.push(map);
            maps.cpu_norms.push(norm);
        }
        maps
    }

    /// The first as it is, others (or all, if asked) normalised.
    fn inputs(&self, norm_all: bool) -> Vec<Input<'_>> {
        let norms = self.cpu.iter().zip(&self.cpu_norms).enumerate();
        norms.map(|(i, (map, norm))| Input { map, norm: (norm_all || i > 0).then_some(norm) }).collect()
    }

    fn sources(&self, norm_all: bool) -> Vec<SourceMap> {
        (0..self.cpu.len())
            .map(|i| SourceMap {
                data: self.device[i].address(),
                channels: self.channels[i],
                norm: (norm_all || i > 0).then(|| {
                    let (scale, shift) = &self.device_norms[i];
                    (scale.address(), shift.address(), NormAct::default().slope)
                }),
            })
            .collect()
    }
}

fn for_every_case(test: &str, mut f: impl FnMut(&Case, Precision, &str)) {
    if !emulated::is_available(test) {
        return;
    }
    for (i, case) in CASES.iter().enumerate() {
        for precision in [Precision::Full, Precision::Bf16] {
            let what = format!("case {i}, {precision:?}");
            f(case, precision, &what);
        }
    }
}

struct WeightPair {
    values: Vec<f32>,
    cpu: Tensor,
    device: EmulatedBuffer,
}

fn weights(rt: &Emulator, shape: &[usize], precision: Precision) -> WeightPair {
    let values = values(99, shape.iter().product(), precision);
    WeightPair { cpu: tensor(&values, shape), device: rt.upload(&values), values }
}

#[test]
fn forward_with_moments() {
    for_every_case("forward_with_moments", |case, precision, what| {
        let rt = Emulator::new();
        let ci: usize = case.ci.iter().sum();
        let [kd, kh, kw] = case.geometry.kernel;
        let maps = Maps::new(&rt, 1, case.batch, case.size, case.ci, precision);
        let shape = [case.co, ci, kd, kh, kw];
        let w = weights(&rt, &shape, precision);
        let output = case.geometry.output_size("test", case.size).unwrap();
        let n = case.batch * output.iter().product::<usize>() * case.co;
        for norm_all in [false, true] {
            let (y, m) = conv3d::forward(&maps.inputs(norm_all), &w.cpu, case.geometry, Precision::Full).unwrap();
            let out = rt.alloc(n * precision.element_bytes()).unwrap();
            let packed = Weights { data: w.device.address(), co: case.co, ci };
            let ones = rt.upload(&vec![1.0f32; case.co]);
            let affine = AffineAddresses { gamma: ones.address(), beta: ones.address(), gate: None };
            // SAFETY: the buffers have the sizes of the shapes.
            let coefficients = unsafe {
                let partial =
                    forward(&rt, &case.layer(precision), &maps.sources(norm_all), &packed, out.address(), true)
                        .unwrap()
                        .unwrap();
                coefficients(&rt, &partial, &affine, NormAct::default(), case.batch, case.co).unwrap()
            };
            let (mean, variance) = m.mean_and_variance().unwrap();
            compare(&format!("{what}: y"), &out, precision, &y, tolerance(precision));
            for (name, got, expected) in
                [("mean", &coefficients.mean, mean), ("variance", &coefficients.variance, variance)]
            {
                compare(&format!("{what}: {name}"), got, Precision::Full, expected, tolerance(precision));
            }
        }
    });
}

#[test]
fn gradients() {
    for_every_case("gradients", |case, precision, what| {
        let rt = Emulator::new();
        let ci: usize = case.ci.iter().sum();
        let [kd, kh, kw] = case.geometry.kernel;
        let output = case.geometry.output_size("test", case.size).unwrap();
        let x = Maps::new(&rt, 1, case.batch, case.size, case.ci, precision);
        let g = Maps::new(&rt, 50, case.batch, output, &[case.co], precision);
        let w = weights(&rt, &[case.co, ci, kd, kh, kw], precision);
        let packed = Weights { data: w.device.address(), co: case.co, ci };
        let mut first = 0;
        for &c in case.ci {
            let wanted = first..first + c;
            first += c;
            let (grad, channels) = (g.inputs(false)[0], wanted.clone());
            let expected =
                conv3d::grad_input(grad, &w.cpu, case.geometry, case.size, channels, Precision::Full).unwrap();
            let out =
                rt.alloc(case.batch * case.size.iter().product::<usize>() * c * precision.element_bytes()).unwrap();
            // SAFETY: the buffers have the sizes of the shapes.
            unsafe {
                let source = g.sources(false)[0];
                grad_input(&rt, &case.layer(precision), source, &packed, wanted, out.address()).unwrap();
            }
            compare(&format!("{what}: grad x"), &out, precision, &expected, tolerance(precision));
        }
        let expected =
            conv3d::grad_weight(&x.inputs(true), g.inputs(false)[0], case.geometry, Precision::Full).unwrap();
        let out = rt.alloc(w.values.len() * 4).unwrap();
        // SAFETY: the buffers have the sizes of the shapes.
        unsafe {
            let (maps, grad) = (x.sources(true), g.sources(false)[0]);
            grad_weight(&rt, &case.layer(precision), &maps, grad, out.address()).unwrap();
        }
        compare(&format!("{what}: grad w"), &out, Precision::Full, &expected, tolerance(precision));
    });
}

/// Its three passes are those of a strided convolution, with the maps in each other's places.
#[test]
fn transposed_convolution() {
    if !emulated::is_available("transposed_convolution") {
        return;
    }
    for (batch, ci, co, size, stride) in
        [(2, 24, 16, [2, 3, 5], [2, 2, 2]), (1, 40, 56, [3, 2, 3], [1, 2, 2]), (1, 5, 3, [3, 1, 4], [2, 1, 3])]
    {
        for precision in [Precision::Full, Precision::Bf16] {
            let rt = Emulator::new();
            let up = [0, 1, 2].map(|i| size[i] * stride[i]);
            let geometry = Conv3dGeometry::non_overlapping(stride);
            let layer = ConvShape { batch, size: up, geometry, precision };
            let x = Maps::new(&rt, 1, batch, size, &[ci], precision);
            let g = Maps::new(&rt, 50, batch, up, &[co], precision);
            let w = weights(&rt, &[ci, co, stride[0], stride[1], stride[2]], precision);
            let packed = Weights { data: w.device.address(), co: ci, ci: co };
            let alloc = |size: [usize; 3], c: usize| {
                rt.alloc(batch * size.iter().product::<usize>() * c * precision.element_bytes()).unwrap()
            };
            let (y, gx, gw) = (alloc(up, co), alloc(size, ci), rt.alloc(w.values.len() * 4).unwrap());
            // SAFETY: the buffers have the sizes of the shapes.
            unsafe {
                let (x, g) = (x.sources(true)[0], g.sources(false)[0]);
                grad_input(&rt, &layer, x, &packed, 0..co, y.address()).unwrap();
                forward(&rt, &layer, &[g], &packed, gx.address(), false).unwrap();
                grad_weight(&rt, &layer, &[g], x, gw.address()).unwrap();
            }
            let (x, g) = (x.inputs(true)[0], g.inputs(false)[0].map);
            let t = tolerance(precision);
            compare("y", &y, precision, &conv_transpose3d::forward(x, &w.cpu).unwrap(), t);
            compare("grad x", &gx, precision, &conv_transpose3d::grad_input(g, &w.cpu).unwrap(), t);
            let expected = conv_transpose3d::grad_weight(x, g, stride).unwrap();
            compare("grad w", &gw, Precision::Full, &expected, t);
        }
    }
}

/// A library's operands: maps normalised and side by side, weights and their gradients with channels last.
#[test]
fn operands_of_a_library() {
    for_every_case("operands_of_a_library", |case, precision, what| {
        let rt = Emulator::new();
        let ci: usize = case.ci.iter().sum();
        let taps: usize = case.geometry.kernel.iter().product();
        let voxels: usize = case.size.iter().product();
        let maps = Maps::new(&rt, 1, case.batch, case.size, case.ci, precision);
        assert!(operands::supports(&maps.sources(false), precision));
        for norm_all in [false, true] {
            let parts = maps.inputs(norm_all).into_iter().map(|i| match i.norm {
                None => i.map.clone(),
                Some(norm) => norm_act::weighted_sum(&[(i.map, norm)], None).unwrap(),
            });
            let parts: Vec<_> = parts.collect();
            let expected = Tensor::cat(&parts, 4).unwrap();
            let sources = maps.sources(norm_all);
            // SAFETY: the maps have the sizes of the shapes.
            let got = unsafe { operands::plain(&rt, &sources, case.batch, voxels, precision).unwrap() };
            match (&got.memory, &sources[..]) {
                (Some(memory), _) => {
                    compare(what, memory, precision, &expected, tolerance(precision));
                }
                (None, [one]) => assert!(one.norm.is_none() && got.address == one.data),
                (None, _) => panic!("{what}: two maps cannot lie in one"),
            }
        }

        let [kd, kh, kw] = case.geometry.kernel;
        let w = weights(&rt, &[case.co, ci, kd, kh, kw], precision);
        let all = Weights { data: w.device.address(), co: case.co, ci };
        for wanted in [0..ci, ci / 2..ci] {
            // SAFETY: the weights have the sizes of the shapes.
            let filter = unsafe { operands::filter(&rt, &all, taps, &wanted, precision).unwrap() };
            let channels_last = |t: &Tensor| {
                let t = t.reshape((case.co, ci, taps)).unwrap();
                let t = t.narrow(1, wanted.start, wanted.len()).unwrap();
                t.transpose(1, 2).unwrap().contiguous().unwrap()
            };
            compare(what, &filter, precision, &channels_last(&w.cpu), EXACT);
            if wanted.len() == ci {
                let back = rt.alloc(w.values.len() * 4).unwrap();
                let (from, dims) = (filter.address(), [case.co, ci, taps]);
                // SAFETY: the buffers have the sizes of the shapes.
                unsafe {
                    let to = back.address();
                    operands::weight_gradient(&rt, from, precision, dims, to).unwrap();
                }
                compare(what, &back, Precision::Full, &w.cpu, EXACT);
            }
        }
    });
}
