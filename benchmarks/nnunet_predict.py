"""Times `adw predict` beside `nnUNetv2_predict -device cpu`: the same network of nnU-Net, imported, on the same images, in turns.

    cargo build --release --workspace
    pip install nnunetv2 safetensors
    python nnunet_predict.py DATASET FOLDER --volume 64 64 64

DATASET has the decathlon's layout and a name such as `Task04_Hippocampus`. nnU-Net plans it and makes its own network (`PlainConvUNet` in 3D; with `--planner
nnUNetPlannerResEncM` a `ResidualEncoderUNet`) with random weights, which take as long as trained ones; everything is written to FOLDER, a new folder. Images are the first `--images` of DATASET's test images, and
one of smooth noise with the size `--volume`. Prints, per set of images and per program, the median of seconds and the
peak of memory (sum of proportional set sizes of all its processes, taken ten times a second), and their ratio. Programs run
as their users call them: nnU-Net with its defaults for processes, adw with all cores, both with mirroring.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("dataset", type=pathlib.Path)
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--adw", type=pathlib.Path, default=ROOT / "target/release/adw")
parser.add_argument("--images", type=int, default=12)
parser.add_argument("--volume", type=int, nargs=3, default=[64, 64, 64])
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--planner", default="ExperimentPlanner", help="class of nnU-Net")
arguments = parser.parse_args()
folder = arguments.folder.resolve()
# nnU-Net reads these when it is imported, in its worker processes too, which import this file.
for name in ("raw", "preprocessed", "results"):
    os.environ[f"nnUNet_{name}"] = str(folder / name)
os.environ["nnUNet_compile"] = "f"

import nibabel
import numpy
import scipy.ndimage
import torch
import turns
from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def make_network(raw):
    """Writes a checkpoint of nnU-Net's network for the dataset; returns its folder of results."""
    torch.manual_seed(1)
    extract_fingerprints([1], num_processes=2)
    name = plan_experiments([1], arguments.planner)
    preprocess([1], name, configurations=("3d_fullres",), num_processes=(2,))
    prepared = folder / "preprocessed" / raw.name
    plans = json.loads((prepared / f"{name}.json").read_text())
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, json.loads((raw / "dataset.json").read_text()), torch.device("cpu"))
    trainer.initialize()
    trainer.plot_network_architecture = trainer.set_deep_supervision_enabled = lambda *_: None
    results = pathlib.Path(trainer.output_folder_base)
    (results / "fold_0").mkdir(parents=True, exist_ok=True)
    for name in ("plans", "dataset"):
        (results / f"{name}.json").write_text(json.dumps(plans if name == "plans" else trainer.dataset_json))
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer.save_checkpoint(str(results / "fold_0" / "checkpoint_final.pth"))
    return results


def run(command):
    """Seconds and bytes."""
    return turns.run(command, folder / "log.txt")


def main():
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True)
    convert_msd_dataset(str(arguments.dataset), 1, 2)
    (raw,) = (folder / "raw").iterdir()
    tests = sorted(path.name for path in (arguments.dataset / "imagesTs").glob("[!.]*.nii.gz"))
    results = make_network(raw)
    converted, model = folder / "nnunet.safetensors", folder / "model.safetensors"
    script = ROOT / "examples/nnunet_to_safetensors.py"
    run([sys.executable, script, results, "--output", converted])
    run([arguments.adw, "import", "--nnunet", converted, "--output", model])

    sets = {"images": f"{arguments.images} test images", "volume": "x".join(map(str, arguments.volume))}
    for name in sets:
        (folder / name / "nnunet").mkdir(parents=True)
        (folder / name / "adw").mkdir(parents=True)
    for test in tests[: arguments.images]:
        shutil.copy(arguments.dataset / "imagesTs" / test, folder / "images/nnunet" / test.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copy(arguments.dataset / "imagesTs" / test, folder / "images/adw" / test)
    spacing = nibabel.load(arguments.dataset / "imagesTs" / tests[0]).header.get_zooms()
    noise = numpy.random.default_rng(1).standard_normal(arguments.volume).astype(numpy.float32)
    image = nibabel.Nifti1Image(scipy.ndimage.gaussian_filter(noise, 2), numpy.diag([*spacing[:3], 1]))
    nibabel.save(image, folder / "volume/nnunet/volume_0000.nii.gz")
    nibabel.save(image, folder / "volume/adw/volume.nii.gz")

    for name, title in sets.items():
        times = {"nnunet": [], "adw": []}
        for turn in range(arguments.repeats):
            outputs = {program: folder / name / f"{program}-labels-{turn}" for program in times}
            command = ["nnUNetv2_predict", "-i", folder / name / "nnunet", "-o", outputs["nnunet"], "-d", "1"]
            command += ["-c", "3d_fullres", "-p", results.name.split("__")[1], "-f", "0", "-device", "cpu"]
            command[0] = pathlib.Path(sys.executable).parent / command[0]
            times["nnunet"].append(run(command))
            command = [arguments.adw, "predict", "--model", model, "--input", folder / name / "adw"]
            times["adw"].append(run([*command, "--output", outputs["adw"], "--step", "0.5", "--mirror"]))
        medians = {program: [statistics.median(column) for column in zip(*rows)] for program, rows in times.items()}
        for program, (seconds, peak) in medians.items():
            print(f"{title}: {program} {seconds:.1f} s, {peak / 1e9:.2f} GB")
        equal, total = 0, 0
        for file in outputs["adw"].glob("*.nii.gz"):
            ours, theirs = (numpy.asarray(nibabel.load(outputs[p] / file.name).dataobj) for p in ("adw", "nnunet"))
            equal, total = equal + int((ours == theirs).sum()), total + ours.size
        ratio = [a / b for a, b in zip(medians["adw"], medians["nnunet"])]
        print(f"{title}: time {ratio[0]:.2f}, memory {ratio[1]:.2f} of nnU-Net's; {equal / total:.5f} of the voxels equal")


if __name__ == "__main__":
    main()
