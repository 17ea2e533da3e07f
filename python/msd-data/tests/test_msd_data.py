"""Tests of the package, on phantoms: the numbers of the Rust crate and of `adw`, memory, threads, processes, odd input.

`adw` is taken from PATH, the crate's example `arrays` from target/release/examples (or $MSD_DATA_EXAMPLES); tests that need
one of them or PyTorch are skipped without.
"""

import inspect
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import msd_data

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = Path(os.environ.get("MSD_DATA_EXAMPLES", ROOT / "target/release/examples"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A dataset of two channels and flat voxels."""
    path = tmp_path_factory.mktemp("data") / "Task99_Phantom"
    msd_data.write_phantom(path, num_cases=6, num_test=1, shape=(16, 40, 36), spacing_mm=(3.0, 1, 1), num_modalities=2)
    return path


@pytest.fixture(scope="session")
def dataset(folder):
    return msd_data.Dataset(folder)


@pytest.fixture(scope="session")
def plan(dataset):
    return msd_data.plan(dataset)


@pytest.fixture(scope="session")
def sampler(dataset, plan):
    return msd_data.PatchSampler(dataset, plan, seed=5)


def adw(*args):
    if shutil.which("adw") is None:
        pytest.skip("adw is not on PATH")
    run = subprocess.run(["adw", *map(str, args)], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def test_dataset(dataset, folder):
    assert (dataset.name, dataset.root, len(dataset.cases), len(dataset.test_cases)) == ("Task99_Phantom", folder, 6, 1)
    assert len(dataset.channels) == 2 and dataset.labels[0] == "background" and len(dataset.labels) == 3
    train, validation = dataset.folds()[0]
    assert sorted(train + validation) == dataset.cases
    files = dataset.image(dataset.cases[0]) + [dataset.label(dataset.cases[0])] + dataset.image(dataset.test_cases[0])
    assert all(file.is_file() for file in files)
    assert pickle.loads(pickle.dumps(dataset)).cases == dataset.cases
    assert msd_data.check(folder) == []


def test_plan_is_that_of_adw(plan, folder):
    assert json.loads(json.dumps(plan)) == adw("plan", folder, "--json")


def test_arrays_are_those_of_the_crate(dataset, plan, folder, sampler, tmp_path):
    example = EXAMPLES / "arrays"
    if not example.exists():
        pytest.skip(f"{example} is not built")
    case = dataset.cases[2]
    subprocess.run([example, folder, case, tmp_path], check=True)
    prepared = msd_data.preprocess(dataset.image(case), plan, dataset.label(case))
    batch = sampler.batch(3, 7)
    found = [prepared.image, prepared.labels, *batch]
    for name, dtype, array in zip(["image.f32", "labels.i16", "x.f32", "y.u8"], ["<f4", "<i2", "<f4", "u1"], found):
        expected = np.fromfile(tmp_path / name, dtype).reshape(array.shape)
        assert array.dtype == expected.dtype and array.tobytes() == expected.tobytes(), name


def test_a_json_plan_is_a_plan(dataset, plan):
    case = dataset.cases[0]
    again = json.loads(json.dumps(plan))
    a, b = (msd_data.preprocess(dataset.image(case), p, dataset.label(case)) for p in (plan, again))
    assert np.array_equal(a.image, b.image) and a.properties == b.properties
    assert a.image.shape[1:] == a.labels.shape == tuple(a.properties["shape"])


def test_restored_labels_are_the_image_own(dataset, plan, tmp_path):
    case = dataset.cases[1]
    # Coarser than the image: resampled there and back.
    coarse = {**plan, "spacing_mm": tuple(1.5 * mm for mm in plan["spacing_mm"])}
    prepared = msd_data.preprocess(dataset.image(case), coarse, dataset.label(case))
    logits = np.stack([prepared.labels == label for label in dataset.labels]).astype(np.float32)
    found, truth = msd_data.restore(logits, prepared.properties), msd_data.read_labels(dataset.label(case))
    scores = msd_data.metrics(found, truth.data, truth.spacing_mm)
    assert found.shape == truth.data.shape and all(score["Dice"] > 0.8 for score in scores.values()), scores
    msd_data.write_labels(tmp_path / "found.nii.gz", found, like=dataset.label(case))
    again = msd_data.read_labels(tmp_path / "found.nii.gz")
    assert np.array_equal(again.data, found) and np.array_equal(again.affine, truth.affine)
    image = msd_data.read_image(dataset.image(case)[0])
    assert image.data.shape == (2, *found.shape) and image.spacing_mm == (3.0, 1.0, 1.0)


def test_metrics_are_those_of_adw(dataset, tmp_path):
    references = dataset.root / "labelsTr"
    for case in dataset.cases:
        labels = msd_data.read_labels(dataset.label(case)).data
        msd_data.write_labels(tmp_path / f"{case}.nii.gz", np.roll(labels, 1, axis=1), like=dataset.label(case))
    report = msd_data.evaluate(tmp_path, references)
    for case in report["metric_per_case"]:
        maps = [msd_data.read_labels(case[file]) for file in ("prediction_file", "reference_file")]
        assert msd_data.metrics(maps[0].data, maps[1].data, maps[1].spacing_mm) == case["metrics"]
    expected = adw("evaluate", "--predictions", tmp_path, "--references", references, "--json")
    assert json.loads(json.dumps(report)) == expected


def test_metrics_of_special_cases():
    a, b = np.zeros((4, 5, 6), np.int64), np.zeros((4, 5, 6), bool)
    assert msd_data.metrics(a, b, (1, 1, 1)) == {}
    assert np.isnan(msd_data.metrics(a, b, (1, 1, 1), labels=[1])[1]["Dice"])
    a[1:3, 1:3, 1:3] = 1
    one = msd_data.metrics(a, b, (1, 1, 1))[1]
    assert (one["Dice"], one["HD95"], one["TP"], one["FP"], one["TN"]) == (0, float("inf"), 0, 8, 112)
    # A view with other strides is compared as it stands.
    same = msd_data.metrics(a.transpose(2, 0, 1), np.ascontiguousarray(a.transpose(2, 0, 1)), (1, 2, 3))
    assert (same[1]["Dice"], same[1]["HD95"], same[1]["NSD"]) == (1, 0, 1)
    other = msd_data.metrics(a.astype(">i4"), a, np.float32([1, 1, 1]), labels={1: ""}.keys())
    assert other == msd_data.metrics(a, a, (1, 1, 1))


def test_arrays_own_the_memory_of_rust(sampler, dataset, plan):
    x, y = sampler.batch(0, 0)
    prepared = msd_data.preprocess(dataset.image(dataset.cases[0]), plan, dataset.label(dataset.cases[0]))
    volume = msd_data.read_image(dataset.image(dataset.cases[0])[0])
    for array in (x, y, prepared.image, prepared.labels, volume.data):
        flags = array.flags
        assert type(array.base).__name__ == "PySliceContainer" and not flags.owndata
        assert flags.c_contiguous and flags.writeable and flags.aligned
    assert x.shape == sampler.shape and y.shape == (sampler.shape[0], *sampler.shape[2:])


def test_a_batch_is_in_memory_once(dataset, plan):
    script = """
import resource, sys, msd_data, pickle
sampler = msd_data.PatchSampler(*pickle.load(sys.stdin.buffer), patch_size=(96, 128, 128), batch_size=16, augmentation="none")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
x, y = sampler.batch(0, 0)
print((peak() - before) / (x.nbytes + y.nbytes))
"""
    run = subprocess.run([sys.executable, "-c", script], input=pickle.dumps((dataset, plan)), capture_output=True)
    assert run.returncode == 0, run.stderr
    # One more patch of the sixteen is in memory while it is drawn.
    assert 0.9 < float(run.stdout) < 1.3, run.stdout


def test_batches_depend_on_their_key_alone(sampler, dataset, plan, tmp_path):
    expected = [sampler.batch(2, i) for i in range(4)]
    stored = msd_data.PatchSampler(dataset, plan, seed=5, folder=tmp_path)
    for other in (sampler, stored, pickle.loads(pickle.dumps(sampler)), pickle.loads(pickle.dumps(stored))):
        for threads in (0, 3):
            found = list(other.batches(2, 4, num_threads=threads, prefetch=2))
            assert len(found) == 4 and all(np.array_equal(a, b) for f, e in zip(found, expected) for a, b in zip(f, e))
    late = sampler.batches(2, 4, start=3)
    assert (len(late), len(sampler.batches(2, 4, start=9))) == (1, 0)
    (late,) = late
    assert np.array_equal(late[0], expected[3][0])
    assert list(tmp_path.iterdir())
    others = [
        msd_data.PatchSampler(dataset, plan, seed=6),
        msd_data.PatchSampler(dataset, plan, seed=5, purpose="validation"),
        msd_data.PatchSampler(dataset, plan, seed=5, augmentation={"gamma": 1.0}),
    ]
    assert not any(np.array_equal(other.batch(2, 0)[0], expected[0][0]) for other in others)
    assert not np.array_equal(expected[0][0], expected[1][0])
    assert sampler.batch_cases(2, 0) == sampler.batch_cases(2, 0) and set(sampler.batch_cases(2, 0)) <= set(dataset.cases)


def test_options_of_a_sampler(dataset, plan):
    train, _ = dataset.folds()[1]
    sampler = msd_data.PatchSampler(dataset, plan, train, patch_size=(8, 16, 12), batch_size=3, augmentation="none")
    assert sampler.shape == (3, 2, 8, 16, 12) and sampler.cases == train
    forced = msd_data.PatchSampler(dataset, plan, train, patch_size=(8, 16, 12), batch_size=3, forced_foreground=1.0)
    assert all((y[i] > 0).any() for _, y in forced.batches(0, 10) for i in range(3))
    full = msd_data.augmentation()
    assert full["mirror"] == 0.5 and msd_data.augmentation("none")["mirror"] == 0
    same = msd_data.PatchSampler(dataset, plan, augmentation=full), msd_data.PatchSampler(dataset, plan)
    assert np.array_equal(*(s.batch(0, 0)[0] for s in same))


def test_other_threads_run_meanwhile(dataset, plan):
    sampler = msd_data.PatchSampler(dataset, plan, patch_size=(64, 96, 96), batch_size=8)
    drawn = threading.Thread(target=sampler.batch, args=(0, 0))
    drawn.start()
    turns = 0
    while drawn.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 5


def _batch(sampler, i):
    return sampler.batch(0, i)[0].sum()


def _all_work(path):
    dataset = msd_data.Dataset(path)
    plan = msd_data.plan(dataset)
    case = dataset.cases[0]
    prepared = msd_data.preprocess(dataset.image(case), plan, dataset.label(case))
    return plan, prepared.image.sum()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(method, sampler, folder, plan):
    running = sampler.batches(0, 100)
    next(running)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        futures = [pool.submit(_batch, sampler, i) for i in range(4)] + [pool.submit(_all_work, folder)]
        found = [future.result(timeout=60) for future in futures]
    assert found[:4] == [_batch(sampler, i) for i in range(4)]
    assert found[4] == _all_work(folder)


def test_batches_of_another_process_are_refused(sampler):
    running = sampler.batches(0, 100)
    next(running)
    child = os.fork()
    if child == 0:
        try:
            next(running)
        except RuntimeError as error:
            del running  # does not wait for threads that are not there
            os._exit(0 if "another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_pytorch_shares_memory_and_its_loader_works(sampler):
    torch = pytest.importorskip("torch")
    x, _ = sampler.batch(0, 0)
    assert torch.from_numpy(x).data_ptr() == x.ctypes.data

    class Epoch(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return sampler.batch(1, i)

    loader = torch.utils.data.DataLoader(Epoch(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    found = list(loader)
    assert len(found) == 6
    for i, (x, y) in enumerate(found):
        expected = sampler.batch(1, i)
        assert np.array_equal(x.numpy(), expected[0]) and np.array_equal(y.numpy(), expected[1])


def test_the_example_trains_and_segments():
    pytest.importorskip("torch")
    example = Path(__file__).parents[1] / "examples/train_pytorch.py"
    run = subprocess.run([sys.executable, example, "--epochs", "1", "--batches", "3"], capture_output=True, text=True)
    assert run.returncode == 0 and "organ 2: Dice" in run.stdout, run.stdout + run.stderr
    assert msd_data.read_labels(run.stdout.splitlines()[-1]).data.ndim == 3


@pytest.mark.parametrize("call", ["plan", "check", "PatchSampler"])
def test_ctrl_c_ends_long_calls(call, tmp_path):
    msd_data.write_phantom(tmp_path, num_cases=5, num_test=0, shape=(64, 96, 96))
    description = json.loads((tmp_path / "dataset.json").read_text())
    listed = description["training"]
    for i in range(400):
        copy = {key: file.replace(".nii", f"_{i}.nii") for key, file in listed[i % 5].items()}
        for key, file in copy.items():
            os.link(tmp_path / listed[i % 5][key], tmp_path / file)
        description["training"].append(copy)
    description["numTraining"] = len(description["training"])
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    script = f"""
import json, signal, sys, msd_data
# A shell that starts the tests in the background has SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
path = {str(tmp_path)!r}
dataset = msd_data.Dataset(path)
small = json.loads(sys.argv[1])
calls = dict(
    plan=lambda: msd_data.plan(dataset),
    check=lambda: msd_data.check(path),
    PatchSampler=lambda: msd_data.PatchSampler(dataset, small),
)
print("ready", flush=True)
try:
    calls[{call!r}]()
except KeyboardInterrupt:
    print("interrupted")
"""
    first = tmp_path / "first"
    msd_data.write_phantom(first, num_cases=5, shape=(32, 32, 32))
    plan = json.dumps(msd_data.plan(msd_data.Dataset(first)))
    # Few threads, so that the work takes seconds on any machine.
    few = {**os.environ, "RAYON_NUM_THREADS": "2"}
    child = subprocess.Popen([sys.executable, "-c", script, plan], stdout=subprocess.PIPE, text=True, env=few)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    sent = time.monotonic()
    output, _ = child.communicate(timeout=60)
    assert output == "interrupted\n" and time.monotonic() - sent < 5


def test_odd_input_raises_one_line(dataset, plan, folder, tmp_path, sampler):
    case = dataset.cases[0]
    image, label = dataset.image(case)[0], dataset.label(case)
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(image.read_bytes()[:5000])
    fifo = tmp_path / "fifo.nii"
    os.mkfifo(fifo)
    empty = tmp_path / "empty.nii"
    empty.touch()
    (tmp_path / "dataset.json").write_text("{")
    zeros = np.zeros((4, 5, 6), np.uint8)
    make = msd_data.PatchSampler
    swapped = {**plan["intensity"][0], "percentile_00_5": 9.0, "percentile_99_5": 1.0}
    prepared = msd_data.preprocess(image, plan, label)
    logits = np.zeros((3, *prepared.image.shape[1:]), np.float32)
    broken = [
        {**prepared.properties, "crop": ((0, 1 << 40),) * 3},
        {**prepared.properties, "crop": ((5, 1),) * 3},
        {**prepared.properties, "shape_before_cropping": (1 << 20,) * 3},
        {**prepared.properties, "axes": {"from": (0, 0, 7), "reversed": (False,) * 3}},
        {**prepared.properties, "shape": (0, 0, 0)},
        {},
    ]
    cases = [
        (FileNotFoundError, "no dataset.json", lambda: msd_data.Dataset(tmp_path / "none")),
        (ValueError, "dataset.json", lambda: msd_data.Dataset(tmp_path)),
        (TypeError, "", lambda: msd_data.Dataset(3)),
        (KeyError, "no training case is called x", lambda: dataset.image("x")),
        (FileNotFoundError, "No such file", lambda: msd_data.read_image(tmp_path / "none.nii")),
        (ValueError, "truncated or damaged", lambda: msd_data.read_image(cut)),
        (OSError, "fifo.nii", lambda: msd_data.read_image(fifo)),
        (OSError, "fifo.nii", lambda: msd_data.preprocess(fifo, plan)),
        (ValueError, "empty.nii", lambda: msd_data.read_labels(empty)),
        (OSError, "", lambda: msd_data.read_labels(tmp_path)),
        (OSError, "NUL", lambda: msd_data.read_labels("a\0b.nii")),
        (ValueError, "1 channels, where 2", lambda: msd_data.preprocess(label, plan)),
        (ValueError, "no file", lambda: msd_data.preprocess([], plan)),
        (ValueError, "missing field", lambda: msd_data.preprocess(image, {})),
        (ValueError, "plan: ", lambda: msd_data.preprocess(image, None)),
        (ValueError, "unknown field `x`", lambda: msd_data.preprocess(image, {**plan, "x": 1})),
        (ValueError, "spacing_mm", lambda: msd_data.preprocess(image, {**plan, "spacing_mm": (0, 1, 1)})),
        (ValueError, "transpose", lambda: msd_data.preprocess(image, {**plan, "transpose_forward": (0, 0, 9)})),
        (ValueError, "intensity", lambda: msd_data.preprocess(image, {**plan, "intensity": [swapped] * 2})),
        (MemoryError, "needs about", lambda: msd_data.preprocess(image, {**plan, "spacing_mm": (1e-6,) * 3})),
        (MemoryError, "needs about", lambda: msd_data.preprocess(image, plan, memory_gb=1e-6)),
        (MemoryError, "needs about", lambda: msd_data.plan(dataset, memory_gb=1e-6)),
        (ValueError, "memory_gb", lambda: msd_data.plan(dataset, memory_gb=-1)),
        (ValueError, "gpu_memory_gb", lambda: msd_data.plan(dataset, gpu_memory_gb=float("nan"))),
        (ValueError, "spacing", lambda: msd_data.plan(dataset, spacing_mm=(1e-9, 1, 1))),
        (TypeError, "", lambda: msd_data.plan("folder")),
        (MemoryError, "do not fit", lambda: make(dataset, plan, patch_size=(1 << 40, 2, 2))),
        (MemoryError, "do not fit", lambda: make(dataset, plan, patch_size=(30000, 30000, 30000))),
        (MemoryError, "do not fit", lambda: make(dataset, plan, batch_size=1 << 62)),
        (MemoryError, "6 prepared cases", lambda: make(dataset, plan, patch_size=(4, 4, 4), memory_gb=1e-3)),
        (OverflowError, "", lambda: make(dataset, plan, batch_size=-1)),
        (OverflowError, "", lambda: make(dataset, plan, seed=-1)),
        (ValueError, "batch size 0", lambda: make(dataset, plan, batch_size=0)),
        (ValueError, "patch size", lambda: make(dataset, plan, patch_size=(0, 1, 1))),
        (ValueError, "no case", lambda: make(dataset, plan, [])),
        (ValueError, "no training case is called", lambda: make(dataset, plan, ["x"])),
        (ValueError, "none, light or full", lambda: make(dataset, plan, augmentation="strong")),
        (ValueError, "gamma is 2", lambda: make(dataset, plan, augmentation={"gamma": 2})),
        (ValueError, "unknown field `elastic`", lambda: make(dataset, plan, augmentation={"elastic": 1})),
        (TypeError, "", lambda: make(dataset, plan, augmentation=3)),
        (ValueError, "purpose", lambda: make(dataset, plan, purpose="test")),
        (ValueError, "forced_foreground", lambda: make(dataset, plan, forced_foreground=2)),
        (OSError, "", lambda: make(dataset, plan, folder=cut)),
        (OverflowError, "", lambda: sampler.batch(-1, 0)),
        (ValueError, "shape", lambda: msd_data.metrics(zeros, zeros[:2], (1, 1, 1))),
        (ValueError, "expected 3 axes", lambda: msd_data.metrics(zeros[0], zeros[0], (1, 1, 1))),
        (ValueError, "expected 3 axes", lambda: msd_data.metrics(zeros[:0], zeros[:0], (1, 1, 1))),
        (ValueError, "float64", lambda: msd_data.metrics(zeros / 1, zeros, (1, 1, 1))),
        (ValueError, "object", lambda: msd_data.metrics(None, zeros, (1, 1, 1))),
        (ValueError, "from -1", lambda: msd_data.metrics(zeros.astype(int) - 1, zeros, (1, 1, 1))),
        (ValueError, "spacing_mm", lambda: msd_data.metrics(zeros, zeros, (0, 1, 1))),
        (ValueError, "expected a sequence of length 3", lambda: msd_data.metrics(zeros, zeros, (1, 1))),
        (ValueError, "1000", lambda: msd_data.metrics(np.arange(8000).reshape(20, 20, 20), np.zeros((20,) * 3, int), (1,) * 3)),
        (ValueError, "no .nii", lambda: msd_data.evaluate(folder, folder / "labelsTr")),
        (OSError, "none", lambda: msd_data.evaluate(tmp_path / "none", folder)),
        (ValueError, "logits", lambda: msd_data.restore(logits[0], prepared.properties)),
        (ValueError, "logits: type", lambda: msd_data.restore(logits.astype(complex), prepared.properties)),
        (ValueError, "logits", lambda: msd_data.restore(logits[:, :-1], prepared.properties)),
        (ValueError, "shape", lambda: msd_data.write_labels(tmp_path / "a.nii", zeros, like=label)),
        (ValueError, ".nii", lambda: msd_data.write_labels(tmp_path / "a.png", msd_data.read_labels(label).data, like=label)),
        (ValueError, "phantom: unknown field `size`", lambda: msd_data.write_phantom(tmp_path, size=3)),
        (ValueError, "preset|none, light", lambda: msd_data.augmentation("x")),
    ]
    cases += [(ValueError, "", lambda properties=properties: msd_data.restore(logits, properties)) for properties in broken]
    wrong = []
    for i, (kind, text, call) in enumerate(cases):
        try:
            call()
            wrong.append((i, "no exception"))
        except Exception as error:
            message = str(error)
            found = isinstance(error, kind) and any(t in message for t in text.split("|"))
            if not found or "\n" in message or "panicked" in message:
                wrong.append((i, text, repr(error)))
    assert not wrong, "\n".join(map(str, wrong))


def test_everything_public_is_documented():
    for name in msd_data.__all__:
        thing = getattr(msd_data, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing) and thing.__module__ == "msd_data" and not issubclass(thing, (tuple, dict)):
            for member, value in vars(thing).items():
                assert member.startswith("_") or inspect.getdoc(value), f"{name}.{member}"
