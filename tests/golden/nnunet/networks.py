"""Makes `plain.safetensors` and `residual.safetensors`: small networks of nnU-Net v2 (pip install dynamic-network-architectures safetensors)
with random parameters as `examples/nnunet_to_safetensors.py` writes them, an input `x` and its `logits`."""

import json

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from safetensors.torch import save_file
from torch import nn

strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
others = [True, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True}]


def plain():
    return PlainConvUNet(2, 3, [3, 4, 5], nn.Conv3d, kernels, strides, [2, 1, 2], 3, [1, 2], *others, deep_supervision=False)


def residual():
    """Shortcuts with and without pooling and convolution, in all four combinations that occur: the last two stages are equally wide."""
    return ResidualEncoderUNet(
        2, 4, [3, 4, 5, 5], nn.Conv3d, kernels + [[3, 3, 3]], strides + [[2, 1, 1]], [1, 2, 1, 2], 3, [1, 2, 1], *others,
        deep_supervision=False, stem_channels=4,
    )


statistics = dict(max=9.0, mean=2.0, median=1.0, min=0.0, percentile_00_5=0.5, percentile_99_5=8.0, std=1.5)
resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
plans = {
    "dataset_name": "Dataset001_Test",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {"0": statistics, "1": statistics},
    "configurations": {
        "3d_fullres": {
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [8, 16, 16],
            "median_image_size_in_voxels": [9.0, 17.0, 18.5],
            "spacing": [2.0, 1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization", "CTNormalization"],
            "use_mask_for_norm": [True, False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": resampling | {"order": 3},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
            "architecture": {
                "arch_kwargs": {"norm_op_kwargs": {"eps": 1e-5}, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True}}
            },
            "batch_dice": False,
        }
    },
}
dataset = {"channel_names": {"0": "T1", "1": "CT"}, "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
metadata = {
    "format": "nnunet-v2",
    "plans": json.dumps(plans),
    "dataset": json.dumps(dataset),
    "configuration": "3d_fullres",
    "fold": "0",
    "mirror_axes": "[0, 2]",
}
for make in (plain, residual):
    torch.manual_seed(1)
    network = make()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.dim() > 1 else 1.0))
        x = torch.randn(2, 2, 4, 8, 12)
        logits = network(x)
    tensors = {
        name: tensor.contiguous().clone()
        for name, tensor in network.state_dict().items()
        if ".all_modules." not in name and "decoder.encoder." not in name
    }
    save_file(tensors | {"x": x, "logits": logits}, f"{make.__name__}.safetensors", metadata)
