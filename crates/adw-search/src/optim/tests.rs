use adw_testing::{assert_close, tolerance};
use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

use super::*;

fn var(values: &[f64], dtype: DType) -> Var {
    let t = Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    Var::from_tensor(&t).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[allow(clippy::unnecessary_wraps, reason = "the form in which optimisers take gradients")]
fn gradient(values: &[f64], dtype: DType) -> Option<Tensor> {
    Some(Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap())
}

const NESTEROV: SgdConfig = SgdConfig { momentum: 0.99, weight_decay: 3e-5 };

#[test]
fn sgd_under_a_constant_gradient_follows_the_closed_form() {
    // v_t = g (1 - m^t) / (1 - m);  w_t = w_0 - lr sum_s (g + m v_s).
    for (dtype, tolerance) in [(DType::F64, tolerance::F64_STEPS), (DType::F32, tolerance::F32_STEPS)] {
        let w = var(&[1.0, -2.0], dtype);
        let config = SgdConfig { momentum: 0.9, weight_decay: 0.0 };
        let mut sgd = Sgd::new([("w", &w)], config);
        let g = [0.5, -0.25];
        for _ in 0..20 {
            sgd.step(&[gradient(&g, dtype)], 0.1, 1.0).unwrap();
        }
        let travelled: f64 = (1..=20).map(|t| 1.0 + 0.9 * (1.0 - 0.9f64.powi(t)) / 0.1).sum();
        assert_close("weights", &values(&w), &[1.0 - 0.1 * g[0] * travelled, -2.0 - 0.1 * g[1] * travelled], tolerance);
    }
}

#[test]
fn sgd_two_steps_with_decay_and_changing_gradients_by_hand() {
    let w = var(&[2.0], DType::F64);
    let mut sgd = Sgd::new([("w", &w)], SgdConfig { momentum: 0.5, weight_decay: 0.1 });
    // g = 1 + 0.2 = 1.2, v = 1.2, w = 2 - 0.1 (1.2 + 0.6) = 1.82
    sgd.step(&[gradient(&[1.0], DType::F64)], 0.1, 1.0).unwrap();
    assert_close("weight", &values(&w), &[1.82], tolerance::F64_STEP);
    // g = -1 * 0.5 + 0.182 = -0.318, v = 0.6 - 0.318 = 0.282, w = 1.82 - 0.2 (-0.318 + 0.141)
    sgd.step(&[gradient(&[-1.0], DType::F64)], 0.2, 0.5).unwrap();
    assert_close("weight", &values(&w), &[1.8554], tolerance::F64_STEP);
}

#[test]
fn adam_under_a_constant_gradient_moves_by_the_learning_rate() {
    // Both corrections cancel for a constant g: every step is lr g / (|g| + eps).
    for (dtype, tolerance) in [(DType::F64, tolerance::F64_STEPS), (DType::F32, tolerance::F32_STEPS)] {
        let w = var(&[1.0, 0.0], dtype);
        let mut adam = Adam::new([("w", &w)], AdamConfig { eps: 0.1, ..AdamConfig::default() });
        for _ in 0..7 {
            adam.step(&[gradient(&[2.0, -0.4], dtype)], 0.01, 1.0).unwrap();
        }
        assert_close("weights", &values(&w), &[1.0 - 7.0 * 0.01 * 2.0 / 2.1, 7.0 * 0.01 * 0.4 / 0.5], tolerance);
    }
}

#[test]
fn adam_second_step_by_hand() {
    let w = var(&[0.0], DType::F64);
    let mut adam = Adam::new([("w", &w)], AdamConfig { beta1: 0.5, beta2: 0.75, eps: 0.0 });
    adam.step(&[gradient(&[1.0], DType::F64)], 1.0, 1.0).unwrap();
    adam.step(&[gradient(&[-3.0], DType::F64)], 1.0, 1.0).unwrap();
    // m = 0.25 - 1.5 = -1.25, corrected by 1 - 0.25; v = 0.1875 + 2.25 = 2.4375, corrected by 1 - 0.5625
    let second = (1.25 / 0.75) / (2.4375f64 / 0.4375).sqrt();
    assert_close("weight", &values(&w), &[-1.0 + second], tolerance::F64_STEP);
}

#[test]
fn a_parameter_without_gradient_is_left_alone_until_it_gets_one() {
    let (a, b) = (var(&[1.0], DType::F64), var(&[1.0], DType::F64));
    let parameters = [("a", &a), ("b", &b)];
    let optimizers: [Box<dyn Optimizer>; 2] = [
        Box::new(Sgd::new(parameters, SgdConfig { momentum: 0.9, weight_decay: 0.5 })),
        Box::new(Adam::new(parameters, AdamConfig::default())),
    ];
    for mut optimizer in optimizers {
        a.set(&Tensor::new(&[1.0f64], &Device::Cpu).unwrap()).unwrap();
        b.set(&a).unwrap();
        // A refused step is none.
        optimizer.step(&[gradient(&[1.0], DType::F64), gradient(&[1.0, 1.0], DType::F64)], 0.1, 1.0).unwrap_err();
        optimizer.step(&[gradient(&[1.0], DType::F64), None], 0.1, 1.0).unwrap();
        let first = values(&a);
        assert_ne!(first, [1.0]);
        assert_eq!(values(&b), [1.0]);
        // b's first step is then what a's was: no step count or momentum gathered meanwhile.
        optimizer.step(&[None, gradient(&[1.0], DType::F64)], 0.1, 1.0).unwrap();
        assert_eq!(values(&b), first);
        assert_eq!(values(&a), first);
    }
}

#[test]
fn clipping_matches_its_formula_and_ignores_absent_gradients() {
    let gradients = [gradient(&[3.0, 0.0], DType::F32), None, gradient(&[-4.0], DType::F64)];
    let norm = global_norm(&gradients).unwrap();
    assert_eq!(norm, 5.0);
    assert_eq!(clip_scale(norm, 12.0), 1.0);
    assert_eq!(clip_scale(norm, 2.0), 2.0 / 5.000_001);
    assert!(clip_scale(f64::NAN, 2.0).is_nan());
    assert!(global_norm(&[gradient(&[f64::NAN], DType::F32)]).unwrap().is_nan());
    assert_eq!(global_norm(&[]).unwrap(), 0.0);
}

#[test]
fn gradients_that_do_not_fit_are_refused() {
    let w = var(&[1.0, 2.0], DType::F32);
    let mut sgd = Sgd::new([("block.0", &w)], NESTEROV);
    let wrong = sgd.step(&[gradient(&[1.0], DType::F32)], 0.1, 1.0).unwrap_err().to_string();
    assert!(wrong.contains("gradient of block.0") && wrong.contains("[2]") && wrong.contains("[1]"), "{wrong}");
    assert!(sgd.step(&[gradient(&[1.0, 1.0], DType::F64)], 0.1, 1.0).is_err());
    assert!(sgd.step(&[], 0.1, 1.0).unwrap_err().to_string().contains("one per parameter"));
}

#[test]
fn large_tensors_are_updated_wholly_with_the_same_bits_for_any_number_of_threads() {
    let n = 100_003;
    let start: Vec<f64> = (0..n).map(|i| 2.0 + (i as f64 * 0.37).sin()).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let w = var(&start, DType::F32);
            let mut sgd = Sgd::new([("w", &w)], NESTEROV);
            let mut norms = vec![];
            for _ in 0..3 {
                let g = [Some(w.as_detached_tensor().copy().unwrap())];
                norms.push(global_norm(&g).unwrap());
                sgd.step(&g, 0.01, clip_scale(norms[norms.len() - 1], 12.0)).unwrap();
            }
            (w.to_vec1::<f32>().unwrap(), norms)
        })
    };
    let (one, norms) = run(1);
    assert_eq!((one.clone(), norms.clone()), run(3));
    let exact: f64 = start.iter().map(|v| f64::from(*v as f32).powi(2)).sum::<f64>().sqrt();
    assert_close("norm", &norms[..1], &[exact], tolerance::F64_LONG_SUM);
    assert!(one.iter().zip(&start).all(|(a, b)| f64::from(*a).abs() < b.abs()), "every element shrank");
}

