use super::launch::{Scale, Target, loss_and_gradients};
use super::*;
use crate::cuda::testing::{compare, tensor, tolerance, upload, values};
use crate::loss::{deep_supervision_weights, resize_target};
use crate::precision::Precision;
use adw_cuda::emulated::{self, Emulator};
use adw_cuda::{Buffer, Runtime};
use candle_core::{Device, Tensor};

/// Three scales of odd sizes, few and many classes, several chunks of voxels.
#[test]
fn loss_and_gradients_of_all_scales() {
    if !emulated::is_available("loss_and_gradients_of_all_scales") {
        return;
    }
    let batch = 2;
    for (classes, batch_dice, precision) in [
        (2, true, Precision::Full),
        (3, false, Precision::Bf16),
        (4, true, Precision::Bf16),
        (21, false, Precision::Full),
        (5, true, Precision::Full),
    ] {
        let rt = Emulator::new();
        let config = DiceCe { batch_dice, ..DiceCe::default() };
        let sizes = [[18, 17, 15], [9, 8, 5], [3, 4, 2], [2, 2, 1]];
        let voxels: usize = sizes[0].iter().product();
        let labels: Vec<u8> = (0..batch * voxels).map(|i| (i * i / 3 % 7 % classes) as u8).collect();
        let [d, h, w] = sizes[0];
        let target = Tensor::from_slice(&labels, (batch, d, h, w), &Device::Cpu).unwrap();
        let weights = deep_supervision_weights(4);
        let logits: Vec<Vec<f32>> = (sizes[..3].iter().zip(1..))
            .map(|(s, seed)| {
                let n = batch * s.iter().product::<usize>() * classes;
                values(seed, n, precision).iter().map(|x| 4.0 * x).collect()
            })
            .collect();
        let device: Vec<_> = logits
            .iter()
            .map(|x| (upload(&rt, precision, x), rt.alloc(x.len() * precision.element_bytes()).unwrap()))
            .collect();
        let labels = rt.upload(&labels);
        let scales: Vec<_> = (0..3)
            .map(|i| Scale {
                logits: device[i].0.address(),
                grad: device[i].1.address(),
                size: sizes[i],
                weight: weights[i],
            })
            .collect();
        let finest = Target { data: labels.address(), size: sizes[0] };
        // SAFETY: the buffers have the sizes of the scales.
        let got = unsafe { loss_and_gradients(&rt, config, &scales, finest, batch, classes, precision).unwrap() };
        let losses = got.loss.read::<f32>();
        assert_eq!(got.status.read::<u32>(), [0; 3]);
        for i in 0..3 {
            let [d, h, w] = sizes[i];
            let x = tensor(&logits[i], &[batch, d, h, w, classes]);
            let target = resize_target(&target, sizes[i]).unwrap();
            let expected = config.loss(&x, &target).unwrap();
            let (_, gradients) = config.losses_and_gradients(&[(&x, weights[i])], &target).unwrap();
            let what = format!("{classes} classes, scale {i}");
            assert!(
                (f64::from(losses[i]) - expected).abs() < 1e-5 * expected.abs().max(1.0),
                "{what}: loss {}, expected {}",
                losses[i],
                expected
            );
            compare(&what, &device[i].1, precision, &gradients[0], tolerance(precision));
        }
    }
}

#[test]
fn labels_without_a_class_are_reported() {
    if !emulated::is_available("labels_without_a_class_are_reported") {
        return;
    }
    let rt = Emulator::new();
    let (logits, grad) = (rt.upload(&[0f32; 24]), rt.alloc(96).unwrap());
    let labels = rt.upload(&[0u8, 1, 2, 0, 200, 1, 9, 0]);
    let scale = Scale { logits: logits.address(), grad: grad.address(), size: [2; 3], weight: 1.0 };
    let target = Target { data: labels.address(), size: [2; 3] };
    // SAFETY: eight voxels of three classes.
    let got = unsafe { loss_and_gradients(&rt, DiceCe::default(), &[scale], target, 1, 3, Precision::Full).unwrap() };
    assert_eq!(got.status.read::<u32>(), [201]);
}
