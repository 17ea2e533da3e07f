"""Writes nn_layers.safetensors beside this file: layers of PyTorch in float64, forward and backward.

    pip install torch numpy safetensors
    python nn_layers.py

Case `kind.name` has the tensors `x`, `weight`, `bias` (where the layer has one), `y`, and the gradients of sum(y * seed)
by them: `grad_x`, `grad_weight`, `grad_bias`. Convolutions have `config`: stride, padding, dilation, output padding, groups
(13 integers); normalisations have `config`: eps, slope of the LeakyReLU behind it.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
tensors = {}


def record(name, layer, x, config):
    x = x.requires_grad_()
    y = layer(x)
    seed = torch.randn_like(y)
    (y * seed).sum().backward()
    found = {"x": x, "y": y, "seed": seed, "grad_x": x.grad, "config": config}
    for key, parameter in layer.named_parameters():
        key = key.split(".")[-1]
        found[key], found[f"grad_{key}"] = parameter, parameter.grad
    for key, tensor in found.items():
        tensors[f"{name}.{key}"] = tensor.detach().contiguous()


def conv(name, channels, size, kernel, stride=(1, 1, 1), padding=(0, 0, 0), dilation=(1, 1, 1), groups=1, bias=True):
    layer = nn.Conv3d(*channels, kernel, stride, padding, dilation, groups, bias)
    config = torch.tensor([*stride, *padding, *dilation, 0, 0, 0, groups])
    record(f"conv3d.{name}", layer, torch.randn(2, channels[0], *size), config)


def transposed(
    name, channels, size, kernel, stride=(1, 1, 1), padding=(0, 0, 0), output_padding=(0, 0, 0), groups=1, bias=True,
    dilation=(1, 1, 1),
):
    layer = nn.ConvTranspose3d(*channels, kernel, stride, padding, output_padding, groups, bias, dilation)
    config = torch.tensor([*stride, *padding, *dilation, *output_padding, groups])
    record(f"conv_transpose3d.{name}", layer, torch.randn(2, channels[0], *size), config)


def norm(name, channels, size, eps=1e-5, affine=True, slope=None):
    layers = [nn.InstanceNorm3d(channels, eps=eps, affine=affine)]
    if affine:
        nn.init.normal_(layers[0].weight)
        nn.init.normal_(layers[0].bias)
    if slope is not None:
        layers.append(nn.LeakyReLU(slope))
    config = torch.tensor([eps, 1.0 if slope is None else slope])
    record(f"instance_norm3d.{name}", nn.Sequential(*layers), 3 * torch.randn(2, channels, *size) + 1, config)


conv("plain", (2, 3), (3, 4, 4), (3, 3, 3), padding=(1, 1, 1))
conv("no_bias_per_axis", (3, 2), (4, 5, 4), (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 2), bias=False)
conv("groups", (4, 6), (3, 3, 4), (2, 3, 1), stride=(1, 1, 2), groups=2)
conv("depthwise", (3, 3), (3, 4, 3), (3, 3, 3), padding=(1, 1, 1), groups=3)
conv("dilation", (2, 3), (5, 6, 5), (3, 2, 2), padding=(2, 1, 0), dilation=(2, 3, 1))
conv("dilation_stride_groups", (2, 4), (5, 5, 6), (2, 2, 3), (2, 1, 2), (1, 0, 2), (3, 2, 2), groups=2)
transposed("upsampling", (3, 2), (2, 2, 3), (2, 2, 2), stride=(2, 2, 2))
transposed("no_bias_per_axis", (2, 3), (2, 3, 2), (1, 3, 4), (1, 2, 3), (0, 1, 1), (0, 1, 0), bias=False)
transposed("kernel_smaller_than_stride", (2, 2), (2, 2, 2), (1, 2, 2), stride=(2, 3, 2), output_padding=(1, 2, 0))
transposed("groups", (4, 6), (2, 3, 2), (3, 2, 2), stride=(2, 1, 2), padding=(1, 0, 1), groups=2)
transposed("dilation", (2, 2), (3, 2, 3), (2, 3, 2), (2, 1, 1), (1, 2, 0), (1, 0, 0), dilation=(3, 2, 2))
transposed("long_output_padding", (2, 2), (2, 2, 3), (2, 2, 2), output_padding=(1, 2, 0), dilation=(2, 3, 1))
norm("plain", 3, (2, 3, 4), affine=False)
norm("affine", 4, (2, 3, 4), eps=1e-3)
norm("leaky", 3, (3, 2, 4), slope=0.01)

path = Path(__file__).with_suffix(".safetensors")
save_file(tensors, path, metadata={"torch": torch.__version__})
print(path, path.stat().st_size, "bytes")
