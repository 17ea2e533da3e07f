//! Inference of residual encoders: pairs of layers with shortcuts, see [`Encoder::Residual`](crate::Encoder::Residual).

use super::layers::{Layer, Network, Residual};
use super::trace::Feature;
use crate::error::Result;
use adw_tensor_ops::Precision;
use adw_tensor_ops::conv3d::{self, Input};
use adw_tensor_ops::norm_act::{self, NormAct, NormCoefficients};
use candle_core::Tensor;

/// Raw map and its coefficients.
type Map = (Tensor, NormCoefficients);

impl Network {
    /// Runs one block of a residual encoder, whose maps are freed on the way.
    pub(super) fn residual_block(&self, index: usize, input: Feature, precision: Precision) -> Result<Feature> {
        let (layers, residuals) = (&self.blocks[index], &self.residuals[index]);
        let mut current = match input.norm {
            Some(norm) => (input.map, norm),
            None => with_activation(input.map, self.linear())?,
        };
        // The stem of the first block.
        for layer in &layers[..residuals[0].layer] {
            current = self.layer(&current, layer, self.norm, precision)?;
        }
        for residual in residuals {
            let shortcut = self.shortcut(&current, residual, precision)?;
            let inner = self.layer(&current, &layers[residual.layer], self.norm, precision)?;
            drop(current);
            let inner = self.layer(&inner, &layers[residual.layer + 1], self.linear(), precision)?;
            let sum = norm_act::weighted_sum(&[&inner, &shortcut].map(|(map, norm)| (map, norm)), None)?;
            current = with_activation(sum, self.norm)?;
        }
        let (map, norm) = current;
        Ok(Feature { map, norm: Some(norm) })
    }

    /// Normalisation without an activation.
    fn linear(&self) -> NormAct {
        NormAct { slope: 1.0, ..self.norm }
    }

    fn layer(&self, (map, norm): &Map, layer: &Layer, norm_act: NormAct, precision: Precision) -> Result<Map> {
        let input = Input { map, norm: Some(norm) };
        let (map, moments) = conv3d::forward(&[input], self.value(layer.weight), layer.geometry, precision)?;
        let norm = norm_act.coefficients(&moments, self.value(layer.gamma), self.value(layer.beta), None)?;
        Ok((map, norm))
    }

    /// Output of a shortcut for the input of its two layers.
    fn shortcut(&self, input: &Map, residual: &Residual, precision: Precision) -> Result<Map> {
        let mut map = input.clone();
        if residual.pooling != [1; 3] {
            let activated = norm_act::weighted_sum(&[(&input.0, &input.1)], None)?;
            map = with_activation(average_pool(activated, residual.pooling)?, self.linear())?;
        }
        match &residual.projection {
            Some(projection) => self.layer(&map, projection, self.linear(), precision),
            None => Ok(map),
        }
    }
}

/// A map that is read through the activation alone.
fn with_activation(map: Tensor, norm: NormAct) -> Result<Map> {
    let norm = norm.without_normalization(&map)?;
    Ok((map, norm))
}

/// Means over cells of a map `[B, D, H, W, C]` whose size is a multiple of the cells' size.
fn average_pool(map: Tensor, cell: [usize; 3]) -> Result<Tensor> {
    let (b, d, h, w, c) = map.dims5()?;
    let mut size = [b, d, h, w, c];
    let mut map = map;
    for (axis, &n) in cell.iter().enumerate().filter(|(_, n)| **n > 1) {
        let axis = axis + 1;
        let outer: usize = size[..axis].iter().product();
        let inner: usize = size[axis + 1..].iter().product();
        let cells = map.reshape((outer, size[axis] / n, n, inner))?;
        // Contiguous summands: candle adds others one element at a time.
        let part = |i| cells.narrow(2, i, 1)?.contiguous();
        let mut sum = part(0)?;
        for i in 1..n {
            sum = (sum + part(i)?)?;
        }
        size[axis] /= n;
        map = sum.reshape(&size[..])?;
    }
    Ok((map / cell.iter().product::<usize>() as f64)?)
}
