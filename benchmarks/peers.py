"""How long does an epoch take here, and how long in eager PyTorch?

    pip install -e ".[peers]"
    python -m benchmarks.peers --data path/to/mnist --model mlp --batch-size 128 --epochs 6

The same model, number of parameters, batch size, optimizer and number of steps on the same training examples, on the
CPU. The contestants take turns, an epoch each, in one process: A B A B. PyTorch's images lie in memory as floats in
[0, 1] already; here they lie there as bytes, and are scaled in the program. Both shuffle anew for each epoch. What is
timed is the epoch alone, after one that warms up; compiling is reported apart. Each contestant must end with a finite
loss and the right number of steps, and the test accuracies must agree to half a percent.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mnist_jax import (
    Dataset,
    TrainConfig,
    build_model,
    build_optimizer,
    count_parameters,
    create_train_state,
    evaluate_dataset,
    load_dataset,
    train_epoch,
)


class Ours:
    """``train_epoch``: one compiled program an epoch."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self._test, self._batch_size = dataset.test, config.batch_size
        self._train = jax.device_put(dataset.train)
        self._state = create_train_state(
            build_model(config), build_optimizer(config, 1), jax.random.key(config.seed), ema_decay=config.ema_decay
        )
        begun = time.perf_counter()
        self._epoch = train_epoch.lower(self._state, self._train, config.batch_size).compile()
        self.compile_s = time.perf_counter() - begun
        self.num_parameters = count_parameters(self._state.params)

    def run_epoch(self) -> float:
        self._state, metrics = jax.block_until_ready(self._epoch(self._state, self._train))
        return float(metrics.loss)

    def num_steps(self) -> int:
        return int(self._state.step)

    def test_accuracy(self) -> float:
        return evaluate_dataset(self._state, self._test).accuracy


class Torch:
    """An eager PyTorch loop over tensors in memory."""

    compile_s = 0.0

    def __init__(self, config: TrainConfig, dataset: Dataset, memory_format: str = "contiguous_format") -> None:
        import torch
        from torch import nn

        torch.manual_seed(config.seed)
        self._torch, self._batch_size = torch, config.batch_size
        format_ = getattr(torch, memory_format)
        self._image, self._label, self._test_image, self._test_label = (
            torch.from_numpy(array)
            for split in (dataset.train, dataset.test)
            for array in (split.image.transpose(0, 3, 1, 2).astype(np.float32) / 255, split.label.astype(np.int64))
        )
        self._image = self._image.contiguous(memory_format=format_)
        layers: list[Any]
        if config.model == "mlp":
            sizes = [784, *config.hidden_sizes]
            layers = [nn.Flatten()]
            for size, following in itertools.pairwise(sizes):
                layers += [nn.Linear(size, following), nn.ReLU(), nn.Dropout(config.dropout_rate)]
            layers += [nn.Linear(sizes[-1], 10)]
        else:
            channels, side, layers = 1, 28, []
            for features, size in zip(config.channels, config.kernel_sizes, strict=True):
                layers += [nn.Conv2d(channels, features, size), nn.MaxPool2d(2), nn.ReLU()]
                channels, side = features, (side - size + 1) // 2
            layers += [nn.Flatten(), nn.Linear(channels * side * side, config.dense_size), nn.ReLU()]
            layers += [nn.Dropout(config.dropout_rate), nn.Linear(config.dense_size, 10)]
        model: Any = nn.Sequential(*layers)
        self._model = model.to(memory_format=format_)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=config.learning_rate)
        self._num_steps = 0
        self.num_parameters = sum(p.numel() for p in self._model.parameters())

    def run_epoch(self) -> float:
        torch = self._torch
        self._model.train()
        total = torch.zeros(())
        for index in torch.randperm(len(self._label)).split(self._batch_size):
            self._optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self._model(self._image[index]), self._label[index])
            loss.backward()
            self._optimizer.step()
            total += loss.detach() * len(index)
            self._num_steps += 1
        return float(total) / len(self._label)

    def num_steps(self) -> int:
        return self._num_steps

    def test_accuracy(self) -> float:
        self._model.eval()
        with self._torch.no_grad():
            predictions = self._model(self._test_image).argmax(dim=1)
        return float((predictions == self._test_label).float().mean())


def compare(config: TrainConfig, contestants: dict[str, Callable[[TrainConfig, Dataset], Any]]) -> None:
    """Times the contestants in turns and prints a table."""
    dataset = load_dataset(config.data)
    runners = {name: make(config, dataset) for name, make in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for epoch in range(config.epochs):
        for name, runner in runners.items():
            begun = time.perf_counter()
            loss = runner.run_epoch()
            elapsed = time.perf_counter() - begun
            assert np.isfinite(loss), f"{name}: loss {loss}"
            if epoch:  # the first one warms up
                seconds[name].append(elapsed)

    steps_per_epoch = -(-dataset.train.num_examples // config.batch_size)
    accuracies = {name: runner.test_accuracy() for name, runner in runners.items()}
    for name, runner in runners.items():
        assert runner.num_steps() == config.epochs * steps_per_epoch, f"{name}: {runner.num_steps()} steps"
        assert runner.num_parameters == runners["mnist_jax"].num_parameters, f"{name}: {runner.num_parameters}"
        assert abs(accuracies[name] - accuracies["mnist_jax"]) < 0.005, f"{name}: test accuracy {accuracies[name]}"

    print(f"{config.model}, batch {config.batch_size}, {steps_per_epoch} steps an epoch, n = {config.epochs - 1}")
    print(f"{'':<22}{'median':>9}{'min':>9}{'max':>9}{'a step':>10}{'ratio':>8}{'compile':>10}{'accuracy':>10}")
    ours = statistics.median(seconds["mnist_jax"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:<22}{median:>7.3f} s{min(values):>7.3f} s{max(values):>7.3f} s"
            f"{median / steps_per_epoch * 1e3:>7.2f} ms{median / ours:>7.2f}x"
            f"{runners[name].compile_s:>8.2f} s{accuracies[name]:>10.2%}"
        )


def main() -> None:
    """Parses the command line and compares."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="as for mnist_jax.train")
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6, help="epochs, of which the first warms up")
    flags = parser.parse_args()
    config = TrainConfig(
        data=flags.data, model=flags.model, batch_size=flags.batch_size, epochs=flags.epochs, ema_decay=None
    )
    contestants: dict[str, Callable[[TrainConfig, Dataset], Any]] = {"mnist_jax": Ours, "PyTorch eager": Torch}
    if config.model == "cnn":
        contestants["PyTorch channels_last"] = lambda config, data: Torch(config, data, "channels_last")
    else:
        averaged = TrainConfig(model="mlp", batch_size=flags.batch_size)
        contestants["mnist_jax, averaged"] = lambda _, dataset: Ours(averaged, dataset)
    compare(config, contestants)


if __name__ == "__main__":
    main()
