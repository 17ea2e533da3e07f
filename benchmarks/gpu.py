"""What a GPU makes of `adw`: parity with the host, times beside PyTorch, kernels beside their floors, a short search and training.

    python gpu.py                      # in the folder that `cargo xtask gpu-bundle` made, on the machine with the GPU
    python gpu.py --output results     # somewhere else; results.json and gpu.md land there

Needs Python, a driver for CUDA 13, and cuBLAS and cuRAND from a toolkit or from PyTorch's wheels; cuDNN from there for
convolutions by cuDNN; PyTorch (with torch_step.py and adwunet_torch.py beside this file) for the times beside ours. No Rust, no
network. A part that fails is reported and left out; measurements until then are kept.

--smoke runs everything on a small problem and PyTorch on the CPU: a test of this script, not of a GPU.
"""
import argparse
import csv
import datetime
import glob
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
parser = argparse.ArgumentParser()
parser.add_argument("--output", default=os.path.join(HERE, "results"))
parser.add_argument("--rounds", type=int, default=3, help="turns of ours and PyTorch's; medians are shown")
parser.add_argument("--only", choices=["parity", "times", "kernels", "training"], action="append", help="only this part; repeatable")
parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes for the larger network")
parser.add_argument("--limit", type=float, default=540, help="seconds after which no new measurement begins")
parser.add_argument("--data", help="dataset to search on and train on; a phantom if none is given")
parser.add_argument("--training-epochs", type=int, default=40, help="of the search, of 25 iterations each")
parser.add_argument("--smoke", action="store_true")
args = parser.parse_args()
START = time.time()
PARTS = args.only or ["parity", "times", "kernels", "training"]

# The work of a case, as both programs take it, and how many poolings PyTorch's compiler is spared.
CASES = {
    "hippocampus": ["--patch", "40", "56", "40", "--batch", "9", "--poolings", "3"],
    "heart": ["--patch", "80", "192", "160", "--batch", "2", "--poolings", "5", "--anisotropic"],
}
OURS = {
    "f32": [],
    "bf16": ["--bf16"],
}
CUDNN_OPTIONS = {
    "f32, cuDNN": ["--convolutions", "cudnn"],
    "bf16, cuDNN": ["--bf16", "--convolutions", "cudnn"],
}
# Of these the best counts, quantity by quantity.
TORCH = {
    "eager": [],
    "bf16": ["--amp", "bf16"],
    "bf16, channels last": ["--amp", "bf16", "--channels-last"],
    "bf16, compiled": ["--amp", "bf16", "--compile"],
    "bf16, channels last, compiled": ["--amp", "bf16", "--channels-last", "--compile"],
}
if args.no_compile:
    TORCH = {name: options for name, options in TORCH.items() if "--compile" not in options}
if args.smoke:
    CASES = {"smoke": ["--patch", "8", "8", "8", "--batch", "1", "--poolings", "2", "--max-width", "12"]}
    TORCH = {"eager": [], "bf16": ["--amp", "bf16"]}
QUANTITIES = ["inference", "weight_pass", "arch_pass", "search_iteration", "peak_bytes"]


def unpack(name):
    """The program of this name, unpacked beside its archive."""
    path = os.path.join(HERE, name)
    if not os.path.exists(path):
        with gzip.open(path + ".gz") as packed, open(path + ".part", "wb") as out:
            shutil.copyfileobj(packed, out)
        os.chmod(path + ".part", 0o755)
        os.rename(path + ".part", path)
    return path


def library_folders():
    """Where CUDA's libraries may be: a toolkit, or the wheels that PyTorch brought along."""
    places = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/*/lib", "/usr/local/cuda-13*/lib64"]
    for folder in sys.path:
        places += [os.path.join(folder, "nvidia", "*", "lib")]
    found = [f for place in places for f in sorted(glob.glob(place)) if glob.glob(os.path.join(f, "lib*.so*"))]
    own = [f for f in os.environ.get("LD_LIBRARY_PATH", "").split(":") if f]
    return list(dict.fromkeys(own + found))


def has_cudnn(folders):
    """Whether a program finds cuDNN, there or where the system has it."""
    command = [sys.executable, "-c", "import ctypes; ctypes.CDLL('libcudnn.so.9')"]
    environment = dict(os.environ, LD_LIBRARY_PATH=":".join(folders))
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


FOLDERS = library_folders()
CUDNN = has_cudnn(FOLDERS)
# Of PyTorch.
THEIR_ENVIRONMENT = dict(os.environ, LD_LIBRARY_PATH=":".join(FOLDERS))
# Of ours. Without cuDNN it starts with one that does nothing.
ENVIRONMENT = dict(
    os.environ,
    LD_LIBRARY_PATH=":".join(FOLDERS + ([] if CUDNN else [os.path.join(HERE, "without-cudnn")])),
)
results = {
    "date": datetime.date.today().isoformat(),
    "host": platform.node() and platform.processor() or platform.machine(),
    "smoke": args.smoke,
    "cudnn": CUDNN,
    "failures": [],
}


