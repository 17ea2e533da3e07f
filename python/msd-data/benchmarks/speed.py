"""Patches per second of msd-data, beside nnU-Net's transforms (batchgeneratorsv2) and medkit-rs, in turns.

    pip install torch batchgeneratorsv2 medkit-rs     # and msd-data
    python python/msd-data/benchmarks/speed.py        # --rounds 5 --seconds 10 by default

Two comparisons on the same prepared volumes, with one thread and with two:

- augmented patches: transforms, probabilities and order of nnU-Net's trainer for 3D (`benchmarks/augmentation.py` of the
  repository builds them), deep supervision left out. Two threads of batchgeneratorsv2 are two processes, as in nnU-Net,
  without the time that it takes to send batches from them.
- crops alone, as batches of 2: medkit-rs has neither augmentation nor planning; it cuts patches at positions that are chosen
  beforehand, out of a cache, whose files are written here from the same volumes. Ours draws case and position and pads.

Each number is of a process of its own, by the clock. No timing is valid while the machine does something else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import msd_data

ROOT = Path(__file__).resolve().parents[3]
PATCHES = [(40, 56, 40), (128, 128, 128)]


def write_data(folder, patch):
    """A phantom of one channel and twice the patch's edges, its prepared volumes, and the cache of medkit-rs."""
    msd_data.write_phantom(folder, num_cases=5, num_test=0, shape=tuple(2 * n for n in patch))
    dataset = msd_data.Dataset(folder)
    plan = msd_data.plan(dataset)
    (folder / "plan.json").write_text(json.dumps(plan))
    cases, patches = [], []
    rng = np.random.default_rng(1)
    for case in dataset.cases:
        prepared = msd_data.preprocess(dataset.image(case), plan, dataset.label(case))
        files = {name: str(folder / f"{case}.{name}") for name in ("image", "label")}
        prepared.image.tofile(files["image"])
        prepared.labels.clip(0).astype("<u2").tofile(files["label"])
        np.savez(folder / f"{case}.npz", image=prepared.image, labels=prepared.labels)
        shape = list(prepared.labels.shape)[::-1]
        grid = {"shape": shape, "spacing": [1.0] * 3, "origin": [0.0] * 3, "direction": np.eye(3).tolist()}
        cases.append({
            "case_id": case, "cache_key": case, "source_metadata_hash": "", "transform_plan_hash": "", "image_path": "",
            "image_paths": [""], "image_channel_count": 1, "label_path": "", "source_geometry": grid,
            "output_geometry": grid, "image_cache_path": files["image"], "label_cache_path": files["label"],
            "image_cache_sha256": "", "label_cache_sha256": "", "shape": shape, "chunk_shape": shape,
            "crop_origin": [0] * 3, "applied_operations": [], "foreground_voxels": 1, "bytes_written": 0,
        })
        for _ in range(200):
            start = [int(rng.integers(0, n - p + 1)) for n, p in zip(shape, patch[::-1])]
            patches.append({"case_id": case, "patch_start": start, "patch_size": list(patch[::-1])})
    rng.shuffle(patches)
    summary = dict.fromkeys(["input_cases", "cached_cases", "failed_cases", "foreground_voxels", "bytes_written"], 5)
    transform_plan = {"name": "", "operations": [], "image_interpolation": "linear", "label_interpolation": "nearest"}
    manifest = {
        "version": 1, "cache_dir": str(folder), "dataset_manifest_path": "", "transform_plan_hash": "",
        "transform_plan": transform_plan, "summary": summary, "cases": cases,
    }
    (folder / "cache_manifest.json").write_text(json.dumps(manifest))
    (folder / "patches.jsonl").write_text("\n".join(map(json.dumps, patches)))


def rate(draw, seconds):
    """Calls `draw`, which returns a number of patches, for some time; patches per second after the first calls."""
    for _ in range(3):
        draw()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        done += draw()
    return done / passed


def ours(folder, patch, threads, seconds, augmentation):
    dataset, plan = msd_data.Dataset(folder), json.loads((folder / "plan.json").read_text())
    sampler = msd_data.PatchSampler(dataset, plan, patch_size=patch, batch_size=2, augmentation=augmentation)
    # One thread is the caller's.
    batches = sampler.batches(0, 1 << 40, num_threads=0 if threads == 1 else threads)
    return rate(lambda: len(next(batches)[0]), seconds)


def batchgeneratorsv2(folder, patch, threads, seconds):
    if threads > 1:
        command = [sys.executable, __file__, "--measure", "batchgeneratorsv2", str(folder), *map(str, patch), "1", str(seconds)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(threads)]
        return sum(float(process.communicate()[0]) for process in running)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch
    from augmentation import enlarged, transforms

    torch.set_num_threads(1)
    pipeline, size = transforms(patch), enlarged(patch).astype(int)
    cases = [np.load(file) for file in sorted(folder.glob("*.npz"))]
    cases = [(case["image"], case["labels"]) for case in cases]
    rng = np.random.default_rng()

    def draw():
        image, labels = cases[rng.integers(len(cases))]
        lower = [int(rng.integers(0, max(n - s, 0) + 1)) for n, s in zip(labels.shape, size)]
        box = tuple(slice(l, l + s) for l, s in zip(lower, size))
        crop, seg = image[0][box], labels[box]
        missing = [(0, s - n) for s, n in zip(size, crop.shape)]
        if any(after for _, after in missing):
            crop, seg = np.pad(crop, missing), np.pad(seg, missing, constant_values=-1)
        pipeline(image=torch.from_numpy(crop[None].copy()), segmentation=torch.from_numpy(seg[None].copy()))
        return 1

    return rate(draw, seconds)


def medkit(folder, patch, threads, seconds):
    from medkit_rs import MedkitNativeBatchIterableDataset

    # Rayon's threads fill a batch; RAYON_NUM_THREADS is their number.
    batches = iter(MedkitNativeBatchIterableDataset(folder, folder / "patches.jsonl", length=1 << 40, batch_size=2))
    return rate(lambda: len(next(batches)["image"]), seconds)


MEASURES = {
    "msd-data": lambda *args: ours(*args, "full"),
    "batchgeneratorsv2": batchgeneratorsv2,
    "msd-data, crops": lambda *args: ours(*args, "none"),
    "medkit-rs, crops": medkit,
}


def measured(name, folder, patch, threads, seconds):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": str(threads)}
    arguments = [name, str(folder), *map(str, patch), str(threads), str(seconds)]
    run = subprocess.run(
        [sys.executable, __file__, "--measure", *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return float(run.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--measure", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, folder, d, h, w, threads, seconds = args.measure
        print(MEASURES[name](Path(folder), (int(d), int(h), int(w)), int(threads), float(seconds)))
        return
    print("| patch | threads | msd-data | batchgeneratorsv2 | ratio | msd-data, crops | medkit-rs, crops | ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for patch in PATCHES:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            write_data(folder, patch)
            for threads in (1, 2):
                rounds = [[measured(name, folder, patch, threads, args.seconds) for name in MEASURES] for _ in range(args.rounds)]
                full, theirs, crops, medkits = (statistics.median(column) for column in zip(*rounds))
                ratios = [statistics.median(r[i] / r[i + 1] for r in rounds) for i in (0, 2)]
                print(
                    f"| {'x'.join(map(str, patch))} | {threads} | {full:.0f} | {theirs:.1f} | {ratios[0]:.1f} "
                    f"| {crops:.0f} | {medkits:.0f} | {ratios[1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
