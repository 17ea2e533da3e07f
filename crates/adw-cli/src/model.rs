//! Model files: metadata beside the weights, and models whose logits are averaged.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use adw_inference::SlidingWindow;
use adw_search::ModelFile;
use adw_supernet::{Precision, Unet};
use anyhow::Result;
use candle_core::{DType, Device};
use msd_data::{Plan, Postprocessing, postprocess::Structure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{ensemble::Ensemble, failure::bad_input, fold::Fold, report::progress::note, run_config::Settings};

/// Models of one plan, whose logits can be averaged.
pub(crate) struct Models {
    pub(crate) networks: Vec<Unet>,
    pub(crate) plan: Plan,
    /// Axes that every training mirrored, D H W.
    mirror_axes: [bool; 3],
    /// Settings that each model was scored with.
    test_times: Vec<TestTime>,
}

/// Settings of the sliding window that a model is applied with unless others are requested.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TestTime {
    /// Distance of windows as a fraction of the patch.
    pub(crate) step: f64,
    /// Averages over windows mirrored along the axes that training mirrored.
    pub(crate) mirror: bool,
}

impl TestTime {
    fn of(settings: &Settings) -> Self {
        Self { step: settings.predict.step, mirror: settings.predict.mirror }
    }
}

impl Models {
    /// Windows with the given settings; where there are none, with those that the models were scored with.
    ///
    /// # Errors
    /// The models were scored with different ones, or `step` is no fraction.
    pub(crate) fn window(&self, step: Option<f64>, mirror: Option<bool>) -> Result<SlidingWindow> {
        if let Some(step) = step.filter(|step| !(*step > 0.0 && *step <= 1.0)) {
            bad_input!("--step {step}: expected a fraction of the patch above 0, at most 1");
        }
        let of_models = |get: fn(&TestTime) -> String| {
            let mut values: Vec<String> = self.test_times.iter().map(get).collect();
            values.dedup();
            if values.len() == 1 { None } else { Some(values.join(", ")) }
        };
        if let (None, Some(steps)) = (step, of_models(|t| t.step.to_string())) {
            bad_input!("the models were scored with different steps ({steps}): choose one with --step");
        }
        if let (None, Some(mirrored)) = (mirror, of_models(|t| t.mirror.to_string())) {
            bad_input!(
                "some models were scored with mirrored windows ({mirrored}): choose with --mirror=true or false"
            );
        }
        let own = self.test_times[0];
        let mirror = mirror.unwrap_or(own.mirror);
        if mirror && self.mirror_axes == [false; 3] {
            note("warning: trained without mirroring, so --mirror and predict.mirror change nothing");
        }
        Ok(SlidingWindow {
            step: step.unwrap_or(own.step),
            mirror: if mirror { self.mirror_axes } else { [false; 3] },
            ..SlidingWindow::new(self.plan.patch_size)
        })
    }

    /// Steps of postprocessing: those of the file `option`, or none by that name; without an option those of the run that the models
    /// are of.
    ///
    /// # Errors
    /// No such file; steps for labels that the models do not have.
    pub(crate) fn postprocessing(&self, ensemble: &Ensemble, option: Option<&Path>) -> Result<Postprocessing> {
        let file = option.or(ensemble.postprocessing.as_deref());
        let Some(file) = file.filter(|file| *file != Path::new("none")) else { return Ok(Postprocessing::default()) };
        let steps = Postprocessing::load(file)?;
        let labels = 1..self.plan.labels.len();
        let unknown = steps.keep_largest.iter().find_map(|structure| match structure {
            Structure::Label(label) if !labels.contains(&usize::from(*label)) => Some(label),
            _ => None,
        });
        if let Some(label) = unknown {
            let last = self.plan.labels.len() - 1;
            bad_input!("{}: has label {label}, the models have 1 to {last}: it is another dataset's", file.display());
        }
        Ok(steps)
    }
}

/// Writes the settings of the sliding window into a model file, unless it holds them.
///
/// # Errors
/// A file that is no model, or a full or read-only disk.
pub(crate) fn update_test_time(path: &Path, settings: &Settings) -> Result<()> {
    let mut file = ModelFile::load(path, &Device::Cpu)?;
    let text = serde_json::to_string(&TestTime::of(settings))?;
    if file.info.get(TEST_TIME) != Some(&text) {
        file.info.insert(TEST_TIME.to_owned(), text);
        file.save(path)?;
    }
    Ok(())
}

/// Refuses an output that would replace a trained model; one that was imported may be made anew.
pub(crate) fn check_no_training(option: &str, path: &Path) -> Result<()> {
    let is_imported = |file: &ModelFile| {
        entry::<Value>(file, "training", path).is_ok_and(|training| training.get("program").is_some())
    };
    if path.is_file() && ModelFile::load(path, &Device::Cpu).is_ok_and(|file| !is_imported(&file)) {
        bad_input!("{option} {}: is a trained model; choose another name, or remove it", path.display());
    }
    Ok(())
}

/// Key of [`TestTime`] in a model's metadata.
const TEST_TIME: &str = "test_time";

