"""From a dataset to a segmentation with PyTorch: plan, sample, train, predict, score. Cells of `# %%` open as a notebook.

    pip install torch msd-data
    python examples/train_pytorch.py                        # a phantom: no download, a minute or two on two cores
    python examples/train_pytorch.py data/Task04_Hippocampus --epochs 20
"""

# %%
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import msd_data

parser = argparse.ArgumentParser()
parser.add_argument("dataset", nargs="?", help="folder with dataset.json; by default a phantom")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--batches", type=int, default=50, help="per epoch")
args, _ = parser.parse_known_args()  # a notebook has arguments of its own

# %% A dataset: yours, one of the decathlon's, or a synthetic one.
folder = args.dataset
if folder is None:
    folder = Path(tempfile.mkdtemp()) / "Task99_Phantom"
    msd_data.write_phantom(folder, num_cases=10, shape=(32, 40, 32))
dataset = msd_data.Dataset(folder)
print(dataset, dataset.channels, dataset.labels)

# %% What the data decide: voxel size, patch, batch, normalisation.
plan = msd_data.plan(dataset)
print({key: plan[key] for key in ("spacing_mm", "patch_size", "batch_size", "normalization")})

# %% Patches of four fifths of the cases, with nnU-Net's augmentation. Rust's threads draw them: no worker processes.
train, validation = dataset.folds()[0]
sampler = msd_data.PatchSampler(dataset, plan, train, augmentation={"mirror": 0.0}, seed=1)


# %% Any network that takes [B, C, D, H, W]: here the smallest U-Net.
class SmallUNet(nn.Module):
    def __init__(self, channels: int, classes: int, width: int = 8) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(self.block(i, o) for i, o in zip([channels, *widths], widths))
        self.up = nn.ModuleList(self.block(i + o, o) for i, o in zip(widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv3d(width, classes, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(0.01)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool3d(x, 2, ceil_mode=True) if i else x)
            skips.append(x)
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([F.interpolate(x, skip.shape[2:]), skip], 1))
        return self.head(x)


torch.manual_seed(1)
net = SmallUNet(len(dataset.channels), len(dataset.labels))
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)


def dice_and_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
    p = logits.softmax(1)
    dims = (0, 2, 3, 4)
    dice = (2 * (p * truth).sum(dims) + 1) / (p.sum(dims) + truth.sum(dims) + 1)
    return F.cross_entropy(logits, target) - dice[1:].mean()


# %% The loop. `from_numpy` shares the memory that Rust has filled.
start = time.time()
for epoch in range(args.epochs):
    losses = []
    for x, y in sampler.batches(epoch, args.batches):
        loss = dice_and_cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch}: loss {np.mean(losses):.3f}, {time.time() - start:.0f} s")


# %% Segment an image: prepare it, apply the network, and bring its logits back to the image's own grid.
def segment(files: list) -> np.ndarray:
    case = msd_data.preprocess(files, plan)
    with torch.inference_mode():
        logits = net(torch.from_numpy(case.image)[None])[0]
    return msd_data.restore(logits.numpy(), case.properties)


scores = []
for case in validation:
    found = segment(dataset.image(case))
    truth = msd_data.read_labels(dataset.label(case))
    scores.append(msd_data.metrics(found, truth.data, truth.spacing_mm, labels=list(dataset.labels)[1:]))
for label, name in list(dataset.labels.items())[1:]:
    print(f"{name}: Dice {np.nanmean([score[label]['Dice'] for score in scores]):.3f}")

# %% Write it beside the image, with the image's header.
image = dataset.image(validation[0])
output = Path(tempfile.mkdtemp()) / f"{validation[0]}.nii.gz"
msd_data.write_labels(output, segment(image), like=image[0])
print(output)
