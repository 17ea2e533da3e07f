"""The five networks of a cross-validation, one by one and averaged, on test images whose labels are in DATASET/labelsTs: rows of quick.jsonl.

python3 docs/study/ensemble.py ADW RUN DATASET FOLD: DATASET has the training cases of fold FOLD of the study's dataset (subset.py), RUN is its `adw crossval`.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib

from results import dice_of_cases


def dice(adw, model, dataset):
    """Dice of every case and label."""
    with tempfile.TemporaryDirectory() as folder:
        scores = pathlib.Path(folder) / "metrics.json"
        predict = [adw, "predict", "--model", model, "--postprocessing", "none", "--input", dataset / "imagesTs", "--output", f"{folder}/labels"]
        evaluate = [adw, "evaluate", "--predictions", f"{folder}/labels", "--references", dataset / "labelsTs", "--output", scores]
        for command in (predict, evaluate):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return dice_of_cases(scores)


def main(adw, run, dataset, fold):
    run, dataset = pathlib.Path(run), pathlib.Path(dataset)
    trainings = sorted(run.glob("retrain/fold_*"))
    blocks = json.loads((trainings[0] / "architecture.json").read_text())["blocks"]
    config = tomllib.loads((trainings[0] / "config.toml").read_text())
    steps = config["retrain"]["epochs"] * config["retrain"]["iterations_per_epoch"]
    models = {"ensemble": run} | {f"ensemble-member-{n}": training / "model.safetensors" for n, training in enumerate(trainings)}
    for arm, model in models.items():
        scores = dice(adw, model, dataset)
        mean = round(sum(sum(labels) / len(labels) for labels in scores.values()) / len(scores), 4)
        row = {"arm": arm, "fold": int(fold), "seed": config["seed"], "search": "1.08 G", "steps": steps, "warm_start": False, "blocks": blocks, "mean_dice": mean}
        print(json.dumps(row | {"dice": scores}))


if len(sys.argv) != 5:
    sys.exit(__doc__)
main(*sys.argv[1:])
