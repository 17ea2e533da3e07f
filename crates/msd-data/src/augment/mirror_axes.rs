//! Axes along which patches are mirrored: numbers of the patch's axes, or directions in the patient.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::orientation::Orientation;
use crate::plan::Plan;

/// Names of the scanner's axes, in the order of [`Orientation`]'s.
const NAMES: [&str; 3] = ["left-right", "anterior-posterior", "superior-inferior"];

/// Set of axes; in files a list of numbers (0, 1, 2: D, H, W of a patch) and of the names `left-right`,
/// `anterior-posterior` and `superior-inferior`. All axes by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<AxisEntry>", into = "Vec<AxisEntry>")]
pub struct MirrorAxes {
    /// D, H, W of a patch.
    patch: [bool; 3],
    /// Axes of the scanner, in the order of [`NAMES`].
    scanner: [bool; 3],
}

/// Entry of the list in a file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum AxisEntry {
    Index(u64),
    Name(String),
}

impl Default for MirrorAxes {
    fn default() -> Self {
        Self::of_patch([true; 3])
    }
}

impl MirrorAxes {
    /// Set of these axes of a patch, D, H, W.
    pub fn of_patch(patch: [bool; 3]) -> Self {
        Self { patch, scanner: [false; 3] }
    }

    /// Axes of the patches of `plan` (D, H, W), those given by name included.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name if the plan has no orientation.
    pub fn in_plan(self, plan: &Plan) -> Result<[bool; 3]> {
        self.resolved(plan.orientation, plan.transpose_forward).ok_or_else(|| {
            Error::Invalid(format!(
                "mirror_axes name a direction, but the headers of {} give no orientation; give numbers (0, 1, 2: D, H, W of \
                 the patch)",
                plan.dataset_name
            ))
        })
    }

    fn resolved(self, orientation: Option<Orientation>, transpose_forward: [usize; 3]) -> Option<[bool; 3]> {
        if !self.has_names() {
            return Some(self.patch);
        }
        let scanner_axes = orientation?.scanner_axes();
        // Axis `a` of z, y, x is axis `2 - a` of the file.
        let named = transpose_forward.map(|a| self.scanner[scanner_axes[2 - a]]);
        Some([0, 1, 2].map(|i| self.patch[i] || named[i]))
    }

    /// Axes of a patch, none for a set with names.
    pub(super) fn patch_axes(self) -> Option<[bool; 3]> {
        (!self.has_names()).then_some(self.patch)
    }

    fn has_names(self) -> bool {
        self.scanner.contains(&true)
    }
}

impl TryFrom<Vec<AxisEntry>> for MirrorAxes {
    type Error = String;

    fn try_from(entries: Vec<AxisEntry>) -> std::result::Result<Self, String> {
        let mut axes = Self::of_patch([false; 3]);
        for entry in entries {
            let (flags, position) = match &entry {
                AxisEntry::Index(i) => (&mut axes.patch, Some(*i as usize)),
                AxisEntry::Name(name) => (&mut axes.scanner, NAMES.iter().position(|known| known == name)),
            };
            let Some(flag) = position.and_then(|i| flags.get_mut(i)) else {
                let found = match entry {
                    AxisEntry::Index(i) => i.to_string(),
                    AxisEntry::Name(name) => format!("{name:?}"),
                };
                return Err(format!(
                    "mirror_axes: {found}; expected 0, 1, 2 (D, H, W of the patch) or {}",
                    NAMES.join(", ")
                ));
            };
            *flag = true;
        }
        Ok(axes)
    }
}

impl From<MirrorAxes> for Vec<AxisEntry> {
    fn from(axes: MirrorAxes) -> Self {
        let indices = (0..3).filter(|&i| axes.patch[i]).map(|i| AxisEntry::Index(i as u64));
        let names = (0..3).filter(|&i| axes.scanner[i]).map(|i| AxisEntry::Name(NAMES[i].to_owned()));
        indices.chain(names).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> MirrorAxes {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn names_follow_the_orientation_and_the_order_of_axes() {
        let axes = read(r#"["left-right"]"#);
        let of = |orientation: &str, transpose| axes.resolved(Some(orientation.parse().unwrap()), transpose).unwrap();
        // The array is z, y, x: the file's first axis is the last.
        assert_eq!(of("RAS", [0, 1, 2]), [false, false, true]);
        assert_eq!(of("LPS", [0, 1, 2]), [false, false, true]);
        assert_eq!(of("PIR", [0, 1, 2]), [true, false, false]);
        assert_eq!(of("RAS", [2, 0, 1]), [true, false, false], "W comes first in the patch");
        let two = read(r#"[0, "superior-inferior"]"#);
        assert_eq!(two.resolved(Some("ASR".parse().unwrap()), [0, 1, 2]), Some([true, true, false]));
        assert_eq!(axes.resolved(None, [0, 1, 2]), None);
        assert_eq!(read("[1]").resolved(None, [0, 1, 2]), Some([false, true, false]));
        assert_eq!(MirrorAxes::default().resolved(None, [2, 0, 1]), Some([true; 3]));
    }

    #[test]
    fn a_list_is_read_written_and_checked() {
        let text = r#"[2,"left-right"]"#;
        assert_eq!(serde_json::to_string(&read(text)).unwrap(), text);
        assert_eq!(read("[]"), MirrorAxes::of_patch([false; 3]));
        for wrong in ["[3]", r#"["up-down"]"#] {
            let message = serde_json::from_str::<MirrorAxes>(wrong).unwrap_err().to_string();
            assert!(message.contains("expected 0, 1, 2") && message.contains("left-right"), "{message}");
        }
    }
}
