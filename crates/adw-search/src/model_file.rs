//! Trained network in one file: `model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use adw_supernet::{Architecture, Unet};
use candle_core::{DType, Device};

use crate::tensor_file::{self, FileKind, Metadata};
use crate::{Error, NamedTensors, Result};

const KIND: FileKind = FileKind {
    name: "a model file of this program",
    format: "adw-model/2",
    remedy: "copy it anew from where it was trained, or train again",
};

/// Weights, architecture, and entries of the caller's that prediction on new images needs (plan, label names).
///
/// On disk a safetensors file with tensors `block.{i}.conv.{l}.weight`, `block.{i}.conv.{l}.gamma|beta`,
/// `up.{u}.weight`, `head.{u}.weight`, those of a residual encoder as [`Unet`] names them, and as metadata `format`, `checksum` (CRC-32 of the file with zeros in its place),
/// `architecture` (JSON) and the entries of `info`. Equal models give equal bytes.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// Depths and widths of the network.
    pub architecture: Architecture,
    /// Parameters by name.
    pub weights: NamedTensors,
    /// Entries of the caller's, under keys other than `format`, `checksum` and `architecture`.
    pub info: BTreeMap<String, String>,
}

impl ModelFile {
    /// Writes the file. `path` is replaced when the new content is complete.
    ///
    /// # Errors
    /// If the weights do not fit the architecture, `info` uses a reserved key, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        for reserved in tensor_file::RESERVED.into_iter().chain(["architecture"]) {
            if self.info.contains_key(reserved) {
                return Err(Error::file(path, format!("metadata key {reserved} is reserved")));
            }
        }
        self.network(DType::F32, &Device::Cpu)?;
        let architecture = serde_json::to_string(&self.architecture)
            .map_err(|e| Error::file(path, format!("architecture cannot be written as JSON: {e}")))?;
        let mut metadata: Metadata = self.info.clone();
        metadata.insert("architecture".into(), architecture);
        let file = tensor_file::create(path, KIND, &self.weights, &metadata)?;
        file.commit().map_err(|e| Error::io(path, e))
    }

    /// Reads a file and checks that its weights fit its architecture.
    ///
    /// # Errors
    /// A message that names the file, for anything that is not a whole model file.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let (weights, mut info) = tensor_file::read(path, KIND, device)?;
        let bad = |reason: String| Error::file(path, format!("not {} ({reason})", KIND.name));
        let architecture = info.remove("architecture").ok_or_else(|| bad("no architecture".into()))?;
        let architecture: Architecture =
            serde_json::from_str(&architecture).map_err(|e| bad(format!("architecture: {e}")))?;
        architecture.check().map_err(|e| bad(e.to_string()))?;
        // Before a network is made that the file cannot fill. What differs by less is named by tensor below.
        let values: u64 = weights.values().map(|tensor| tensor.elem_count() as u64).sum();
        let parameters = architecture.cost([1; 3]).parameters;
        if parameters > (4 * values).max(1 << 22) {
            return Err(bad(format!("its architecture has {parameters} parameters, but it holds {values} values")));
        }
        let model = Self { architecture, weights, info };
        model.network(DType::F32, &Device::Cpu).map_err(|e| bad(e.to_string()))?;
        Ok(model)
    }

    /// Builds the network with these weights.
    ///
    /// # Errors
    /// If the weights do not fit the architecture.
    pub fn network(&self, dtype: DType, device: &Device) -> Result<Unet> {
        Ok(Unet::with_weights(&self.architecture, &self.weights, dtype, device)?)
    }
}

#[cfg(test)]
mod tests;
