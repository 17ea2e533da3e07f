"""nnU-Net's planning, preprocessing, patch sampling, augmentation and metrics, in Rust, for NumPy.

    dataset = msd_data.Dataset("Task04_Hippocampus")
    plan = msd_data.plan(dataset)
    train, validation = dataset.folds()[0]
    sampler = msd_data.PatchSampler(dataset, plan, train, seed=1)
    for x, y in sampler.batches(epoch=0, num_batches=250):
        ...  # x: float32 [B, C, D, H, W], y: uint8 [B, D, H, W]

Arrays of files are [C, z, y, x] and [z, y, x], the order of the voxels in the file (nibabel's arrays are [x, y, z]). Prepared
arrays are [C, D, H, W] in the plan's orientation and order of axes. Lengths are millimetres. Plans, properties and reports are
dictionaries that ``json`` can write; plans are those of ``adw plan --json``.

Work runs without the interpreter's lock, in as many threads as there are processors (``RAYON_NUM_THREADS`` sets another
number); in a forked process, such as a worker of PyTorch's ``DataLoader``, in one.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypedDict, Union

import numpy as np
import numpy.typing as npt

from . import _native
from ._native import Batches, Dataset, PatchSampler, __version__

__all__ = [
    "Batches", "Dataset", "LabelMetrics", "PatchSampler", "Plan", "PreparedCase", "Problem", "Report", "Volume",
    "__version__", "augmentation", "check", "evaluate", "metrics", "plan", "preprocess", "read_image", "read_labels",
    "restore", "write_labels", "write_phantom",
]

PathLike = Union[str, "os.PathLike[str]"]
Triple = Tuple[float, float, float]
Shape = Tuple[int, int, int]


class PlanLabel(TypedDict):
    """A label of a plan."""

    value: int
    name: str


class Plan(TypedDict):
    """What follows from a dataset. Triples are D, H, W: z, y, x of the orientation, moved by ``transpose_forward``."""

    dataset_name: str
    modalities: List[str]
    labels: List[PlanLabel]
    spacing_mm: Triple
    """Voxel size that cases are resampled to."""
    median_shape: Triple
    """Median shape of the resampled cases."""
    patch_size: Shape
    batch_size: int
    strides: List[Shape]
    """Stride of each pooling, one fewer than kernels."""
    kernels: List[Shape]
    """Kernel of each stage, the last for the bottleneck."""
    normalization: List[str]
    """Of each channel: ``ct``, ``z_score``, ``rescale_to_unit``, ``rgb_to_unit`` or ``none``."""
    use_mask_for_norm: List[bool]
    intensity: List[Dict[str, float]]
    """Foreground intensities of each channel."""
    batch_dice: bool
    orientation: Optional[str]
    """Orientation that every image is brought to, such as ``RAS``."""
    transpose_forward: Shape
    transpose_backward: Shape


class Problem(TypedDict):
    """A problem of a dataset."""

    severity: str
    """``error`` or ``warning``."""
    message: str
    """The file, its fault, and a remedy."""


class LabelMetrics(TypedDict):
    """Metrics of one label. With neither prediction nor reference NaN, with one of them 0, and HD95 infinite."""

    Dice: float
    IoU: float
    HD95: float
    """95 % Hausdorff distance, millimetres."""
    NSD: float
    """Normalised surface Dice."""
    TP: int
    FP: int
    FN: int
    TN: int
    n_pred: int
    n_ref: int


class Report(TypedDict):
    """nnU-Net's ``summary.json`` with HD95 and NSD added."""

    foreground_mean: Dict[str, float]
    mean: Dict[int, Dict[str, float]]
    """Means over the cases by label."""
    metric_per_case: List[Dict[str, Any]]
    """``prediction_file``, ``reference_file`` and ``metrics`` (by label, :class:`LabelMetrics`) of each case."""
    nsd_tolerance_mm: float
    references_without_prediction: List[str]


