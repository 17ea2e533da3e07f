"""Random search in the time of a gradient search, at the study's smallest size; plan.md says what is fixed.

python3 docs/study/random_search.py ADW DATASET FOLDER SEED FOLD: five random networks are trained briefly on half A of the fold and scored on half B,
the best is trained as every network of the study is. Prints its row for rows.jsonl, with the scores of all five; trainings that are there are not repeated.
"""

import json
import pathlib
import subprocess
import sys

from results import dice_of_cases

HERE = pathlib.Path(__file__).resolve().parent
COST = "0.305G"
CANDIDATES = 5
SETTINGS = ["network.max_width=6", "retrain.warm_start=false"]


def retrain(adw, run, fold, name, network, settings=(), made=()):
    """Folder of a training, which runs unless its scores are there."""
    folder = run / "retrain" / name / f"fold_{fold}"
    if not (folder / "metrics.json").exists():
        words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
        resume = ["--resume"] if (folder / "checkpoint").exists() else []
        subprocess.run(
            [adw, "retrain", "--run", run, "--fold", str(fold), "--name", name, "--threads", "1", *network, *words, *made, *resume],
            check=True, stdout=sys.stderr)  # fmt: skip
    return folder


def schedule(epochs, iterations=100):
    return [f"retrain.epochs={epochs}", f"retrain.iterations_per_epoch={iterations}"]


def processor(training):
    lines = (training / "config.toml").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("processor"))


def make(adw, data, run, fold, seed):
    """A run with the folds and halves of this seed: a training of one step makes its folder."""
    retrain(adw, run, fold, "made", ["--uniform-width", "4"], schedule(1, 1),
            ["--data", data, "--seed", str(seed), "--preset", str(HERE / "sgd.toml")])  # fmt: skip


def main(adw, data, folder, seed, fold):
    seed, fold, folder = int(seed), int(fold), pathlib.Path(folder)
    whole, halves = (folder / f"seed_{seed}_fold_{fold}" / name for name in ("whole", "halves"))
    make(adw, data, whole, fold, seed)
    make(adw, data, halves, fold, seed)
    # The folds of `whole`, each within its training cases: written whole, before the first candidate, whenever a call was killed.
    splits = json.loads((whole / "splits.json").read_text())
    for of in splits["folds"]:
        a, b = of["train_a"], of["train_b"]
        of.update(train=a, validation=b, train_a=a[::2], train_b=a[1::2])
    if json.loads((halves / "splits.json").read_text()) != splits:
        assert not any((halves / "retrain").glob("c*")), f"{halves}: candidates with the folds of the whole dataset; remove it"
        (halves / "new.json").write_text(json.dumps(splits))
        (halves / "new.json").replace(halves / "splits.json")
    scores = {}
    for drawn in range(1000 * seed + 10 * fold, 1000 * seed + 10 * fold + CANDIDATES):
        done = retrain(adw, halves, fold, f"c{drawn}", ["--random", str(drawn), "--cost", COST], schedule(4))
        scores[drawn] = json.loads((done / "metrics.json").read_text())["foreground_mean"]["Dice"]
    best = max(scores, key=scores.get)
    done = retrain(adw, whole, fold, "best", ["--random", str(best), "--cost", COST], schedule(24))
    network = json.loads((done / "architecture.json").read_text())
    forecast = json.loads(subprocess.run(
        [adw, "retrain", "--run", whole, "--fold", str(fold), "--name", "forecast", "--random", str(best), "--cost", COST, "--set", SETTINGS[0], "--dry-run", "--json"],
        check=True, capture_output=True, text=True).stdout)  # fmt: skip
    print(json.dumps({
        "size": "0.3G", "dataset": "hippocampus", "arm": "random-search", "seed": seed, "fold": fold, "macs_per_patch": forecast["macs_per_patch"], "parameters": forecast["parameters"],
        "steps": 2400, "search_s": None, "retrain_s": None, "processor": processor(done), "blocks": network["blocks"],
        "dice": dice_of_cases(done / "metrics.json"),
        "candidates": scores,
    }))  # fmt: skip


main(*sys.argv[1:])
