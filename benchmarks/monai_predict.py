"""Times `adw predict` beside the MONAI bundle of the same model, on one volume of smooth noise, in turns.

    cargo build --release --workspace
    pip install 'monai[fire,ignite,nibabel]' safetensors scipy
    python monai_predict.py MODEL FOLDER --volume 160 160 160

MODEL is a `model.safetensors` of `adw retrain`, trained on MRI; everything is written to FOLDER, a new folder. Both average windows half a patch apart and mirror
nothing. Prints the median of seconds and the peak of memory of both, their ratio, and the share of voxels that have the same label.
"""

import argparse
import pathlib
import statistics
import sys

import nibabel
import numpy
import scipy.ndimage
import turns

ROOT = pathlib.Path(__file__).resolve().parent.parent

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--adw", type=pathlib.Path, default=ROOT / "target/release/adw")
parser.add_argument("--volume", type=int, nargs=3, default=[160, 160, 160])
parser.add_argument("--spacing", type=float, default=1.0, help="edge of a voxel in mm: that of the model, or voxels are resampled, which MONAI does otherwise")
parser.add_argument("--repeats", type=int, default=3)
arguments = parser.parse_args()
folder = arguments.folder.resolve()
images, bundle, log = folder / "images", folder / "bundle", folder / "log.txt"
images.mkdir(parents=True)
noise = numpy.random.default_rng(1).standard_normal(arguments.volume).astype(numpy.float32)
image = nibabel.Nifti1Image(scipy.ndimage.gaussian_filter(noise, 2), numpy.diag([*[arguments.spacing] * 3, 1]))
nibabel.save(image, images / "volume.nii.gz")
export = [arguments.adw, "export", "--model", arguments.model, "--mirror=false", "--step", "0.5", "--monai", bundle]
turns.run(export, log)
times, outputs = {"adw": [], "monai": []}, {}
for turn in range(arguments.repeats):
    outputs = {program: folder / f"{program}-labels-{turn}" for program in times}
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", "configs/inference.json"]
    times["monai"].append(turns.run([*command, "--dataset_dir", images, "--output_dir", outputs["monai"]], log, cwd=bundle))
    command = [arguments.adw, "predict", "--model", arguments.model, "--input", images, "--output", outputs["adw"]]
    times["adw"].append(turns.run([*command, "--step", "0.5", "--mirror=false"], log))
medians = {program: [statistics.median(column) for column in zip(*rows)] for program, rows in times.items()}
for program, (seconds, peak) in medians.items():
    print(f"{program}: {seconds:.1f} s, {peak / 1e9:.2f} GB")
ours, theirs = (numpy.asarray(nibabel.load(next(outputs[p].glob("*.nii.gz"))).dataobj) for p in ("adw", "monai"))
ratio = [a / b for a, b in zip(medians["adw"], medians["monai"])]
print(f"time {ratio[0]:.2f}, memory {ratio[1]:.2f} of MONAI's; {(ours == theirs).mean():.5f} of the voxels equal")
