"""What the program has written, for the scripts beside this one."""

import json
import pathlib
import subprocess

BATCHES = 64


def dice_of_cases(metrics):
    """Dice of every case and label in a `metrics.json`."""
    cases = json.loads(pathlib.Path(metrics).read_text())["metric_per_case"]
    return {pathlib.Path(case["prediction_file"]).name.split(".")[0]: [round(label["Dice"], 4) for label in case["metrics"].values()] for case in cases}


def pseudo_dice(adw, run, fold, files):
    """Pseudo-Dice on half B that a finished search's weights give the architectures in `files`, by their blocks as text."""
    named = [word for file in files for word in ("--architecture", file)]
    command = [adw, "rank", "--run", run, "--fold", str(fold), "--batches", str(BATCHES), "--json", *named]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {str(score["blocks"]): round(score["dice"], 4) for score in map(json.loads, lines) if score["event"] == "score"}
