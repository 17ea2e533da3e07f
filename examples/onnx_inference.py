"""Segments images with a network that `adw export --onnx` wrote, without the program.

    python onnx_inference.py --model OUT.onnx --output labels.nii.gz image.nii.gz [second_channel.nii.gz ...]

Needs numpy, scipy, nibabel and onnxruntime. What surrounds the network is read from the model's metadata, which `inference.json` beside
it repeats.
"""

import argparse
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
from scipy import ndimage

LETTERS = [("L", "R"), ("P", "A"), ("I", "S")]


def load_model(path):
    """ONNX Runtime's session, and the description of what surrounds the network."""
    session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    beside = Path(path).with_name("inference.json")
    metadata = session.get_modelmeta().custom_metadata_map
    if beside.is_file() and json.loads(beside.read_text()) != json.loads(metadata["inference"]):
        raise SystemExit(f"{beside} does not describe {path}: remove it, or put it beside its own network")
    description = json.loads(metadata["inference"])
    if description["format"] != "adw-inference/1":
        raise SystemExit(f"{path}: format {description['format']}, expected adw-inference/1")
    return session, description


def load_image(paths):
    """Channels [C, z, y, x], voxel size along z, y, x in millimetres, orientation per file axis x, y, z (or None), first file."""
    images = [nibabel.load(path) for path in paths]
    for path, image in zip(paths, images):
        if image.shape[:3] != images[0].shape[:3] or not np.allclose(image.affine, images[0].affine, atol=1e-2):
            raise SystemExit(f"{path}: its voxels are not those of {paths[0]}; resample it to them")
    arrays = [np.asarray(image.dataobj, dtype=np.float64).astype(np.float32) for image in images]
    arrays = [array.reshape(array.shape[:3] + (-1,)) for array in arrays]  # a 4D file has a channel per fourth index
    data = np.concatenate(arrays, axis=3).transpose(3, 2, 1, 0)
    header = images[0].header
    millimetres = {"meter": 1e3, "micron": 1e-3}.get(header.get_xyzt_units()[0], 1.0)
    spacing = np.array([float(size) * millimetres for size in header.get_zooms()[2::-1]])
    placed = header["sform_code"] > 0 or header["qform_code"] > 0
    orientation = nibabel.io_orientation(images[0].affine) if placed else None
    return data, spacing, orientation, images[0]


def axes_to(orientation, description):
    """Axis and direction of each network axis in terms of the image's z, y, x."""
    order, reverse = [0, 1, 2], [False] * 3
    if orientation is not None and description["orientation"] is not None:
        for i, letter in enumerate(description["orientation"]):
            scanner = next(axis for axis, pair in enumerate(LETTERS) if letter in pair)
            j = next(j for j in range(3) if orientation[j, 0] == scanner)
            order[2 - i] = 2 - j
            reverse[2 - i] = (orientation[j, 1] > 0) != (letter == LETTERS[scanner][1])
    transpose = description["transpose"]
    return [order[axis] for axis in transpose], [reverse[axis] for axis in transpose]


def turn(array, order, reverse):
    """Applies such a map to the last three axes."""
    before = array.ndim - 3
    array = array.transpose(*range(before), *(before + axis for axis in order))
    return np.flip(array, [before + axis for axis in range(3) if reverse[axis]])


def turn_back(array, order, reverse):
    array = np.flip(array, [axis for axis in range(3) if reverse[axis]])
    return array.transpose(np.argsort(order))


def normalize(channel, kind, inside):
    if kind["normalization"] == "ct":
        return (channel.clip(kind["lower"], kind["upper"]) - kind["mean"]) / max(kind["std"], 1e-8)
    if kind["normalization"] == "z_score":
        where = inside if kind["masked"] else np.ones(channel.shape, bool)
        values = channel[where].astype(np.float64)
        channel[where] = (values - values.mean()) / max(values.std(), 1e-8)
        return channel
    if kind["normalization"] == "rescale_to_unit":
        return (channel - channel.min()) / max(channel.max() - channel.min(), 1e-8)
    return channel / 255 if kind["normalization"] == "rgb_to_unit" else channel


def separate_axis(current, target):
    """Axis that alone has voxels more than three times as long as the finest, in one grid or else in the other."""
    for spacing in (current, target):
        if max(spacing) / min(spacing) > 3:
            longest = np.flatnonzero(np.asarray(spacing) == max(spacing))
            return longest[0] if len(longest) == 1 else None
    return None


def resample(volume, shape, separate, order):
    """Splines of `order` with repeated edges, the nearest slice along a separate axis; cubic results are clipped."""
    if volume.shape == tuple(shape):
        return volume
    in_plane = list(shape)
    if separate is not None:
        in_plane[separate] = volume.shape[separate]
    zoom = [new / old for new, old in zip(in_plane, volume.shape)]
    axes = None if separate is None else tuple(axis for axis in range(3) if axis != separate)
    low, high = (volume.min(axes, keepdims=True), volume.max(axes, keepdims=True))

    def slices(array):
        return [array] if separate is None else np.moveaxis(array, separate, 0)

    result = np.empty(in_plane, np.float32)
    for source, target in zip(slices(volume), slices(result)):
        factors = zoom if separate is None else [z for axis, z in enumerate(zoom) if axis != separate]
        ndimage.zoom(source, factors, output=target, order=order, mode="nearest", grid_mode=True)
    if order == 3:
        result = result.clip(low, high)
    if separate is not None and volume.shape[separate] != shape[separate]:
        old, new = volume.shape[separate], shape[separate]
        nearest = np.floor((np.arange(new) + 0.5) * (old / new)).astype(int).clip(max=old - 1)
        result = result.take(nearest, separate)
    return result


