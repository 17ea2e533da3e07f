//! State of a run in one file: parameters, optimisers, position, identity of the run.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::parameters::PARAMETER_GROUP;
use crate::tensor_file::{self, FileKind, Metadata};
use crate::{Error, NamedTensors, Result};

const KIND: FileKind =
    FileKind { name: "a checkpoint of this program", format: "adw-checkpoint/2", remedy: "it cannot be resumed from" };

/// Largest magnitude of a parameter in a checkpoint. Weights of healthy networks are near 1; far beyond this, the next steps
/// overflow.
const MAX_PARAMETER: f64 = 1e6;

/// Next iteration of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) epoch: usize,
    pub(crate) iteration: usize,
}

/// Sums and counts of the values that the iterations of the current epoch have reported, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunningMeans(BTreeMap<String, (f64, u64)>);

impl RunningMeans {
    pub(crate) fn add(&mut self, values: &[(&'static str, f64)]) {
        for (name, value) in values {
            let (sum, count) = self.0.entry((*name).to_owned()).or_default();
            *sum += value;
            *count += 1;
        }
    }

    /// Mean of `name`; none if it was not reported.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).map(|(sum, count)| sum / *count as f64)
    }
}

/// State of a run between two iterations.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) position: Position,
    pub(crate) means: RunningMeans,
    pub(crate) tensors: NamedTensors,
}

#[derive(Serialize, Deserialize)]
struct Progress {
    position: Position,
    means: RunningMeans,
}

impl Checkpoint {
    /// First tensor that holds NaN or a number out of range, and that value.
    pub(crate) fn diverged(&self) -> Result<Option<(&str, f64)>> {
        for (name, tensor) in &self.tensors {
            let group = name.split_once('/').map(|(group, _)| group);
            let limit = if group == Some(PARAMETER_GROUP) { MAX_PARAMETER } else { f64::MAX };
            let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            if let Some(&value) = values.iter().find(|value| value.is_nan() || value.abs() > limit) {
                return Ok(Some((name, value)));
            }
        }
        Ok(None)
    }

    /// Writes the checkpoint of the run that `identity` describes, replacing `path` once it is complete; the one before is
    /// kept as `previous` if that is given.
    pub(crate) fn write(&self, path: &Path, previous: Option<&Path>, identity: &Value) -> Result<()> {
        let progress = Progress { position: self.position, means: self.means.clone() };
        let progress = serde_json::to_string(&progress)
            .map_err(|e| Error::file(path, format!("progress cannot be written as JSON: {e}")))?;
        let metadata = Metadata::from([("identity".into(), identity.to_string()), ("progress".into(), progress)]);
        let file = tensor_file::create(path, KIND, &self.tensors, &metadata)?;
        let committed = match previous {
            Some(previous) => file.commit_keeping(previous),
            None => file.commit(),
        };
        committed.map_err(|e| Error::io(path, e))
    }

    /// Reads the tensors of a checkpoint of any run of this network.
    ///
    /// # Errors
    /// If the file is not a checkpoint, or that of another network.
    pub(crate) fn tensors_of_network(path: &Path, network: &Value, device: &Device) -> Result<NamedTensors> {
        let (tensors, metadata) = tensor_file::read(path, KIND, device)?;
        let identity: Value = parsed(path, &metadata, "identity")?;
        match difference("network", &identity["settings"]["network"], network) {
            Some(difference) => Err(Error::OtherRun { path: path.to_owned(), difference }),
            None => Ok(tensors),
        }
    }

    /// Reads a checkpoint of the run that `identity` describes.
    ///
    /// # Errors
    /// If the file is not a checkpoint, or belongs to another run.
    pub(crate) fn read(path: &Path, identity: &Value, device: &Device) -> Result<Self> {
        let (tensors, metadata) = tensor_file::read(path, KIND, device)?;
        let stored: Value = parsed(path, &metadata, "identity")?;
        if let Some(difference) = difference("", &stored, identity) {
            return Err(Error::OtherRun { path: path.to_owned(), difference });
        }
        let progress: Progress = parsed(path, &metadata, "progress")?;
        Ok(Self { position: progress.position, means: progress.means, tensors })
    }
}

