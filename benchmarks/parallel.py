"""Measures a step of ``fit`` on several devices, in several processes and on streamed data, with the ideal times.

    yield from run(setting)     # the last rows of ``scaling``

Virtual devices divide a CPU and share its cores, and so do processes on one machine. More of them cannot be faster:
the rows of a CPU show the overhead of one host, and the ideal is the time of one device for the same work. On D GPUs, a
fixed batch ideally takes 1/D of the time of one, and a fixed batch per GPU the same time. Several processes ideally
take the time of one process with as many devices. Streamed data ideally take the time of data on the device; the shards
were just written, so the operating system holds them in memory.

Every case trains in a process of its own, with the threads of such a run, and waits between its turns: an epoch each,
A B C, A B C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import socket
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax

from benchmarks.commands import Worker, run_python
from benchmarks.setting import Row, Setting, expected_steps
from mnist_jax import TrainConfig

_FEW = 2_560, 5_120  # training examples with --quick, and of the CNN; the others are held out
_EACH = 128  # batch size per device; a fixed batch is that of the most devices


@dataclasses.dataclass(frozen=True)
class Case:
    """Describes a run: its config, which has the number of devices, and its number of processes."""

    config: TrainConfig
    num_processes: int = 1


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Describes a row: ``case`` ideally takes ``factor`` times as long as ``reference``."""

    name: str
    value: int | None
    case: Case
    reference: Case
    factor: float
    meaning: str


def run(setting: Setting) -> Iterator[Row]:
    """Yields the rows of each model."""
    on_cpu = jax.default_backend() == "cpu"
    most = 8 if on_cpu else len(jax.devices())
    counts = [count for count in ((1, 2) if setting.quick else (1, 2, 4, 8)) if count <= most]
    if counts == [1]:
        yield {"name": "by devices", "skipped": "needs more than one device, got 1"}
        counts = []
    for model in setting.models:
        yield from _model(setting, model, counts, on_cpu)


def _model(setting: Setting, model: Literal["mlp", "cnn"], counts: list[int], on_cpu: bool) -> Iterator[Row]:
    """Yields the rows of a model."""
    available = setting.dataset.train.num_examples
    num_examples = min(available, _FEW[0] if setting.quick else _FEW[1] if model == "cnn" else available)
    num_validation = available + setting.dataset.validation.num_examples - num_examples
    config = TrainConfig(model=model, data=setting.data, num_validation=num_validation, ema_decay=None)
    with tempfile.TemporaryDirectory() as directory:
        shards: str | None = None
        path, data = str(Path(directory) / "shards"), setting.data or setting.dataset.name
        try:
            run_python(["-m", "mnist_jax.data.write", path, "--data", data, "--num-validation", str(num_validation)])
            shards = path
        except RuntimeError as error:
            yield {"name": "streamed", "model": model, "skipped": str(error).splitlines()[-1]}
        plans = list(_plan(config, counts, on_cpu, shards))
        cases = list(dict.fromkeys(case for plan in plans for case in (plan.case, plan.reference)))
        seconds = measure_cases(cases, 2 if setting.quick else 5, num_examples)
        yield from (_row(setting, plan, seconds, on_cpu) for plan in plans)


def _plan(config: TrainConfig, counts: list[int], on_cpu: bool, shards: str | None) -> Iterator[_Plan]:
    def case(batch_size: int, num_devices: int = 1, num_processes: int = 1) -> Case:
        return Case(dataclasses.replace(config, batch_size=batch_size, num_devices=num_devices), num_processes)

    devices, fixed = "virtual devices" if on_cpu else "devices", _EACH * max(counts, default=1)
    for count in counts:
        factor = 1.0 if on_cpu else 1 / count
        yield _Plan(f"by {devices}", count, case(fixed, count), case(fixed), factor, f"{factor:g} x one device")
    for count in counts:
        factor = count if on_cpu else 1.0
        name, meaning = f"by {devices}, batch {_EACH} each", f"{factor:g} x one device"
        yield _Plan(name, count, case(_EACH * count, count), case(_EACH), factor, meaning)
    for count in counts[1:3]:
        meaning = f"one process, {count} {devices}"
        yield _Plan("by processes", count, case(fixed, count, count), case(fixed, count), 1.0, meaning)
    if shards is not None:
        resident = case(_EACH)
        streamed = dataclasses.replace(resident.config, data=shards, num_validation=None, stream=True)
        yield _Plan("streamed", None, Case(streamed), resident, 1.0, "data on the device")


def _row(setting: Setting, plan: _Plan, seconds: dict[Case, list[float] | str], on_cpu: bool) -> Row:
    """Returns the row of a plan; without the ideal if the reference failed."""
    config, found, reference = plan.case.config, seconds[plan.case], seconds[plan.reference]
    fields = {} if plan.value is None else {"value": plan.value}
    if isinstance(found, str):
        return {"name": plan.name, "model": config.model, **fields, "skipped": found}
    num_devices = 1 if on_cpu else config.num_devices or 1  # virtual devices share one peak
    row = setting.row(plan.name, found, config, config.batch_size, train=True, num_devices=num_devices, **fields)
    if isinstance(reference, str):
        return row
    ideal = plan.factor * statistics.median(reference)
    return row | {"ideal": ideal, "ratio_to_ideal": row["seconds"] / ideal, "ideal_meaning": plan.meaning}


def measure_cases(cases: list[Case], rounds: int, num_examples: int) -> dict[Case, list[float] | str]:
    """Trains each case for an epoch in each round, after a round that warms up.

    Returns:
        For each case the seconds of a step in each round, or the reason why it failed.
    """
    results: dict[Case, list[float] | str] = {case: [] for case in cases}
    with contextlib.ExitStack() as stack:
        groups = {case: _start(case, stack) for case in cases}
        for round_ in range(-1, rounds + 1):  # the first answer says that the worker is ready
            for case in cases:
                found = results[case]
                if isinstance(found, str):
                    continue
                num_steps = expected_steps(num_examples, case.config.batch_size)
                try:
                    if round_ >= 0:
                        for worker in groups[case]:
                            worker.send("epoch")
                    answers = [worker.read() for worker in groups[case]]
                except RuntimeError as error:
                    results[case] = str(error)
                    continue
                for answer in answers if round_ >= 0 else ():
                    expected = (round_ + 1) * num_steps
                    assert answer["step"] == expected, f"{answer['step']} steps instead of {expected}"
                    assert math.isfinite(answer["loss"]), f"the loss is {answer['loss']}"
                if round_ > 0:
                    found.append(max(answer["seconds"] for answer in answers) / num_steps)
    return results


def _start(case: Case, stack: contextlib.ExitStack) -> list[Worker]:
    """Starts the processes of a case, which end with the stack."""
    workdir = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
    config = dataclasses.replace(case.config, workdir=str(workdir), epochs=1000, checkpoint_every=1000, quiet=True)
    variables = dict(os.environ)
    if jax.default_backend() == "cpu":
        each = (config.num_devices or 1) // case.num_processes
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", variables.get("XLA_FLAGS", "")).strip()
        variables |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(each)}
    if case.num_processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        variables = {name: value for name, value in variables.items() if "proxy" not in name.lower()}
        variables |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address}
        variables |= {"JAX_NUM_PROCESSES": str(case.num_processes)}
    workers = []
    for number in range(case.num_processes):
        own = dict.fromkeys(("JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS"), str(number)) if case.num_processes > 1 else {}
        worker = Worker(["-m", "benchmarks.turns", config.to_json()], variables | own)
        stack.callback(worker.close)
        workers.append(worker)
    return workers
