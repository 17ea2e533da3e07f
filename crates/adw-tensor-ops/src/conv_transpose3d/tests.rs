use super::*;
use crate::testing::{finite_difference, numbers};
use adw_testing::{assert_close, tolerance};
use candle_core::{Device, Var};

/// `y[b, co, i * stride + k * dilation - padding] = sum over ci: x[b, ci, i] * weight[ci, co, k]`, written as loops.
fn definition(x: &Var, weight: &Var, geometry: Conv3dGeometry, out: [usize; 3]) -> Vec<f64> {
    let (batch, ci, d, h, w) = x.dims5().unwrap();
    let (_, co, kd, kh, kw) = weight.dims5().unwrap();
    let flat = |t: &Var| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (x, weight) = (flat(x), flat(weight));
    let (size, kernel) = ([d, h, w], [kd, kh, kw]);
    let place = |mut i: usize, size: [usize; 3]| {
        let w = i % size[2];
        i /= size[2];
        [i / size[1], i % size[1], w]
    };
    let (voxels, taps) = (d * h * w, kd * kh * kw);
    let mut y = vec![0.0; batch * co * out.iter().product::<usize>()];
    for (b, c, o) in (0..batch).flat_map(|b| (0..ci).flat_map(move |c| (0..co).map(move |o| (b, c, o)))) {
        for (i, k) in (0..voxels).flat_map(|i| (0..taps).map(move |k| (i, k))) {
            let (from, tap) = (place(i, size), place(k, kernel));
            // Positions in front of the output wrap around and are larger than it.
            let to = [0, 1, 2].map(|a| {
                (from[a] * geometry.stride[a] + tap[a] * geometry.dilation[a]).wrapping_sub(geometry.padding[a])
            });
            if (0..3).all(|a| to[a] < out[a]) {
                y[(((b * co + o) * out[0] + to[0]) * out[1] + to[1]) * out[2] + to[2]] +=
                    x[(b * ci + c) * voxels + i] * weight[(c * co + o) * taps + k];
            }
        }
    }
    y
}

fn check(batch: usize, channels: [usize; 2], size: [usize; 3], geometry: Conv3dGeometry, output_padding: [usize; 3]) {
    let ([ci, co], [kd, kh, kw]) = (channels, geometry.kernel);
    let x = numbers(1, batch * ci * size.iter().product::<usize>());
    let w = numbers(2, ci * co * kd * kh * kw);
    let x = Var::from_vec(x, (batch, ci, size[0], size[1], size[2]), &Device::Cpu).unwrap();
    let w = Var::from_vec(w, (ci, co, kd, kh, kw), &Device::Cpu).unwrap();
    let run = |x: &Tensor, w: &Tensor| with_geometry(x, w, geometry, output_padding).unwrap();
    let y = run(&x, &w);
    let out = geometry.transposed_size("test", size, output_padding).unwrap();
    assert_eq!(y.dims(), [batch, co, out[0], out[1], out[2]]);
    let got = y.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let what = format!("{geometry:?} {output_padding:?}");
    assert_close(format!("forward {what}"), &got, &definition(&x, &w, geometry, out), tolerance::F64_SUM);
    let f = |x: &Tensor, w: &Tensor| run(x, w).sqr().unwrap().sum_all().unwrap();
    finite_difference(&format!("x {what}"), &x, |x| f(x, &w));
    finite_difference(&format!("weight {what}"), &w, |w| f(&x, w));
}

#[test]
fn equals_its_definition_and_its_gradients() {
    for (batch, channels, size, stride) in
        [(2, [3, 5], [2, 3, 4], [2, 2, 2]), (1, [20, 17], [3, 2, 2], [1, 2, 2]), (1, [4, 2], [2, 2, 5], [3, 1, 2])]
    {
        check(batch, channels, size, Conv3dGeometry::non_overlapping(stride), [0; 3]);
    }
}

#[test]
fn any_geometry_equals_its_definition_and_its_gradients() {
    let geometry = Conv3dGeometry::new;
    check(2, [3, 5], [2, 3, 4], geometry([3, 3, 3], [2, 2, 2], [1, 1, 1]), [1, 1, 1]);
    check(1, [4, 7], [3, 2, 4], geometry([1, 3, 4], [1, 2, 3], [0, 1, 2]), [0, 0, 2]);
    check(1, [2, 3], [3, 4, 2], geometry([1, 2, 5], [3, 3, 1], [0, 0, 1]), [2, 0, 0]);
    check(1, [3, 2], [4, 4, 5], geometry([3, 3, 3], [1, 1, 1], [1, 1, 1]), [0, 0, 0]);
    let dilated = Conv3dGeometry { dilation: [2, 1, 3], ..geometry([3, 2, 2], [1, 2, 2], [1, 0, 1]) };
    check(2, [3, 4], [3, 4, 3], dilated, [0, 1, 1]);
    check(1, [2, 3], [2, 3, 4], dilated, [1, 0, 2]);
}

#[test]
fn impossible_geometries_are_named() {
    let ones = |dims: [usize; 5]| Tensor::ones(&dims[..], candle_core::DType::F32, &Device::Cpu).unwrap();
    let (x, w) = (ones([1, 2, 2, 2, 2]), ones([2, 3, 3, 3, 3]));
    let refused =
        |w: &Tensor, geometry, output_padding| with_geometry(&x, w, geometry, output_padding).unwrap_err().to_string();
    let same = Conv3dGeometry::same([3; 3], [2; 3]);
    assert!(refused(&w, same, [2, 0, 0]).contains("output padding smaller than the stride or the dilation"));
    assert!(refused(&w, Conv3dGeometry { padding: [3; 3], ..same }, [0; 3]).contains("leaves nothing"));
    assert!(refused(&ones([4, 3, 3, 3, 3]), same, [0; 3]).contains("expected [2, Cout, 3, 3, 3]"));
    assert!(refused(&w, Conv3dGeometry::same([1, 3, 3], [2; 3]), [0; 3]).contains("expected [2, Cout, 1, 3, 3]"));
}
