//! Patches while they are being transformed.

/// An image patch and its labels while they are being transformed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Patch {
    /// Voxels, `[C, D, H, W]`.
    pub(crate) image: Vec<f32>,
    /// Labels, `[D, H, W]`; -1 outside the image or its nonzero region.
    pub(crate) labels: Vec<i16>,
    pub(crate) shape: [usize; 3],
}

impl Patch {
    /// Sets the masked channels to 0 where the label is negative, as they were before noise and gamma.
    pub(crate) fn clear_outside(&mut self, masked_channels: &[bool]) {
        let Self { image, labels, .. } = self;
        let channels = image.chunks_exact_mut(labels.len()).zip(masked_channels);
        for (channel, _) in channels.filter(|(_, masked)| **masked) {
            for (v, _) in channel.iter_mut().zip(&*labels).filter(|(_, label)| **label < 0) {
                *v = 0.0;
            }
        }
    }
}

/// Reverses the axes that are set.
pub(super) fn mirror<T>(values: &mut [T], [_, h, w]: [usize; 3], axes: [bool; 3]) {
    // Reversing everything within blocks of an axis and its inner ones reverses all of them; undo the inner ones.
    let [d_flip, h_flip, w_flip] = axes;
    if d_flip {
        values.reverse();
    }
    if h_flip != d_flip {
        values.chunks_exact_mut(h * w).for_each(<[T]>::reverse);
    }
    if w_flip != h_flip {
        values.chunks_exact_mut(w).for_each(<[T]>::reverse);
    }
}