/// Part of a checkpoint's metadata.
fn parsed<T: DeserializeOwned>(path: &Path, metadata: &Metadata, key: &str) -> Result<T> {
    let json = metadata.get(key).map_or("null", String::as_str);
    serde_json::from_str(json).map_err(|e| Error::file(path, format!("not {} ({e})", KIND.name)))
}

/// First value that differs, as "key: X in the checkpoint, Y now".
fn difference(at: &str, stored: &Value, now: &Value) -> Option<String> {
    if let (Value::Object(stored), Value::Object(now)) = (stored, now) {
        let mut keys = stored.keys().chain(now.keys());
        let null = &Value::Null;
        return keys.find_map(|key| {
            let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            let of = |map: &serde_json::Map<String, Value>| map.get(key).unwrap_or(null).clone();
            difference(&at, &of(stored), &of(now))
        });
    }
    (stored != now).then(|| format!("{at}: {stored} in the checkpoint, {now} now"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;
    use serde_json::json;

    fn example() -> Checkpoint {
        let mut means = RunningMeans::default();
        means.add(&[("loss", 0.1), ("norm", 1.0 / 3.0)]);
        means.add(&[("loss", 0.2)]);
        let w = Tensor::new(&[0.1f32, -3.0], &Device::Cpu).unwrap();
        Checkpoint {
            position: Position { epoch: 3, iteration: 17 },
            means,
            tensors: NamedTensors::from([("parameter.w".into(), w)]),
        }
    }

    #[test]
    fn what_is_written_is_read_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latest.safetensors");
        let identity = json!({"kind": "search", "config": {"epochs": 5, "lr": 0.1}});
        let saved = example();
        saved.write(&path, None, &identity).unwrap();
        let read = Checkpoint::read(&path, &identity, &Device::Cpu).unwrap();
        assert_eq!((read.position, &read.means), (saved.position, &saved.means));
        assert_eq!(read.means.get("loss"), Some(f64::midpoint(0.1, 0.2)));
        assert_eq!(read.means.get("norm"), Some(1.0 / 3.0));
        assert_eq!(read.means.get("absent"), None);
        let w = read.tensors["parameter.w"].to_vec1::<f32>().unwrap();
        assert_eq!(w, [0.1, -3.0]);
    }

    #[test]
    fn another_runs_checkpoint_is_refused_with_the_setting_that_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latest.safetensors");
        example().write(&path, None, &json!({"config": {"epochs": 5, "lr": 0.1}})).unwrap();
        let other = json!({"config": {"epochs": 6, "lr": 0.1}});
        let message = Checkpoint::read(&path, &other, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("(config.epochs: 5 in the checkpoint, 6 now)"), "{message}");
        let more = json!({"config": {"epochs": 5, "lr": 0.1}, "task": "heart"});
        let message = Checkpoint::read(&path, &more, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("(task: null in the checkpoint, \"heart\" now)"), "{message}");
    }

    #[test]
    fn values_that_no_training_recovers_from_are_found() {
        let with = |name: &str, value: f32| {
            let mut checkpoint = example();
            checkpoint.tensors.insert(name.into(), Tensor::new(&[0.5, value], &Device::Cpu).unwrap());
            checkpoint.diverged().unwrap().map(|(name, value)| (name.to_owned(), value.to_string()))
        };
        for value in [0.0, -1e5, f32::MIN_POSITIVE] {
            assert_eq!(with("parameter/w", value), None);
        }
        assert_eq!(with("optimizer/momentum.w", 1e20), None);
        for (name, value) in [("parameter/w", -1e20), ("parameter/w", f32::NAN), ("optimizer/m", f32::INFINITY)] {
            assert_eq!(with(name, value).unwrap().0, name, "{value}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latest.safetensors");
        let other = FileKind { format: "other/1", ..KIND };
        tensor_file::create(&path, other, &NamedTensors::new(), &Metadata::new()).unwrap().commit().unwrap();
        let message = Checkpoint::read(&path, &json!({}), &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("latest.safetensors: not a checkpoint of this program (format other/1"), "{message}");
    }
}
