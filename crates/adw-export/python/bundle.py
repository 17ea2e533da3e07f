"""Parts of the bundle that MONAI has no transform or network for."""

import itertools

import numpy as np
import torch
from monai.transforms import MapTransform
from torch import nn

from .network import load


class Network(nn.Module):
    """Mean of the networks' logits over all mirrorings, for images [batch, C, x, y, z] as MONAI has them."""

    def __init__(self, path, transpose, mirror_axes):
        super().__init__()
        network = load(path)
        self.networks = network if isinstance(network, nn.ModuleList) else nn.ModuleList([network])
        self.axes = [0, 1, *(4 - axis for axis in transpose)]
        mirror_axes = [axis + 2 for axis in mirror_axes]
        self.flips = [flip for n in range(len(mirror_axes) + 1) for flip in itertools.combinations(mirror_axes, n)]

    def forward(self, image):
        image = image.permute(self.axes)
        logits = [network(image.flip(flip)).flip(flip) for network in self.networks for flip in self.flips]
        return (sum(logits) / len(logits)).permute(np.argsort(self.axes).tolist())


class Normalize(MapTransform):
    """Normalises each channel [x, y, z] as `configs/metadata.json` says."""

    def __init__(self, keys, channels):
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data):
        data = dict(data)
        for key in self.keys:
            image = data[key].clone()
            inside = (image != 0).any(0)
            for channel, kind in zip(image, self.channels):
                channel[:] = self.normalize(channel, kind, inside)
            data[key] = image
        return data

    @staticmethod
    def normalize(channel, kind, inside):
        if kind["normalization"] == "ct":
            return (channel.clip(kind["lower"], kind["upper"]) - kind["mean"]) / max(kind["std"], 1e-8)
        if kind["normalization"] == "z_score":
            values = channel[inside] if kind["masked"] else channel
            scaled = (channel - values.mean()) / values.std(correction=0).clip(min=1e-8)
            return torch.where(inside, scaled, channel) if kind["masked"] else scaled
        if kind["normalization"] == "rescale_to_unit":
            return (channel - channel.min()) / (channel.max() - channel.min()).clip(min=1e-8)
        return channel / 255 if kind["normalization"] == "rgb_to_unit" else channel