class Volume(NamedTuple):
    """Voxels of a file and their grid."""

    data: npt.NDArray[Any]
    """float32 [C, z, y, x] of an image, uint16 [z, y, x] of a label map."""
    spacing_mm: Triple
    """Voxel size along z, y, x."""
    affine: npt.NDArray[np.float64]
    """Matrix from voxel indices (x, y, z, 1) to millimetres in the scanner, [4, 4], as nibabel's."""


class PreparedCase(NamedTuple):
    """A case ready for a network."""

    image: npt.NDArray[np.float32]
    """Normalised intensities, [C, D, H, W]."""
    labels: Optional[npt.NDArray[np.int16]]
    """Labels, [D, H, W]; -1 where nothing is labelled and every channel was 0."""
    properties: Dict[str, Any]
    """Cropping and resampling, for :func:`restore`."""


def check(path: PathLike, *, ignore_positions: bool = False, memory_gb: Optional[float] = None) -> List[Problem]:
    """Read a whole dataset and return its problems, each in one line; none if it is sound.

    Args:
        path: Folder of the dataset.
        ignore_positions: Use labels and channels voxel by voxel, wherever their headers place them in the scanner.
        memory_gb: Most memory for reading, GB; by default what is available.
    """
    return _native.check(path, ignore_positions, memory_gb)


def plan(
    dataset: Dataset,
    *,
    gpu_memory_gb: float = 8.0,
    spacing_mm: Optional[Iterable[float]] = None,
    batch_size: Optional[int] = None,
    memory_gb: Optional[float] = None,
) -> Plan:
    """Plan a dataset as nnU-Net v2 does for ``3d_fullres``; reads every case with labels.

    Args:
        dataset: The dataset.
        gpu_memory_gb: Memory that nnU-Net's own network may take, which scales patch and batch.
        spacing_mm: Voxel size along z, y, x of most cases' orientation, by default from the cases.
        batch_size: Patches per batch, by default from memory and number of cases.
        memory_gb: Limit of memory for the work, by default what is available.

    Raises:
        ValueError: A case that cannot be used, or cases without a plan.
    """
    spacing_mm = None if spacing_mm is None else _lengths(spacing_mm)
    return _native.plan(dataset, gpu_memory_gb, spacing_mm, batch_size, memory_gb)


def preprocess(
    image: Union[PathLike, Sequence[PathLike]],
    plan: Mapping[str, Any],
    labels: Optional[PathLike] = None,
    *,
    ignore_positions: bool = False,
    memory_gb: Optional[float] = None,
) -> PreparedCase:
    """Prepare a case: orient, crop to the nonzero region, normalise, resample.

    Args:
        image: File with all channels, or a file for each, such as ``dataset.image(case)``.
        plan: The plan.
        labels: File of the label map, such as ``dataset.label(case)``.
        ignore_positions: Use files voxel by voxel, wherever their headers place them in the scanner.
        memory_gb: Limit of memory for the work, by default what is available.

    Raises:
        OSError: A file that cannot be read.
        ValueError: A damaged file, files that do not fit each other or the plan.
        MemoryError: The case does not fit into memory.
    """
    files = [image] if isinstance(image, (str, os.PathLike)) else list(image)
    return PreparedCase(*_native.preprocess(files, labels, plan, ignore_positions, memory_gb))


def restore(logits: npt.ArrayLike, properties: Mapping[str, Any]) -> npt.NDArray[np.uint16]:
    """Bring a prediction back to its image's grid: resample logits [K, D, H, W], take the best label, [z, y, x].

    Voxels that :func:`preprocess` has cropped are background.
    """
    return _native.restore(_array(logits, "logits", np.float32, 4), properties)


def read_image(path: PathLike) -> Volume:
    """Read a NIfTI image; a 3D file has one channel."""
    data, (spacing_mm, affine) = _native.read_image(path)
    return Volume(data, spacing_mm, np.array(affine))


def read_labels(path: PathLike) -> Volume:
    """Read a NIfTI label map of any type whose values are whole numbers."""
    data, (spacing_mm, affine) = _native.read_labels(path)
    return Volume(data, spacing_mm, np.array(affine))


