"""Writes a network of nnU-Net for `adw import`: needs torch and safetensors, not nnU-Net.

    python nnunet_to_safetensors.py RESULTS --fold 0 --output fold_0.safetensors

RESULTS is a folder such as `nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres` of nnU-Net v2, with `plans.json`,
`dataset.json` and `fold_0/checkpoint_final.pth`, or such as `nnUNet/3d_fullres/Task005_Prostate/AdwUNetTrainer__nnUNetPlansv2.1` of nnU-Net
v1, with `plans.pkl` and `fold_0/model_final_checkpoint.model`: its own U-Net (`Generic_UNet`), and AdwU-Net as its authors train it.
A checkpoint is a pickle, which can run code: convert only those you trust.
"""

import argparse
import json
import pickle
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

SCHEMES = {"CT": "CTNormalization", "nonCT": "ZScoreNormalization", "noNorm": "NoNormalization"}
STATISTICS = dict(mean="mean", median="median", std="sd", min="mn", max="mx")
STATISTICS |= {name: name for name in ("percentile_00_5", "percentile_99_5")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder with plans.json or plans.pkl and fold_K")
    parser.add_argument("--fold", default="0", help="0 to 4, or all")
    parser.add_argument("--checkpoint", help="file in the fold's folder [default: the final one]")
    parser.add_argument("--dataset", type=Path, help="dataset.json with the labels' names, for nnU-Net v1")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    is_v1 = (arguments.results / "plans.pkl").exists()
    try:
        tensors, metadata = (version_1 if is_v1 else version_2)(arguments)
    except OSError as error:
        raise SystemExit(str(error)) from None
    tensors = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, arguments.output, metadata | {"format": "nnunet-v2", "fold": arguments.fold})


def fold_folder(arguments):
    """`fold_K`; version 1 calls the one of all cases `all`."""
    names = [f"fold_{arguments.fold}", arguments.fold]
    return next((arguments.results / name for name in names if (arguments.results / name).is_dir()), arguments.results / names[0])


def version_2(arguments):
    path = fold_folder(arguments) / (arguments.checkpoint or "checkpoint_final.pth")
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    # Modules that are registered twice are listed twice.
    tensors = {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in checkpoint["network_weights"].items()
        if ".all_modules." not in name and "decoder.encoder." not in name
    }
    return tensors, {
        "program": "nnU-Net v2",
        "plans": (arguments.results / "plans.json").read_text(),
        "dataset": (arguments.results / "dataset.json").read_text(),
        "configuration": checkpoint["init_args"]["configuration"],
        "trainer": checkpoint["trainer_name"],
        "mirror_axes": json.dumps(checkpoint["inference_allowed_mirroring_axes"] or []),
    }


def version_1(arguments):
    path = fold_folder(arguments) / (arguments.checkpoint or "model_final_checkpoint.model")
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    plans = pickle.loads((arguments.results / "plans.pkl").read_bytes())
    trainer = pickle.loads(Path(f"{path}.pkl").read_bytes())
    # Weights do not show which activation, norm or preprocessor they are for.
    if re.search(r"ReLU|GeLU|Mish|NoNorm|FRN|_GN(_|$)", trainer["name"]):
        raise SystemExit(f"{trainer['name']}: trains another activation or norm than nnU-Net's own; adw has no counterpart of it")
    if (preprocessor := plans.get("preprocessor_name") or "GenericPreprocessor") != "GenericPreprocessor":
        raise SystemExit(f"{arguments.results}/plans.pkl: preprocessor {preprocessor}, expected GenericPreprocessor")
    stages, stage = plans["plans_per_stage"], trainer["init"][5]
    stage = stages[max(stages) if stage is None else stage]
    schemes = ordered(plans["normalization_schemes"])
    if unknown := set(schemes) - set(SCHEMES):
        raise SystemExit(f"{arguments.results}/plans.pkl: normalisation {unknown.pop()}, expected one of {list(SCHEMES)}")
    properties = plans["dataset_properties"].get("intensityproperties") or {}
    # Images that are no CT have no statistics; nothing reads those that stand here for them.
    statistics = {
        str(c): {name: float(properties.get(c, {}).get(key, name == "std")) for name, key in STATISTICS.items()}
        for c in range(len(schemes))
    }
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": int(stage["batch_size"]),
        "patch_size": [int(n) for n in stage["patch_size"]],
        "median_image_size_in_voxels": [float(n) for n in stage["median_patient_size_in_voxels"]],
        "spacing": [float(mm) for mm in stage["current_spacing"]],
        "normalization_schemes": [SCHEMES[scheme] for scheme in schemes],
        "use_mask_for_norm": [bool(mask) for mask in ordered(plans["use_mask_for_norm"])],
        "batch_dice": bool(trainer["init"][4]),
    }
    task = next((name for name in arguments.results.parts if name.startswith("Task")), arguments.results.name)
    classes = [int(value) for value in plans["all_classes"]]
    names = json.loads(arguments.dataset.read_text())["labels"] if arguments.dataset else {}
    return rename(checkpoint["state_dict"]), {
        "program": "nnU-Net v1",
        "plans": json.dumps({
            "dataset_name": task,
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [int(axis) for axis in plans["transpose_forward"]],
            "transpose_backward": [int(axis) for axis in plans["transpose_backward"]],
            "foreground_intensity_properties_per_channel": statistics,
            "configurations": {"3d": configuration},
        }),
        "dataset": json.dumps({
            "channel_names": {str(c): name for c, name in enumerate(ordered(plans["modalities"]))},
            "labels": {"background": 0} | {names.get(str(value), f"label {value}"): value for value in classes},
        }),
        "configuration": "3d",
        "trainer": trainer["name"],
        "mirror_axes": "[]" if "nomirroring" in trainer["name"].lower() else "[0, 1, 2]",
    }


def ordered(by_index):
    return [by_index[index] for index in sorted(by_index)]


def rename(tensors):
    """Names of nnU-Net v2 for those of v1 and of AdwU-Net, whose convolutions of a stage are counted in the order of their paths:
    `block1`, `block2`, or `blocks.0`, `blocks.1`, or `0.blocks.0`, `1.blocks.0`."""
    layer = re.compile(r"conv_blocks_(context|localization)\.(\d+)\.(.+)\.(conv|instnorm)\.(weight|bias)")
    heads = {"tu": "decoder.transpconvs", "seg_outputs": "decoder.seg_layers"}
    layers, renamed = {}, {}
    for name in tensors:
        if name.endswith((".alphas", ".betas", ".masks")):
            raise SystemExit(f"{name}: a network of the search, which holds all candidates; train the one that it found")
        if found := layer.fullmatch(name):
            numbers = tuple(map(int, re.findall(r"\d+", found[3])))
            layers.setdefault(found.group(1, 2), set()).add((numbers, found[3]))
    for name, tensor in tensors.items():
        if found := layer.fullmatch(name):
            side, stage, path, kind, parameter = found.groups()
            n = [path for _, path in sorted(layers[side, stage])].index(path)
            stage = f"encoder.stages.{stage}.0" if side == "context" else f"decoder.stages.{stage}"
            name = f"{stage}.convs.{n}.{kind.removeprefix('inst')}.{parameter}"
        else:
            kind, _, rest = name.partition(".")
            name = f"{heads.get(kind, kind)}.{rest}"
        renamed[name] = tensor
    return renamed


if __name__ == "__main__":
    main()
