//! Description of all that a segmentation needs beside the network.

use std::collections::BTreeMap;

use adw_supernet::Architecture;
use msd_data::{Normalization, Orientation, Plan, Postprocessing};
use serde::Serialize;

/// Value of `format` in the file.
pub const FORMAT: &str = "adw-inference/1";

/// Preprocessing, windows and postprocessing around a network, as the JSON of `inference.json`. Lists of three are in the network's
/// order D, H, W.
///
/// An image is segmented in these steps, each documented at its field: [`orientation`](Self::orientation),
/// [`transpose`](Self::transpose), [`crop`](Self::crop), [`channels`](Self::channels) (normalisation),
/// [`spacing_mm`](Self::spacing_mm), windows ([`patch_size`](Self::patch_size), [`step`](Self::step),
/// [`gaussian`](Self::gaussian), [`mirror_axes`](Self::mirror_axes)), the way back to the image's voxels, and
/// [`postprocessing`](Self::postprocessing).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inference {
    /// [`FORMAT`].
    pub format: String,
    /// Dataset of the training.
    pub dataset: String,
    /// Orientation that images are brought to first, such as `RAS`: letters in the order of the file's axes x, y, z, each the
    /// direction in which the index grows. Images without an orientation, and all if it is null, stay as they are stored.
    pub orientation: Option<Orientation>,
    /// Axis `i` of the network is axis `transpose[i]` of the array `[z, y, x]` in that orientation.
    pub transpose: [usize; 3],
    /// Region that is kept: always `nonzero`, the smallest box around voxels where any channel is not 0.
    pub crop: String,
    /// Channels of the image in their order, each with its normalisation, which precedes resampling.
    pub channels: Vec<Channel>,
    /// Voxel size that images are resampled to, millimetres: round(n spacing / target) voxels, cubic splines with repeated edges,
    /// clipped to the range before; an axis that alone has voxels more than 3 times as long as the finest is resampled by the
    /// nearest slice. Logits come back by linear interpolation in the same way.
    pub spacing_mm: [f64; 3],
    /// Size of the windows.
    pub patch_size: [usize; 3],
    /// Numbers that sizes must be multiples of.
    pub size_multiple: [usize; 3],
    /// Greatest distance of windows as a fraction of the patch.
    pub step: f64,
    /// Weights of a window's voxels.
    pub gaussian: Gaussian,
    /// Axes along which windows are also predicted mirrored, 0 for D: the logits of all combinations are averaged.
    pub mirror_axes: Vec<usize>,
    /// Names of the labels by value, the index of the class with the largest logit; 0 is the background.
    pub labels: BTreeMap<u16, String>,
    /// Components that are removed from label maps.
    pub postprocessing: Postprocessing,
    /// Networks whose logits are averaged.
    pub ensemble: Ensemble,
}

/// Channel of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Channel {
    /// Name.
    pub name: String,
    /// Normalisation: `ct` clips to `lower..upper` and applies `mean` and `std`, `z_score` applies the image's own,
    /// `rescale_to_unit` maps its range to 0..1, `rgb_to_unit` divides by 255, `none` changes nothing.
    pub normalization: Normalization,
    /// With `z_score`: true if voxels outside the nonzero mask (its holes filled) neither count nor change.
    pub masked: bool,
    /// Smallest intensity of `ct`.
    pub lower: f64,
    /// Largest intensity of `ct`.
    pub upper: f64,
    /// Mean intensity of `ct`.
    pub mean: f64,
    /// Standard deviation of `ct`.
    pub std: f64,
}

/// Weights of a window's voxels: `peak prod_axes exp(-((i - n/2) / (sigma n))^2 / 2)` for a window of n voxels, n/2 rounded down;
/// then rounded to `dtype`, and zeros replaced by the smallest other weight.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gaussian {
    /// Standard deviation as a fraction of the window.
    pub sigma: f64,
    /// Weight of the centre.
    pub peak: f64,
    /// Type that weights are rounded to.
    pub dtype: String,
}

/// Networks whose logits are averaged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ensemble {
    /// Number of networks in the file.
    pub num_networks: usize,
    /// Always `mean_of_logits`: the file's output is that mean already.
    pub output: String,
}

impl Inference {
    /// Describes networks of `architecture`'s strides that were trained for `plan`.
    pub fn new(
        plan: &Plan,
        architecture: &Architecture,
        num_networks: usize,
        step: f64,
        mirror: [bool; 3],
        postprocessing: Postprocessing,
    ) -> Self {
        let channel = |c: usize| {
            let statistics = &plan.intensity[c];
            Channel {
                name: plan.modalities[c].clone(),
                normalization: plan.normalization[c],
                masked: plan.use_mask_for_norm[c],
                lower: statistics.percentile_00_5,
                upper: statistics.percentile_99_5,
                mean: statistics.mean,
                std: statistics.std,
            }
        };
        Self {
            format: FORMAT.into(),
            dataset: plan.dataset_name.clone(),
            orientation: plan.orientation,
            transpose: plan.transpose_forward,
            crop: "nonzero".into(),
            channels: (0..plan.modalities.len()).map(channel).collect(),
            spacing_mm: plan.spacing_mm,
            patch_size: plan.patch_size,
            size_multiple: [0, 1, 2].map(|axis| architecture.strides.iter().map(|stride| stride[axis]).product()),
            step,
            gaussian: Gaussian { sigma: 0.125, peak: 10.0, dtype: "float16".into() },
            mirror_axes: (0..3).filter(|&axis| mirror[axis]).collect(),
            labels: plan.labels.iter().map(|label| (label.value, label.name.clone())).collect(),
            postprocessing,
            ensemble: Ensemble { num_networks, output: "mean_of_logits".into() },
        }
    }

    /// Text of the file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings always serialise") + "\n"
    }
}

#[cfg(test)]
impl Inference {
    /// Description of a network with one channel, two labels and both kinds of postprocessing.
    pub(crate) fn example() -> Self {
        use msd_data::postprocess::Structure;

        let channel = Channel {
            name: "MRI".into(),
            normalization: Normalization::ZScore,
            masked: false,
            lower: 0.0,
            upper: 9.0,
            mean: 4.0,
            std: 2.0,
        };
        let labels = [(0, "background"), (1, "a"), (2, "b")];
        Self {
            format: FORMAT.into(),
            dataset: "Task00_Phantom".into(),
            orientation: "RAS".parse().ok(),
            transpose: [0, 1, 2],
            crop: "nonzero".into(),
            channels: vec![channel],
            spacing_mm: [1.0; 3],
            patch_size: [16; 3],
            size_multiple: [8; 3],
            step: 0.5,
            gaussian: Gaussian { sigma: 0.125, peak: 10.0, dtype: "float16".into() },
            mirror_axes: vec![],
            labels: labels.map(|(value, name)| (value, name.to_owned())).into(),
            postprocessing: Postprocessing { keep_largest: vec![Structure::Foreground, Structure::Label(2)] },
            ensemble: Ensemble { num_networks: 1, output: "mean_of_logits".into() },
        }
    }
}
