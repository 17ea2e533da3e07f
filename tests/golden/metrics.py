"""Label maps on which metrics are easy to get wrong, and the metrics of MedPy and NumPy for them.

Usage: metrics.py FOLDER: writes FOLDER/predictions, FOLDER/references and FOLDER/expected.json. Needs medpy and nibabel.
"""

import json
import sys
from pathlib import Path

import medpy.metric.binary as medpy
import nibabel
import numpy as np

TOLERANCE_MM = 1.0
RANDOM_CASES = 40

# Voxels of a surface in millimetres from the nearest voxel of the other: what MedPy's hd, hd95 and asd are made of.
surface_distances = getattr(medpy, "__surface_distances")


def blobs(rng, shape):
    """Labels 0 to 3 in lumps, from noise smoothed by averaging neighbours."""
    noise = rng.random(shape)
    for axis in range(3):
        for shift in (1, 2):
            noise = (noise + np.roll(noise, shift, axis)) / 2
    return np.digitize(noise, np.quantile(noise, sorted(rng.uniform(0.3, 0.99, 3)))).astype(np.uint8)


def cases():
    """Name, prediction, reference and voxel size of every case."""
    rng = np.random.default_rng(7)
    for n in range(RANDOM_CASES):
        shape = tuple(int(side) for side in rng.integers(1, 24, 3))
        spacing = tuple(float(np.float32(mm)) for mm in rng.uniform(0.3, 5.0, 3))
        reference = blobs(rng, shape)
        prediction = np.where(rng.random(shape) < 0.1, rng.integers(0, 4, shape), reference).astype(np.uint8)
        yield f"random_{n:02}", prediction if n % 2 else blobs(rng, shape), reference, spacing
    empty, full = np.zeros((6, 5, 4), np.uint8), np.ones((6, 5, 4), np.uint8)
    voxel, corner, plane, shell = empty.copy(), empty.copy(), empty.copy(), full.copy()
    voxel[3, 2, 1] = 1
    corner[0, 0, 0] = 1
    plane[:, 2, :] = 1
    shell[1:-1, 1:-1, 1:-1] = 0
    masks = {"empty": empty, "full": full, "voxel": voxel, "corner": corner, "plane": plane, "shell": shell}
    for a, prediction in masks.items():
        for b, reference in masks.items():
            if (a, b) != ("empty", "empty"):
                yield f"{a}_{b}", prediction, reference, (1.0, 0.5, 2.5)


def metrics(prediction, reference, spacing):
    """Dice, IoU, HD95 and surface Dice of two masks, of which at least one is not empty."""
    if not prediction.any() or not reference.any():
        return {"Dice": 0.0, "IoU": 0.0, "HD95": None, "NSD": 0.0}
    there = surface_distances(prediction, reference, spacing)
    back = surface_distances(reference, prediction, spacing)
    near = [(distances <= TOLERANCE_MM * (1 + 1e-6)).sum() for distances in (there, back)]
    return {
        "Dice": float(medpy.dc(prediction, reference)),
        "IoU": float(medpy.jc(prediction, reference)),
        "HD95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "NSD": float(sum(near) / (len(there) + len(back))),
    }


def main():
    folder = Path(sys.argv[1])
    expected = {}
    for name, prediction, reference, spacing in cases():
        for kind, labels in (("predictions", prediction), ("references", reference)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(labels, np.diag([*spacing, 1.0])), folder / kind / f"{name}.nii.gz")
        expected[name] = {
            str(label): metrics(prediction == label, reference == label, spacing)
            for label in (1, 2, 3)
            if (prediction == label).any() or (reference == label).any()
        }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1))


main()
