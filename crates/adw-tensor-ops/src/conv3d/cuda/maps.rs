//! Maps as the kernels of `conv3d.cu` read them.

use crate::norm_act::cuda::operands::Coefficients;
use crate::precision::Precision;
use adw_cuda::{Address, Buffer, params};

/// Map `[B, voxels, C]` on the device, normalised while it is read if `norm` is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceMap {
    /// Address of the map.
    pub(crate) data: Address,
    /// Number of channels.
    pub(crate) channels: usize,
    /// Scale and shift, `[B, C]` f32, and the slope of LeakyReLU.
    pub(crate) norm: Option<(Address, Address, f64)>,
}

impl SourceMap {
    /// Map that is read as it is.
    pub(crate) fn plain(data: Address, channels: usize) -> Self {
        Self { data, channels, norm: None }
    }

    /// Map that is normalised while it is read.
    pub(crate) fn normalised<B: Buffer>(data: Address, channels: usize, c: &Coefficients<B>) -> Self {
        Self { data, channels, norm: Some((c.scale.address(), c.shift.address(), c.config.slope)) }
    }
}

params! {
    struct Source {
        data: Address,
        scale: Address,
        shift: Address,
        channels: u32,
        slope: f32,
    }
}

params! {
    pub(super) struct Sources {
        maps: [Source; 2],
        channels: u32,
        in_pieces: u32,
    }
}

impl Sources {
    pub(super) fn new(maps: &[SourceMap], precision: Precision) -> Self {
        assert!((1..=2).contains(&maps.len()), "{} maps, expected one or two", maps.len());
        let source = |m: &SourceMap| {
            let (scale, shift, slope) = m.norm.unwrap_or_default();
            Source { data: m.data, scale, shift, channels: m.channels as u32, slope: slope as f32 }
        };
        Self {
            maps: [source(&maps[0]), source(maps.last().expect("checked above"))],
            channels: maps.iter().map(|m| m.channels as u32).sum(),
            in_pieces: u32::from(maps.iter().all(|m| m.channels.is_multiple_of(precision.piece_len()))),
        }
    }
}

/// Bytes of `voxels` voxels of all maps, and of the coefficients that normalise them.
pub(super) fn maps_bytes(maps: &[SourceMap], batch: usize, voxels: usize, precision: Precision) -> usize {
    let of_map = |m: &SourceMap| {
        let norm = if m.norm.is_some() { 2 * 4 } else { 0 };
        batch * m.channels * (voxels * precision.element_bytes() + norm)
    };
    maps.iter().map(of_map).sum()
}
