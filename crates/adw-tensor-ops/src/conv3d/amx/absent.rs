//! Stand-in for the matrix unit on processors of other architectures: no value of [`Amx`] exists.

/// A matrix unit that cannot exist.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Amx {}

impl Amx {
    pub(crate) fn detect() -> Option<Self> {
        None
    }
}

pub(super) mod correlation {
    use super::Amx;
    use crate::conv3d::job::Correlation;
    use crate::norm_act::moments::BlockMoments;
    use crate::raw_output::SharedOut;

    pub(in crate::conv3d) unsafe fn run(
        amx: Amx,
        _: &Correlation<f32>,
        _: SharedOut<f32>,
        _: bool,
    ) -> Vec<BlockMoments<f32>> {
        match amx {}
    }
}

pub(super) mod weight_gradient {
    use super::Amx;
    use crate::conv3d::job::WeightGradient;

    pub(in crate::conv3d) fn run(amx: Amx, _: &WeightGradient<f32>) -> Vec<f32> {
        match amx {}
    }
}