#[test]
fn a_strided_gradient_is_read_by_its_strides() {
    let w = Var::from_tensor(&Tensor::zeros((2, 3), DType::F64, &Device::Cpu).unwrap()).unwrap();
    let g = Tensor::arange(0f64, 6., &Device::Cpu).unwrap().reshape((3, 2)).unwrap().t().unwrap();
    let mut sgd = Sgd::new([("w", &w)], SgdConfig { momentum: 0.0, weight_decay: 0.0 });
    sgd.step(&[Some(g)], 1.0, 1.0).unwrap();
    assert_eq!(values(&w), [0.0, -2.0, -4.0, -1.0, -3.0, -5.0]);
}

#[test]
fn average_of_constant_weights_is_constant_and_of_a_jump_is_the_product_of_decays() {
    let w = var(&[1.0], DType::F64);
    let mut ema = Ema::new([("w", &w)], EmaConfig { decay: 0.3 }).unwrap();
    w.set(&Tensor::new(&[0.0f64], &Device::Cpu).unwrap()).unwrap();
    for _ in 0..4 {
        ema.update().unwrap();
    }
    // (1 + t) / (10 + t) = 2/11, 3/12, 4/13, 5/14; the last two exceed 0.3.
    let expected = 2.0 / 11.0 * 0.25 * 0.3 * 0.3;
    let seen = ema.with_average(|| Ok(values(&w))).unwrap();
    assert_close("average", &seen, &[expected], tolerance::F64_STEP);
    assert_eq!(values(&w), [0.0], "own weights are back");
    let failed: Result<()> = ema.with_average(|| Err(candle_core::Error::msg("failed").into()));
    assert!(failed.is_err());
    assert_eq!(values(&w), [0.0], "own weights are back after an error too");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Saving and loading at any step changes no later bit.
    #[test]
    fn resuming_from_saved_state_continues_with_the_same_bits(cut in 0usize..6, kind in 0usize..3) {
        let kinds = [OptimizerConfig::Sgd(NESTEROV), OptimizerConfig::Muon(NESTEROV), OptimizerConfig::Adam(AdamConfig::default())];
        let config = &kinds[kind];
        // A kernel of a convolution, which Muon treats unlike other parameters.
        let tensor = |v: &[f64]| Tensor::new(v, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().reshape((2, 1, 1, 1, 3)).unwrap();
        let g = |step: usize| (0..6).map(|i| ((step * 5 + i) as f64).cos()).collect::<Vec<_>>();
        let train = |w: &Var, ema: &mut Ema, optimizer: &mut dyn Optimizer, steps: std::ops::Range<usize>| {
            for step in steps {
                optimizer.step(&[Some(tensor(&g(step)))], 0.1, 0.7).unwrap();
                let _ = w;
                ema.update().unwrap();
            }
        };
        let var = |v: &[f64]| Var::from_tensor(&tensor(v)).unwrap();
        let start = [0.3, -1.0, 2.0, 0.0, 7.0, 1.5];
        let whole = var(&start);
        let mut whole_ema = Ema::new([("w", &whole)], EmaConfig { decay: 0.99 }).unwrap();
        train(&whole, &mut whole_ema, &mut *config.build([("w", &whole)]), 0..6);

        let first = var(&start);
        let mut first_ema = Ema::new([("w", &first)], EmaConfig { decay: 0.99 }).unwrap();
        let mut optimizer = config.build([("w", &first)]);
        train(&first, &mut first_ema, &mut *optimizer, 0..cut);
        let second = var(&values(&first));
        let mut resumed = config.build([("w", &second)]);
        resumed.load_state(&optimizer.state().unwrap()).unwrap();
        let mut second_ema = Ema::new([("w", &second)], EmaConfig { decay: 0.99 }).unwrap();
        second_ema.load_state(&first_ema.state().unwrap()).unwrap();
        train(&second, &mut second_ema, &mut *resumed, cut..6);

        prop_assert_eq!(values(&whole), values(&second));
        let averages = |ema: &Ema| values(&ema.state().unwrap()["average.w"]);
        prop_assert_eq!(averages(&whole_ema), averages(&second_ema));
    }
}

#[test]
fn optimizer_configurations_read_from_toml_and_refuse_unknown_keys() {
    let read = |s: &str| toml::from_str::<OptimizerConfig>(s);
    let sgd = read("kind = \"sgd\"\nmomentum = 0.99\nweight_decay = 3e-5").unwrap();
    assert_eq!(sgd, OptimizerConfig::Sgd(NESTEROV));
    let muon = read("kind = \"muon\"\nmomentum = 0.99\nweight_decay = 3e-5").unwrap();
    assert_eq!(muon, OptimizerConfig::Muon(NESTEROV));
    assert_eq!(read("kind = \"adam\"").unwrap(), OptimizerConfig::Adam(AdamConfig::default()));
    let error = read("kind = \"adam\"\nmomentum = 0.9").unwrap_err().to_string();
    assert!(error.contains("momentum"), "{error}");
}
