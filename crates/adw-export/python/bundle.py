"""Parts of the bundle that MONAI has no transform or network for."""

import itertools
from pathlib import Path

import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from scipy.ndimage import binary_fill_holes
from torch import nn
from torch.nn.functional import pad

from .network import load


def find_images(folder, output):
    """List of the images in a folder, each of which gets a label map of its name in another folder."""
    folder, output = Path(folder), Path(output)
    paths = sorted(path for path in folder.glob("*.nii*") if path.name.lower().endswith((".nii", ".nii.gz")))
    if not paths:
        raise ValueError(f"{folder}: no .nii or .nii.gz files")
    if folder.resolve() == output.resolve():
        raise ValueError(f"{output}: label maps would replace the images; choose another output_dir")
    by_name = {}
    for path in paths:
        other = by_name.setdefault(path.name[: path.name.lower().rindex(".nii")], path)
        if other != path:
            raise ValueError(f"{other} and {path} would have the same label map")
    return [{"image": str(path)} for path in paths]


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


class Windows(Inferer):
    """Mean of the logits of windows at most `step` patches apart, evenly spread, weighted by a Gaussian.

    These are adw's windows and weights. MONAI's `SlidingWindowInferer` puts windows elsewhere, so that instance
    normalisation gives other logits, and bounds weights from below.
    """

    def __init__(self, patch_size, step, sigma, peak, dtype):
        super().__init__()
        self.patch_size, self.step = patch_size, step
        axes = [np.exp(-0.5 * ((np.arange(n) - n // 2) / (n * sigma)) ** 2) for n in patch_size]
        weights = (peak * axes[0][:, None, None] * axes[1][:, None] * axes[2]).astype(dtype).astype(np.float32)
        weights[weights == 0] = weights[weights > 0].min()
        self.weights = torch.from_numpy(weights)

    def __call__(self, inputs, network, *args, **kwargs):
        image = torch.as_tensor(inputs)
        missing = [max(n - size, 0) for n, size in zip(self.patch_size, image.shape[2:])]
        before = [n // 2 for n in missing]
        padding = [(b, n - b) for b, n in zip(before, missing)]
        padded = pad(image, [n for pair in reversed(padding) for n in pair])
        weights = self.weights.to(image.device)
        sums, total = None, torch.zeros(padded.shape[2:], device=image.device)
        for start in itertools.product(*map(self.starts, padded.shape[2:], self.patch_size)):
            box = tuple(slice(s, s + n) for s, n in zip(start, self.patch_size))
            logits = network(padded[(..., *box)], *args, **kwargs)
            if sums is None:
                sums = torch.zeros((*logits.shape[:2], *total.shape), device=image.device)
            sums[(..., *box)] += logits * weights
            total[box] += weights
        inner = tuple(slice(b, b + n) for b, n in zip(before, image.shape[2:]))
        return convert_to_dst_type((sums / total)[(..., *inner)], inputs)[0]

    def starts(self, size, patch):
        last = min(int(np.ceil((size - patch) / (patch * self.step))), size - patch)
        return [int(np.round(i * ((size - patch) / last))) for i in range(last + 1)] if last > 0 else [0]


class Normalize(MapTransform):
    """Normalises each channel [x, y, z] as `configs/metadata.json` says."""

    def __init__(self, keys, channels):
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data):
        data = dict(data)
        for key in self.keys:
            image = data[key].clone()
            if len(image) != len(self.channels):
                names = ", ".join(channel["name"] for channel in self.channels)
                file = getattr(image, "meta", {}).get("filename_or_obj", "image")
                raise ValueError(
                    f"{file}: {len(image)} channels, expected {len(self.channels)} ({names}) as the fourth axis of one file"
                )
            inside = binary_fill_holes(np.asarray((image != 0).any(0).cpu()))
            inside = torch.from_numpy(inside).to(image.device)
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