def window_starts(size, patch, step):
    rest = size - patch
    if rest <= 0:
        return [0]
    last = min(int(np.ceil(rest / (patch * step))), rest)
    return [int(np.round(i * (rest / last))) for i in range(last + 1)]


def gaussian(patch, kind):
    axes = [np.exp(-0.5 * ((np.arange(n) - n // 2) / (n * kind["sigma"])) ** 2) for n in patch]
    weights = kind["peak"] * axes[0][:, None, None] * axes[1][:, None] * axes[2]
    weights = weights.astype(kind["dtype"]).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights


def predict(session, image, description):
    """Logits [K, D, H, W] of a prepared image [C, D, H, W]: windows weighted by a Gaussian."""
    patch, shape = description["patch_size"], image.shape[1:]
    missing = [max(n - size, 0) for n, size in zip(patch, shape)]
    before = [n // 2 for n in missing]
    image = np.pad(image, [(0, 0)] + [(b, n - b) for b, n in zip(before, missing)])
    weights = gaussian(patch, description["gaussian"])
    axes = [axis + 2 for axis in description["mirror_axes"]]
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    sums, total = None, np.zeros(image.shape[1:], np.float32)
    for start in itertools.product(*(window_starts(n, p, description["step"]) for n, p in zip(image.shape[1:], patch))):
        box = tuple(slice(s, s + p) for s, p in zip(start, patch))
        window = np.ascontiguousarray(image[(slice(None), *box)][None], np.float32)
        logits = 0
        for flip in flips:
            mirrored = np.ascontiguousarray(np.flip(window, flip))
            logits = logits + np.flip(session.run(["logits"], {"image": mirrored})[0], flip)
        sums = np.zeros((logits.shape[1], *total.shape), np.float32) if sums is None else sums
        sums[(slice(None), *box)] += logits[0] / len(flips) * weights
        total[box] += weights
    inner = tuple(slice(b, b + n) for b, n in zip(before, shape))
    return (sums / total)[(slice(None), *inner)]


def keep_largest(labels, steps):
    """Removes all but the largest component of each listed structure; neighbours share a face, an edge or a corner."""
    for step in steps:
        structure = labels > 0 if step == "foreground" else labels == step["label"]
        components, _ = ndimage.label(structure, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())[1:]
        if sizes.size:
            small = 1 + np.flatnonzero(sizes < sizes.max())
            labels[np.isin(components, small)] = 0
    return labels


def segment(session, description, paths):
    """Label map of an image on its own grid, [x, y, z] as nibabel has it, and the image of the first file."""
    data, spacing, orientation, first = load_image(paths)
    if len(data) != len(description["channels"]):
        raise SystemExit(f"{paths[0]}: {len(data)} channels, the network takes {len(description['channels'])}")
    order, reverse = axes_to(orientation, description)
    data, spacing = turn(data, order, reverse), spacing[order]
    nonzero = (data != 0).any(0)
    if not nonzero.any():
        nonzero[:] = True
    crop = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(nonzero))
    inside = ndimage.binary_fill_holes(nonzero[crop])
    cropped = data[(slice(None), *crop)]
    cropped = [normalize(channel.copy(), kind, inside) for channel, kind in zip(cropped, description["channels"])]

    target = np.array(description["spacing_mm"])
    shape = [max(int(np.round(mm / to * n)), 1) for mm, to, n in zip(spacing, target, inside.shape)]
    separate = separate_axis(spacing, target)
    image = np.stack([resample(channel, shape, separate, 3) for channel in cropped])
    logits = predict(session, image, description)
    separate = separate_axis(target, spacing)
    logits = np.stack([resample(one, inside.shape, separate, 1) for one in logits])

    labels = np.zeros(data.shape[1:], np.uint8)
    labels[crop] = logits.argmax(0)
    labels = keep_largest(turn_back(labels, order, reverse), description["postprocessing"]["keep_largest"])
    return labels.transpose(2, 1, 0), first


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="file that `adw export --onnx` wrote")
    parser.add_argument("--output", required=True, help="label map, .nii or .nii.gz")
    parser.add_argument("image", nargs="+", help="image, or one file per channel")
    arguments = parser.parse_args()
    session, description = load_model(arguments.model)
    labels, image = segment(session, description, arguments.image)
    result = nibabel.Nifti1Image(np.ascontiguousarray(labels), image.affine, image.header, dtype=np.uint8)
    result.header.set_slope_inter(1, 0)
    nibabel.save(result, arguments.output)


if __name__ == "__main__":
    main()
