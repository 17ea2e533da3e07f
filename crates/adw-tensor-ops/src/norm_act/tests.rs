use super::*;
use crate::testing::{finite_difference, numbers};
use adw_testing::{assert_close, tolerance};
use candle_core::{Device, Shape, Tensor, Var};

fn var(seed: u32, shape: impl Into<Shape>) -> Var {
    let shape = shape.into();
    Var::from_vec(numbers(seed, shape.elem_count()), shape, &Device::Cpu).unwrap()
}

#[test]
fn equals_its_definition_and_its_gradients() {
    let (b, c, size) = (2, 5, [3, 4, 2]);
    let (x, gamma, beta) = (var(1, (b, c, size[0], size[1], size[2])), var(2, c), var(3, c));
    let config = NormAct::default();
    let y = norm_act(&x, &gamma, &beta, config).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let flat = x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (g, s) = (gamma.to_vec1::<f64>().unwrap(), beta.to_vec1::<f64>().unwrap());
    let n = size.iter().product::<usize>();
    let expected: Vec<f64> = flat
        .chunks_exact(n)
        .enumerate()
        .flat_map(|(i, v)| {
            let mean = v.iter().sum::<f64>() / n as f64;
            let variance = v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            let ch = i % c;
            v.iter()
                .map(|v| (v - mean) / (variance + config.eps).sqrt() * g[ch] + s[ch])
                .map(|v| if v > 0.0 { v } else { v * config.slope })
                .collect::<Vec<_>>()
        })
        .collect();
    assert_close("forward", &y, &expected, tolerance::F64_NORMALISED);
    let f = |x: &Tensor, g: &Tensor, b: &Tensor| {
        let z = norm_act(x, g, b, config).unwrap();
        (z.sqr().unwrap() + z.powf(3.0).unwrap()).unwrap().sum_all().unwrap()
    };
    finite_difference("x", &x, |x| f(x, &gamma, &beta));
    finite_difference("gamma", &gamma, |g| f(&x, g, &beta));
    finite_difference("beta", &beta, |b| f(&x, &gamma, b));
}

/// A large mean must not eat the variance's digits, as a sum of squares would.
#[test]
fn moments_survive_a_large_mean() {
    let noise = numbers(4, 3 * 5000);
    let x: Vec<f32> = noise.iter().map(|v| (v + 4000.0) as f32).collect();
    let m = moments(&Tensor::from_vec(x.clone(), (1, 5000, 1, 1, 3), &Device::Cpu).unwrap()).unwrap();
    let variance = m.mean_and_variance().unwrap().1.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (c, got) in variance.into_iter().enumerate() {
        let v: Vec<f64> = x.iter().skip(c).step_by(3).map(|&v| f64::from(v)).collect();
        let mean = v.iter().sum::<f64>() / 5000.0;
        let expected = v.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5000.0;
        assert_close("variance", &[got], &[expected], tolerance::F32_VARIANCE_BESIDE_LARGE_MEAN);
    }
}

/// Rounding must not make the variance of a constant map negative, whose square root is not a number.
#[test]
fn constant_maps_have_a_finite_norm() {
    for i in 0..500 {
        let constant = 30_000.0 + i as f32 * 117.31;
        let x = Tensor::full(constant, (1, 3, 7, 16, 16), &Device::Cpu).unwrap();
        let (gamma, beta) =
            (Tensor::ones(3, x.dtype(), x.device()).unwrap(), Tensor::zeros(3, x.dtype(), x.device()).unwrap());
        let z = norm_act(&x, &gamma, &beta, NormAct::default()).unwrap();
        let largest = z.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(largest.is_finite(), "{constant}: {largest}");
    }
}

