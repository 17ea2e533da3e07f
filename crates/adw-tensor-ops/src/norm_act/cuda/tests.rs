//! Every kernel beside the op on the CPU, emulated.

use super::backward::{GradAddresses, backward};
use super::forward::{coefficients, moments, weighted_sum};
use super::operands::{AffineAddresses, Coefficients};
use crate::cuda::MapShape;
use crate::cuda::testing::{compare, f64s, tensor, tolerance, upload, values};
use crate::norm_act::{self, Gate, GatePosition, NormAct, NormCoefficients};
use crate::precision::Precision;
use adw_cuda::emulated::{self, EmulatedBuffer, Emulator};
use adw_cuda::recording::DryRun;
use adw_cuda::work::Machine;
use adw_cuda::{Address, Buffer, Runtime};
use adw_testing::tolerance::F32_KERNEL;
use candle_core::Tensor;

/// Odd sizes, channels that do not divide into pieces, and maps of several chunks.
const SHAPES: [(usize, [usize; 3], usize); 5] =
    [(2, [3, 5, 7], 5), (1, [9, 8, 7], 48), (3, [2, 3, 11], 33), (2, [9, 11, 13], 16), (1, [1, 1, 3], 72)];

struct Case {
    precision: Precision,
    shape: MapShape,
    dims: [usize; 5],
    y: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    gate: Option<(Vec<f32>, GatePosition)>,
}

fn cases() -> impl Iterator<Item = Case> {
    let gates = [None, Some(GatePosition::PreNorm), Some(GatePosition::PostNorm)];
    let all = SHAPES.into_iter().flat_map(move |s| gates.map(|g| (s, g)));
    all.flat_map(|((batch, [d, h, w], channels), position)| {
        [Precision::Full, Precision::Bf16].map(|precision| {
            let shape = MapShape { batch, voxels: d * h * w, channels, precision };
            let mut y = values(1, shape.len(), precision);
            // A large mean in some channels: squares must not cancel.
            for (i, y) in y.iter_mut().enumerate() {
                if i % channels % 3 == 1 {
                    *y += 4.0;
                }
            }
            let positive = |seed| values(seed, channels, Precision::Full).iter().map(|x| 0.75 + 0.5 * x).collect();
            Case {
                precision,
                shape,
                dims: [batch, d, h, w, channels],
                // Rounded to bf16, since that is what the kernel reads.
                y: match precision {
                    Precision::Full => y,
                    Precision::Bf16 => y.iter().map(|&y| half::bf16::from_f32(y).to_f32()).collect(),
                },
                gamma: positive(2),
                beta: values(3, channels, Precision::Full),
                gate: position.map(|p| (positive(4), p)),
            }
        })
    })
}

/// The op's coefficients and the kernels', from the same map.
struct Pair {
    rt: Emulator,
    y_cpu: Tensor,
    cpu: NormCoefficients,
    y: EmulatedBuffer,
    gamma: EmulatedBuffer,
    beta: EmulatedBuffer,
    gate: Option<(EmulatedBuffer, GatePosition)>,
    device: Coefficients<EmulatedBuffer>,
}

impl Case {
    fn gate_tensor(&self) -> Option<(Tensor, GatePosition)> {
        self.gate.as_ref().map(|(g, p)| (tensor(g, &[self.shape.channels]), *p))
    }

