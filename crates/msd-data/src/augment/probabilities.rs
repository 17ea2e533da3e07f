//! Probabilities of the transforms, and presets of them.

use serde::{Deserialize, Serialize};

use super::mirror_axes::MirrorAxes;
use crate::error::{Error, Result};
use crate::plan::Plan;

/// Probability with which each transform is applied to a patch, independently of the others.
///
/// ```
/// use msd_data::Augmentation;
/// let gentle = Augmentation { blur: 0.05, ..Augmentation::light() };
/// assert_eq!(gentle.rotation, 0.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Rotation by up to 30 degrees about each axis (180 in-plane for very flat patches).
    pub rotation: f64,
    /// Scaling of space by 0.7 to 1.4, the same along each axis.
    pub scaling: f64,
    /// Gaussian noise of standard deviation up to 0.1.
    pub noise: f64,
    /// Gaussian blur of 0.5 to 1 voxels.
    pub blur: f64,
    /// Intensities times 0.75 to 1.25.
    pub brightness: f64,
    /// Deviations from the mean times 0.75 to 1.25, within the old range.
    pub contrast: f64,
    /// Down to 0.5 to 1 of the resolution and up again.
    pub low_resolution: f64,
    /// Gamma correction of the negative.
    pub gamma_inverted: f64,
    /// Gamma correction by 0.7 to 1.5 with mean and deviation kept.
    pub gamma: f64,
    /// Mirroring along each of `mirror_axes`, independently.
    pub mirror: f64,
    /// Axes along which patches are mirrored.
    #[serde(default)]
    pub mirror_axes: MirrorAxes,
}

impl Augmentation {
    /// No transform, for validation.
    pub fn none() -> Self {
        Self {
            rotation: 0.0,
            scaling: 0.0,
            noise: 0.0,
            blur: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            low_resolution: 0.0,
            gamma_inverted: 0.0,
            gamma: 0.0,
            mirror: 0.0,
            mirror_axes: MirrorAxes::default(),
        }
    }

    /// Transforms that cost next to nothing (mirroring, brightness, contrast, gamma and noise), with nnU-Net's
    /// probabilities.
    pub fn light() -> Self {
        let full = Self::full();
        Self { rotation: 0.0, scaling: 0.0, blur: 0.0, low_resolution: 0.0, ..full }
    }

    /// All of nnU-Net's transforms with its probabilities.
    pub fn full() -> Self {
        Self {
            rotation: 0.2,
            scaling: 0.2,
            noise: 0.1,
            blur: 0.2,
            brightness: 0.15,
            contrast: 0.15,
            low_resolution: 0.25,
            gamma_inverted: 0.1,
            gamma: 0.3,
            mirror: 0.5,
            mirror_axes: MirrorAxes::default(),
        }
    }

    /// Returns the preset called `none`, `light` or `full`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another name.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::none()),
            "light" => Ok(Self::light()),
            "full" => Ok(Self::full()),
            _ => Err(Error::Invalid(format!("augmentation {name:?}; expected none, light or full"))),
        }
    }

    /// Axes of the patches of `plan` (D, H, W) that are mirrored.
    ///
    /// # Errors
    /// As [`MirrorAxes::in_plan`].
    pub fn mirrored_axes(&self, plan: &Plan) -> Result<[bool; 3]> {
        if self.mirror > 0.0 { self.mirror_axes.in_plan(plan) } else { Ok([false; 3]) }
    }

    /// Labels of `plan` that mirroring makes one ([`MirrorAxes::mixed_sides`]).
    pub fn mixed_sides<'a>(&self, plan: &'a Plan) -> Option<[&'a str; 2]> {
        if self.mirror > 0.0 { self.mirror_axes.mixed_sides(plan) } else { None }
    }

    /// Checks that every probability is from 0 to 1, and that no axis is given by name.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, p) in [
            ("rotation", self.rotation),
            ("scaling", self.scaling),
            ("noise", self.noise),
            ("blur", self.blur),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("low_resolution", self.low_resolution),
            ("gamma_inverted", self.gamma_inverted),
            ("gamma", self.gamma),
            ("mirror", self.mirror),
        ] {
            if !(0.0..=1.0).contains(&p) {
                return Err(Error::Invalid(format!("augmentation: {name} is {p}; a probability is from 0 to 1")));
            }
        }
        if self.mirror_axes.patch_axes().is_none() {
            return Err(Error::Invalid("augmentation: mirror_axes hold a name; expected axes of the patch".to_owned()));
        }
        Ok(())
    }
}
