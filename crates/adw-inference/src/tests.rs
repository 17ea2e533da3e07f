use std::cell::Cell;
use std::path::PathBuf;

use adw_testing::{Tolerance, assert_close, tolerance};

use super::*;

type Predicted = Result<Tensor, BoxError>;

/// nnU-Net's own numbers, beside the repository when it is developed; absent in a plain clone.
fn golden(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/nnunet").join(name);
    if path.is_file() {
        return Some(path);
    }
    println!("SKIPPED: {} is absent", path.display());
    None
}

fn image(shape: [usize; 3]) -> Tensor {
    let [d, h, w] = shape;
    let n = d * h * w;
    let values: Vec<f32> = (0..2 * n).map(|i| ((i * 7919) % 1009) as f32 / 100.0 - 5.0).collect();
    Tensor::from_vec(values, (1, 2, d, h, w), &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_same(what: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    assert_close(what, &flat(got), &flat(expected), tolerance::F32_WINDOW_MEAN);
}

fn ignore(_: usize, _: usize) {}

#[test]
fn window_starts_by_hand_and_against_nnunet() {
    assert_eq!(window_starts(33, 20, 0.5), [0, 6, 13], "6.5 rounds to even");
    assert_eq!(window_starts(10, 20, 0.5), [0]);
    assert_eq!(window_starts(128, 80, 0.5), [0, 24, 48]);
    let Some(path) = golden("sliding_window_steps.json") else {
        return;
    };
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        let sizes = |key: &str| serde_json::from_value::<[usize; 3]>(row[key].clone()).unwrap();
        let (shape, patch) = (sizes("image"), sizes("patch"));
        let starts = [0, 1, 2].map(|a| window_starts(shape[a], patch[a], 0.5));
        assert_eq!(serde_json::json!(starts), row["steps"], "{shape:?} {patch:?}");
    }
}

#[test]
fn windows_cover_every_voxel_and_never_leave_the_image() {
    for size in 1..60 {
        for patch in 1..24 {
            for step in [0.25, 0.5, 1.0] {
                let starts = window_starts(size, patch, step);
                assert_eq!(starts[0], 0);
                assert_eq!(starts[starts.len() - 1] + patch.min(size), size);
                assert!(starts.windows(2).all(|w| w[0] < w[1] && w[1] - w[0] <= patch), "{size} {patch} {step}");
            }
        }
    }
}

#[test]
fn gaussian_weights_are_nnunets() {
    let ours = gaussian_weights([16, 32, 24]).unwrap();
    let values = flat(&ours);
    assert_eq!(values[(8 * 32 + 16) * 24 + 12], 10.0);
    assert!(values.iter().all(|v| *v > 0.0));
    let Some(path) = golden("gaussian.safetensors") else {
        return;
    };
    let maps = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    assert!(!maps.is_empty());
    for (name, expected) in maps {
        let dims: [usize; 3] = expected.dims().try_into().unwrap();
        let ours = gaussian_weights(dims).unwrap();
        // nnU-Net filters a delta in floating point, so that a value may round to the neighbouring f16.
        assert_close(name, &flat(&ours), &flat(&expected), tolerance::F16_ROUNDED);
    }
}

#[test]
fn a_pointwise_network_reproduces_the_image_whatever_its_size() {
    for (shape, patch) in
        [([20, 15, 9], [8, 8, 8]), ([5, 20, 8], [8, 7, 8]), ([1, 2, 3], [4, 4, 4]), ([9, 9, 9], [9, 9, 9])]
    {
        let image = image(shape);
        let expected = image.affine(2.0, 1.0).unwrap();
        for windows_per_forward in [1, 3] {
            for mirror in [[false; 3], [true, false, true], [true; 3]] {
                let window = SlidingWindow { mirror, windows_per_forward, ..SlidingWindow::new(patch) };
                let mut network = |x: &Tensor| -> Predicted { Ok(x.affine(2.0, 1.0)?) };
                let got = window.logits(&image, &mut [&mut network], &mut ignore).unwrap();
                assert_same(&format!("{shape:?} {patch:?}"), &got, &expected);
            }
        }
    }
}

/// Networks may return logits in any memory layout, as ours do (channels last).
#[test]
fn logits_in_any_layout() {
    let image = image([5, 6, 7]);
    let classes = |x: &Tensor| Tensor::cat(&[x.affine(2.0, 1.0)?, x.neg()?], 1);
    let mut network = |x: &Tensor| -> Predicted {
        let last = classes(x)?.permute((0, 2, 3, 4, 1))?.contiguous()?;
        Ok(last.permute((0, 4, 1, 2, 3))?)
    };
    let window = SlidingWindow { mirror: [true; 3], ..SlidingWindow::new([4, 4, 4]) };
    let got = window.logits(&image, &mut [&mut network], &mut ignore).unwrap();
    assert_same("any layout", &got, &classes(&image).unwrap());
}

#[test]
fn mirroring_averages_the_flips_and_undoes_each() {
    // A network that only sees position: its value is the voxel's index along W.
    let patch = [2, 2, 4];
    let ramp = Tensor::from_vec((0..16).map(|i| (i % 4) as f32).collect(), (1, 1, 2, 2, 4), &Device::Cpu).unwrap();
    let calls = Cell::new(0);
    let mut network = |_: &Tensor| -> Predicted {
        calls.set(calls.get() + 1);
        Ok(ramp.clone())
    };
    let image = Tensor::zeros((1, 1, 2, 2, 4), DType::F32, &Device::Cpu).unwrap();
    let plain = SlidingWindow::new(patch);
    let got = plain.logits(&image, &mut [&mut network], &mut ignore).unwrap();
    assert_close("without mirroring", &flat(&got), &flat(&ramp), Tolerance::elements(1e-6, 0.0));
    let along_w = SlidingWindow { mirror: [false, false, true], ..plain.clone() };
    let got = along_w.logits(&image, &mut [&mut network], &mut ignore).unwrap();
    assert_close("mirrored along W", &flat(&got), &[1.5f32; 16], Tolerance::elements(1e-6, 0.0));
    calls.set(0);
    SlidingWindow { mirror: [true; 3], ..plain }.logits(&image, &mut [&mut network], &mut ignore).unwrap();
    assert_eq!(calls.get(), 8);
}

#[test]
fn folds_are_averaged_and_progress_reaches_the_end() {
    let image = image([9, 8, 8]);
    let window = SlidingWindow { windows_per_forward: 2, ..SlidingWindow::new([4, 4, 4]) };
    let (mut one, mut three) =
        (|x: &Tensor| -> Predicted { Ok(x.clone()) }, |x: &Tensor| -> Predicted { Ok((x * 3.0)?) });
    let mut seen = vec![];
    let got = window
        .logits(&image, &mut [&mut one, &mut three], &mut |d, t| {
            seen.push((d, t));
        })
        .unwrap();
    assert_same("mean of the folds", &got, &(&image * 2.0).unwrap());
    let total = 4 * 3 * 3;
    assert_eq!(seen.last(), Some(&(total, total)));
    // Pairs of the nine windows that start on one plane.
    assert_eq!(seen.len(), 4 * 5);
}

#[test]
fn parts_follow_each_other_and_end_where_the_next_windows_begin() {
    let image = image([9, 5, 3]);
    let window = SlidingWindow::new([4, 4, 4]);
    let mut network = |x: &Tensor| -> Predicted { Ok(x.clone()) };
    let mut planes = window.planes(&image).unwrap();
    let mut parts = vec![];
    while let Some(part) = planes.advance(&mut [&mut network], &mut ignore).unwrap() {
        parts.push(part);
    }
    let sizes: Vec<usize> = parts.iter().map(|part| part.dim(2).unwrap()).collect();
    assert_eq!(sizes, [2, 1, 2, 4], "windows start at 0, 2, 3, 5");
    assert_same("all parts", &Tensor::cat(&parts, 2).unwrap(), &image);
    assert!(planes.advance(&mut [&mut network], &mut ignore).unwrap().is_none());
}

#[test]
fn wrong_input_and_wrong_output_are_errors() {
    let image = image([8, 8, 8]);
    let window = SlidingWindow::new([4, 4, 4]);
    let message = |r: Result<Tensor>| r.unwrap_err().to_string();
    assert!(message(window.logits(&image, &mut [], &mut ignore)).contains("at least one"));
    let mut small = |x: &Tensor| -> Predicted { Ok(x.narrow(2, 0, 2)?) };
    assert!(message(window.logits(&image, &mut [&mut small], &mut ignore)).contains("[1, K, 4, 4, 4]"));
    let mut none = |x: &Tensor| -> Predicted { Ok(x.narrow(1, 0, 0)?) };
    assert!(message(window.logits(&image, &mut [&mut none], &mut ignore)).contains("[1, K, 4, 4, 4]"));
    let empty = Tensor::zeros((1, 1, 8, 0, 8), DType::F32, &Device::Cpu).unwrap();
    assert!(window.planes(&empty).err().unwrap().to_string().contains("at least one voxel"));
    let mut nan = |x: &Tensor| -> Predicted { Ok((x * f64::NAN)?) };
    assert!(message(window.logits(&image, &mut [&mut nan], &mut ignore)).contains("finite"));
    let zero = SlidingWindow { step: 0.0, ..window };
    let mut fine = |x: &Tensor| -> Predicted { Ok(x.clone()) };
    assert!(message(zero.logits(&image, &mut [&mut fine], &mut ignore)).contains("step = 0"));
}
