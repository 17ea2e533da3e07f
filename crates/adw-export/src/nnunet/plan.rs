//! Plans of nnU-Net v2 as plans of this program.

use std::collections::{BTreeMap, BTreeSet};

use msd_data::{IntensityStatistics, Label, Normalization, Orientation, Plan};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Result, wrong};

/// Part of `plans.json` that does not depend on the configuration.
#[derive(Deserialize)]
struct Plans {
    dataset_name: String,
    image_reader_writer: String,
    transpose_forward: [usize; 3],
    transpose_backward: [usize; 3],
    foreground_intensity_properties_per_channel: BTreeMap<usize, IntensityStatistics>,
    configurations: BTreeMap<String, Value>,
}

/// A configuration of `plans.json`.
#[derive(Deserialize)]
struct Configuration {
    preprocessor_name: String,
    batch_size: usize,
    patch_size: [usize; 3],
    median_image_size_in_voxels: [f64; 3],
    spacing: [f64; 3],
    normalization_schemes: Vec<String>,
    use_mask_for_norm: Vec<bool>,
    #[serde(default)]
    batch_dice: bool,
    #[serde(default)]
    architecture: Value,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// `dataset.json` of a raw dataset.
#[derive(Deserialize)]
struct Dataset {
    #[serde(alias = "modality")]
    channel_names: BTreeMap<usize, String>,
    labels: BTreeMap<String, Value>,
}

/// Converts the configuration of a network with these strides and kernels.
pub(super) fn convert(
    plans: &str,
    dataset: &str,
    configuration: &str,
    strides: &[[usize; 3]],
    kernels: &[[usize; 3]],
) -> Result<Plan> {
    let plans: Plans = serde_json::from_str(plans).map_err(|e| wrong(format!("plans.json: {e}")))?;
    let dataset: Dataset = serde_json::from_str(dataset).map_err(|e| wrong(format!("dataset.json: {e}")))?;
    let value = inherited(&plans.configurations, configuration)?;
    if let Some(previous) = value.get("previous_stage").filter(|stage| !stage.is_null()) {
        return Err(wrong(format!("a cascade, whose network also takes the labels of {previous}")));
    }
    let found: Configuration =
        serde_json::from_value(value.into()).map_err(|e| wrong(format!("configuration {configuration}: {e}")))?;
    check_defaults(&found)?;
    let modalities: Vec<String> = dataset.channel_names.into_values().collect();
    let intensity: Vec<_> = plans.foreground_intensity_properties_per_channel.into_values().collect();
    let plan = Plan {
        dataset_name: plans.dataset_name,
        labels: labels(dataset.labels)?,
        spacing_mm: found.spacing,
        median_shape: found.median_image_size_in_voxels,
        patch_size: found.patch_size,
        batch_size: found.batch_size,
        strides: strides.to_vec(),
        kernels: kernels.to_vec(),
        normalization: found.normalization_schemes.iter().map(|name| scheme(name)).collect::<Result<_>>()?,
        use_mask_for_norm: found.use_mask_for_norm,
        intensity,
        batch_dice: found.batch_dice,
        orientation: orientation(&plans.image_reader_writer)?,
        transpose_forward: plans.transpose_forward,
        transpose_backward: plans.transpose_backward,
        modalities,
    };
    plan.check().map_err(wrong)?;
    Ok(plan)
}

/// The entries of a configuration, those that it inherits included: each has the value of the first configuration that names it.
fn inherited<'a>(configurations: &'a BTreeMap<String, Value>, name: &'a str) -> Result<Map<String, Value>> {
    let (mut entries, mut seen, mut next) = (Map::new(), BTreeSet::new(), Some(name));
    while let Some(name) = next {
        if !seen.insert(name) {
            return Err(wrong(format!("configuration {name} inherits from itself")));
        }
        let Some(Value::Object(found)) = configurations.get(name) else {
            let known: Vec<_> = configurations.keys().collect();
            return Err(wrong(format!("no configuration {name} in plans.json, but {known:?}")));
        };
        for (key, value) in found.iter().filter(|(key, _)| *key != "inherits_from") {
            entries.entry(key).or_insert_with(|| value.clone());
        }
        next = found.get("inherits_from").and_then(Value::as_str);
    }
    Ok(entries)
}

