"""Networks that `adw export --safetensors` wrote, in PyTorch: needs torch and safetensors.

    network = load("network.safetensors")
    logits = network(image)  # [batch, C, D, H, W] to [batch, K, D, H, W]
"""

import json
from collections import OrderedDict

import safetensors
import torch
from torch import nn


def layer(channels, width, kernel, stride=1):
    conv = nn.Conv3d(channels, width, kernel, stride, [k // 2 for k in kernel], bias=False)
    return OrderedDict(conv=conv, norm=nn.InstanceNorm3d(width, affine=True))


class Unet(nn.Module):
    """U-Net of an architecture's depths and widths; blocks are counted encoder fine to coarse, then decoder coarse to fine. In a residual
    encoder, whose first layer stands alone, the second layer of every pair adds a shortcut around both."""

    def __init__(self, in_channels, num_classes, strides, kernels, blocks, encoder="plain", **_):
        super().__init__()
        residual = encoder == "residual"
        self.shortcuts = nn.ModuleDict()  # by block and first layer of the pair
        self.poolings = len(strides)
        self.blocks, self.ups, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = in_channels
        for i, widths in enumerate(blocks):
            stage = min(i, 2 * self.poolings - i)
            if i > self.poolings:
                skip = blocks[stage][-1]
                self.ups.append(nn.ConvTranspose3d(channels, skip, strides[stage], strides[stage], bias=residual))
                channels = 2 * skip
            layers, kernel = [], kernels[stage]
            for l, width in enumerate(widths):
                stride = strides[i - 1] if l == 0 and 0 < i <= self.poolings else 1
                if residual and i <= self.poolings and l % 2 == (i == 0):
                    shortcut = OrderedDict() if stride == 1 else OrderedDict(pool=nn.AvgPool3d(stride))
                    if channels != widths[l + 1]:
                        shortcut |= layer(channels, widths[l + 1], [1, 1, 1])
                    self.shortcuts[f"{i}_{l}"] = nn.Sequential(shortcut)
                layers.append(nn.Sequential(layer(channels, width, kernel, stride) | dict(act=nn.LeakyReLU(0.01))))
                channels = width
            self.blocks.append(nn.Sequential(*layers))
            if i > self.poolings:
                self.heads.append(nn.Conv3d(channels, num_classes, 1, bias=residual))

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.blocks):
            if i > self.poolings:
                x = torch.cat([self.ups[i - self.poolings - 1](x), skips.pop()], 1)
            shortcut = None
            for l, (conv, norm, act) in enumerate(block):
                key = f"{i}_{l}"
                after_next = self.shortcuts[key](x) if key in self.shortcuts else None
                x = norm(conv(x))
                x = act(x if shortcut is None else x + shortcut)
                shortcut = after_next
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
