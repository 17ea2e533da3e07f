//! Discrete networks with the weights of a supernet.

use std::path::Path;

use adw_supernet::{Architecture, Supernet};

use crate::checkpoint::Checkpoint;
use crate::dice::{self, DiceCounts};
use crate::parameters::{self, PARAMETER_GROUP, TensorGroups};
use crate::{Batch, Result};

/// Pseudo-Dice of a network with the weights of `net` over the voxels of all `batches`, mean of the foreground classes; none if
/// no class is present or predicted. The network is cut out of the supernet ([`Supernet::subnet`]).
///
/// # Errors
/// If the architecture is not part of the supernet, or a batch does not fit it.
pub fn pseudo_dice(net: &Supernet, architecture: &Architecture, batches: &[Batch]) -> Result<Option<f64>> {
    let subnet = net.subnet(architecture)?;
    let mut counts = DiceCounts::default();
    for batch in batches {
        counts.add(&subnet.predict(&batch.x)?, &batch.target)?;
    }
    Ok(dice::mean(&counts.dice()))
}

/// Sets the weights, alpha and beta of `net` to those of the latest checkpoint of the search in `directory`.
///
/// # Errors
/// If there is no such checkpoint, it is damaged, or it is that of another supernet.
pub fn load_shared_weights(net: &Supernet, directory: &Path) -> Result<()> {
    let path = directory.join("checkpoint/latest.safetensors");
    let network = serde_json::json!(net.config());
    let state = Checkpoint::tensors_of_network(&path, &network, &parameters::device(net.parameters()))?;
    parameters::set(net.parameters(), &TensorGroups::get(&state, PARAMETER_GROUP))
}
