"""Random networks of a fold after training and with the shared weights of finished searches: rows of rank_random.jsonl.

python3 docs/study/rank_random.py ADW FOLD SEARCH=RUN...: each RUN has a finished search of the fold, and in `retrain/r*` trainings of random networks.
"""

import json
import pathlib
import sys

from results import pseudo_dice


def main(adw, fold, *named):
    searches = {name: pathlib.Path(run) for name, run in (one.split("=", 1) for one in named)}
    folders = [folder for run in searches.values() for folder in run.glob(f"retrain/r*/fold_{fold}") if (folder / "metrics.json").exists()]
    files = [folder / "architecture.json" for folder in folders]
    scores = {name: pseudo_dice(adw, run, fold, files) for name, run in searches.items()}
    for folder, file in sorted(zip(folders, files), key=lambda pair: pair[0].parent.name):
        found, metrics = json.loads(file.read_text()), json.loads((folder / "metrics.json").read_text())
        row = {"seed": int(folder.parent.name[1:]), "fold": int(fold), "blocks": found["blocks"]}
        row["mean_dice"] = round(metrics["foreground_mean"]["Dice"], 4)
        print(json.dumps(row | {"pseudo_dice": {name: of_search[str(found["blocks"])] for name, of_search in scores.items()}}))


if len(sys.argv) < 4:
    sys.exit(__doc__)
main(*sys.argv[1:])
