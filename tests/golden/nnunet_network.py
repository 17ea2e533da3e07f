"""Trains a network of nnU-Net v2 for some iterations on a dataset in the decathlon's layout and segments its test images with it:
`DATASET FOLDER PLANNER`. Results go to `FOLDER/results`, label maps to `FOLDER/labels`. The network's affine parameters and biases
are set to random values, so that none of them is without effect."""

import json
import os
import pathlib
import shutil
import sys

dataset, folder = map(pathlib.Path, sys.argv[1:3])
planner = sys.argv[3]
for variable, name in [("nnUNet_raw", "raw"), ("nnUNet_preprocessed", "preprocessed"), ("nnUNet_results", "results")]:
    (folder / name).mkdir(parents=True, exist_ok=True)
    os.environ[variable] = str(folder / name)
os.environ.update(nnUNet_compile="f", nnUNet_n_proc_DA="1", OMP_NUM_THREADS="2")

import torch

from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def make_raw():
    msd = json.loads((dataset / "dataset.json").read_text())
    raw = folder / "raw" / "Dataset001_Test"
    for kind in ("imagesTr", "imagesTs"):
        (raw / kind).mkdir(parents=True)
    shutil.copytree(dataset / "labelsTr", raw / "labelsTr")
    cases = [pathlib.Path(case["image"]).name for case in msd["training"]]
    tests = [pathlib.Path(case).name for case in msd["test"]]
    for kind, names in (("imagesTr", cases), ("imagesTs", tests)):
        for name in names:
            shutil.copy(dataset / kind / name, raw / kind / name.replace(".nii.gz", "_0000.nii.gz"))
    labels = {name: int(value) for value, name in msd["labels"].items()}
    description = {"channel_names": msd["modality"], "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    return raw


class Trainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch, self.num_epochs = 4, 1, 1
        self.initial_lr = 1e-2


def main():
    torch.manual_seed(1)
    raw = make_raw()
    extract_fingerprints([1], num_processes=1)
    name = plan_experiments([1], planner)
    preprocess([1], name, configurations=("3d_fullres",), num_processes=(1,))
    prepared = folder / "preprocessed" / raw.name
    plans = json.loads((prepared / f"{name}.json").read_text())
    plans["continue_training"] = False  # expected by newer releases
    os.environ["nnUNet_n_proc_DA"] = "0"  # no other processes
    Trainer.__name__ = "nnUNetTrainer"
    trainer = Trainer(plans, "3d_fullres", 0, json.loads((prepared / "dataset.json").read_text()), device=torch.device("cpu"))
    trainer.run_training()
    result = pathlib.Path(trainer.output_folder_base)
    checkpoint = result / "fold_0" / "checkpoint_final.pth"
    state = torch.load(checkpoint, weights_only=False)
    for name, tensor in state["network_weights"].items():
        if name.endswith(".bias") or ".norm." in name:
            tensor += 0.2 * torch.randn(tensor.shape)
    torch.save(state, checkpoint)

    # nnU-Net adds up logits in half precision, which alone changes about one voxel in a thousand of a network that is hardly trained.
    torch.half = torch.float32
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(result), (0,), "checkpoint_final.pth")
    (folder / "labels").mkdir()
    predictor.predict_from_files_sequential(str(raw / "imagesTs"), str(folder / "labels"))


if __name__ == "__main__":
    main()
