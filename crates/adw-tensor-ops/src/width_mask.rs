//! The width gate `m_c = sum_i g_i M_i[c]`, with `M_i` ones in the leading `width_i` channels.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// `M`, `[widths, max_width]`: row i is 1 in the leading `widths[i]` channels, else 0.
///
/// # Errors
/// If a width is larger than `max_width`.
pub fn masks(widths: &[usize], max_width: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    if let Some(w) = widths.iter().find(|&&w| w > max_width) {
        return Err(Error::Argument {
            op: "width_mask",
            what: format!("width {w} is larger than the widest, {max_width}"),
        });
    }
    let rows: Vec<f64> = widths.iter().flat_map(|&w| (0..max_width).map(move |c| f64::from(u8::from(c < w)))).collect();
    Ok(Tensor::from_vec(rows, (widths.len(), max_width), device)?.to_dtype(dtype)?)
}

/// `m = choice · masks`: `[widths]` and `[widths, C]` to `[C]`.
///
/// # Errors
/// If the shapes do not fit together.
pub fn gate(choice: &Tensor, masks: &Tensor) -> Result<Tensor> {
    Ok(choice.unsqueeze(0)?.matmul(masks)?.squeeze(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_of_a_choice() {
        let masks = masks(&[2, 3, 4], 4, DType::F64, &Device::Cpu).unwrap();
        let choice = Tensor::new(&[0.5f64, 0.25, 0.25], &Device::Cpu).unwrap();
        assert_eq!(gate(&choice, &masks).unwrap().to_vec1::<f64>().unwrap(), [1.0, 1.0, 0.5, 0.25]);
        assert!(super::masks(&[5], 4, DType::F64, &Device::Cpu).is_err());
    }
}
