"""Times of a training step beside its cost. python3 docs/study/step_time.py ADW: measures with this program, seven rounds over all networks, and writes
step_time.jsonl. Without an argument: prints what the rows say (../study.md)."""

import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROWS = HERE / "step_time.jsonl"
STAGES = [0, 1, 2, 3, 2, 1, 0]
VOXELS = [40 * 56 * 40 // 8**stage for stage in range(4)]
CLASSES = 3


def cost(blocks):
    """Multiply-adds of one forward pass of one patch, and bytes of the maps that its convolutions write."""
    macs = values = 0
    for block, widths in enumerate(blocks):
        voxels, before = VOXELS[STAGES[block]], blocks[block - 1][-1] if block else 1
        if block > 3:
            up = blocks[STAGES[block]][-1]
            macs, values, before = macs + voxels * before * up, values + voxels * up, 2 * up
        for width in widths:
            macs, values, before = macs + voxels * 27 * before * width, values + voxels * width, width
        if block > 3:
            macs, values = macs + voxels * before * CLASSES, values + voxels * CLASSES
    return macs, 4 * values


def networks():
    """24 random networks of the space of at most 12 channels between 0.5 and 2 G, those found at 0.93 and 1.08 G, plain ones."""
    draw, drawn = random.Random(5), []
    while len(drawn) < 24:
        choices = [[12 * 2**stage * k // 6 for k in range(1, 7)] for stage in STAGES]
        blocks = [[draw.choice(widths) for _ in range(draw.choice([1, 2]))] for widths in choices]
        if 0.5e9 < cost(blocks)[0] < 2e9:
            drawn.append(blocks)
    found = [row["blocks"] for row in map(json.loads, (HERE / "quick.jsonl").read_text().splitlines()) if row["arm"] == "found"]
    named = [("random", blocks) for blocks in drawn]
    named += [("found", blocks) for i, blocks in enumerate(found) if blocks not in found[:i]]
    named += [(f"plain-{width}", [[width * 2**stage] * 2 for stage in STAGES]) for width in (5, 7, 8, 9)]
    return [*named, ("plain-8, one convolution", [[8 * 2**stage] for stage in STAGES])]


def measure(adw):
    rows = [{"network": name, "blocks": blocks, "seconds": []} for name, blocks in networks()]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "architecture.json"
        for _ in range(7):
            for row in rows:
                plan = {"in_channels": 1, "num_classes": CLASSES, "strides": [[2] * 3] * 3, "kernels": [[3] * 3] * 4}
                file.write_text(json.dumps({"format": "adw-architecture/1", **plan, "blocks": row["blocks"]}))
                options = "--threads 2 --passes weight_pass --repeats 3 --warmup 1 --json"
                out = subprocess.run([adw, "bench", "step", "--architecture", file, *options.split()], check=True, capture_output=True, text=True)
                row["seconds"].append(round(json.loads(out.stdout)["weight_pass"], 4))
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def summary():
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    seconds = [statistics.median(row["seconds"]) for row in rows]
    for unit, name in enumerate(["multiply-adds", "bytes"]):
        # The factor of the least squares of relative errors.
        ratios = [cost(row["blocks"])[unit] / time for row, time in zip(rows, seconds)]
        factor = sum(ratios) / sum(ratio**2 for ratio in ratios)
        errors = [factor * ratio - 1 for ratio in ratios]
        squares = statistics.fmean(error**2 for error in errors)
        print(f"time in proportion to {name}: off by {100 * squares**0.5:.0f} % (root mean square), at most {100 * max(map(abs, errors)):.0f} %")
    eight = next(row["seconds"] for row in rows if row["network"] == "plain-8")
    for row, time in zip(rows, seconds):
        macs, size = cost(row["blocks"])
        beside = statistics.median(a / b for a, b in zip(row["seconds"], eight))
        if row["network"] != "random":
            print(f"{row['network']:25} {macs / 1e9:.2f} G {size / 1e6:.1f} MB {time:.3f} s, {beside:.2f} of plain-8 {row['blocks']}")


if len(sys.argv) == 2:
    measure(sys.argv[1])
summary()
