use adw_testing::{assert_close, tolerance};
use candle_core::{DType, Device};

use super::super::Sgd;
use super::*;

/// Singular value that five iterations make of one.
fn iterated(s: f64) -> f64 {
    (0..5).fold(s, |s, _| POLYNOMIAL[0] * s + POLYNOMIAL[1] * s.powi(3) + POLYNOMIAL[2] * s.powi(5))
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Rotated diagonals: U S V^T must become U S' V^T with the iterated singular values, for wide and tall matrices.
#[test]
fn orthogonal_changes_singular_values_alone() {
    let (sin, cos) = (0.6, 0.8);
    let [large, small] = [3.0, 0.4];
    let norm = f64::hypot(large, small);
    // Columns of V are the first two of three unit vectors; U turns by the angle.
    let product = |[s, t]: [f64; 2]| [[cos * s, -sin * t, 0.0], [sin * s, cos * t, 0.0]];
    let expected = product([large, small].map(|s| iterated(s / norm)));
    for (dtype, tolerance) in [(DType::F64, tolerance::F64_CLOSED_FORM), (DType::F32, tolerance::F32_STEPS)] {
        let matrix = Tensor::new(&product([large, small]), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        for orthogonal in [on_host, on_device] {
            assert_close("wide", &flat(&orthogonal(&matrix).unwrap()), expected.as_flattened(), tolerance);
            let tall = orthogonal(&matrix.t().unwrap()).unwrap().t().unwrap();
            assert_close("tall", &flat(&tall), expected.as_flattened(), tolerance);
            let zeros = Tensor::zeros((2, 3), dtype, &Device::Cpu).unwrap();
            assert_eq!(flat(&orthogonal(&zeros).unwrap()), [0.0; 6]);
        }
    }
}

#[test]
fn singular_values_become_nearly_one() {
    let from = (1..=1000).map(|i| iterated(f64::from(i) / 1000.0));
    assert!(from.skip(9).all(|s| (0.68..=1.14).contains(&s)));
}

#[test]
fn two_steps_by_hand_and_gradient_descent_for_the_rest() {
    let zeros = |shape: &[usize]| Var::zeros(shape, DType::F64, &Device::Cpu).unwrap();
    let config = SgdConfig { momentum: 0.5, weight_decay: 0.1 };
    // A kernel, one of a single voxel, and its copy for gradient descent alone.
    let (kernel, head, same) = (zeros(&[1, 1, 1, 1, 2]), zeros(&[1, 2, 1, 1, 1]), zeros(&[1, 2, 1, 1, 1]));
    let mut muon = Muon::new([("kernel", &kernel), ("head", &head)], config.clone());
    let mut sgd = Sgd::new([("head", &same)], config);
    let mut step = |g: [f64; 2], scale: &Scale| {
        let tensor = |shape: &[usize]| Some(Tensor::new(&g, &Device::Cpu).unwrap().reshape(shape).unwrap());
        muon.step_scaled(&[tensor(&[1, 1, 1, 1, 2]), tensor(&[1, 2, 1, 1, 1])], 0.1, scale).unwrap();
        sgd.step_scaled(&[tensor(&[1, 2, 1, 1, 1])], 0.1, scale).unwrap();
        assert_eq!(flat(&head), flat(&same));
    };
    // The direction of a single row is the row's, of the one length.
    step([3.0, 4.0], &Scale::Known(1.0));
    let length = 0.1 * iterated(1.0);
    let first = [-0.6 * length, -0.8 * length];
    assert_close("first", &flat(&kernel), &first, tolerance::F64_STEPS);
    // g = 2 (-3, 4) = (-6, 8), v = (-4.5, 10), g + v / 2 = (-8.25, 13)
    step([-3.0, 4.0], &Scale::Known(2.0));
    let norm = f64::hypot(8.25, 13.0);
    let second = [0.99 * first[0] + length * 8.25 / norm, 0.99 * first[1] - length * 13.0 / norm];
    assert_close("second", &flat(&kernel), &second, tolerance::F64_STEPS);
}
