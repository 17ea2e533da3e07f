//! Muon: gradient descent with orthogonalised momentum.

use candle_core::{DType, Tensor, Var, WithDType};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, LinalgScalar, ScalarOperand};
use rayon::prelude::*;

use super::Optimizer;
use super::backend::Scale;
use super::config::SgdConfig;
use super::sgd::descend;
use super::slots::{Slots, Update};
use crate::{NamedTensors, Result};

/// Coefficients of s, s^3 and s^5 in a polynomial that, applied five times, takes all of 0.01 to 1 to between 0.68 and 1.14.
const POLYNOMIAL: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;
/// Added to a matrix's squared norm, so that zeros stay zeros.
const SMALLEST: f64 = 1e-30;

/// Muon (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for the kernels of
/// convolutions, and [`Sgd`](super::Sgd) with the same settings for every other parameter:
/// ```text
/// g <- scale * g
/// v <- momentum * v + g
/// w <- w - lr * (orthogonal(g + momentum * v) + weight_decay * w)
/// ```
/// A kernel, a tensor of rank five with more than one voxel, is read as a matrix of its first dimension by all others. With
/// U S V^T the singular value decomposition of a matrix, its `orthogonal` is about U V^T: singular values from 0.01 of the
/// matrix's Frobenius norm upwards become 0.68 to 1.14, by five Newton-Schulz iterations. So a step changes the kernel
/// equally in all directions in which the gradient points at all, and the gradient's size does not matter.
#[derive(Debug)]
pub struct Muon {
    config: SgdConfig,
    slots: Slots<1>,
}

impl Muon {
    /// An optimiser of `parameters` (name and variable).
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a Var)>, config: SgdConfig) -> Self {
        Self { config, slots: Slots::new(["velocity"], parameters) }
    }

    /// Steps of kernels. Both halves are steps of gradient descent, whose code they share: one from zero along the negative
    /// gradient, which gives g + momentum * v, and one along the orthogonalised direction without momentum.
    fn step_kernels(&self, kernels: Vec<Update<1>>, lr: f64, scale: &Scale) -> Result<()> {
        let SgdConfig { momentum, weight_decay } = self.config;
        let directions = kernels.iter().map(|Update { weight, gradient, state, steps }| {
            Ok(Update { weight: weight.zeros_like()?, gradient: gradient.clone(), state: state.clone(), steps: *steps })
        });
        let directions = directions.collect::<Result<Vec<_>>>()?;
        descend(&directions, &SgdConfig { momentum, weight_decay: 0.0 }, -1.0, scale)?;
        let matrices =
            directions.iter().map(|update| Ok(update.weight.flatten_from(1)?)).collect::<Result<Vec<_>>>()?;
        let orthogonal = match matrices.first() {
            Some(first) if first.device().is_cpu() => matrices.par_iter().map(on_host).collect::<Result<Vec<_>>>()?,
            _ => matrices.iter().map(on_device).collect::<Result<Vec<_>>>()?,
        };
        let steps = kernels.into_iter().zip(directions).zip(orthogonal).map(|((kernel, direction), orthogonal)| {
            let gradient = orthogonal.reshape(direction.weight.shape())?;
            // The direction has been read, so its memory serves as the velocity that a step writes.
            Ok(Update { gradient, state: [direction.weight], ..kernel })
        });
        let steps = steps.collect::<Result<Vec<_>>>()?;
        // A factor that is not a number keeps the weights as they are, here as above.
        let one = match scale {
            Scale::Known(scale) => Scale::Known(scale * 0.0 + 1.0),
            Scale::OnDevice(scale) => Scale::OnDevice(scale.affine(0.0, 1.0)?),
        };
        descend(&steps, &SgdConfig { momentum: 0.0, weight_decay }, lr, &one)
    }
}

impl Optimizer for Muon {
    fn step_scaled(&mut self, gradients: &[Option<Tensor>], lr: f64, scale: &Scale) -> Result<()> {
        let (kernels, others): (Vec<_>, Vec<_>) =
            self.slots.updates(gradients)?.into_iter().partition(|update| is_kernel(&update.weight));
        self.step_kernels(kernels, lr, scale)?;
        descend(&others, &self.config, lr, scale)
    }

    fn state(&self) -> Result<NamedTensors> {
        Ok(self.slots.save())
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.slots.load(state)
    }
}

/// Returns true if a parameter is the kernel of a convolution over more than one voxel.
fn is_kernel(weight: &Tensor) -> bool {
    weight.rank() == 5 && weight.dims()[2..].iter().any(|&voxels| voxels > 1)
}

/// Matrix with the singular vectors of `matrix` and singular values near 1 (see [`Muon`]), computed by one thread.
///
/// The iteration X <- a X + b (X X^T) X + c (X X^T)^2 X from X = `matrix` / |`matrix`| is carried out on G = X X^T, the smaller of the
/// two products, and the product of its polynomials multiplies the matrix once at the end: kernels have many more columns
/// than rows.
fn on_host(matrix: &Tensor) -> Result<Tensor> {
    match matrix.dtype() {
        DType::F64 => orthogonal::<f64>(matrix),
        _ => orthogonal::<f32>(matrix),
    }
}

fn orthogonal<T: WithDType + LinalgScalar + ScalarOperand>(tensor: &Tensor) -> Result<Tensor> {
    let shape = tensor.dims2()?;
    let matrix =
        Array2::from_shape_vec(shape, tensor.flatten_all()?.to_vec1::<T>()?).expect("as many as the shape has");
    let x = if shape.0 <= shape.1 { matrix.view() } else { matrix.t() };
    let mut gram = x.dot(&x.t());
    let squared_norm = gram.diag().iter().fold(0.0, |sum, v| sum + v.to_f64()) + SMALLEST;
    gram.mapv_inplace(|v| v * T::from_f64(squared_norm.recip()));
    let mut product = Array2::eye(gram.nrows()) * T::from_f64(squared_norm.sqrt().recip());
    let [a, b, c] = POLYNOMIAL.map(T::from_f64);
    for _ in 0..ITERATIONS {
        let mut factor = Array2::eye(gram.nrows()) * a;
        factor.scaled_add(b, &gram);
        general_mat_mul(c, &gram, &gram, T::one(), &mut factor);
        product = factor.dot(&product);
        gram = factor.dot(&gram).dot(&factor);
    }
    let x = product.dot(&x);
    let x = if shape.0 <= shape.1 { x } else { x.reversed_axes() };
    Ok(Tensor::from_vec(x.iter().copied().collect::<Vec<_>>(), shape, tensor.device())?)
}

/// [`on_host`] by the products of the tensor's device.
fn on_device(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    if rows > columns {
        return Ok(on_device(&matrix.t()?.contiguous()?)?.t()?.contiguous()?);
    }
    let identity = Tensor::eye(rows, matrix.dtype(), matrix.device())?;
    let mut gram = matrix.matmul(&matrix.t()?)?;
    let squared_norm = ((&gram * &identity)?.sum_all()? + SMALLEST)?;
    gram = gram.broadcast_div(&squared_norm)?;
    let mut product = identity.broadcast_div(&squared_norm.sqrt()?)?;
    let [a, b, c] = POLYNOMIAL;
    for _ in 0..ITERATIONS {
        let factor = (((&identity * a)? + (&gram * b)?)? + (gram.matmul(&gram)? * c)?)?;
        product = factor.matmul(&product)?;
        gram = factor.matmul(&gram)?.matmul(&factor)?;
    }
    Ok(product.matmul(matrix)?)
}

#[cfg(test)]
mod tests;