    fn pair(&self) -> Pair {
        let (rt, config, c) = (Emulator::new(), NormAct::default(), self.shape.channels);
        let y_cpu = tensor(&self.y, &self.dims);
        let gate_cpu = self.gate_tensor();
        let gate_cpu = gate_cpu.as_ref().map(|(factor, position)| Gate { factor, position: *position });
        let moments_cpu = norm_act::moments(&y_cpu).unwrap();
        let cpu =
            config.coefficients(&moments_cpu, &tensor(&self.gamma, &[c]), &tensor(&self.beta, &[c]), gate_cpu).unwrap();
        let y = upload(&rt, self.precision, &self.y);
        let (gamma, beta) = (rt.upload(&self.gamma), rt.upload(&self.beta));
        let gate = self.gate.as_ref().map(|(g, p)| (rt.upload(g), *p));
        let affine = AffineAddresses {
            gamma: gamma.address(),
            beta: beta.address(),
            gate: gate.as_ref().map(|(g, p)| (g.address(), *p)),
        };
        // SAFETY: all buffers have the sizes of `shape`.
        let device = unsafe {
            let partial = moments(&rt, y.address(), &self.shape).unwrap();
            coefficients(&rt, &partial, &affine, config, self.shape.batch, c).unwrap()
        };
        Pair { rt, y_cpu, cpu, y, gamma, beta, gate, device }
    }
}

#[test]
fn coefficients_of_a_map() {
    if !emulated::is_available("coefficients_of_a_map") {
        return;
    }
    for case in cases() {
        let p = case.pair();
        let what = |name: &str| format!("{name} of {:?}, {:?}", case.shape, case.gate.as_ref().map(|g| g.1));
        for (name, buffer, expected) in [
            ("mean", &p.device.mean, &p.cpu.mean),
            ("variance", &p.device.variance, &p.cpu.variance),
            ("scale", &p.device.scale, &p.cpu.scale),
            ("shift", &p.device.shift, &p.cpu.shift),
        ] {
            // Statistics are f32 whatever the map's elements are.
            compare(&what(name), buffer, Precision::Full, expected, F32_KERNEL);
        }
    }
}

#[test]
fn weighted_sums() {
    if !emulated::is_available("weighted_sums") {
        return;
    }
    for case in cases().filter(|c| !matches!(c.gate, Some((_, GatePosition::PreNorm)))) {
        let p = case.pair();
        let weights = [0.5f32, 0.3, 0.2];
        let device_weights = p.rt.upload(&weights);
        for n in 1..=3 {
            let out = p.rt.alloc(case.shape.bytes()).unwrap();
            // One map in several places is enough: which is read where is a matter of addresses. Each has another slope.
            let slopes = [0.01, 1.0, 0.3];
            let device = slopes.map(|slope| Coefficients {
                mean: p.device.mean.address(),
                variance: p.device.variance.address(),
                scale: p.device.scale.address(),
                shift: p.device.shift.address(),
                config: NormAct { slope, ..p.device.config },
            });
            let maps: Vec<_> =
                (0..n).map(|l| (p.y.address(), &device[l], device_weights.address().offset(4 * l))).collect();
            // SAFETY: all buffers have the sizes of `shape`.
            unsafe { weighted_sum(&p.rt, &maps, &case.shape, out.address()).unwrap() };
            let cpu =
                slopes.map(|slope| NormCoefficients { config: NormAct { slope, ..p.cpu.config }, ..p.cpu.clone() });
            let cpu: Vec<_> = cpu[..n].iter().map(|cpu| (&p.y_cpu, cpu)).collect();
            let weights = tensor(&weights[..n], &[n]);
            let expected = norm_act::weighted_sum(&cpu, Some(&weights)).unwrap();
            let what = format!("sum of {n} maps {:?}", case.shape);
            compare(&what, &out, case.precision, &expected, tolerance(case.precision));
        }
    }
}

