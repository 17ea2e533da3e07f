//! Bundle of MONAI: a folder with a network and configurations that `python -m monai.bundle run inference` runs.

use serde_json::{Value, json};

use crate::inference::Inference;
use crate::pytorch;

/// Place of the weights in the bundle: the file of [`pytorch::state_dict`] with the metadata that [`pytorch::SCRIPT`] reads.
pub const WEIGHTS: &str = "models/model.safetensors";

/// Files of a bundle beside its weights: paths in the bundle and texts.
pub fn files(inference: &Inference) -> [(&'static str, String); 6] {
    let text = |value: Value| format!("{value:#}\n");
    [
        ("configs/metadata.json", text(metadata(inference))),
        ("configs/inference.json", text(configuration(inference))),
        ("scripts/__init__.py", String::new()),
        ("scripts/network.py", pytorch::SCRIPT.to_owned()),
        ("scripts/bundle.py", include_str!("../python/bundle.py").to_owned()),
        ("docs/README.md", readme(inference)),
    ]
}

fn metadata(inference: &Inference) -> Value {
    let channels = |names: Vec<&str>| -> Value {
        names.iter().enumerate().map(|(i, name)| (i.to_string(), json!(name))).collect::<serde_json::Map<_, _>>().into()
    };
    let map = |kind: &str, format: &str, names: Vec<&str>| {
        json!({
            "type": kind, "format": format, "num_channels": names.len(), "spatial_shape": inference.patch_size,
            "dtype": "float32", "value_range": [], "is_patch_data": true, "channel_def": channels(names),
        })
    };
    let image = map("image", "magnitude", inference.channels.iter().map(|channel| channel.name.as_str()).collect());
    let pred = map("logits", "segmentation", inference.labels.values().map(String::as_str).collect());
    json!({
        "version": "0.1.0",
        "changelog": { "0.1.0": "exported" },
        "monai_version": "1.4.0",
        "pytorch_version": "2.0.0",
        "numpy_version": "1.24.0",
        "required_packages_version": { "nibabel": "4.0.0", "pytorch-ignite": "0.4.11", "safetensors": "0.4.0", "scipy": "1.10.0" },
        "name": inference.dataset,
        "task": "segmentation",
        "description": format!("3D U-Net for {}", inference.dataset),
        "authors": "",
        "copyright": "",
        "network_data_format": { "inputs": { "image": image }, "outputs": { "pred": pred } },
        "inference": inference,
    })
}

fn configuration(inference: &Inference) -> Value {
    let steps = inference.postprocessing.keep_largest.iter().map(|step| {
        let step = json!(step);
        let foreground: Vec<_> = inference.labels.keys().filter(|label| **label > 0).collect();
        let (labels, independent) =
            if step == "foreground" { (json!(foreground), false) } else { (json!([step["label"]]), true) };
        json!({
            "_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": labels, "is_onehot": false,
            "independent": independent, "connectivity": 3,
        })
    });
    let postprocessing = [
        json!({
            "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
            "nearest_interp": false, "to_tensor": true,
        }),
        json!({ "_target_": "AsDiscreted", "keys": "pred", "argmax": true }),
    ];
    let save = json!({
        "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "",
        "separate_folder": false, "resample": false, "output_dtype": "$np.uint8",
    });
    let postprocessing: Vec<Value> = postprocessing.into_iter().chain(steps).chain([save]).collect();
    json!({
        "imports": ["$from scripts.bundle import find_images", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$find_images(@dataset_dir, @output_dir)",
        "network": {
            "_target_": "scripts.bundle.Network", "path": format!("$@bundle_root + '/{WEIGHTS}'"),
            "transpose": inference.transpose, "mirror_axes": inference.mirror_axes,
        },
        "preprocessing": { "_target_": "Compose", "transforms": preprocessing(inference) },
        "dataset": { "_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing" },
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": false, "num_workers": 0,
        },
        "inferer": {
            "_target_": "scripts.bundle.Windows", "patch_size": xyz(inference, inference.patch_size),
            "step": inference.step, "sigma": inference.gaussian.sigma, "peak": inference.gaussian.peak,
            "dtype": inference.gaussian.dtype,
        },
        "postprocessing": { "_target_": "Compose", "transforms": postprocessing },
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "$@network.to(@device)", "inferer": "@inferer", "postprocessing": "@postprocessing",
        },
        "inference": ["$@evaluator.run()"],
        "run": ["$@evaluator.run()"],
    })
}

fn preprocessing(inference: &Inference) -> Vec<Value> {
    let mut transforms = vec![
        json!({ "_target_": "LoadImaged", "keys": ["image"] }),
        json!({ "_target_": "EnsureChannelFirstd", "keys": ["image"] }),
    ];
    if let Some(orientation) = inference.orientation {
        transforms.push(json!({ "_target_": "Orientationd", "keys": ["image"], "axcodes": orientation }));
    }
    transforms.extend([
        json!({
            "_target_": "CropForegroundd", "keys": ["image"], "source_key": "image",
            "select_fn": "$lambda image: image != 0", "allow_smaller": true,
        }),
        json!({ "_target_": "scripts.bundle.Normalize", "keys": ["image"], "channels": inference.channels }),
        json!({
            "_target_": "Spacingd", "keys": ["image"], "pixdim": xyz(inference, inference.spacing_mm), "mode": 3,
            "padding_mode": "nearest", "scale_extent": true,
        }),
    ]);
    transforms
}

/// Values along the network's axes as values along x, y, z, the order of axes in MONAI.
fn xyz<T: Copy>(inference: &Inference, values: [T; 3]) -> [T; 3] {
    let axis = |zyx: usize| inference.transpose.iter().position(|&axis| axis == zyx).expect("a permutation");
    [2, 1, 0].map(|zyx| values[axis(zyx)])
}

fn readme(inference: &Inference) -> String {
    let labels: Vec<String> = inference.labels.iter().map(|(value, name)| format!("- {value}: {name}\n")).collect();
    format!(
        "# {}\n\n3D U-Net, exported by adw. In the bundle's folder, with images in `images`:\n\n\
         ```sh\npip install 'monai[fire,ignite,nibabel]' safetensors scipy\n\
         python -m monai.bundle run inference --config_file configs/inference.json\n```\n\n\
         Label maps go to `labels`; `--dataset_dir` and `--output_dir` name other folders. Images must give their voxel sizes in \
         millimetres and have an sform or a qform: MONAI reads no units, and takes an image without forms for LAS.\n\n{}",
        inference.dataset,
        labels.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_in_the_order_of_monais_axes() {
        let mut inference = Inference::example();
        (inference.transpose, inference.patch_size) = ([1, 0, 2], [10, 20, 30]);
        let configuration = configuration(&inference);
        // D, H, W are y, z, x.
        assert_eq!(configuration["inferer"]["patch_size"], json!([30, 10, 20]));
        let transforms = configuration["postprocessing"]["transforms"].as_array().unwrap();
        assert_eq!(transforms[2]["applied_labels"], json!([1, 2]));
        assert_eq!(transforms[3]["applied_labels"], json!([2]));
    }
}
