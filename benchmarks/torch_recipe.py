"""Trains the public recipe for 99 % in one epoch in eager PyTorch, the peer of ``experiments/fast_99.py``.

    python -m benchmarks.torch_recipe path/to/mnist SEED      # a line of JSON: train_seconds, test_accuracy

Adam with betas 0.7 and 0.9, one cycle up to 1e-2, batch 256, a CNN 24-32-256 without dropout. Unlike the original, it
shuffles, and trains on 55,000 examples, as the last 5,000 are the validation split here.
Reference: https://github.com/tuomaso/train_mnist_fast.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from torch import nn

from mnist_jax import Split, load_dataset

_BATCH_SIZE = 256


def _tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    image = np.asarray(split.image, np.float32).transpose(0, 3, 1, 2) / 255
    return torch.from_numpy(image), torch.from_numpy(np.asarray(split.label, np.int64))


def main() -> None:
    """Trains for one epoch and evaluates on the test split."""
    data, seed = sys.argv[1:]
    torch.manual_seed(int(seed))
    dataset = load_dataset(data)
    (image, label), (test_image, test_label) = _tensors(dataset.train), _tensors(dataset.test)
    stages = [nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()]
    model = nn.Sequential(*stages, nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.7, 0.9))
    num_steps = -(-len(label) // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=num_steps, cycle_momentum=False)
    start = time.perf_counter()
    for index in torch.randperm(len(label)).split(_BATCH_SIZE):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image[index]), label[index]).backward()
        optimizer.step()
        schedule.step()
    elapsed = time.perf_counter() - start
    with torch.no_grad():
        accuracy = (model(test_image).argmax(dim=1) == test_label).float().mean().item()
    print(json.dumps({"train_seconds": elapsed, "test_accuracy": accuracy}))


if __name__ == "__main__":
    main()
