"""nnU-Net's augmentation (batchgeneratorsv2) beside ours, on the same volume, in turns, one thread each.

    pip install batchgeneratorsv2
    python benchmarks/augmentation.py            # builds the example first; --rounds 3 by default

Transforms, probabilities and order are those of nnU-Net's trainer for 3D (`nnUNetTrainer.get_training_transforms`), with
deep supervision left out on both sides. A patch is drawn as nnU-Net's loader draws it: a crop of the enlarged patch, then
the transforms. Seconds are those of the processor (`process_time`), so a busy machine slows both alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar  # noqa: F401  (part of the package's interface)
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

torch.set_num_threads(1)


def transforms(patch):
    """Section "data augmentation" of nnU-Net's trainer, for an isotropic patch."""
    angle = 30 / 360 * 2 * np.pi

    def sometimes(transform, probability):
        return RandomTransform(transform, apply_probability=probability)

    return ComposeTransforms([
        SpatialTransform(
            patch, patch_center_dist_from_border=0, random_crop=False, p_elastic_deform=0, p_rotation=0.2,
            rotation=(-angle, angle), p_scaling=0.2, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=1,
            bg_style_seg_sampling=False,
        ),
        sometimes(GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
        sometimes(GaussianBlurTransform(blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False,
                                        p_per_channel=0.5, benchmark=True), 0.2),
        sometimes(MultiplicativeBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)),
                                                    synchronize_channels=False, p_per_channel=1), 0.15),
        sometimes(ContrastTransform(contrast_range=BGContrast((0.75, 1.25)), preserve_range=True,
                                    synchronize_channels=False, p_per_channel=1), 0.15),
        sometimes(SimulateLowResolutionTransform(scale=(0.5, 1), synchronize_channels=False, synchronize_axes=True,
                                                 ignore_axes=None, allowed_channels=None, p_per_channel=0.5), 0.25),
        sometimes(GammaTransform(gamma=BGContrast((0.7, 1.5)), p_invert_image=1, synchronize_channels=False,
                                 p_per_channel=1, p_retain_stats=1), 0.1),
        sometimes(GammaTransform(gamma=BGContrast((0.7, 1.5)), p_invert_image=0, synchronize_channels=False,
                                 p_per_channel=1, p_retain_stats=1), 0.3),
        MirrorTransform(allowed_axes=(0, 1, 2)),
        RemoveLabelTansform(-1, 0),
    ])


def enlarged(patch):
    """The crop that holds the patch at any rotation: nnU-Net's get_patch_size for +-30 degrees."""
    s, c = np.sin(np.pi / 6), np.cos(np.pi / 6)
    p = np.array(patch, float)
    rotated = [
        (p[0], p[1] * c + p[2] * s, -p[1] * s + p[2] * c),
        (p[0] * c - p[2] * s, p[1], p[0] * s + p[2] * c),
        (p[0] * c + p[1] * s, -p[0] * s + p[1] * c, p[2]),
    ]
    return np.max([np.abs(r) for r in rotated] + [p], axis=0) / 0.85 // 1


def theirs(volume, labels, patch, seconds, rng):
    """Patches per second of the processor's time."""
    pipeline = transforms(patch)
    size = enlarged(patch).astype(int)
    done, start = 0, time.process_time()
    while time.process_time() - start < seconds or done < 8:
        lower = [rng.integers(0, max(n - s, 0) + 1) for n, s in zip(volume.shape, size)]
        box = tuple(slice(l, l + s) for l, s in zip(lower, size))
        crop, seg = volume[box], labels[box]
        missing = [(0, s - n) for s, n in zip(size, crop.shape)]
        if any(after for _, after in missing):
            crop, seg = np.pad(crop, missing), np.pad(seg, missing, constant_values=-1)
        pipeline(image=torch.from_numpy(crop[None].copy()), segmentation=torch.from_numpy(seg[None].copy()))
        done += 1
    return done / (time.process_time() - start)


def ours(path, shape, patch):
    command = ["target/release/examples/augmentation_speed", *map(str, patch), path, *map(str, shape)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of nnU-Net's transforms per round")
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "-p", "msd-data", "--example", "augmentation_speed"], check=True)
    rng = np.random.default_rng(1)
    for patch in [(40, 56, 40), (128, 128, 128)]:
        shape = tuple(2 * n for n in patch)
        volume = rng.standard_normal(shape, dtype=np.float32)
        z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
        labels = ((z // 9 + y // 11 + x // 10) % 3).astype(np.int16)
        with tempfile.NamedTemporaryFile(suffix=".f32") as file:
            volume.tofile(file.name)
            rounds = []
            for _ in range(args.rounds):
                a = ours(file.name, shape, patch)["patches_per_second"]
                b = theirs(volume, labels, patch, args.seconds, rng)
                rounds.append((a, b, a / b))
        a, b, ratio = (statistics.median(column) for column in zip(*rounds))
        print(f"{patch}: ours {a:.0f}, nnU-Net {b:.1f} patches per second and core; median ratio {ratio:.1f}", flush=True)


if __name__ == "__main__":
    main()
