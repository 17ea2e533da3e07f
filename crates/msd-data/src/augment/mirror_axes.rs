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

    /// Labels of `plan` that differ by side alone, such as `left kidney` and `right kidney`, if patches are mirrored from left to right:
    /// a network then sees each of them on both sides and cannot tell them apart. Without an orientation in the plan, if they are
    /// mirrored along all axes.
    pub fn mixed_sides(self, plan: &Plan) -> Option<[&str; 2]> {
        let mirrored = self.in_plan(plan).ok()?;
        let across = Self { patch: [false; 3], scanner: [true, false, false] };
        let across = across.resolved(plan.orientation, plan.transpose_forward).unwrap_or([true; 3]);
        if (0..3).any(|axis| across[axis] && !mirrored[axis]) {
            return None;
        }
        let names = || plan.labels.iter().map(|label| label.name.as_str());
        names().find_map(|left| {
            let other = other_side(left)?;
            Some([left, names().find(|right| words(right) == other)?])
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

fn words(name: &str) -> Vec<String> {
    name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Words of the name of the same structure on the right, for one on the left.
fn other_side(name: &str) -> Option<Vec<String>> {
    let mut words = words(name);
    let (side, other) = words.iter_mut().find_map(|word| match word.as_str() {
        "left" => Some((word, "right")),
        "l" => Some((word, "r")),
        _ => None,
    })?;
    other.clone_into(side);
    Some(words)
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
    fn labels_that_mirroring_makes_one_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let options = crate::PhantomOptions { num_cases: 5, shape: [16, 16, 16], ..Default::default() };
        crate::write_phantom(dir.path(), &options).unwrap();
        let dataset = crate::Dataset::open(dir.path()).unwrap();
        let fingerprint = crate::Fingerprint::of_headers(&dataset).unwrap();
        let mut plan = crate::plan(&fingerprint, &dataset, &crate::PlanOptions::default()).unwrap();
        let mut mixed = |names: [&str; 2], axes: &str, orientation: Option<&str>| {
            plan.labels[1].name = names[0].to_owned();
            plan.labels[2].name = names[1].to_owned();
            plan.orientation = orientation.map(|name| name.parse().unwrap());
            read(axes).mixed_sides(&plan).map(|pair| pair.map(str::to_owned))
        };
        let kidneys = ["Kidney_right", "kidney left"];
        let [all, across, along] = ["[0,1,2]", r#"["left-right"]"#, r#"["anterior-posterior","superior-inferior"]"#];
        let found = Some(["kidney left".to_owned(), "Kidney_right".to_owned()]);
        assert_eq!(mixed(kidneys, all, Some("RAS")), found);
        assert_eq!(mixed(kidneys, across, Some("PIR")), found);
        assert_eq!(mixed(kidneys, along, Some("RAS")), None);
        assert_eq!(mixed(kidneys, all, None), found, "whatever the orientation");
        assert_eq!(mixed(kidneys, "[0]", None), None, "perhaps another axis");
        assert_eq!(mixed(["lung L", "lung R"], all, Some("RAS")), Some(["lung L".to_owned(), "lung R".to_owned()]));
        assert_eq!(mixed(["left atrium", "ventricle"], all, Some("RAS")), None);
        assert_eq!(mixed(["left lung", "right kidney"], all, Some("RAS")), None);
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
