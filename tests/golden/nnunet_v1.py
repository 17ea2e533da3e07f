"""Writes two folders of results of nnU-Net v1 below `FOLDER`, `generic` and `adwunet`, of one network with random parameters under the
names of nnU-Net's own U-Net and those of the authors' AdwU-Net, and `FOLDER/golden.safetensors` with an input `x` and its `logits`. A second argument is the trainer's name."""

import pathlib
import pickle
import sys
from collections import OrderedDict

import numpy
import torch
from safetensors.torch import save_file
from torch.nn import functional

TRAINER = sys.argv[2] if len(sys.argv) > 2 else "Trainer"
STRIDES, KERNELS = [(1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)]
# Encoder fine to coarse, decoder coarse to fine: the output channels of the convolutions of each block.
BLOCKS = [(3, 4), (5, 6), (8, 7), (5, 6), (4, 3)]
NAMES = {
    "adwunet": lambda block, layer, num_poolings: f"block{layer + 1}",
    # nnU-Net keeps the last convolution from the bottleneck on in a module of its own.
    "generic": lambda block, layer, num_poolings: f"blocks.{layer}" if block < num_poolings else f"{layer}.blocks.0",
}


def parameters(style):
    """Tensors by name, and the names of the layers of each block."""
    torch.manual_seed(1)
    tensors, layers, channels = {}, [], 2
    for block, widths in enumerate(BLOCKS):
        up = block - len(KERNELS)
        side, stage = ("context", block) if up < 0 else ("localization", up)
        kernel = KERNELS[block if up < 0 else len(STRIDES) - 1 - up]
        if up >= 0:
            skip = BLOCKS[len(STRIDES) - 1 - up][-1]
            tensors[f"tu.{up}.weight"] = torch.randn(channels, skip, *STRIDES[-1 - up]) * 0.3
            channels = 2 * skip
        layers.append([])
        for layer, width in enumerate(widths):
            name = f"conv_blocks_{side}.{stage}.{NAMES[style](block, layer, len(STRIDES))}"
            layers[-1].append(name)
            tensors[f"{name}.conv.weight"] = torch.randn(width, channels, *kernel) * 0.3
            for parameter in ("conv.bias", "instnorm.weight", "instnorm.bias"):
                tensors[f"{name}.{parameter}"] = torch.randn(width)
            channels = width
        if up >= 0:
            tensors[f"seg_outputs.{up}.weight"] = torch.randn(3, channels, 1, 1, 1) * 0.3
    return tensors, layers


def forward(tensors, layers, x):
    outputs = []
    for block, names in enumerate(layers):
        up = block - len(KERNELS)
        if up >= 0:
            x = functional.conv_transpose3d(x, tensors[f"tu.{up}.weight"], stride=STRIDES[-1 - up])
            x = torch.cat((x, outputs[len(STRIDES) - 1 - up]), 1)
        for layer, name in enumerate(names):
            stride = STRIDES[block - 1] if 0 < block < len(KERNELS) and layer == 0 else 1
            weight = tensors[f"{name}.conv.weight"]
            padding = tuple(k // 2 for k in weight.shape[2:])
            x = functional.conv3d(x, weight, tensors[f"{name}.conv.bias"], stride, padding)
            x = functional.instance_norm(x, weight=tensors[f"{name}.instnorm.weight"], bias=tensors[f"{name}.instnorm.bias"])
            x = functional.leaky_relu(x, 0.01)
        outputs.append(x)
    return functional.conv3d(x, tensors[f"seg_outputs.{len(STRIDES) - 1}.weight"])


def main():
    folder = pathlib.Path(sys.argv[1])
    ct = dict(mean=2.0, median=1.0, sd=1.5, mn=0.0, mx=9.0, percentile_00_5=0.5, percentile_99_5=8.0)
    stage = dict(
        batch_size=2, patch_size=numpy.array([8, 16, 16]), median_patient_size_in_voxels=numpy.array([9, 17, 18]),
        current_spacing=numpy.array([2.0, 1.0, 1.0]), pool_op_kernel_sizes=STRIDES, conv_kernel_sizes=KERNELS,
    )
    plans = dict(
        modalities={0: "MRI", 1: "CT"}, normalization_schemes=OrderedDict({0: "nonCT", 1: "CT"}), all_classes=[1, 2],
        use_mask_for_norm=OrderedDict({0: numpy.bool_(True), 1: numpy.bool_(False)}), plans_per_stage={0: stage},
        dataset_properties={"intensityproperties": OrderedDict({1: ct})}, transpose_forward=[0, 1, 2], transpose_backward=[0, 1, 2],
    )
    for style in NAMES:
        tensors, layers = parameters(style)
        fold = folder / style / "fold_0"
        fold.mkdir(parents=True)
        (folder / style / "plans.pkl").write_bytes(pickle.dumps(plans))
        checkpoint = fold / "model_final_checkpoint.model"
        torch.save({"state_dict": OrderedDict(tensors)}, checkpoint)
        arguments = ("plans.pkl", 0, "output", "dataset", True, None, True, False, True)
        pathlib.Path(f"{checkpoint}.pkl").write_bytes(pickle.dumps({"init": arguments, "name": TRAINER, "plans": plans}))
    x = torch.randn(2, 2, 4, 8, 12)
    save_file({"x": x, "logits": forward(tensors, layers, x)}, folder / "golden.safetensors", {"program": "PyTorch"})


if __name__ == "__main__":
    main()
