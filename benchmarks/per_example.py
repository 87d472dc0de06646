"""How long do the gradient norms of all examples take, compared with a training step on as many?

The training step goes over all examples in microbatches of the default size. The same norms, of the same parameters,
are computed with PyTorch in processes of their own: by ``torch.func``, as ``vmap(grad(loss))``, and by Opacus, whose
hooks collect a gradient for each example. Both take the fastest of three batch sizes, and a fifth of the examples. All
take turns; each must find the same norms.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.commands import Worker
from benchmarks.setting import Row, Setting, check, spread
from mnist_jax import TrainConfig, build_state, per_example_gradient_norms, train_epoch

_TOLERANCE = 1e-3  # of the mean norm, relative
_BATCH_SIZES = (32, 128, 512)  # of the peers
_PEER_SHARE = 5  # one in this number of examples goes to the peers, which take longer
CONTESTANTS = ("torch.func", "Opacus")


class _Peer(Worker):
    """Runs a contestant in its own process, which sleeps between its turns."""

    def __init__(self, name: str, arrays: Path) -> None:
        super().__init__(["-m", "benchmarks.per_example", name, str(arrays)])
        self.ready = self.read()
        self.signal(signal.SIGSTOP)

    def run(self) -> dict[str, Any]:
        self.signal(signal.SIGCONT)
        self.send("run")
        answer = self.read()
        self.signal(signal.SIGSTOP)
        return answer


def run(setting: Setting) -> Iterator[Row]:
    """Yields rows for each model: the training step, our norms and those of the peers."""
    num_examples = 256 if setting.quick else 10_000
    for model in setting.models:
        yield from _compare(setting, TrainConfig(model=model, batch_size=num_examples, ema_decay=None))


def _compare(setting: Setting, config: TrainConfig) -> Iterator[Row]:
    state, split = build_state(config), setting.examples(config.batch_size)

    def train() -> dict[str, Any]:
        start = time.perf_counter()
        trained, metrics = jax.block_until_ready(train_epoch(state, split, config.batch_size))
        seconds = time.perf_counter() - start
        check(trained, 1, metrics.loss)
        return {"seconds": seconds}

    def norms() -> dict[str, Any]:
        start = time.perf_counter()
        found = np.asarray(per_example_gradient_norms(state, split))
        return {"seconds": time.perf_counter() - start, "mean": float(found[:num_shared].mean())}

    num_shared = config.batch_size // _PEER_SHARE
    calls: dict[str, Callable[[], dict[str, Any]]] = {"training step": train, "gradient norms": norms}
    peers, skipped = [], {}
    with tempfile.TemporaryDirectory() as directory:
        arrays = Path(directory) / "arrays.npz"
        leaves: dict[str, Any] = {"image": split.image[:num_shared], "label": split.label[:num_shared]}
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
            leaves[jax.tree_util.keystr(key_path, simple=True, separator="/")] = leaf
        np.savez(arrays, allow_pickle=False, **{name: np.asarray(leaf) for name, leaf in leaves.items()})
        for name in CONTESTANTS if jax.default_backend() == "cpu" else ():
            peer = _Peer(name, arrays)
            peers.append(peer)
            if "skipped" in peer.ready:
                skipped[name] = peer.ready["skipped"]
            else:
                calls[name] = peer.run
    try:
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
        for _ in range(2 if setting.quick else 5):  # the first compiles
            for name, call in calls.items():
                answers[name].append(call())
    finally:
        for peer in peers:
            peer.close()
    expected = answers["gradient norms"][-1]["mean"]
    steps = [answer["seconds"] for answer in answers["training step"][1:]]
    for name, found in answers.items():
        if "mean" in found[-1]:
            assert abs(found[-1]["mean"] / expected - 1) < _TOLERANCE, f"{name}: {found[-1]['mean']}, not {expected}"
        seconds, num_examples = [answer["seconds"] for answer in found[1:]], config.batch_size
        if name in CONTESTANTS:
            num_examples = num_shared
        per_example, per_step_example = np.median(seconds) / num_examples, np.median(steps) / config.batch_size
        yield {
            "name": name,
            "model": config.model,
            "examples": num_examples,
            "first_seconds": found[0]["seconds"],
            **spread(seconds),
            "examples_per_second": 1 / per_example,
            "ratio_to_step": per_example / per_step_example,
        }
    for name, reason in skipped.items():
        yield {"name": name, "model": config.model, "skipped": reason}


def _torch_model(arrays: dict[str, np.ndarray]) -> Any:
    """Builds our MLP or CNN in PyTorch, with our parameters, without dropout."""
    import torch
    from torch import nn

    class ChannelsLast(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.movedim(-3, -1).flatten(-3)

    layers: list[Any] = []
    names = sorted({name.rpartition("/")[0] for name in arrays})
    for name in names:
        kernel, bias = arrays[f"{name}/kernel"], torch.from_numpy(arrays[f"{name}/bias"])
        if name.startswith("Conv"):
            layer: Any = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[0])
            weight = torch.from_numpy(kernel).permute(3, 2, 0, 1)
            layers += [layer, nn.MaxPool2d(2), nn.ReLU()]
        else:
            if not any(isinstance(each, (ChannelsLast, nn.Linear)) for each in layers):
                layers.append(ChannelsLast())
            layer, weight = nn.Linear(*kernel.shape), torch.from_numpy(kernel).T
            layers += [layer, nn.ReLU()]
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return nn.Sequential(*layers[:-1])


def _torch_func(model: Any) -> Callable[[Any, Any], Any]:
    import torch
    from torch.func import functional_call, grad, vmap

    params = {name: param.detach() for name, param in model.named_parameters()}

    def loss(params: Any, image: Any, label: Any) -> Any:
        logits = functional_call(model, params, (image[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda image, label: _norms(gradients(params, image, label).values())


def _opacus(model: Any) -> Callable[[Any, Any], Any]:
    import torch
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="sum")

    def norms(image: Any, label: Any) -> Any:
        wrapped.zero_grad()
        torch.nn.functional.cross_entropy(wrapped(image), label, reduction="sum").backward()
        return _norms(param.grad_sample for param in model.parameters())

    return norms


def _norms(gradients: Any) -> Any:
    return sum(gradient.flatten(1).square().sum(dim=1) for gradient in gradients).sqrt()


def main() -> None:
    """Serves a contestant to the parent process: a command per line on stdin, a line of JSON on stdout."""
    name, path = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # output of the libraries must not mix with the answers

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    with np.load(path) as file:
        arrays = dict(file)
    try:
        import torch

        images = torch.from_numpy(arrays.pop("image").astype(np.float32).transpose(0, 3, 1, 2) / 255)
        labels = torch.from_numpy(arrays.pop("label").astype(np.int64))
        function = {"torch.func": _torch_func, "Opacus": _opacus}[name](_torch_model(arrays))
    except ImportError as error:
        answer(skipped=f"{error}"[:200])
        return

    def run(batch_size: int, num_examples: int | None = None) -> tuple[float, float]:
        start = time.perf_counter()
        parts = (each[:num_examples].split(batch_size) for each in (images, labels))
        pairs = zip(*parts, strict=True)
        found = torch.cat([function(*pair).detach() for pair in pairs])
        return time.perf_counter() - start, float(found.mean())

    answer(ready=True)
    fastest = None
    for _ in sys.stdin:
        fastest = fastest or min(_BATCH_SIZES, key=lambda size: min(run(size, max(_BATCH_SIZES))[0] for _ in range(2)))
        seconds, mean = run(fastest)
        answer(seconds=seconds, mean=mean)


if __name__ == "__main__":
    main()
