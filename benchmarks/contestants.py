"""Defines the contestants of ``peers``: the same training in several libraries, each in its own process.

    python -m benchmarks.contestants torch '{"model": "mlp", ...}' 55000    # then lines "epoch" on stdin

A contestant is built from a config and a data set, and has ``run_epoch() -> loss``, ``num_steps()``,
``num_parameters`` and ``test_accuracy()``. All train on the same examples, reshuffled for each epoch, including the
last, smaller batch. Images are floats in [0, 1] in memory, except in mnist_jax, which uses uint8.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mnist_jax import Dataset, Split, TrainConfig, count_parameters, evaluate_dataset, load_dataset, train_epoch


class Ours:
    """Trains with ``train_epoch``, one compiled program per epoch."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        import jax

        self._test, self._batch_size = dataset.test, config.batch_size
        self._train = jax.device_put(dataset.train)
        self._state = self._create_state(config)
        self.num_parameters = count_parameters(self._state.params)

    def _create_state(self, config: TrainConfig) -> Any:
        from mnist_jax import build_state

        return build_state(config)

    def run_epoch(self) -> float:
        self._state, metrics = train_epoch(self._state, self._train, self._batch_size)
        return float(metrics.loss)

    def num_steps(self) -> int:
        return int(self._state.step)

    def test_accuracy(self) -> float:
        return evaluate_dataset(self._state, self._test).accuracy


class LaxConv(Ours):
    """Trains with ``train_epoch`` and Flax's own convolution and pooling layers."""

    def _create_state(self, config: TrainConfig) -> Any:
        import jax

        from mnist_jax import build_optimizer, create_train_state

        return create_train_state(plain_model(config), build_optimizer(config, 1), jax.random.key(config.seed))


