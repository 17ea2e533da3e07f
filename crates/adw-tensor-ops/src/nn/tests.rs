use super::*;
use crate::testing::{finite_difference, numbers};
use adw_testing::{Tolerance, assert_close, tolerance};
use candle_core::{DType, Device, Var};
use candle_nn::{Module, VarBuilder, VarMap};
use std::collections::HashMap;

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn var(seed: u32, shape: &[usize]) -> Var {
    Var::from_vec(numbers(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// Tensors of one case of `tests/golden/nn_layers.py`.
struct Golden<'a> {
    tensors: &'a HashMap<String, Tensor>,
    name: &'a str,
    dtype: DType,
}

impl Golden<'_> {
    fn find(&self, key: &str) -> Option<Tensor> {
        Some(self.tensors.get(&format!("{}.{key}", self.name))?.to_dtype(self.dtype).unwrap())
    }

    fn get(&self, key: &str) -> Tensor {
        self.find(key).unwrap_or_else(|| panic!("{}.{key} is missing", self.name))
    }

    fn integers(&self) -> Vec<usize> {
        flat(&self.get("config")).into_iter().map(|v| v as usize).collect()
    }

    fn layer(&self, weight: Option<Tensor>, bias: Option<Tensor>) -> candle_core::Result<Box<dyn Module>> {
        let triple = |v: &[usize], i: usize| [v[i], v[i + 1], v[i + 2]];
        Ok(match self.name.split('.').next().unwrap() {
            "conv3d" => {
                let v = self.integers();
                let (stride, padding, dilation) = (triple(&v, 0), triple(&v, 3), triple(&v, 6));
                let config = Conv3dConfig { stride, padding, dilation, groups: v[12] };
                Box::new(Conv3d::new(weight.unwrap(), bias, config)?)
            }
            "conv_transpose3d" => {
                let v = self.integers();
                let (stride, padding, dilation) = (triple(&v, 0), triple(&v, 3), triple(&v, 6));
                let output_padding = triple(&v, 9);
                let config = ConvTranspose3dConfig { stride, padding, output_padding, dilation, groups: v[12] };
                Box::new(ConvTranspose3d::new(weight.unwrap(), bias, config)?)
            }
            "instance_norm3d" => {
                let v = flat(&self.get("config"));
                let affine = weight.is_some();
                let config = InstanceNorm3dConfig { eps: v[0], affine, leaky_relu_slope: Some(v[1]) };
                let channels = self.get("x").dims()[1];
                let constant = |c: f64| Tensor::full(c, channels, &Device::Cpu)?.to_dtype(self.dtype);
                let weight = weight.map_or_else(|| constant(1.0), Ok)?;
                Box::new(InstanceNorm3d::new(weight, bias.map_or_else(|| constant(0.0), Ok)?, config)?)
            }
            kind => panic!("no layer {kind}"),
        })
    }

    fn check(&self, tolerance: Tolerance) {
        let variable = |key: &str| self.find(key).map(|t| Var::from_tensor(&t).unwrap());
        let (x, weight, bias) = (variable("x").unwrap(), variable("weight"), variable("bias"));
        let tensor = |v: &Option<Var>| v.as_ref().map(|v| v.as_tensor().clone());
        let y = self.layer(tensor(&weight), tensor(&bias)).unwrap().forward(&x).unwrap();
        let expected = self.get("y");
        assert_eq!(y.dims(), expected.dims(), "{}", self.name);
        assert_close(format!("{} y", self.name), &flat(&y), &flat(&expected), tolerance);
        let gradients = (y * self.get("seed")).unwrap().sum_all().unwrap().backward().unwrap();
        for (key, var) in [("x", Some(&x)), ("weight", weight.as_ref()), ("bias", bias.as_ref())] {
            let Some(var) = var else { continue };
            let expected = flat(&self.get(&format!("grad_{key}")));
            assert_close(
                format!("{} gradient of {key}", self.name),
                &flat(gradients.get(var).unwrap()),
                &expected,
                tolerance,
            );
        }
    }
}

#[test]
fn layers_equal_pytorchs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/nn_layers.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let mut names: Vec<&str> = tensors.keys().filter_map(|k| k.strip_suffix(".y")).collect();
    names.sort_unstable();
    assert_eq!(names.len(), 15);
    for name in names {
        for (dtype, tolerance) in [(DType::F64, tolerance::GOLDEN_LAYER_F64), (DType::F32, tolerance::GOLDEN_LAYER_F32)]
        {
            Golden { tensors: &tensors, name, dtype }.check(tolerance);
        }
    }
}

#[test]
fn gradients_in_groups() {
    let x = var(1, &[2, 4, 3, 4, 3]);
    let (weight, bias) = (var(2, &[6, 2, 2, 3, 1]), var(3, &[6]));
    let config = Conv3dConfig { padding: [1, 0, 0], stride: [1, 2, 1], groups: 2, ..Conv3dConfig::default() };
    let loss = |x: &Tensor, w: &Tensor, b: &Tensor| {
        let layer = Conv3d::new(w.clone(), Some(b.clone()), config).unwrap();
        layer.forward(x).unwrap().sqr().unwrap().sum_all().unwrap()
    };
    finite_difference("x", &x, |x| loss(x, &weight, &bias));
    finite_difference("weight", &weight, |w| loss(&x, w, &bias));
    finite_difference("bias", &bias, |b| loss(&x, &weight, b));
}

