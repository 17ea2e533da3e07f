//! Codes that say what a segment is: SNOMED CT by the names of labels.

use std::path::Path;

use serde_json::Value;

use crate::data_set::DataSet;
use crate::error::{Error, Result};
use crate::tags;

/// Content of a file of codes, for messages.
const FORM: &str = r#"{"LABEL": {"category": ["91723000", "SCT", "Anatomical Structure"], "type": [...]}}"#;

/// A coded concept: value, coding scheme such as `SCT` or `DCM`, meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code(pub String, pub String, pub String);

impl Code {
    pub(crate) fn new(value: &str, scheme: &str, meaning: &str) -> Self {
        Self(value.to_owned(), scheme.to_owned(), meaning.to_owned())
    }

    fn snomed(value: &str, meaning: &str) -> Self {
        Self::new(value, "SCT", meaning)
    }

    /// Item of a sequence of codes.
    pub(crate) fn item(&self) -> DataSet {
        let Self(value, scheme, meaning) = self;
        DataSet::default()
            .with(tags::CODE_VALUE, value)
            .with(tags::CODE_SCHEME, scheme)
            .with(tags::CODE_MEANING, meaning)
    }

    fn from_json(json: &Value) -> std::result::Result<Self, String> {
        let texts: Option<Vec<&str>> = json.as_array().and_then(|texts| texts.iter().map(Value::as_str).collect());
        let code = match texts.as_deref() {
            Some(&[value, scheme, meaning]) => Some(Self::new(value, scheme, meaning)),
            _ => None,
        };
        let expected = "expected [VALUE, SCHEME, MEANING] of 1 to 16, 16 and 64 ASCII characters";
        code.filter(Self::is_sound).ok_or_else(|| format!("{json} is no code; {expected}"))
    }

    /// Returns true for a code that a file can hold.
    fn is_sound(&self) -> bool {
        let Self(value, scheme, meaning) = self;
        let fits = |text: &str, most: usize| {
            let is_plain = |c: char| c.is_ascii() && !c.is_ascii_control() && c != '\\';
            (1..=most).contains(&text.len()) && text.chars().all(is_plain)
        };
        fits(value, 16) && fits(scheme, 16) && fits(meaning, 64)
    }
}

/// Codes of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentCodes {
    /// Kind of the structure, of context group 7150, such as (91723000, SCT, Anatomical Structure).
    pub category: Code,
    /// The structure.
    pub property: Code,
    /// Side or part of it.
    pub modifier: Option<Code>,
    /// Region of the body that it lies in, where the structure does not say that.
    pub region: Option<Code>,
}

