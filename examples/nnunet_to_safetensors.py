"""Writes a network of nnU-Net v2 for `adw import`: needs torch and safetensors, not nnU-Net.

    python nnunet_to_safetensors.py RESULTS --fold 0 --output fold_0.safetensors

RESULTS is a folder such as `nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres`, with `plans.json`,
`dataset.json` and `fold_0/checkpoint_final.pth`. A checkpoint is a pickle, which can run code: convert only those you trust.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder with plans.json, dataset.json and fold_K")
    parser.add_argument("--fold", default="0", help="0 to 4, or all")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="file in the fold's folder")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()

    path = arguments.results / f"fold_{arguments.fold}" / arguments.checkpoint
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    # Modules that are registered twice are listed twice.
    tensors = {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor.float().contiguous().clone()
        for name, tensor in checkpoint["network_weights"].items()
        if ".all_modules." not in name and "decoder.encoder." not in name
    }
    metadata = {
        "format": "nnunet-v2",
        "plans": (arguments.results / "plans.json").read_text(),
        "dataset": (arguments.results / "dataset.json").read_text(),
        "configuration": checkpoint["init_args"]["configuration"],
        "trainer": checkpoint["trainer_name"],
        "fold": arguments.fold,
        "mirror_axes": json.dumps(checkpoint["inference_allowed_mirroring_axes"] or []),
    }
    save_file(tensors, arguments.output, metadata)


if __name__ == "__main__":
    main()