def run(what, command, timeout=None, environment=ENVIRONMENT):
    """Output of a command that succeeds, else None; failures are told and kept."""
    left = args.limit - (time.time() - START)
    if left < 5:
        results["failures"].append(f"{what}: no time left")
        return None
    print(f"[{time.time() - START:5.0f} s] {what}", flush=True)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout or left + 60)
    except (OSError, subprocess.TimeoutExpired) as error:
        results["failures"].append(f"{what}: {error}")
        print(f"    {error}", flush=True)
        return None
    if done.returncode != 0:
        results.setdefault("output_of_failures", {})[what] = {"stdout": done.stdout, "stderr": done.stderr}
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-12:]
        results["failures"].append(f"{what}: " + " / ".join(last))
        print("    " + "\n    ".join(last), flush=True)
        return None
    return done.stdout


def last_json(output):
    lines = [line for line in (output or "").splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def parity():
    results["parity"] = {}
    for convolutions in ["own", "cudnn"] if CUDNN else ["own"]:
        what = f"parity of ops, networks and optimisers with the host, convolutions: {convolutions}"
        ENVIRONMENT["ADW_TEST_CONVOLUTIONS"] = convolutions
        output = run(what, [unpack("cuda_device"), "--test-threads", "1"])
        if output is None:
            output = results.get("output_of_failures", {}).get(what, {}).get("stdout")
        lines = (output or "").splitlines()
        outcomes = [line for line in lines if line.startswith("test ") and not line.startswith("test result")]
        results["parity"][convolutions] = outcomes
        print("\n".join("    " + line for line in outcomes), flush=True)


def times():
    adw = unpack("adw")
    torch_device = ["--device", "cpu"] if args.smoke else ["--device", "cuda"]
    rounds = 1 if args.smoke else args.rounds
    repeats = ["--repeats", "1", "--warmup", "0"] if args.smoke else ["--repeats", "5", "--warmup", "3"]
    results["times"], given_up = {}, set()
    for case, work in CASES.items():
        measured = results["times"].setdefault(case, {})
        for _ in range(rounds):
            for name, options in (OURS | CUDNN_OPTIONS if CUDNN else OURS).items():
                command = [adw, "bench", "step", "--json", "--device", "cuda:0", *work, *options, *repeats]
                line = last_json(run(f"{case}: adw, {name}", command))
                if line:
                    measured.setdefault("adw, " + name, []).append(line)
            for name, options in TORCH.items():
                if (case, name) in given_up:
                    continue
                script = os.path.join(HERE, "torch_step.py")
                command = [sys.executable, script, *torch_device, *work, *options, *repeats]
                line = last_json(run(f"{case}: PyTorch, {name}", command, environment=THEIR_ENVIRONMENT))
                if line:
                    measured.setdefault("PyTorch, " + name, []).append(line)
                else:
                    given_up.add((case, name))
            save()


def kernels():
    """Device time of every kernel in one pass, by Nsight Compute, beside its floor. Each launch runs alone and with cold caches."""
    adw = unpack("adw")
    ncu = shutil.which("ncu") or next(iter(sorted(glob.glob("/opt/nvidia/nsight-compute/*/ncu"))[-1:]), None)
    if args.smoke or ncu is None:
        print("    no Nsight Compute (ncu) here: kernels are not timed one by one", flush=True)
        return
    results["kernels"] = {}
    for case, work in CASES.items():
        for precision, options in OURS.items():
            step = [adw, "bench", "step", "--device", "cuda:0", *work, *options, "--passes", "weight_pass", "--repeats", "1", "--warmup", "0"]
            floors = kernel_floors(run(f"{case}: floors of kernels, {precision}", [*step, "--kernels"]))
            measure = [ncu, "--clock-control", "none", "--metrics", "gpu__time_duration.sum", "--csv", "--print-units", "base"]
            output = run(f"{case}: kernels one by one, {precision}", [*measure, *step])
            lines = [line for line in (output or "").splitlines() if line.startswith('"')]
            measured = {}
            for row in csv.DictReader(lines):
                name = row["Kernel Name"].split("(")[0]
                count, nanoseconds = measured.get(name, (0, 0.0))
                measured[name] = (count + 1, nanoseconds + float(row["Metric Value"].replace(",", "")))
            results["kernels"][f"{case}, {precision}"] = {
                name: {"launches": count, "us": ns * 1e-3, "floor_us": floors.get(name)} for name, (count, ns) in measured.items()
            }
            save()


def kernel_floors(output):
    """Floor in microseconds by kernel, of the table that `--kernels` prints."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (output or "").splitlines() if line.startswith("| ")]
    return {row[0]: float(row[4]) for row in rows if len(row) == 5 and row[1].isdigit()}


def training():
    adw, run_folder = unpack("adw"), os.path.join(args.output, "run")
    shutil.rmtree(run_folder, ignore_errors=True)
    epochs = 2 if args.smoke else args.training_epochs
    settings = [
        "--set", f"search.epochs={epochs}", "--set", f"search.warmup_epochs={max(1, epochs // 4)}",
        "--set", f"retrain.epochs={epochs}", "--set", "search.precision=bf16", "--set", "retrain.precision=bf16",
    ]
    if args.smoke:
        settings += [
            "--set", "network.max_width=6", "--set", "network.max_depth=2", "--set", "search.iterations_per_epoch=1",
            "--set", "retrain.iterations_per_epoch=1", "--set", "data.patch_size=[16,16,16]",
            "--set", "search.batch_size=1", "--set", "retrain.batch_size=1",
        ]
    data = args.data or os.path.join(args.output, "Task00_Phantom")
    if not args.data and not os.path.exists(os.path.join(data, "dataset.json")):
        if run("phantom", [adw, "phantom", "--test", "0", "--output", data]) is None:
            return
    start = time.time()
    command = [adw, "search", "--device", "cuda:0", "--data", data, "--run", run_folder, *settings]
    if run(f"search on {os.path.basename(data)}", command) is None:
        return
    searched = time.time()
    if run("retraining", [adw, "retrain", "--device", "cuda:0", "--run", run_folder]) is None:
        return
    metrics = json.load(open(glob.glob(os.path.join(run_folder, "retrain", "*", "metrics.json"))[0]))
    results["training"] = {
        "cases": len(glob.glob(os.path.join(data, "labelsTr", "[!.]*.nii.gz"))),
        "epochs": epochs,
        "search_seconds": searched - start,
        "retrain_seconds": time.time() - searched,
        "metrics": metrics,
    }


def median(lines, quantity):
    values = [line[quantity] for line in lines if line.get(quantity) is not None]
    return statistics.median(values) if values else None


def table():
    """Markdown for benchmarks/gpu.md."""
    text = []
    for convolutions, outcomes in results.get("parity", {}).items():
        passed = sum(line.endswith("ok") for line in outcomes)
        text.append(f"Parity, convolutions {convolutions}: {passed} of {len(outcomes)} tests passed.\n")
    for case, measured in results.get("times", {}).items():
        ours = {k: v for k, v in measured.items() if k.startswith("adw")}
        theirs = {k: v for k, v in measured.items() if not k.startswith("adw")}
        devices = {line.get("device") for lines in theirs.values() for line in lines}
        text.append(f"### {case}: {' '.join(CASES[case])} ({', '.join(sorted(map(str, devices)))})\n")
        text.append("| | " + " | ".join([*ours, *theirs]) + " | adw / best PyTorch |")
        text.append("|---|" + "--:|" * (len(measured) + 1))
        for quantity in QUANTITIES:
            row = {name: median(lines, quantity) for name, lines in {**ours, **theirs}.items()}
            best = min((row[n] for n in theirs if row[n]), default=None)
            own = min((row[n] for n in ours if row[n]), default=None)
            scale, unit = (1e9, "GB") if quantity == "peak_bytes" else (1e-3, "ms")
            cells = [f"{v / scale:.2f} {unit}" if v else "-" for v in row.values()]
            cells.append(f"**{own / best:.2f}**" if own and best else "-")
            text.append(f"| {quantity} | " + " | ".join(cells) + " |")
        text.append("")
    for what, rows in results.get("kernels", {}).items():
        text.append(f"Kernels of a weight pass, {what}:\n")
        text.append("| kernel | launches | measured (us) | floor (us) | floor / measured |")
        text.append("|---|--:|--:|--:|--:|")
        for name, r in sorted(rows.items(), key=lambda item: -item[1]["us"]):
            floor, share = (f"{r['floor_us']:.1f}", f"{r['floor_us'] / r['us']:.2f}") if r["floor_us"] is not None else ("-", "-")
            text.append(f"| {name} | {r['launches']} | {r['us']:.1f} | {floor} | {share} |")
        total = [sum(r[key] or 0 for r in rows.values()) for key in ["launches", "us", "floor_us"]]
        text.append("| all | {} | {:.1f} | {:.1f} | |\n".format(*total))
    if "training" in results:
        t = results["training"]
        dice = t["metrics"]["foreground_mean"]["Dice"]
        text.append(
            f"Training on {t['cases']} cases, {t['epochs']} epochs: search {t['search_seconds']:.0f} s, retraining with "
            f"prediction of the validation cases {t['retrain_seconds']:.0f} s, Dice {dice:.3f}.\n"
        )
    text += [f"- failed: {failure}" for failure in results["failures"]]
    return "\n".join(text) + "\n"


def save():
    os.makedirs(args.output, exist_ok=True)
    with open(os.path.join(args.output, "results.json"), "w") as file:
        json.dump(results, file, indent=1)
    with open(os.path.join(args.output, "gpu.md"), "w") as file:
        file.write(table())


for part in PARTS:
    try:
        {"parity": parity, "times": times, "kernels": kernels, "training": training}[part]()
    except Exception as error:  # What the other parts measure is worth having all the same.
        results["failures"].append(f"{part}: {error!r}")
    save()
print(table())
sys.exit(bool(results["failures"]))