def write_labels(path: PathLike, labels: npt.ArrayLike, like: PathLike) -> None:
    """Write a label map [z, y, x] on the grid of the file ``like``, with its header; the file appears whole or not at all."""
    _native.write_labels(path, _label_map(labels, "labels"), like)


def metrics(
    prediction: npt.ArrayLike,
    reference: npt.ArrayLike,
    spacing_mm: Iterable[float],
    *,
    labels: Optional[Iterable[int]] = None,
    tolerance_mm: float = 1.0,
) -> Dict[int, LabelMetrics]:
    """Compare two label maps [z, y, x] of one grid.

    Args:
        prediction: Label map of any integer type, or bool.
        reference: Label map of the same shape.
        spacing_mm: Voxel size along the arrays' axes.
        labels: Labels to compare, by default those above 0 that occur in either.
        tolerance_mm: Tolerance of the normalised surface Dice.

    Returns:
        Metrics by label. The numbers are those of ``adw evaluate``; HD95 and NSD agree with MONAI's.
    """
    maps = _label_map(prediction, "prediction"), _label_map(reference, "reference")
    return _native.metrics(*maps, _lengths(spacing_mm), None if labels is None else list(labels), tolerance_mm)


def evaluate(
    predictions: PathLike,
    references: PathLike,
    *,
    labels: Optional[Iterable[int]] = None,
    tolerance_mm: float = 1.0,
    require_all: bool = False,
    ignore_positions: bool = False,
    memory_gb: Optional[float] = None,
) -> Report:
    """Compare the label maps of a folder with those of the same names in another, as ``adw evaluate`` does.

    Args:
        predictions: Folder of label maps.
        references: Folder of label maps.
        labels: Labels to report, by default those above 0 that occur anywhere.
        tolerance_mm: Tolerance of the normalised surface Dice.
        require_all: Refuse a reference without a prediction, which is listed otherwise.
        ignore_positions: Compare voxel by voxel, wherever the headers place the maps in the scanner.
        memory_gb: Limit of memory for the work, by default what is available.
    """
    return _native.evaluate(
        predictions, references, None if labels is None else list(labels), tolerance_mm, require_all, ignore_positions, memory_gb
    )


def augmentation(preset: str = "full") -> Dict[str, Any]:
    """Return the probabilities of a preset, ``full``, ``light`` or ``none``, to change and give to :class:`PatchSampler`."""
    return _native.augmentation(preset)


def write_phantom(path: PathLike, **options: Any) -> None:
    """Write a synthetic dataset to try things on.

    Args:
        path: Folder to write to.
        options: ``num_cases`` (20), ``num_test`` (4), ``shape`` ((40, 48, 40)), ``spacing_mm`` ((1, 1, 1)),
            ``num_labels`` (2), ``num_modalities`` (1), ``seed`` (1), ``family`` (``anatomy``, ``texture``).
    """
    _native.write_phantom(path, **options)


def _lengths(values: Iterable[float]) -> Tuple[float, ...]:
    """Numbers of a tuple, an array or a tensor."""
    return tuple(float(value) for value in values)


def _array(values: npt.ArrayLike, name: str, dtype: Any, ndim: int) -> npt.NDArray[Any]:
    """Array of a type and a number of axes; the same memory if it has them."""
    array = np.asarray(values)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}; expected {ndim} axes, none of them empty")
    if not np.can_cast(array.dtype, np.float64):
        raise ValueError(f"{name}: type {array.dtype}; expected numbers")
    return array.astype(dtype, copy=False)


def _label_map(values: npt.ArrayLike, name: str) -> npt.NDArray[np.uint16]:
    """Label map of 16 bits."""
    array = np.asarray(values)
    if array.dtype.kind not in "biu":
        raise ValueError(f"{name}: type {array.dtype}; expected integers or bool")
    if array.dtype != np.uint16 and array.size > 0 and not (0 <= array.min() and array.max() <= 65535):
        raise ValueError(f"{name}: values from {array.min()} to {array.max()}; labels are from 0 to 65535")
    return _array(array, name, np.uint16, 3)
