"""Predicts how long an epoch of data-parallel training takes on H100s, and how many of them still help.

    python -m benchmarks.cost_model      # prints the tables of the section "A page on paper" of the README

    step = overhead + max(FLOPs / peak, bytes / bandwidth) / share + all-reduces
    all-reduce = latency + 2 (D - 1) / D * bytes / bandwidth of the link

The overhead of a layer and the share are fitted to results of one H200; everything else is published. The README says
where the figures come from.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any, Literal

import jax

from benchmarks.flops import flops_per_example, layer_flops
from benchmarks.results import Results, read_results
from mnist_jax import TrainConfig, build_state, count_parameters


@dataclasses.dataclass(frozen=True)
class Machine:
    """Holds the published figures of a GPU and its links, for dense products, per GPU and direction.

    Attributes:
        flops: FLOP/s of matrix products by dtype; float32 is TF32, JAX's default.
        bandwidth: bytes/s of its memory.
        nvlink: bytes/s to the other GPUs of its node.
        network: bytes/s to other nodes.
        node: GPUs of a node.
    """

    flops: dict[Literal["float32", "bfloat16"], float]
    bandwidth: float
    nvlink: float = 450e9
    network: float = 50e9
    node: int = 8


H100 = Machine({"float32": 494.7e12, "bfloat16": 989.4e12}, bandwidth=3.35e12)
H200 = dataclasses.replace(H100, bandwidth=4.8e12)

# Fitted: seconds to start the kernels of a layer, forward, backward and Adam; share of the peak that kernels reach.
DENSE_OVERHEAD_S, CONV_OVERHEAD_S = 14e-6, 34e-6
SHARE = {"mlp": 0.37, "cnn": 0.10}

# NCCL's own model of a tree on NVLink and InfiniBand for its protocols LL and LL128: seconds to start, per GPU of the
# node and per doubling of the nodes, and the share of the link's bandwidth.
PROTOCOLS = ((6.8e-6, 0.6e-6, 5.0e-6, 0.26), (14.0e-6, 1.25e-6, 8.5e-6, 0.92))

NUM_EXAMPLES = 55_000
DEVICES = (1, 8, 64, 512)
MLP = TrainConfig(hidden_sizes=(512, 256), batch_size=128, ema_decay=None)
CNN = TrainConfig(model="cnn", batch_size=256, ema_decay=None)
RESULTS = ("2026-11-26-nvidia-h200.json", "2026-11-26-nvidia-h200-2.json")


@functools.cache
def _params(config: TrainConfig) -> dict[str, Any]:
    return jax.eval_shape(lambda: build_state(config)).params


def _bytes_per_number(config: TrainConfig) -> int:
    return 4 if config.dtype == "float32" else 2


def overhead_s(config: TrainConfig) -> float:
    """Returns the seconds that a step takes however few examples it has."""
    return sum(CONV_OVERHEAD_S if name.startswith("Conv") else DENSE_OVERHEAD_S for name in _params(config))


def work_s(config: TrainConfig, batch_size: int, machine: Machine) -> float:
    """Returns the seconds of FLOPs or of memory traffic of a step, whichever is longer.

    A parameter, its gradient and its two moments of Adam are read and written once, in float32. An activation and its
    gradient are written and read once, in the dtype of the config.
    """
    fan_in = [math.prod(layer["kernel"].shape[:-1]) for layer in _params(config).values()]
    activations = 784 + sum(flops // (2 * inputs) for flops, inputs in zip(layer_flops(config), fan_in, strict=True))
    num_bytes = 8 * 4 * count_parameters(_params(config)) + 4 * _bytes_per_number(config) * activations * batch_size
    flops = flops_per_example(config, train=True) * batch_size
    return max(flops / machine.flops[config.dtype], num_bytes / machine.bandwidth) / SHARE[config.model]


def all_reduce_s(num_bytes: int, num_devices: int, machine: Machine) -> float:
    """Returns the seconds of an all-reduce, with the faster of NCCL's protocols; 0 on one device."""
    if num_devices == 1:
        return 0.0
    num_nodes = math.ceil(num_devices / machine.node)
    per_node = num_devices // num_nodes
    link = machine.nvlink if num_nodes == 1 else min(machine.nvlink, per_node * machine.network)
    moved = 2 * (num_devices - 1) / num_devices * num_bytes
    return min(
        start + 2 * ((per_node - 1) * nvlink + math.log2(num_nodes) * network) + moved / (link * share)
        for start, nvlink, network, share in PROTOCOLS
    )


def communication_s(config: TrainConfig, num_devices: int, machine: Machine) -> float:
    """Returns the seconds of the all-reduces of a step, as XLA's partitioned program has them.

    One is for all gradients, in the dtype of the config, and one for each dtype of the metrics: the loss, which joins
    the gradients if they are float32, and the counts.
    """
    num_bytes = _bytes_per_number(config) * count_parameters(_params(config))
    num_small = 1 if config.dtype == "float32" else 2
    return all_reduce_s(num_bytes, num_devices, machine) + num_small * all_reduce_s(4, num_devices, machine)


def step_parts_s(config: TrainConfig, batch_size: int, num_devices: int, machine: Machine) -> tuple[float, ...]:
    """Returns overhead, work and all-reduces of a step, in seconds; ``batch_size`` is that of one device."""
    work = work_s(config, batch_size, machine)
    return overhead_s(config), work, communication_s(config, num_devices, machine)


