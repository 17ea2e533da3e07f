use super::launch::{Draw, SoftmaxEntry, backward, forward};
use crate::cuda::testing::{compare, tensor, values};
use crate::gumbel_softmax::{self, gumbel_softmax};
use crate::philox::{Purpose, Stream};
use crate::precision::Precision;
use crate::width_mask;
use adw_cuda::emulated::{self, Emulator};
use adw_cuda::{Buffer, Runtime};
use adw_testing::tolerance::F32_KERNEL;
use candle_core::{DType, Device, Tensor, Var};

/// A width choice and a depth choice in one launch, beside candle's arithmetic and graph.
#[test]
fn noise_softmax_gates_and_their_gradients() {
    if !emulated::is_available("noise_softmax_gates_and_their_gradients") {
        return;
    }
    let widths = [13u32, 19, 26, 32, 39];
    let (channels, tau) = (39, 1.7);
    for noisy in [true, false] {
        let rt = Emulator::new();
        let pass = Draw { seed: 0x1234_5678_9abc_def0, epoch: 3, iteration: 41, noisy, tau };
        let (alpha, beta) = (values(1, 5, Precision::Full), values(2, 3, Precision::Full));
        let grad_gate = values(3, channels, Precision::Full);
        let dots: Vec<Vec<f32>> = (0..3).map(|i| values(10 + i, channels, Precision::Full)).collect();
        let alloc = |n: usize| rt.alloc(4 * n).unwrap();
        let (p_width, p_depth, gates, g_alpha, g_beta) = (alloc(5), alloc(3), alloc(channels), alloc(5), alloc(3));
        let (alpha_d, beta_d, grad_gate_d) = (rt.upload(&alpha), rt.upload(&beta), rt.upload(&grad_gate));
        let dots_d: Vec<_> = dots.iter().map(|d| rt.upload(d)).collect();
        let mut width = SoftmaxEntry {
            logits: alpha_d.address(),
            probabilities: p_width.address(),
            gates: gates.address(),
            grad_gates: grad_gate_d.address(),
            grad_logits: g_alpha.address(),
            n: 5,
            channels: channels as u32,
            purpose: Purpose::WidthNoise as u32,
            index: 7,
            ..SoftmaxEntry::default()
        };
        width.widths[..5].copy_from_slice(&widths);
        let mut depth = SoftmaxEntry {
            logits: beta_d.address(),
            probabilities: p_depth.address(),
            grad_logits: g_beta.address(),
            n: 3,
            channels: channels as u32,
            purpose: Purpose::DepthNoise as u32,
            index: 2,
            ..SoftmaxEntry::default()
        };
        for (slot, d) in depth.grad_options.iter_mut().zip(&dots_d) {
            *slot = d.address();
        }
        let list = rt.upload(&[width, depth]);
        // SAFETY: all buffers have the sizes the list says.
        unsafe {
            forward(&rt, list.address(), 2, &pass).unwrap();
            backward(&rt, list.address(), 2, &pass).unwrap();
        }

        let noise = |purpose, index, n| {
            let stream = Stream { seed: pass.seed, purpose, epoch: pass.epoch, iteration: pass.iteration, index };
            let noise = gumbel_softmax::noise(stream, n, DType::F32, &Device::Cpu).unwrap();
            if noisy { noise } else { noise.zeros_like().unwrap() }
        };
        let alpha = Var::from_tensor(&tensor(&alpha, &[5])).unwrap();
        let beta = Var::from_tensor(&tensor(&beta, &[3])).unwrap();
        let p = gumbel_softmax(&alpha, &noise(Purpose::WidthNoise, 7, 5), tau).unwrap();
        let h = gumbel_softmax(&beta, &noise(Purpose::DepthNoise, 2, 3), tau).unwrap();
        let sizes = widths.map(|w| w as usize);
        let masks = width_mask::masks(&sizes, channels, DType::F32, &Device::Cpu).unwrap();
        let gate = width_mask::gate(&p, &masks).unwrap();
        let sums: Vec<f32> = dots.iter().map(|d| d.iter().sum()).collect();
        let loss = ((&gate * tensor(&grad_gate, &[channels])).unwrap().sum_all().unwrap()
            + (&h * Tensor::new(sums, &Device::Cpu).unwrap()).unwrap().sum_all().unwrap())
        .unwrap();
        let grads = loss.backward().unwrap();
        for (what, got, expected) in [
            ("width probabilities", &p_width, &p),
            ("depth probabilities", &p_depth, &h),
            ("gates", &gates, &gate),
            ("grad alpha", &g_alpha, grads.get(&alpha).unwrap()),
            ("grad beta", &g_beta, grads.get(&beta).unwrap()),
        ] {
            compare(what, got, Precision::Full, expected, F32_KERNEL);
        }
    }
}