def plain_model(config: TrainConfig) -> Any:
    """Builds the model of a config from Flax's own layers."""
    from flax import linen as nn

    class PlainModel(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            if config.model == "cnn":
                for channels, size in zip(config.channels, config.kernel_sizes, strict=True):
                    x = nn.Conv(channels, (size, size), padding="VALID")(x)
                    x = nn.relu(nn.max_pool(x, (2, 2), strides=(2, 2)))
            x = x.reshape(x.shape[0], -1)
            for size in config.hidden_sizes if config.model == "mlp" else (config.dense_size,):
                x = nn.relu(nn.Dense(size)(x))
                x = nn.Dropout(config.dropout_rate, deterministic=not train)(x)
            return nn.Dense(10)(x)

    return PlainModel()


class FlaxLoop:
    """Trains in the style of Flax's MNIST example: host batches, one dispatch per step."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        import jax
        import optax
        from flax.training.train_state import TrainState

        model = plain_model(config)
        self._image, self._label = _floats(dataset.train)
        self._test, self._batch_size, self._rng = dataset.test, config.batch_size, np.random.default_rng(config.seed)
        self._state = TrainState.create(
            apply_fn=model.apply,
            params=model.init(jax.random.key(config.seed), self._image[:1])["params"],
            tx=optax.adam(config.learning_rate),
        )
        self._key = jax.random.key(config.seed + 1)
        self.num_parameters = count_parameters(self._state.params)

        @jax.jit
        def step(state: Any, image: Any, label: Any, key: Any) -> Any:
            def loss_fn(params: Any) -> Any:
                rngs = {"dropout": jax.random.fold_in(key, state.step)}
                logits = state.apply_fn({"params": params}, image, train=True, rngs=rngs)
                return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

            loss, grads = jax.value_and_grad(loss_fn)(state.params)
            return state.apply_gradients(grads=grads), loss

        self._step = step

    def run_epoch(self) -> float:
        losses = []
        order = self._rng.permutation(len(self._label))
        for start in range(0, len(order), self._batch_size):
            index = order[start : start + self._batch_size]
            self._state, loss = self._step(self._state, self._image[index], self._label[index], self._key)
            losses.append(loss)
        return float(np.mean(losses))

    def num_steps(self) -> int:
        return int(self._state.step)

    def test_accuracy(self) -> float:
        image, label = _floats(self._test)
        logits = self._state.apply_fn({"params": self._state.params}, image)
        return float((logits.argmax(axis=1) == label).mean())


class Torch:
    """Trains with a PyTorch loop over tensors in memory: eager, or with the model compiled."""

    def __init__(
        self, config: TrainConfig, dataset: Dataset, memory_format: str = "contiguous_format", compiled: bool = False
    ) -> None:
        import torch
        from torch import nn

        torch.manual_seed(config.seed)
        self._torch, self._batch_size = torch, config.batch_size
        format_ = getattr(torch, memory_format)
        self._image, self._label, self._test_image, self._test_label = (
            torch.from_numpy(array)
            for split in (dataset.train, dataset.test)
            for array in (_floats(split)[0].transpose(0, 3, 1, 2), split.label.astype(np.int64))
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
        self._forward = torch.compile(self._model, dynamic=False) if compiled else self._model
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=config.learning_rate)
        self._num_steps = 0
        self.num_parameters = sum(p.numel() for p in self._model.parameters())

    def run_epoch(self) -> float:
        torch = self._torch
        self._model.train()
        total = torch.zeros(())
        for index in torch.randperm(len(self._label)).split(self._batch_size):
            self._optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self._forward(self._image[index]), self._label[index])
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


class Keras:
    """Trains with ``Model.fit`` of Keras 3."""

    def __init__(self, config: TrainConfig, dataset: Dataset, backend: str) -> None:
        os.environ["KERAS_BACKEND"] = backend
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import keras
        from keras import layers

        keras.utils.set_random_seed(config.seed)
        self._train, self._test, self._batch_size = _floats(dataset.train), _floats(dataset.test), config.batch_size
        stack: list[Any] = [layers.Input((28, 28, 1))]
        if config.model == "mlp":
            stack.append(layers.Flatten())
            for size in config.hidden_sizes:
                stack += [layers.Dense(size, activation="relu"), layers.Dropout(config.dropout_rate)]
        else:
            for features, size in zip(config.channels, config.kernel_sizes, strict=True):
                stack += [layers.Conv2D(features, size), layers.MaxPooling2D(2), layers.ReLU()]
            stack += [layers.Flatten(), layers.Dense(config.dense_size, activation="relu")]
            stack.append(layers.Dropout(config.dropout_rate))
        self._model = keras.Sequential([*stack, layers.Dense(10)])
        self._model.compile(
            optimizer=keras.optimizers.Adam(config.learning_rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        self.num_parameters = self._model.count_params()

    def run_epoch(self) -> float:
        return float(self._model.fit(*self._train, batch_size=self._batch_size, verbose=0).history["loss"][0])

    def num_steps(self) -> int:
        return int(self._model.optimizer.iterations)

    def test_accuracy(self) -> float:
        return float(self._model.evaluate(*self._test, batch_size=1000, verbose=0)[1])


CONTESTANTS: dict[str, Callable[[TrainConfig, Dataset], Any]] = {
    "mnist_jax": Ours,
    "PyTorch eager": Torch,
    "PyTorch channels_last": lambda config, dataset: Torch(config, dataset, "channels_last"),
    "PyTorch compile": lambda config, dataset: Torch(config, dataset, compiled=True),
    "PyTorch channels_last, compile": lambda config, dataset: Torch(config, dataset, "channels_last", compiled=True),
    "Keras on TensorFlow": lambda config, dataset: Keras(config, dataset, "tensorflow"),
    "Keras on JAX": lambda config, dataset: Keras(config, dataset, "jax"),
    "Flax loop": FlaxLoop,
    "lax.conv in a scan": LaxConv,
}


def _floats(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(split.image, np.float32) / 255, np.asarray(split.label)


def main() -> None:
    """Builds a contestant and serves its parent process: a command per line on stdin, a line of JSON on stdout."""
    name, config_json, num_examples = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # output of the libraries must not mix with the answers

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    config = TrainConfig.from_json(config_json)
    dataset = load_dataset(config.data)
    train = Split(dataset.train.image[: int(num_examples)], dataset.train.label[: int(num_examples)])
    try:
        contestant = CONTESTANTS[name](config, dataclasses.replace(dataset, train=train))
    except ImportError as error:
        answer(skipped=f"{error}"[:200])
        return
    answer(num_parameters=int(contestant.num_parameters))
    for command in sys.stdin:
        if command == "epoch\n":
            start = time.perf_counter()
            loss = contestant.run_epoch()
            answer(seconds=time.perf_counter() - start, loss=loss)
        else:
            answer(num_steps=contestant.num_steps(), test_accuracy=contestant.test_accuracy())


if __name__ == "__main__":
    main()
