"""Times one search pass of the AdwU-Net supernet in PyTorch, or with --uniform-width or --architecture a training step of a discrete
U-Net: the peer to beat, on the same work.

    python torch_step.py --device cpu --threads 2 --patch 40 56 40 --batch 2
    python torch_step.py --device cuda --patch 80 192 160 --batch 2 --poolings 5 --amp bf16 --channels-last --compile

Prints one JSON line: seconds (median of --repeats) of
  inference    forward under no_grad, zero Gumbel noise
  weight_pass  forward + backward into the weights + clip 12 + SGD step   (alpha, beta frozen)
  arch_pass    forward + backward into alpha, beta + clip 12 + Adam step  (weights frozen)
and search_iteration = 2 * arch_pass + weight_pass, the unit of work of the bilevel search;
peak_bytes is the peak of device memory (CUDA) or of the process (CPU).
"""
import argparse
import json
import pathlib
import resource
import statistics
import time
import torch
from adwunet_torch import AdwSupernet, PlainUnet, deep_supervision_loss

p = argparse.ArgumentParser()
p.add_argument("--device", default="cpu")
p.add_argument("--threads", type=int, default=0)
p.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
p.add_argument("--poolings", type=int, default=3)
p.add_argument("--anisotropic", action="store_true", help="first stage: kernel 1x3x3, stride 1,2,2")
p.add_argument("--batch", type=int, default=2)
p.add_argument("--in-channels", type=int, default=1)
p.add_argument("--classes", type=int, default=3)
p.add_argument("--max-width", type=int, default=48, help="widest channel count of stage 0 (paper: 48)")
p.add_argument("--uniform-width", type=int, help="a plain U-Net of this width at full resolution instead of the supernet")
p.add_argument("--architecture", help="the network of this architecture file instead of the supernet")
p.add_argument("--mask", default="pre_norm", choices=["pre_norm", "post_norm"])
p.add_argument("--amp", default="off", choices=["off", "bf16", "fp16"])
p.add_argument("--channels-last", action="store_true")
p.add_argument("--compile", action="store_true")
p.add_argument("--repeats", type=int, default=5)
p.add_argument("--warmup", type=int, default=2)
p.add_argument("--passes", help="which of them to time [default: all that the network has]")
a = p.parse_args()

if a.threads:
    torch.set_num_threads(a.threads)
torch.manual_seed(0)
cuda = a.device.startswith("cuda")
if cuda:
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
fmt = torch.channels_last_3d if a.channels_last else torch.contiguous_format
strides, kernels = [(2, 2, 2)] * a.poolings, [(3, 3, 3)] * (a.poolings + 1)
if a.anisotropic:
    strides[0], kernels[0] = (1, 2, 2), (1, 3, 3)
plain = a.uniform_width is not None or a.architecture is not None
if a.architecture:
    found = json.loads(pathlib.Path(a.architecture).read_text())
    net = PlainUnet(*(found[key] for key in ("in_channels", "num_classes", "strides", "kernels", "blocks")))
    a.in_channels, a.classes = found["in_channels"], found["num_classes"]
elif plain:
    net = PlainUnet.uniform(a.in_channels, a.classes, strides, kernels, a.uniform_width)
else:
    net = AdwSupernet(a.in_channels, a.classes, strides, kernels, a.max_width, mask=a.mask)
net = net.to(a.device, memory_format=fmt)
x = torch.randn(a.batch, a.in_channels, *a.patch, device=a.device).to(memory_format=fmt)
t = torch.randint(0, a.classes, (a.batch, *a.patch), device=a.device)
to = lambda noise: [([w.to(a.device) for w in ws], d.to(a.device)) for ws, d in noise]
noise, zero = (None, None) if plain else (to(net.sample_noise()), to(net.zero_noise()))
run = torch.compile(net) if a.compile else net
amp = dict(off=None, bf16=torch.bfloat16, fp16=torch.float16)[a.amp]
scaler = torch.amp.GradScaler(enabled=cuda and a.amp == "fp16")
arch, weights = ([], list(net.parameters())) if plain else (net.arch_parameters(), net.weight_parameters())
opt_a = None if plain else torch.optim.Adam(arch, 4e-4)
opt_w = torch.optim.SGD(weights, 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)


def forward(n):
    with torch.autocast(a.device.split(":")[0], dtype=amp, enabled=amp is not None):
        return run(x) if plain else run(x, n, 2.0)


def inference():
    with torch.no_grad():
        forward(zero)


def train(opt, on, off):
    for q in on:
        q.requires_grad = True
    for q in off:
        q.requires_grad = False
    opt.zero_grad(set_to_none=True)
    loss = deep_supervision_loss([o.float() for o in forward(noise)], t)
    scaler.scale(loss).backward()
    scaler.unscale_(opt)
    torch.nn.utils.clip_grad_norm_(on, 12)
    scaler.step(opt)
    scaler.update()


def seconds(f):
    ts = []
    for i in range(a.warmup + a.repeats):
        if cuda:
            torch.cuda.synchronize()
        t0 = time.perf_counter()
        f()
        if cuda:
            torch.cuda.synchronize()
        ts.append(time.perf_counter() - t0)
    return statistics.median(ts[a.warmup:])


work = dict(inference=inference, weight_pass=lambda: train(opt_w, weights, arch),
            arch_pass=lambda: train(opt_a, arch, weights))
passes = a.passes or ("inference,weight_pass" if plain else "inference,weight_pass,arch_pass")
r = {name: seconds(work[name]) for name in passes.split(",")}
if "weight_pass" in r and "arch_pass" in r:
    r["search_iteration"] = 2 * r["arch_pass"] + r["weight_pass"]
r["peak_bytes"] = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
r |= dict(torch=torch.__version__, device=torch.cuda.get_device_name() if cuda else "cpu", threads=torch.get_num_threads(),
          patch=a.patch, batch=a.batch, max_width=a.max_width, uniform_width=a.uniform_width, architecture=a.architecture, poolings=a.poolings, anisotropic=a.anisotropic, mask=a.mask, amp=a.amp,
          channels_last=a.channels_last, compile=a.compile)
print(json.dumps(r))