impl SegmentCodes {
    /// Codes of a label by its name, or by the name of its dataset and its own, as in "hippocampus anterior". Case, signs, and
    /// `left` and `right` in names do not matter. Other names are coded as tissue.
    ///
    /// ```
    /// use adw_dicom::SegmentCodes;
    /// let codes = SegmentCodes::of("Task09_Spleen", "spleen");
    /// assert_eq!((codes.property.0.as_str(), codes.property.2.as_str()), ("78961009", "Spleen"));
    /// let side = SegmentCodes::of("Kidneys", "kidney_left").modifier.unwrap();
    /// assert_eq!(side.2, "Left");
    /// ```
    pub fn of(dataset: &str, label: &str) -> Self {
        let words = self::words(label);
        let mut of_dataset = self::words(dataset);
        // Task04 of Task04_Hippocampus, Dataset004 of nnU-Net's.
        let is_number = |word: &String| {
            let number = word.strip_prefix("task").or(word.strip_prefix("dataset"));
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        of_dataset.retain(|word| !is_number(word));
        let is_side = |word: &str| word == "left" || word == "right";
        let sides: Vec<_> = words.iter().filter(|word| is_side(word)).collect();
        let without: Vec<String> = words.iter().filter(|word| !is_side(word)).cloned().collect();
        let found = in_table(&[&of_dataset[..], &words].concat()).or_else(|| in_table(&words));
        if let Some(found) = found {
            return found;
        }
        let mut codes = in_table(&without).unwrap_or_else(|| {
            let tissue = Code::snomed("85756007", "Tissue");
            Self { category: tissue.clone(), property: tissue, modifier: None, region: None }
        });
        if let [side] = sides[..] {
            let code = if side == "left" { ("7771000", "Left") } else { ("24028007", "Right") };
            codes.modifier = Some(Code::snomed(code.0, code.1));
        }
        codes
    }

    /// Reads codes by label from a JSON file: `{"LABEL": {"category": [VALUE, SCHEME, MEANING], "type": [...]}}`, with `modifier`
    /// and `region` where they are wanted.
    ///
    /// # Errors
    /// [`Error::Codes`] for a file that cannot be read or holds something else.
    pub fn load(path: &Path) -> Result<Vec<(String, Self)>> {
        let error = |problem| Error::Codes { path: path.to_owned(), problem };
        let text = adw_files::read_text(path).map_err(|cause| error(cause.to_string()))?;
        let json: Value = serde_json::from_str(&text).map_err(|cause| error(cause.to_string()))?;
        let labels = json.as_object().ok_or_else(|| error(format!("expected {FORM}")))?;
        let codes = labels.iter().map(|(label, json)| Ok((label.clone(), Self::from_json(json)?)));
        codes.collect::<std::result::Result<_, String>>().map_err(error)
    }

    fn from_json(json: &Value) -> std::result::Result<Self, String> {
        let fields = json.as_object().ok_or_else(|| format!("{json} is no label's codes; expected {FORM}"))?;
        if let Some(name) =
            fields.keys().find(|name| !["category", "type", "modifier", "region"].contains(&name.as_str()))
        {
            return Err(format!("unknown field {name:?}; expected category, type, modifier, region"));
        }
        let code = |name: &str| fields.get(name).map(Code::from_json).transpose();
        let needed = |name: &str| code(name)?.ok_or_else(|| format!("a label without {name:?}; expected {FORM}"));
        Ok(Self {
            category: needed("category")?,
            property: needed("type")?,
            modifier: code("modifier")?,
            region: code("region")?,
        })
    }
}

/// Lower-case words of a name, without signs.
fn words(name: &str) -> Vec<String> {
    let words = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// Codes of the line of the table that has this name.
fn in_table(name: &[String]) -> Option<SegmentCodes> {
    let name = name.join(" ");
    let line = include_str!("codes.tsv").lines().find(|line| line.split('\t').next() == Some(&name))?;
    let fields: Vec<&str> = line.split('\t').collect();
    let code = |at: usize| {
        let value = fields.get(at).filter(|value| !value.is_empty())?;
        Some(Code::snomed(value, fields[at + 1]))
    };
    let category = match fields[1] {
        "M" => Code::snomed("49755003", "Morphologically Abnormal Structure"),
        "T" => Code::snomed("85756007", "Tissue"),
        "B" => Code::snomed("91720002", "Body Substance"),
        _ => Code::snomed("91723000", "Anatomical Structure"),
    };
    Some(SegmentCodes { category, property: code(2)?, modifier: code(6), region: code(4) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_the_decathlon_have_codes() {
        let labels = [
            ("Task01_BrainTumour", "edema", "Edema"),
            ("Task01_BrainTumour", "non-enhancing tumor", "Neoplasm"),
            ("Task01_BrainTumour", "enhancing tumour", "Neoplasm"),
            ("Task02_Heart", "left atrium", "Left atrium"),
            ("Task03_Liver", "liver", "Liver"),
            ("Task03_Liver", "cancer", "Neoplasm"),
            ("Task04_Hippocampus", "Anterior", "Hippocampus"),
            ("Dataset004_Hippocampus", "Posterior", "Hippocampus"),
            ("Task05_Prostate", "PZ", "Peripheral zone of the prostate"),
            ("Task05_Prostate", "TZ", "Transition zone of the prostate"),
            ("Task06_Lung", "cancer", "Neoplasm"),
            ("Task07_Pancreas", "pancreas", "Pancreas"),
            ("Task07_Pancreas", "cancer", "Neoplasm"),
            ("Task08_HepaticVessel", "Vessel", "Blood Vessel"),
            ("Task08_HepaticVessel", "Tumour", "Neoplasm"),
            ("Task09_Spleen", "spleen", "Spleen"),
            ("Task10_Colon", "colon cancer primaries", "Neoplasm, Primary"),
        ];
        for (dataset, label, expected) in labels {
            assert_eq!(SegmentCodes::of(dataset, label).property.2, expected, "{dataset} {label}");
        }
        let region = |dataset, label| SegmentCodes::of(dataset, label).region.map(|code| code.2);
        assert_eq!(region("Task03_Liver", "cancer").as_deref(), Some("Liver"));
        assert_eq!(region("Task06_Lung", "cancer").as_deref(), Some("Lung"));
        assert_eq!(SegmentCodes::of("Task04_Hippocampus", "Anterior").modifier.unwrap().2, "Anterior");
    }

    #[test]
    fn every_line_of_the_table_is_sound() {
        let mut names = std::collections::BTreeSet::new();
        for line in include_str!("codes.tsv").lines() {
            let name = line.split('\t').next().unwrap();
            let codes = in_table(&words(name)).unwrap_or_else(|| panic!("{name}"));
            assert!(codes.property.is_sound(), "{name}");
            assert!(names.insert(name), "{name} is there twice");
        }
    }

    #[test]
    fn sides_are_modifiers_and_other_names_a_tissue() {
        let right = SegmentCodes::of("", "Lung (RIGHT)");
        assert_eq!((right.property.2.as_str(), right.modifier.unwrap().2.as_str()), ("Lung", "Right"));
        assert_eq!(SegmentCodes::of("x", "left atrium").modifier, None, "a structure of its own");
        let unknown = SegmentCodes::of("Task00_Phantom", "blob");
        assert_eq!((unknown.category.2.as_str(), unknown.property.0.as_str()), ("Tissue", "85756007"));
    }

    #[test]
    fn codes_are_read_from_a_file_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("codes.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            SegmentCodes::load(&path)
        };
        let sound =
            r#"{"blob": {"category": ["1", "99X", "a"], "type": ["2", "99X", "b"], "region": ["3", "SCT", "c"]}}"#;
        let codes = read(sound).unwrap();
        assert_eq!((codes[0].0.as_str(), codes[0].1.region.clone()), ("blob", Some(Code::new("3", "SCT", "c"))));
        for (text, expected) in [
            ("{", "EOF while parsing"),
            ("[]", "expected {\"LABEL\""),
            (r#"{"blob": 1}"#, "1 is no label's codes"),
            (r#"{"blob": {"category": ["1", "99X", "a"]}}"#, "a label without \"type\""),
            (&sound.replace("99X", "a coding scheme of many letters"), "16 and 64 ASCII"),
            (&sound.replace("region", "place"), "unknown field"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("codes.json"), "{message}");
        }
    }
}
