//! Several steps beside the optimisers on the CPU, emulated.

use super::launch::{CHUNK, List, SlotEntry, adam, chunks, ema, gradient_norm, sgd};
use crate::optim::{Adam, AdamConfig, Ema, EmaConfig, Optimizer, Sgd, SgdConfig, clip_scale, global_norm};
use adw_cuda::emulated::{self, EmulatedBuffer, Emulator};
use adw_cuda::{Address, Buffer};
use adw_tensor_ops::philox::{Purpose, Stream};
use candle_core::{Device, Tensor, Var};

/// One element, a few, and several chunks.
const LENGTHS: [usize; 4] = [1, 77, 3 * CHUNK + 5, CHUNK];

fn numbers(index: u32, n: usize) -> Vec<f32> {
    let stream = Stream { seed: 5, purpose: Purpose::Other, epoch: 0, iteration: 0, index };
    stream.normal().take(n).map(|x| x as f32).collect()
}

fn assert_close(what: &str, got: &EmulatedBuffer, expected: &Tensor) {
    let expected = expected.to_vec1::<f32>().unwrap();
    adw_testing::assert_close(what, &got.read::<f32>(), &expected, adw_testing::tolerance::F32_KERNEL);
}

#[test]
fn steps_and_norm() {
    if !emulated::is_available("steps_and_norm") {
        return;
    }
    let rt = Emulator::new();
    let (sgd_config, adam_config) = (SgdConfig { momentum: 0.9, weight_decay: 0.03 }, AdamConfig::default());
    for is_adam in [false, true] {
        let start: Vec<Vec<f32>> = LENGTHS.iter().zip(1..).map(|(&n, i)| numbers(i, n)).collect();
        let vars: Vec<Var> = start.iter().map(|v| Var::new(v.as_slice(), &Device::Cpu).unwrap()).collect();
        let named = || vars.iter().map(|v| ("a parameter", v));
        let mut cpu: Box<dyn Optimizer> = if is_adam {
            Box::new(Adam::new(named(), adam_config.clone()))
        } else {
            Box::new(Sgd::new(named(), sgd_config.clone()))
        };
        let weights: Vec<_> = start.iter().map(|v| rt.upload(v)).collect();
        let zeros = |n: usize| rt.upload(&vec![0f32; n]);
        let state: Vec<_> = LENGTHS.iter().map(|&n| (zeros(n), zeros(n))).collect();
        for step in 1..=3 {
            let grads: Vec<Vec<f32>> = LENGTHS.iter().zip(10 * step..).map(|(&n, i)| numbers(i, n)).collect();
            let device_grads: Vec<_> = grads.iter().map(|g| rt.upload(g)).collect();
            let slots: Vec<SlotEntry> = (0..LENGTHS.len())
                .map(|i| SlotEntry {
                    weight: weights[i].address(),
                    grad: device_grads[i].address(),
                    first: state[i].0.address(),
                    second: state[i].1.address(),
                    len: LENGTHS[i] as u64,
                })
                .collect();
            let table = chunks(&slots);
            let (slots, table_d) = (rt.upload(&slots), rt.upload(&table));
            let list = List {
                slots: slots.address(),
                chunks: table_d.address(),
                num_chunks: table.len(),
                elements: slots.read::<SlotEntry>().iter().map(|s| s.len as usize).sum(),
            };
            // The last step's gradients are within the limit.
            let max_norm = if step == 3 { 1e6 } else { 12.0 };
            // SAFETY: every slot has buffers of its length.
            let norm = unsafe {
                let norm = gradient_norm(&rt, &list, max_norm).unwrap();
                if is_adam {
                    adam(&rt, &list, &adam_config, step as i32, 4e-2, norm.scale.address()).unwrap();
                } else {
                    sgd(&rt, &list, &sgd_config, 1e-2, norm.scale.address()).unwrap();
                }
                norm
            };
            let grads: Vec<_> = grads.iter().map(|g| Some(Tensor::new(g.as_slice(), &Device::Cpu).unwrap())).collect();
            let expected = global_norm(&grads).unwrap();
            assert!((norm.norm.read::<f64>()[0] / expected - 1.0).abs() < 1e-12);
            let scale = clip_scale(expected, max_norm);
            assert!((f64::from(norm.scale.read::<f32>()[0]) / scale - 1.0).abs() < 1e-6);
            cpu.step(&grads, if is_adam { 4e-2 } else { 1e-2 }, scale).unwrap();
            for (weight, var) in weights.iter().zip(&vars) {
                assert_close(&format!("step {step}, Adam {is_adam}"), weight, var.as_tensor());
            }
        }
    }
}

#[test]
fn exponential_moving_average() {
    if !emulated::is_available("exponential_moving_average") {
        return;
    }
    let rt = Emulator::new();
    let n = CHUNK + 33;
    let var = Var::new(numbers(1, n).as_slice(), &Device::Cpu).unwrap();
    let mut cpu = Ema::new([("w", &var)], EmaConfig { decay: 0.9 }).unwrap();
    let average = rt.upload(&numbers(1, n));
    for step in 1..=3u32 {
        let w = numbers(step + 1, n);
        var.set(&Tensor::new(w.as_slice(), &Device::Cpu).unwrap()).unwrap();
        cpu.update().unwrap();
        let weight = rt.upload(&w);
        let slots = [SlotEntry {
            weight: weight.address(),
            grad: Address::NONE,
            first: average.address(),
            second: Address::NONE,
            len: n as u64,
        }];
        let table = chunks(&slots);
        let (slots, table_d) = (rt.upload(&slots), rt.upload(&table));
        let list = List {
            slots: slots.address(),
            chunks: table_d.address(),
            num_chunks: table.len(),
            elements: slots.read::<SlotEntry>()[0].len as usize,
        };
        let t = f64::from(step);
        // SAFETY: the slot has buffers of its length.
        unsafe { ema(&rt, &list, 0.9f64.min((1.0 + t) / (10.0 + t))).unwrap() };
        assert_close("average", &average, &cpu.state().unwrap()["average.w"]);
    }
}
