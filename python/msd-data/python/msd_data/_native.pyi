"""Types of the compiled part of the package."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from . import LabelMetrics, Plan, Problem, Report

__version__: str
__all__ = [
    "Batches", "Dataset", "PatchSampler", "__version__", "augmentation", "check", "evaluate", "metrics", "plan",
    "preprocess", "read_image", "read_labels", "restore", "write_labels", "write_phantom",
]

_Path: TypeAlias = str | os.PathLike[str]
_Grid: TypeAlias = tuple[tuple[float, float, float], Sequence[Sequence[float]]]
_Batch: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]

@final
class Dataset:
    def __new__(cls, path: _Path, *, ignore_positions: bool = False) -> Dataset: ...
    @property
    def root(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def channels(self) -> list[str]: ...
    @property
    def labels(self) -> dict[int, str]: ...
    @property
    def cases(self) -> list[str]: ...
    @property
    def test_cases(self) -> list[str]: ...
    def image(self, case: str) -> list[Path]: ...
    def label(self, case: str) -> Path: ...
    def folds(self) -> list[tuple[list[str], list[str]]]: ...
    def __getnewargs_ex__(self) -> tuple[tuple[Path], dict[str, Any]]: ...

@final
class PatchSampler:
    def __new__(
        cls,
        dataset: Dataset,
        plan: Mapping[str, Any],
        cases: Sequence[str] | None = None,
        *,
        patch_size: Sequence[int] | None = None,
        batch_size: int | None = None,
        augmentation: str | Mapping[str, Any] | None = None,
        seed: int = 0,
        purpose: str = "weights",
        forced_foreground: float = 0.33,
        folder: _Path | None = None,
        memory_gb: float | None = None,
    ) -> PatchSampler: ...
    @property
    def cases(self) -> list[str]: ...
    @property
    def shape(self) -> tuple[int, int, int, int, int]: ...
    def batch(self, epoch: int, iteration: int) -> _Batch: ...
    def batch_cases(self, epoch: int, iteration: int) -> list[str]: ...
    def batches(
        self, epoch: int, num_batches: int = 250, *, start: int = 0, num_threads: int = 2, prefetch: int = 4
    ) -> Batches: ...
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]: ...

@final
class Batches(Iterator[_Batch]):
    def __iter__(self) -> Batches: ...
    def __next__(self) -> _Batch: ...
    def __len__(self) -> int: ...

def augmentation(preset: str) -> dict[str, Any]: ...
def check(path: _Path, ignore_positions: bool, memory_gb: float | None) -> list[Problem]: ...
def plan(
    dataset: Dataset,
    gpu_memory_gb: float,
    spacing_mm: Sequence[float] | None,
    batch_size: int | None,
    memory_gb: float | None,
) -> Plan: ...
def preprocess(
    image: Sequence[_Path],
    labels: _Path | None,
    plan: Mapping[str, Any],
    ignore_positions: bool,
    memory_gb: float | None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16] | None, dict[str, Any]]: ...
def restore(logits: npt.NDArray[np.float32], properties: Mapping[str, Any]) -> npt.NDArray[np.uint16]: ...
def read_image(path: _Path) -> tuple[npt.NDArray[np.float32], _Grid]: ...
def read_labels(path: _Path) -> tuple[npt.NDArray[np.uint16], _Grid]: ...
def write_labels(path: _Path, labels: npt.NDArray[np.uint16], like: _Path) -> None: ...
def metrics(
    prediction: npt.NDArray[np.uint16],
    reference: npt.NDArray[np.uint16],
    spacing_mm: Sequence[float],
    labels: Sequence[int] | None,
    tolerance_mm: float,
) -> dict[int, LabelMetrics]: ...
def evaluate(
    predictions: _Path,
    references: _Path,
    labels: Sequence[int] | None,
    tolerance_mm: float,
    require_all: bool,
    ignore_positions: bool,
    memory_gb: float | None,
) -> Report: ...
def write_phantom(path: _Path, **options: Any) -> None: ...
