"""Compares the network that the example script loads with the logits Y of the input X (raw f32):
`EXAMPLES FILE X Y CLASSES SHAPE`."""

import sys

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
from pytorch import load

file, x, y, classes = sys.argv[2:6]
shape = [int(n) for n in sys.argv[6:]]
x = torch.from_numpy(np.fromfile(x, np.float32).reshape(shape))
y = torch.from_numpy(np.fromfile(y, np.float32).reshape(shape[0], int(classes), *shape[2:]))
network = load(file)
networks = network if isinstance(network, torch.nn.ModuleList) else [network]
with torch.inference_mode():
    worst = (sum(network(x) for network in networks) / len(networks) - y).abs().max().item()
print(worst)
assert worst < 1e-4 and y.abs().max() > 0.1, worst
