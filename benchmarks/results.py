"""Writes and reads results files, and formats them as a table or as a comparison of two files.

    results = new_results(setting); results["suites"]["steps"] = {"rows": [...]}; write_results(results, path)
    print(table(results)); print(comparison(read_results(a), read_results(b)))

Schema version 1: ``schema_version, created, command, git, device, versions, flags, load, dataset, quick, peaks`` and
``suites``, which maps the name of a suite to its ``rows`` and its ``suite_seconds``, or to the reason why it was
``skipped`` or ``failed``; a suite that was stopped has only the ``rows`` so far. All times are in seconds.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_jax import InputError

SCHEMA_VERSION = 1
DIRECTORY = Path(__file__).parent / "results"
# These fields identify a row; the other fields are measurements.
_IDENTITY = ("name", "contestant", "model", "layers", "batch_size", "dtype", "driver", "averaged", "recorded", "value")
_ENVIRONMENT = ("JAX_", "XLA_", "NVIDIA_TF32", "OMP_", "PJRT_")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "keras", "tensorflow-cpu")

Results = dict[str, Any]


def new_results(setting: Any) -> Results:
    """Returns results without rows: machine, versions, flags and peaks."""
    import jax

    device = jax.devices()[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # Without directories of this machine.
        "command": " ".join(["python -m benchmarks", *(Path(word).name for word in sys.argv[1:])]),
        "git": _git(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": len(jax.devices()),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "flags": {
            **{name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)},
            **{name: str(getattr(jax.config, name)) for name in ("jax_default_matmul_precision", "jax_enable_x64")},
        },
        "load": {"before": _load()},
        "dataset": setting.dataset.name,
        "quick": setting.quick,
        "peaks": dataclasses.asdict(setting.peaks),
        "suites": {},
    }


def choose_path(results: Results, path: Path | None) -> Path:
    """Returns ``path``, or ``benchmarks/results/<date>-<device>.json``, with a number appended if that exists.

    Raises:
        InputError: the directory cannot be created.
    """
    device = results["device"]
    if path is None:
        kind = f"{device['cores']} cores {device['processor']}" if device["platform"] == "cpu" else device["kind"]
        stem = f"{results['created'][:10]}-{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}"
        candidates = (DIRECTORY / f"{stem}{suffix}.json" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        path = next(candidate for candidate in candidates if not candidate.exists())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: {error.strerror}") from None
    return path


def write_results(results: Results, path: Path) -> None:
    """Writes the results so far."""
    results["load"]["after"] = _load()
    path.write_text(json.dumps(results, indent=1) + "\n")


def read_results(path: Path) -> Results:
    """Reads a file of :func:`write_results`.

    Raises:
        InputError: there is no such file, or it is not a results file; the message names it.
    """
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path} is not JSON") from None
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path} must have schema_version {SCHEMA_VERSION}, got {version}")
    missing = [name for name in ("created", "device", "versions", "peaks", "quick", "suites") if name not in results]
    if missing:
        raise InputError(f"{path} has no {missing[0]}")
    return results


def table(results: Results) -> str:
    """Returns all rows as text for the terminal."""
    peaks = results["peaks"]
    lines = [
        f"{_machine(results)}; peak {peaks['float32_flops'] / 1e9:,.0f} GFLOP/s float32, "
        f"{peaks['bfloat16_flops'] / 1e9:,.0f} bfloat16, {peaks['bandwidth_bytes'] / 1e9:,.0f} GB/s"
    ]
    for name, suite in results["suites"].items():
        reasons = [f"{name}: {word}, {suite[word]}" for word in ("skipped", "failed") if word in suite]
        lines += ["", *(reasons or [name])]
        lines += [f"  {_identity(row):<62}{_measured(row)}" for row in suite.get("rows", ())]
    return "\n".join(lines)


def comparison(before: Results, after: Results) -> str:
    """Compares the rows that both files have: ``ratio`` is after over before, ``~`` marks overlapping ranges.

    Below the rows are the geometric means of their ratios, for each suite and for all rows.

    Raises:
        InputError: the files have no row in common, or only one is from a quick run.
    """
    if before["quick"] != after["quick"]:
        raise InputError("one of the two files is from a --quick run: the workloads differ")
    lines = [f"{name}: {_machine(results)}" for name, results in (("before", before), ("after", after))]
    lines.append(f"{'':<72}{'before':>12}{'after':>12}{'ratio':>9}")
    found = {(suite, _identity(row), row.get("examples")): row for suite, row in _rows(after)}
    ratios: dict[str, list[float]] = {}
    for suite, row in _rows(before):
        other = found.get((suite, _identity(row), row.get("examples")))
        if other is not None and "seconds" in row and "seconds" in other:
            overlap = row["seconds_min"] <= other["seconds_max"] and other["seconds_min"] <= row["seconds_max"]
            times = f"{_duration(row['seconds']):>12}{_duration(other['seconds']):>12}"
            ratio = other["seconds"] / row["seconds"]
            lines.append(f"{suite + ': ' + _identity(row):<72}{times}{_ratio(ratio)}{' ~' if overlap else ''}")
            ratios.setdefault(suite, []).append(ratio)
    if not ratios:
        raise InputError("the two files have no row in common")
    lines += ["", f"{'geometric mean of the ratios':<72}{'rows':>24}{'ratio':>9}"]
    for name, values in (*ratios.items(), ("all", [*itertools.chain(*ratios.values())])):
        lines.append(f"{name:<72}{len(values):>24}{_ratio(statistics.geometric_mean(values))}")
    return "\n".join(lines)


def insert_table(path: Path, text: str) -> None:
    """Inserts ``text`` between the lines ``<!-- peers -->`` and ``<!-- /peers -->`` of a Markdown file.

    Raises:
        InputError: there is no such file, or it lacks these lines.
    """
    try:
        content = path.read_text()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    head, begin, rest = content.partition("<!-- peers -->\n")
    _, end, tail = rest.partition("<!-- /peers -->\n")
    if not end:
        raise InputError(f"{path} must have a line <!-- peers --> and a line <!-- /peers -->")
    path.write_text(f"{head}{begin}\n{text}\n\n{end}{tail}")


def peers_table(results: Results) -> str:
    """Returns the Markdown tables for the README: the epoch of each contestant.

    Raises:
        InputError: the results have no peers.
    """
    rows = [row for row in results["suites"].get("peers", {}).get("rows", ()) if "seconds" in row]
    if not rows:
        raise InputError("the results have no peers: run python -m benchmarks peers")
    lines = []
    for workload in dict.fromkeys(row["name"] for row in rows):
        found = [row for row in rows if row["name"] == workload]
        first = found[0]
        lines += [
            f"{workload}, {first['num_parameters']:,} parameters, batch {first['batch_size']}, n = {first['n']}:",
            "",
            "| | an epoch | of the peak | times ours | test accuracy |",
            "|---|---|---|---|---|",
        ]
        for row in found:
            spread = f"{row['seconds']:.3f} s ({row['seconds_min']:.3f} to {row['seconds_max']:.3f})"
            lines.append(
                f"| {row['contestant']} | {spread} "
                f"| {row['peak_fraction']:.0%} | {row['ratio']:.2f} | {row['test_accuracy']:.2%} |"
            )
        lines.append("")
    return "\n".join(lines[:-1])


def _machine(results: Results) -> str:
    device = results["device"]
    return (
        f"{results['created']}, {device['count']} x {device['kind']}, {device['processor']}, {device['cores']} cores, "
        + ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    )


def _rows(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, suite in results["suites"].items():
        yield from ((name, row) for row in suite.get("rows", ()))


def _identity(row: dict[str, Any]) -> str:
    parts = []
    for name in _IDENTITY:
        value = row.get(name)
        if name == "layers" and value:
            parts.append("-".join(map(str, value)))
        elif name in ("batch_size", "value") and value is not None:
            parts.append(f"{'batch' if name == 'batch_size' else 'at'} {value}")
        elif name in ("averaged", "recorded"):
            parts += [name] if value else []
        elif value is not None:
            parts.append(str(value))
    return " ".join(parts)


def _measured(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    parts = []
    if "seconds" in row:
        low, high = _duration(row["seconds_min"]), _duration(row["seconds_max"])
        parts.append(f"{_duration(row['seconds']):>10} ({low} to {high}, n = {row['n']})")
    if "seconds_p99" in row:
        parts.append(f"p99 {_duration(row['seconds_p99'])}")
    if "process" in row:
        parts.append(f"whole process {_duration(row['process']['seconds'])}")
    if "phases" in row:
        parts += [f"{phase} {_duration(seconds)}" for phase, seconds in row["phases"].items()]
    formats = {
        "examples_per_second": "{:,.0f}/s",
        "peak_fraction": "{:.0%} of the peak",
        "ratio": "{:.2f}x",
        "ratio_to_ideal": "{:.2f}x the ideal",
        "ratio_to_step": "{:.2f}x a training step",
        "exponent": "exponent {:.3f}",
        "test_accuracy": "test accuracy {:.2%}",
    }
    parts += ["NOT REACHED"] if row.get("reached") is False else []
    parts += [form.format(row[name]) for name, form in formats.items() if name in row]
    if "ideal" in row:
        parts.append(f"ideal {_duration(row['ideal'])} ({row['ideal_meaning']})")
    parts += [f"{name.removesuffix('_bytes').replace('_', ' ')} {row[name] / 2**20:,.0f} MiB"
              for name in row if name.endswith("_bytes") and row[name] is not None]  # fmt: skip
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _ratio(ratio: float) -> str:
    return f"{f'{ratio:.2f}' if ratio >= 0.1 else f'{ratio:.2g}':>8}x"


def _git() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip()

    try:
        sha = git("rev-parse", "HEAD")
        return {"sha": sha or None, "dirty": bool(git("status", "--porcelain", "-uno")) if sha else None}
    except FileNotFoundError:
        return {"sha": None, "dirty": None}


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _load() -> list[float] | None:
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None
