"""Segments one large volume with `adw predict` and prints its time and peak memory: needs numpy and nibabel.

    cargo build --release --workspace
    python large_volume.py FOLDER --size 1000 --labels 4 --memory 14

FOLDER is a new folder; it takes 2 bytes per voxel for the volume. The network, a plain U-Net of 4 channels, is trained for five steps on
phantoms: a longer training takes the same time and memory to predict with. Windows do not overlap (`--step 1`).
"""

import argparse
import os
import pathlib
import subprocess
import time

import nibabel
import numpy

ROOT = pathlib.Path(__file__).resolve().parent.parent

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--adw", type=pathlib.Path, default=ROOT / "target/release/adw")
parser.add_argument("--size", type=int, default=1000, help="voxels along each axis")
parser.add_argument("--labels", type=int, default=4, help="beside the background")
parser.add_argument("--memory", default="14", help="GB")
arguments = parser.parse_args()
folder = arguments.folder
folder.mkdir(parents=True)


def adw(*words):
    subprocess.run([arguments.adw, *map(str, words)], check=True)


adw("phantom", "--labels", arguments.labels, "--cases", 6, "--test", 1, "--output", folder / "data")
settings = ["--set", "retrain.epochs=1", "--set", "retrain.iterations_per_epoch=5"]
adw("retrain", "--data", folder / "data", "--run", folder / "run", "--uniform-width", 4, "--uniform-depth", 1, *settings)

size = arguments.size
slab = numpy.random.default_rng(1).integers(1, 1000, (size, size, 100), dtype=numpy.int16)
volume = numpy.empty((size, size, size), numpy.int16, order="F")
for start in range(0, size, 100):
    volume[:, :, start : start + 100] = slab[:, :, : min(100, size - start)] + start // 100
nibabel.save(nibabel.Nifti1Image(volume, numpy.eye(4)), folder / "volume.nii")
del volume, slab

start = time.monotonic()
model = folder / "run/retrain/fold_0/model.safetensors"
words = ["predict", "--model", model, "--input", folder / "volume.nii", "--output", folder / "labels", "--memory", arguments.memory, "--step", 1]
process = subprocess.Popen([arguments.adw, *map(str, words)])
# Of this process, not the largest of all.
_, status, usage = os.wait4(process.pid, 0)
assert status == 0, words
peak = usage.ru_maxrss
print(f"{time.monotonic() - start:.0f} s, {peak * 1024 / 1e9:.1f} GB")
