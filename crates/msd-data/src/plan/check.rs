//! Checks of a plan that comes from a file.

use super::Plan;

/// Largest edge of a patch, in voxels: that of the largest NIfTI file.
const MAX_EDGE: usize = 32_767;

/// Returns true if every edge of a patch can occur.
pub(super) fn is_patch(patch: [usize; 3]) -> bool {
    patch.iter().all(|n| (1..=MAX_EDGE).contains(n))
}

impl Plan {
    /// Checks the values of a plan that was read from a file, on which preprocessing and networks rely.
    ///
    /// # Errors
    /// The first key with an impossible value, and what is expected.
    pub fn check(&self) -> Result<(), String> {
        let channels = self.modalities.len();
        let wrong = |key: &str, found: String, expected: &str| Err(format!("{key} is {found}; expected {expected}"));
        if channels == 0 {
            return wrong("modalities", "empty".to_owned(), "a name per channel");
        }
        let values: Vec<u16> = self.labels.iter().map(|label| label.value).collect();
        if !(2..=255).contains(&values.len()) || values.iter().enumerate().any(|(i, &value)| i != usize::from(value)) {
            let found = format!("of {} values", values.len());
            return wrong("labels", found, "2 to 255 labels with the values 0, 1, 2, ...");
        }
        let sizes = [
            ("normalization", self.normalization.len()),
            ("use_mask_for_norm", self.use_mask_for_norm.len()),
            ("intensity", self.intensity.len()),
        ];
        if let Some((key, found)) = sizes.into_iter().find(|(_, found)| *found != channels) {
            return wrong(key, format!("of {found} channels"), &format!("{channels}, as many as modalities"));
        }
        if self.spacing_mm.iter().any(|mm| !(1e-6..=1e6).contains(mm)) {
            return wrong("spacing_mm", format!("{:?}", self.spacing_mm), "millimetres from 1e-6 to 1e6");
        }
        if !is_patch(self.patch_size) {
            return wrong("patch_size", format!("{:?}", self.patch_size), "1 to 32767 voxels along each axis");
        }
        if self.batch_size == 0 {
            return wrong("batch_size", "0".to_owned(), "at least 1");
        }
        if self.strides.is_empty() || self.kernels.len() != self.strides.len() + 1 {
            let found = format!("of {} entries", self.strides.len());
            return wrong(
                "strides",
                found,
                &format!("at least one, and one fewer than the {} kernels", self.kernels.len()),
            );
        }
        let triples = self.strides.iter().chain(&self.kernels);
        if let Some(triple) = triples.clone().find(|triple| triple.iter().any(|n| !(1..=MAX_EDGE).contains(n))) {
            return wrong("strides or kernels", format!("{triple:?}"), "numbers of at least 1");
        }
        let (forward, backward) = (self.transpose_forward, self.transpose_backward);
        let inverse = |i: usize| forward.get(backward[i]).is_some_and(|&axis| axis == i);
        if !(0..3).all(inverse) {
            let found = format!("{forward:?}, and transpose_backward {backward:?}");
            return wrong("transpose_forward", found, "an order of the axes 0, 1, 2, and its inverse");
        }
        Ok(())
    }
}
