"""Networks that `adw export --safetensors` wrote, in PyTorch: needs torch and safetensors.

    network = load("network.safetensors")
    logits = network(image)  # [batch, C, D, H, W] to [batch, K, D, H, W]
"""

import json
from collections import OrderedDict

import safetensors
import torch
from torch import nn


class Unet(nn.Module):
    """U-Net of an architecture's depths and widths; blocks are counted encoder fine to coarse, then decoder coarse to fine."""

    def __init__(self, in_channels, num_classes, strides, kernels, blocks, **_):
        super().__init__()
        self.poolings = len(strides)
        self.blocks, self.ups, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = in_channels
        for i, widths in enumerate(blocks):
            stage = min(i, 2 * self.poolings - i)
            if i > self.poolings:
                skip = blocks[stage][-1]
                self.ups.append(nn.ConvTranspose3d(channels, skip, strides[stage], strides[stage], bias=False))
                channels = 2 * skip
            layers, kernel = [], kernels[stage]
            for l, width in enumerate(widths):
                stride = strides[i - 1] if l == 0 and 0 < i <= self.poolings else 1
                conv = nn.Conv3d(channels, width, kernel, stride, [k // 2 for k in kernel], bias=False)
                norm = nn.InstanceNorm3d(width, affine=True)
                layers.append(nn.Sequential(OrderedDict(conv=conv, norm=norm, act=nn.LeakyReLU(0.01))))
                channels = width
            self.blocks.append(nn.Sequential(*layers))
            if i > self.poolings:
                self.heads.append(nn.Conv3d(channels, num_classes, 1, bias=False))

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.blocks):
            if i > self.poolings:
                x = torch.cat([self.ups[i - self.poolings - 1](x), skips.pop()], 1)
            x = block(x)
            if i < self.poolings:
                skips.append(x)
        return self.heads[-1](x)  # the others are for deep supervision


def load(path):
    """Network of a file that holds one; a module list of those of a file that holds several, whose logits are averaged."""
    with safetensors.safe_open(path, "pt") as file:
        architectures = json.loads(file.metadata()["architectures"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    networks = nn.ModuleList(Unet(**architecture) for architecture in architectures)
    network = networks if len(networks) > 1 else networks[0]
    network.load_state_dict(tensors)
    return network.eval()
