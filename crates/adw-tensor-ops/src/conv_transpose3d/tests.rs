use super::*;
use crate::testing::{assert_close, finite_difference, numbers};
use candle_core::{Device, Var};

#[test]
fn equals_its_definition_and_its_gradients() {
    for (batch, ci, co, size, stride) in
        [(2, 3, 5, [2, 3, 4], [2, 2, 2]), (1, 20, 17, [3, 2, 2], [1, 2, 2]), (1, 4, 2, [2, 2, 5], [3, 1, 2])]
    {
        let device = Device::Cpu;
        let x = numbers(1, batch * ci * size.iter().product::<usize>());
        let w = numbers(2, ci * co * stride.iter().product::<usize>());
        let out = upsampled(size, stride);
        let mut y = vec![0.0; batch * co * out.iter().product::<usize>()];
        for (i, &x) in x.iter().enumerate() {
            let (w_, r) = (i % size[2], i / size[2]);
            let (h_, r) = (r % size[1], r / size[1]);
            let (d_, r) = (r % size[0], r / size[0]);
            let (c, b) = (r % ci, r / ci);
            for o in 0..co {
                for kd in 0..stride[0] {
                    for kh in 0..stride[1] {
                        for kw in 0..stride[2] {
                            let (d, h, z) = (d_ * stride[0] + kd, h_ * stride[1] + kh, w_ * stride[2] + kw);
                            y[(((b * co + o) * out[0] + d) * out[1] + h) * out[2] + z] +=
                                x * w[(((c * co + o) * stride[0] + kd) * stride[1] + kh) * stride[2] + kw];
                        }
                    }
                }
            }
        }
        let x = Var::from_vec(x, (batch, ci, size[0], size[1], size[2]), &device).unwrap();
        let w = Var::from_vec(w, (ci, co, stride[0], stride[1], stride[2]), &device).unwrap();
        let got = conv_transpose3d(&x, &w).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_close("forward", &got, &y, 1e-14);
        let f = |x: &Tensor, w: &Tensor| conv_transpose3d(x, w).unwrap().sqr().unwrap().sum_all().unwrap();
        finite_difference("x", &x, |x| f(x, &w));
        finite_difference("weight", &w, |w| f(&x, w));
    }
}