/// Refuses settings that change label maps and that this program has no counterpart of.
fn check_defaults(found: &Configuration) -> Result<()> {
    if found.preprocessor_name != "DefaultPreprocessor" {
        return Err(wrong(format!("preprocessor {}, expected DefaultPreprocessor", found.preprocessor_name)));
    }
    for (kind, order) in [("data", 3), ("probabilities", 1)] {
        let (name, arguments) = (format!("resampling_fn_{kind}"), format!("resampling_fn_{kind}_kwargs"));
        let expected = [
            json!("resample_data_or_seg_to_shape"),
            json!({ "is_seg": false, "order": order, "order_z": 0, "force_separate_z": null }),
        ];
        for (key, expected) in [name, arguments].iter().zip(expected) {
            if let Some(value) = found.others.get(key).filter(|value| **value != expected) {
                return Err(wrong(format!("{key} is {value}, expected {expected}")));
            }
        }
    }
    let arguments = &found.architecture["arch_kwargs"];
    for (value, expected) in [
        (&arguments["norm_op_kwargs"]["eps"], json!(1e-5)),
        (&arguments["nonlin"], json!("torch.nn.LeakyReLU")),
        (&arguments["nonlin_kwargs"]["negative_slope"], json!(0.01)),
        (&arguments["nonlin_first"], json!(false)),
    ] {
        if !value.is_null() && *value != expected {
            return Err(wrong(format!("its architecture has {value}, expected {expected}")));
        }
    }
    Ok(())
}

/// Labels by value, without the label of voxels that were ignored in training.
fn labels(named: BTreeMap<String, Value>) -> Result<Vec<Label>> {
    let mut labels = vec![];
    for (name, value) in named.into_iter().filter(|(name, _)| name != "ignore") {
        match value.as_u64().and_then(|value| u16::try_from(value).ok()) {
            Some(value) => labels.push(Label { value, name }),
            None => return Err(wrong(format!("label {name} is {value}, a region; expected a number"))),
        }
    }
    labels.sort_by_key(|label| label.value);
    Ok(labels)
}

fn scheme(name: &str) -> Result<Normalization> {
    Ok(match name {
        "CTNormalization" => Normalization::Ct,
        "ZScoreNormalization" => Normalization::ZScore,
        "RescaleTo01Normalization" => Normalization::RescaleToUnit,
        "RGBTo01Normalization" => Normalization::RgbToUnit,
        "NoNormalization" => Normalization::None,
        other => return Err(wrong(format!("normalisation {other}, expected one of nnU-Net's own"))),
    })
}

/// Orientation that nnU-Net's reader brings images to; most leave them as they are stored.
fn orientation(reader: &str) -> Result<Option<Orientation>> {
    match reader {
        "SimpleITKIO" | "NibabelIO" => Ok(None),
        "NibabelIOWithReorient" | "SimpleITKIOWithReorient" => Ok("RAS".parse().ok()),
        other => Err(wrong(format!("images read by {other}, expected NIfTI files"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_inherit() {
        let configurations = serde_json::from_value(json!({
            "full": { "batch_size": 2, "preprocessor_name": "DefaultPreprocessor" },
            "large": { "inherits_from": "full", "batch_size": 8 },
            "circle": { "inherits_from": "circle" },
            "orphan": { "inherits_from": "none" },
        }))
        .unwrap();
        let found = inherited(&configurations, "large").unwrap();
        assert_eq!(Value::Object(found), json!({ "batch_size": 8, "preprocessor_name": "DefaultPreprocessor" }));
        for (name, expected) in [("circle", "inherits from itself"), ("orphan", "no configuration none")] {
            let message = inherited(&configurations, name).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