def break_even(config: TrainConfig, few: int, many: int) -> float:
    """Returns the batch size over all devices from which a step takes less time on ``many`` H100s than on ``few``."""
    per_example_s = work_s(config, 2, H100) - work_s(config, 1, H100)
    communication = communication_s(config, many, H100) - communication_s(config, few, H100)
    return communication / (per_example_s * (1 / few - 1 / many))


def split_epoch(batch_size: int, num_devices: int, is_per_device: bool) -> tuple[int, int] | None:
    """Returns steps per epoch and examples per device and step; None if a device would get no example.

    A batch is at most the whole split.
    """
    batch_size = min(batch_size * (num_devices if is_per_device else 1), NUM_EXAMPLES)
    if num_devices > batch_size:
        return None
    return math.ceil(NUM_EXAMPLES / batch_size), math.ceil(batch_size / num_devices)


def calibration_table() -> str:
    """Returns the Markdown table of predicted and measured steps on one H200."""
    lines = ["| a step on one H200 | predicted | measured | ratio |", "|---|---|---|---|"]
    files = [read_results(Path(__file__).parent / "results" / name) for name in RESULTS]
    for name, config, copies, measured_s in _measured(files):
        predicted_s = overhead_s(config) + copies * work_s(config, config.batch_size, H200)
        ratio = f"{predicted_s / measured_s:.2f}"
        lines.append(f"| {name} | {predicted_s * 1e6:.0f} µs | {measured_s * 1e6:.0f} µs | {ratio} |")
    return "\n".join(lines)


def _measured(files: list[Results]) -> list[tuple[str, TrainConfig, int, float]]:
    """Returns name, config, number of models and seconds of a step, of the rows that the model describes."""
    found = []
    for row in (row for results in files for suite in results["suites"].values() for row in suite["rows"]):
        copies, sizes = row.get("value", 1), tuple(row["layers"])
        # Convolutions of several models become grouped convolutions, which are slower.
        if (
            row.get("averaged")
            or row.get("recorded")
            or row.get("driver") == "in turn"
            or (row["model"] == "cnn" and copies > 1)
        ):
            continue
        config = dataclasses.replace(MLP, hidden_sizes=sizes) if row["model"] == "mlp" else CNN
        config = dataclasses.replace(config, batch_size=row["batch_size"])
        name = f"{row['model'].upper()} {'-'.join(map(str, sizes))}, batch {config.batch_size}"
        name += f", {copies} models as one program" if copies > 1 else ""
        found.append((name, config, copies, row["seconds"] / math.ceil(row["examples"] / copies / config.batch_size)))
    return found


def scaling_tables() -> str:
    """Returns the Markdown tables of an epoch, a step and the batch that pays, on 1 to 512 H100s."""
    head, line = "".join(f" {count} |" for count in DEVICES), "|---" * (len(DEVICES) + 1) + "|"
    epochs = [f"| an epoch of {NUM_EXAMPLES:,} examples, H100s: |{head}", line]
    steps = [f"| a step in µs: overhead + work + all-reduces, H100s: |{head}", line]
    pays = ["| more H100s are faster from a batch of | 8, not 1 | 64, not 8 | 512, not 64 |", "|---|---|---|---|"]
    for config, name in (MLP, "MLP 512-256"), (CNN, "CNN 24-32-256"):
        typed = [dataclasses.replace(config, dtype=dtype) for dtype in H100.flops]
        for is_per_device, config in itertools.product((False, True), typed):
            row = f"| {name}, {config.dtype}, batch {config.batch_size}{' per device' * is_per_device} | "
            cells = [_cells(config, count, is_per_device) for count in DEVICES]
            epochs.append(row + " | ".join(epoch for epoch, _ in cells) + " |")
            steps.append(row + " | ".join(step for _, step in cells) + " |")
        for config in typed:
            sizes = [_limited(break_even(config, few, many)) for few, many in itertools.pairwise(DEVICES)]
            pays.append(f"| {name}, {config.dtype} | " + " | ".join(sizes) + " |")
    return "\n".join([*epochs, "", *steps, "", *pays])


def _cells(config: TrainConfig, num_devices: int, is_per_device: bool) -> tuple[str, str]:
    split = split_epoch(config.batch_size, num_devices, is_per_device)
    if split is None:
        return "-", "-"
    num_steps, batch_size = split
    parts = step_parts_s(config, batch_size, num_devices, H100)
    epoch_s = num_steps * sum(parts)
    alone_s = math.ceil(NUM_EXAMPLES / config.batch_size) * sum(step_parts_s(config, config.batch_size, 1, H100))
    efficiency = alone_s / (num_devices * epoch_s)
    return f"{epoch_s * 1e3:.3g} ms, {efficiency:.1%}", " + ".join(f"{part * 1e6:.0f}" for part in parts)


def _limited(batch_size: float) -> str:
    return f"{batch_size:,.0f}" if batch_size <= NUM_EXAMPLES else f"> {NUM_EXAMPLES:,}"


def tables() -> str:
    """Returns everything that the command prints."""
    return f"{calibration_table()}\n\n{scaling_tables()}"


if __name__ == "__main__":
    print(tables())
