"""Pseudo-Dice that a finished search's weights give the study's networks of one fold: a row of rank.jsonl.

python3 docs/study/rank.py ADW RUN SIZE FOLD: RUN is a run of the study's sweep, OUTPUT/runs/hippocampus/ARM/seed_SEED, SIZE is 0.3G, 0.9G or 3.7G.
"""

import json
import pathlib
import sys
import tempfile

from results import BATCHES, pseudo_dice

HERE = pathlib.Path(__file__).resolve().parent
ARMS = ["found", "plain", "random-1", "random-2"]


def main(adw, run, size, fold):
    run, fold = pathlib.Path(run), int(fold)
    rows = [json.loads(line) for line in (HERE / "rows.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["size"] == size and row["fold"] == fold and row["arm"] in ARMS]
    architecture = json.loads((run / f"search/fold_{fold}/architecture.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / f"{n}.json" for n in range(len(rows))]
        for file, row in zip(files, rows):
            file.write_text(json.dumps(architecture | {"blocks": row["blocks"]}))
        scores = pseudo_dice(adw, run, fold, files)
    networks = [{"arm": row["arm"], "seed": row["seed"], "pseudo_dice": scores[str(row["blocks"])]} for row in rows]
    seed = int(run.name.removeprefix("seed_"))
    print(json.dumps({"size": size, "search": run.parent.name, "search_seed": seed, "fold": fold, "batches": BATCHES, "networks": networks}))


if len(sys.argv) != 5:
    sys.exit(__doc__)
main(*sys.argv[1:])
