//! Names of a network's parameters in PyTorch: those of the module `Unet` in [`SCRIPT`].
//!
//! | parameter | name in PyTorch |
//! |---|---|
//! | `block.{i}.conv.{l}.weight` | `blocks.{i}.{l}.conv.weight` |
//! | `block.{i}.conv.{l}.gamma` | `blocks.{i}.{l}.norm.weight` |
//! | `block.{i}.conv.{l}.beta` | `blocks.{i}.{l}.norm.bias` |
//! | `block.{i}.shortcut.{l}.weight`, `.gamma`, `.beta` | `shortcuts.{i}_{l}.conv.weight`, `.norm.weight`, `.norm.bias` |
//! | `up.{u}.weight`, `up.{u}.bias` | `ups.{u}.weight`, `ups.{u}.bias` |
//! | `head.{u}.weight`, `head.{u}.bias` | `heads.{u}.weight`, `heads.{u}.bias` |
//!
//! Shapes are PyTorch's already. Blocks `i` are counted encoder fine to coarse, then decoder coarse to fine; decoder steps `u`
//! coarse to fine.

use std::collections::BTreeMap;

use adw_supernet::Unet;
use candle_core::Tensor;

/// Python module with the network and a function that loads it.
pub const SCRIPT: &str = include_str!("../python/pytorch.py");

/// Parameters of networks by their names in PyTorch; with several networks behind `N.` for network N, as in a `ModuleList`.
pub fn state_dict(networks: &[Unet]) -> BTreeMap<String, Tensor> {
    let mut state = BTreeMap::new();
    for (n, network) in networks.iter().enumerate() {
        let prefix = if networks.len() > 1 { format!("{n}.") } else { String::new() };
        for parameter in network.parameters() {
            let name = format!("{prefix}{}", name(&parameter.name));
            state.insert(name, parameter.var.as_detached_tensor());
        }
    }
    state
}

/// Name of a parameter in PyTorch.
fn name(parameter: &str) -> String {
    let of_layer = |name: &str| match name {
        "weight" => "conv.weight",
        "gamma" => "norm.weight",
        _ => "norm.bias",
    };
    match parameter.split('.').collect::<Vec<_>>()[..] {
        ["block", i, "conv", l, name] => format!("blocks.{i}.{l}.{}", of_layer(name)),
        ["block", i, "shortcut", l, name] => format!("shortcuts.{i}_{l}.{}", of_layer(name)),
        [kind, u, name] => format!("{kind}s.{u}.{name}"),
        _ => unreachable!("networks have no other parameters than {parameter}"),
    }
}

#[cfg(test)]
mod tests {
    use adw_supernet::{Architecture, FixedSizes};
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn every_parameter_has_a_name_of_its_own() {
        let sizes = FixedSizes::with_width(4);
        let a = Architecture::uniform(1, 2, vec![[2; 3]; 2], vec![[3; 3]; 3], sizes).unwrap();
        let network = || Unet::new(&a, 1, DType::F32, &Device::Cpu).unwrap();
        let one = state_dict(&[network()]);
        assert_eq!(one.len(), network().parameters().len());
        assert_eq!(one["blocks.4.1.norm.bias"].dims(), [4]);
        assert_eq!(one["ups.0.weight"].dims(), [16, 8, 2, 2, 2]);
        assert_eq!(one["heads.1.weight"].dims(), [2, 4, 1, 1, 1]);
        let two = state_dict(&[network(), network()]);
        assert!(two.len() == 2 * one.len() && two.contains_key("1.blocks.0.0.conv.weight"));
    }
}