/// The closed forms of the gate's gradients equal what candle derives from the gate folded into weight or affine.
#[test]
fn gates_fold() {
    use crate::Precision;
    use crate::conv3d::{self, Input};
    use crate::{Conv3dGeometry, conv3d::conv3d};
    let (x, w) = (var(1, (2, 3, 4, 5, 4)), var(2, (6, 3, 3, 3, 3)));
    let (gamma, beta) = (var(3, 6), var(4, 6));
    let gate = Var::new(&[1.0f64, 0.9, 0.5, 0.2, 0.05, 0.003], &Device::Cpu).unwrap();
    let geometry = Conv3dGeometry::same([3, 3, 3], [1, 1, 1]);
    let config = NormAct::default();
    let x_last = x.permute((0, 2, 3, 4, 1)).unwrap().contiguous().unwrap();
    for position in [GatePosition::PreNorm, GatePosition::PostNorm] {
        let z = match position {
            GatePosition::PreNorm => {
                // m conv(x, W) = conv(x, m W)
                let weight = w.broadcast_mul(&gate.reshape((6, 1, 1, 1, 1)).unwrap()).unwrap();
                let y = conv3d(&x, &weight, geometry).unwrap();
                norm_act(&y, &gamma, &beta, config).unwrap()
            }
            GatePosition::PostNorm => {
                // leaky(m v) = m leaky(v) for m >= 0
                let (g, b) =
                    ((gamma.as_tensor() * gate.as_tensor()).unwrap(), (beta.as_tensor() * gate.as_tensor()).unwrap());
                norm_act(&conv3d(&x, &w, geometry).unwrap(), &g, &b, config).unwrap()
            }
        };
        let grads = z.powf(3.0).unwrap().sum_all().unwrap().backward().unwrap();

        let (y, m) = conv3d::forward(&[Input::from(&x_last)], &w, geometry, Precision::Full).unwrap();
        let factor = gate.detach();
        let folded = Some(Gate { factor: &factor, position });
        let n = config.coefficients(&m, &gamma, &beta, folded).unwrap();
        let z = weighted_sum(&[(&y, &n)], None).unwrap();
        let grad_z = (z.sqr().unwrap() * 3.0).unwrap();
        // Both ways of handing in the same gradient.
        let quarter = Tensor::new(&[0.25f64], &Device::Cpu).unwrap();
        for (outer, direct, scale) in [(None, Some(&grad_z), 1.0), (Some((&grad_z, &quarter)), None, 0.25)] {
            let g = backward(&y, &n, &gamma, &beta, folded, outer, direct).unwrap();
            let gw = conv3d::grad_weight(&[Input::from(&x_last)], (&g.y).into(), geometry, Precision::Full).unwrap();
            for (what, got, var) in [
                ("gamma", &g.gamma, &gamma),
                ("beta", &g.beta, &beta),
                ("gate", g.gate.as_ref().unwrap(), &gate),
                ("weight", &gw, &w),
            ] {
                let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
                let expected: Vec<f64> = flat(grads.get(var).unwrap()).iter().map(|v| v * scale).collect();
                assert_close(format!("{what} {position:?}"), &flat(got), &expected, tolerance::F64_GRADIENT_CANCELLING);
            }
        }
    }
}

#[test]
fn depth_sink_and_its_gradients() {
    let shape = (2, 3, 2, 4, 5);
    let raw = [var(1, shape), var(2, shape)];
    let (gamma, beta) = (var(3, 5), var(4, 5));
    let config = NormAct::default();
    let weights = [0.3, 0.7];
    let coefficients: Vec<NormCoefficients> =
        raw.iter().map(|y| config.coefficients(&moments(y).unwrap(), &gamma, &beta, None).unwrap()).collect();
    let maps = [(raw[0].as_tensor(), &coefficients[0]), (raw[1].as_tensor(), &coefficients[1])];
    let h = Tensor::new(&weights, &Device::Cpu).unwrap();
    let sum = weighted_sum(&maps, Some(&h)).unwrap();
    let first = |y: &Tensor| {
        let as_first = y.permute((0, 4, 1, 2, 3)).unwrap();
        norm_act(&as_first, &gamma, &beta, config).unwrap().permute((0, 2, 3, 4, 1)).unwrap()
    };
    let expected = ((first(&raw[0]) * weights[0]).unwrap() + (first(&raw[1]) * weights[1]).unwrap()).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert_close("sum", &flat(&sum), &flat(&expected), tolerance::F64_NORMALISED);

    // loss = sum of squares of the sink, plus the sum of cubes of the first map: an outer and a direct gradient.
    let cubes = first(&raw[0]).powf(3.0).unwrap().sum_all().unwrap();
    let grads = (expected.sqr().unwrap().sum_all().unwrap() + cubes).unwrap().backward().unwrap();
    let outer = (&sum * 2.0).unwrap();
    let z0 = first(&raw[0]);
    let direct = (z0.sqr().unwrap() * 3.0).unwrap().contiguous().unwrap();
    let g = backward(
        &raw[0],
        &coefficients[0],
        &gamma,
        &beta,
        None,
        Some((&outer, &h.narrow(0, 0, 1).unwrap())),
        Some(&direct),
    )
    .unwrap();
    assert_close("raw map", &flat(&g.y), &flat(grads.get(&raw[0]).unwrap()), tolerance::F64_GRADIENT);
    let dot: f64 = flat(&(outer * z0).unwrap()).iter().sum();
    let got = flat(&g.weight)[0];
    assert_close("weight in the sum", &[got], &[dot], tolerance::F64_GRADIENT_CANCELLING);
}