#[test]
fn variables_have_the_names_shapes_and_bounds_of_pytorch() {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F64, &Device::Cpu);
    let groups = Conv3dConfig { groups: 2, ..Conv3dConfig::default() };
    let up = ConvTranspose3dConfig { groups: 4, ..ConvTranspose3dConfig::default() };
    let affine = InstanceNorm3dConfig { affine: true, ..InstanceNorm3dConfig::default() };
    conv3d(4, 6, [1, 2, 3], groups, vb.pp("conv")).unwrap();
    conv3d_no_bias(4, 6, [1, 2, 3], groups, vb.pp("bare")).unwrap();
    conv_transpose3d(8, 12, [2, 1, 2], up, vb.pp("up")).unwrap();
    conv_transpose3d_no_bias(8, 12, [2, 1, 2], up, vb.pp("bare_up")).unwrap();
    instance_norm3d(5, affine, vb.pp("norm")).unwrap();
    instance_norm3d(5, InstanceNorm3dConfig::default(), vb.pp("fixed_norm")).unwrap();
    let data = variables.data().lock().unwrap();
    let mut found: Vec<_> = data.iter().map(|(name, v)| (name.as_str(), v.dims().to_vec())).collect();
    found.sort();
    let expected: [(&str, &[usize]); 8] = [
        ("bare.weight", &[6, 2, 1, 2, 3]),
        ("bare_up.weight", &[8, 3, 2, 1, 2]),
        ("conv.bias", &[6]),
        ("conv.weight", &[6, 2, 1, 2, 3]),
        ("norm.bias", &[5]),
        ("norm.weight", &[5]),
        ("up.bias", &[12]),
        ("up.weight", &[8, 3, 2, 1, 2]),
    ];
    assert_eq!(found, expected.map(|(name, dims)| (name, dims.to_vec())));
    for name in ["conv.weight", "conv.bias", "up.weight", "up.bias"] {
        let largest = flat(&data[name]).iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        // Both layers have a fan in of 12.
        let bound = 1.0 / 12f64.sqrt();
        assert!(largest <= bound && largest > 0.3 * bound, "{name}: {largest}, bound {bound}");
    }
}

#[test]
fn wrong_shapes_are_named_with_the_expected_ones() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let message = |result: candle_core::Result<Tensor>| result.unwrap_err().to_string();
    let conv = |w: &[usize], b: &[usize], groups, x: &[usize]| {
        let config = Conv3dConfig { groups, ..Conv3dConfig::default() };
        message(Conv3d::new(zeros(w), Some(zeros(b)), config).and_then(|layer| layer.forward(&zeros(x))))
    };
    let x = [1, 4, 3, 3, 3];
    for (found, expected) in [
        (conv(&[6, 2, 1, 1], &[6], 2, &x), "Conv3d: weight has shape [6, 2, 1, 1], expected [Cout, Cin / groups, kD"),
        (conv(&[6, 2, 1, 1, 1], &[5], 2, &x), "Conv3d: bias has shape [5], expected [6]"),
        (conv(&[6, 2, 1, 1, 1], &[6], 4, &x), "Conv3d: groups is 4, expected a divisor of the numbers of channels [6]"),
        (conv(&[6, 2, 1, 1, 1], &[6], 2, &[1, 3, 3, 3, 3]), "x has shape [1, 3, 3, 3, 3], expected [B, 4, D, H, W]"),
        (conv(&[6, 2, 4, 1, 1], &[6], 2, &x), "kernel [4, 1, 1]"),
    ] {
        assert!(found.contains(expected), "{found}");
    }
    let up = |b: &[usize], output_padding| {
        let config = ConvTranspose3dConfig { output_padding, ..ConvTranspose3dConfig::default() };
        let layer = ConvTranspose3d::new(zeros(&[4, 3, 2, 2, 2]), Some(zeros(b)), config);
        message(layer.and_then(|layer| layer.forward(&zeros(&x))))
    };
    assert!(up(&[4], [0; 3]).contains("ConvTranspose3d: bias has shape [4], expected [3]"));
    assert!(up(&[3], [1, 0, 0]).contains("output padding [1, 0, 0]"));
    let norm = InstanceNorm3d::new(zeros(&[4]), zeros(&[5]), InstanceNorm3dConfig::default());
    assert!(norm.unwrap_err().to_string().contains("InstanceNorm3d: bias has shape [5], expected [4]"));
    let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    let config = Conv3dConfig { groups: 3, ..Conv3dConfig::default() };
    let error = conv3d(4, 6, [1; 3], config, vb).unwrap_err().to_string();
    assert!(error.contains("groups is 3, expected a divisor of the numbers of channels [4, 6]"), "{error}");
}