#[test]
fn backward_of_a_map() {
    if !emulated::is_available("backward_of_a_map") {
        return;
    }
    for case in cases() {
        let p = case.pair();
        let (c, n) = (case.shape.channels, case.shape.len());
        let (g1, g2) = (values(7, n, case.precision), values(8, n, case.precision));
        let weight = 0.37f32;
        let device_weight = p.rt.upload(&[weight]);
        for (has_outer, has_direct) in [(true, true), (true, false), (false, true)] {
            let (outer, direct) = (upload(&p.rt, case.precision, &g1), upload(&p.rt, case.precision, &g2));
            let out = p.rt.alloc(case.shape.bytes()).unwrap();
            let affine = AffineAddresses {
                gamma: p.gamma.address(),
                beta: p.beta.address(),
                gate: p.gate.as_ref().map(|(g, at)| (g.address(), *at)),
            };
            let grad = GradAddresses {
                outer: has_outer.then(|| (outer.address(), device_weight.address())),
                direct: has_direct.then(|| direct.address()),
            };
            // SAFETY: all buffers have the sizes of `shape`.
            let got = unsafe {
                backward(&p.rt, p.y.address(), &p.device, &affine, grad, &case.shape, out.address()).unwrap()
            };
            let (outer_cpu, direct_cpu) = (tensor(&g1, &case.dims), tensor(&g2, &case.dims));
            let gate = case.gate_tensor();
            let expected = norm_act::backward(
                &p.y_cpu,
                &p.cpu,
                &tensor(&case.gamma, &[c]),
                &tensor(&case.beta, &[c]),
                gate.as_ref().map(|(factor, position)| Gate { factor, position: *position }),
                has_outer.then_some((&outer_cpu, &tensor(&[weight], &[1]))),
                has_direct.then_some(&direct_cpu),
            )
            .unwrap();
            let what = |name: &str| format!("{name} of {:?}, outer {has_outer}, direct {has_direct}", case.shape);
            compare(&what("grad y"), &out, case.precision, &expected.y, tolerance(case.precision));
            // Sums of many terms that cancel: rounding of single terms shows, so the tolerance is that of the sums.
            compare(&what("grad gamma"), &got.gamma, Precision::Full, &expected.gamma, F32_KERNEL);
            compare(&what("grad beta"), &got.beta, Precision::Full, &expected.beta, F32_KERNEL);
            if let (Some(got), Some(expected)) = (&got.gate, &expected.gate) {
                compare(&what("grad gate"), got, Precision::Full, expected, F32_KERNEL);
            }
            if has_outer {
                let dot: f64 = got.outer_dot.read::<f32>().iter().map(|&d| f64::from(d)).sum();
                let scale: f64 = g1.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt() * (n as f64).sqrt();
                let expected = f64s(&expected.weight)[0];
                assert!((dot - expected).abs() < 1e-5 * scale, "{}: {dot}, expected {expected}", what("grad weight"));
            }
        }
    }
}

#[test]
fn work_of_the_backward_pass_equals_numbers_by_hand() {
    let shape = MapShape { batch: 2, voxels: 300, channels: 16, precision: Precision::Full };
    let a = Address(1);
    let affine = AffineAddresses { gamma: a, beta: a, gate: Some((a, GatePosition::PreNorm)) };
    let coefficients = Coefficients { mean: a, variance: a, scale: a, shift: a, config: NormAct::default() };
    // A map of 2 x 300 x 16 f32; a vector per sample and channel; two chunks of at most 256 voxels, three sums each.
    let (map, vector, partial, channel) = (38_400, 128, 2 * 2 * 3 * 16 * 4, 64);
    for (grad, maps_read) in [
        (GradAddresses { outer: Some((a, a)), direct: Some(a) }, 3),
        (GradAddresses { outer: None, direct: Some(a) }, 2),
    ] {
        let rt = DryRun::new(Machine::H100);
        // SAFETY: nothing runs.
        unsafe { backward(&rt, a, &coefficients, &affine, grad, &shape, a).unwrap() };
        let work = rt.recorder();
        let of = |kernel| {
            let r = work.records()[kernel];
            (r.launches, r.bytes, r.operations)
        };
        assert_eq!(of("norm_grad_sums_f32"), (1, maps_read * map + 3 * vector + partial, 12 * 9600));
        assert_eq!(of("norm_grad_finish"), (1, partial + 3 * vector + 7 * channel, 192));
        assert_eq!(of("norm_grad_input_f32"), (1, (maps_read + 1) * map + 5 * vector, 10 * 9600));
    }
}