/// Metadata of a model: all that prediction needs besides architecture and weights, and the model's origin.
pub(crate) fn info(plan: &Plan, settings: &Settings, fold: Fold) -> Result<BTreeMap<String, String>> {
    let training = json!({ "task": plan.dataset_name, "fold": fold, "seed": settings.seed });
    entries(plan, settings.data.augmentation.mirrored_axes(plan)?, TestTime::of(settings), &training)
}

/// Metadata of a model that was trained with windows mirrored along some axes D, H, W.
pub(crate) fn entries(
    plan: &Plan,
    mirror_axes: [bool; 3],
    test_time: TestTime,
    training: &Value,
) -> Result<BTreeMap<String, String>> {
    let labels: BTreeMap<u16, &str> = plan.labels.iter().map(|label| (label.value, label.name.as_str())).collect();
    Ok(BTreeMap::from([
        ("plan".to_owned(), serde_json::to_string(plan)?),
        ("labels".to_owned(), serde_json::to_string(&labels)?),
        ("mirror_axes".to_owned(), serde_json::to_string(&mirror_axes)?),
        (TEST_TIME.to_owned(), serde_json::to_string(&test_time)?),
        ("training".to_owned(), training.to_string()),
    ]))
}

/// Reads models whose logits are averaged; they compute in `precision`.
///
/// # Errors
/// A file that is no model, or models of different plans.
pub(crate) fn load(paths: &[PathBuf], precision: Precision, device: &Device) -> Result<Models> {
    let mut models: Option<Models> = None;
    for path in paths {
        let file = ModelFile::load(path, device)?;
        check_finite(&file, path)?;
        let plan: Plan = entry(&file, "plan", path)?;
        if let Err(problem) = plan.check() {
            bad_input!("{}: plan in its metadata: {problem}", path.display());
        }
        let mirror_axes: [bool; 3] = entry(&file, "mirror_axes", path)?;
        let test_time: TestTime = entry(&file, TEST_TIME, path)?;
        let (architecture, channels, classes) = (&file.architecture, plan.modalities.len(), plan.labels.len());
        if (architecture.in_channels, architecture.num_classes) != (channels, classes) {
            bad_input!(
                "{}: its network does not fit its plan of {channels} channels and {classes} labels",
                path.display()
            );
        }
        let mut network = file.network(DType::F32, device)?;
        network.set_precision(precision);
        match &mut models {
            None => {
                models = Some(Models { networks: vec![network], plan, mirror_axes, test_times: vec![test_time] });
            }
            Some(models) if models.plan == plan => {
                models.networks.push(network);
                models.test_times.push(test_time);
                models.mirror_axes = [0, 1, 2].map(|axis| models.mirror_axes[axis] && mirror_axes[axis]);
            }
            Some(models) => bad_input!(
                "{}: its plan (of {}) differs from that of {} (of {}); only models of one plan can be averaged",
                path.display(),
                plan.dataset_name,
                paths[0].display(),
                models.plan.dataset_name
            ),
        }
    }
    match models {
        Some(models) => Ok(models),
        None => bad_input!("no model was given"),
    }
}

/// Refuses weights that are NaN or infinite: such a model would segment every voxel alike.
fn check_finite(file: &ModelFile, path: &Path) -> Result<()> {
    for (name, weights) in &file.weights {
        let values: Vec<f32> = weights.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let broken = values.iter().filter(|value| !value.is_finite()).count();
        if broken > 0 {
            bad_input!(
                "{}: {broken} of {} values of {name} are NaN or infinite; copy the file anew or train again",
                path.display(),
                values.len()
            );
        }
    }
    Ok(())
}

/// Reads a JSON value from a model's metadata.
fn entry<T: DeserializeOwned>(file: &ModelFile, key: &str, path: &Path) -> Result<T> {
    let Some(text) = file.info.get(key) else {
        bad_input!("{}: no {key} in its metadata; was it written by `adw retrain`?", path.display());
    };
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => bad_input!("{}: {key} in its metadata: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use adw_supernet::Architecture;

    use super::*;

    #[test]
    fn weights_that_are_no_numbers_are_refused() {
        let device = Device::Cpu;
        let blocks = vec![vec![2], vec![2], vec![2]];
        let architecture = Architecture::new(1, 2, vec![[2; 3]], vec![[3; 3]; 2], blocks).unwrap();
        let net = Unet::new(&architecture, 1, DType::F32, &device).unwrap();
        let weights = net.parameters().iter();
        let mut file = ModelFile {
            architecture,
            weights: weights.map(|parameter| (parameter.name.clone(), parameter.var.as_tensor().clone())).collect(),
            info: BTreeMap::new(),
        };
        let path = Path::new("model.safetensors");
        check_finite(&file, path).unwrap();
        let (name, weights) = file.weights.iter_mut().next().unwrap();
        let name = name.clone();
        *weights = (weights.ones_like().unwrap() / 0.0).unwrap();
        let error = check_finite(&file, path).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), 2);
        let message = error.to_string();
        assert!(message.contains(&name) && message.contains("infinite"), "{message}");
    }
}
