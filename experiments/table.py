"""Writes the table of ``experiments/README.md`` from the files in ``experiments/results``.

python experiments/table.py    # writes it between the lines <!-- table --> and <!-- /table -->

Each results file, of an experiment or of one of its variants, is a row. Its claim and its targets are ``CLAIM`` and
``TARGETS`` of the experiment, or its ``VARIANT_TARGETS`` by name.
"""

from __future__ import annotations

import functools
import importlib
import json
import operator
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnist_jax import InputError
from mnist_jax.cli.flags import run_command

DIRECTORY = Path(__file__).parent
BEGIN, END = "<!-- table -->\n", "<!-- /table -->\n"


def main() -> int:
    """Runs the command."""
    readme = DIRECTORY / "README.md"

    def command() -> None:
        readme.write_text(insert_table(readme.read_text(), build_table(DIRECTORY / "results")))

    return run_command(command)


def insert_table(text: str, table: str) -> str:
    """Returns ``text`` with ``table`` between its marks.

    Raises:
        InputError: the text has no marks.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise InputError(f"README.md must have a line {BEGIN.strip()} and a line {END.strip()}")
    return f"{head}{begin}\n{table}\n{end}{tail}"


def build_table(results: Path) -> str:
    """Returns the table in Markdown, followed by the machine of each row.

    Args:
        results: directory of the JSON files; each names an experiment to import.
    """
    rows, machines = [], {}
    everything = [json.loads(path.read_text()) for path in results.glob("*.json")]
    for found in sorted(everything, key=lambda found: (found["name"], found["variant"] or "", describe_name(found))):
        experiment = importlib.import_module(found["name"])
        targets = getattr(experiment, "VARIANT_TARGETS", {}).get(found["variant"], experiment.TARGETS)
        rows.append(build_row(found, experiment.CLAIM, targets))
        machines.setdefault(describe_machine(found), []).append(describe_name(found))
    return "\n".join(
        [
            "| experiment | claim | measured | on the cleaned test split | training / whole run | verdict |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            *(f"Measured on {machine}: {', '.join(names)}.\n" for machine, names in machines.items()),
        ]
    )


def build_row(found: Mapping[str, Any], claim: str, targets: Mapping[str, float]) -> str:
    """Returns a row of the table.

    Args:
        found: content of a results file.
        claim: claim of the known system.
        targets: target by field of a run's summary, with a dot for nested fields such as ``seconds.total``: the minimum
            of an accuracy or a correlation, the maximum of any other field.
    """
    runs = found["runs"]
    values = {name: [functools.reduce(operator.getitem, name.split("."), run) for run in runs] for name in targets}
    cleaned = [run["cleaned_test_accuracy"] for run in runs if "cleaned_test_accuracy" in run]
    test_accuracy = format_values("test_accuracy", [run["test_accuracy"] for run in runs])
    if "views_test_accuracy" in runs[0] and "views_test_accuracy" not in targets:
        values |= {"views_test_accuracy": [run["views_test_accuracy"] for run in runs]}
    others = [
        f"{describe_field(name)} {format_values(name, values[name])}"
        for name in values
        if name != "test_accuracy" and not name.startswith("seconds.")  # seconds have their own column
    ]
    missed = [
        f"{describe_field(name)} by {shortfall}"
        for name, target in targets.items()
        if (shortfall := describe_shortfall(name, values[name], target))
    ]
    seconds = [statistics.median(run["seconds"][name] for run in runs) for name in ("train", "total")]
    cells = (
        f"[{found['name']}]({found['name']}.py){describe_name(found).removeprefix(found['name'])}",
        claim,
        ", ".join([f"{test_accuracy} (n = {len(runs)})", *others]),
        format_values("test_accuracy", cleaned) if cleaned else "",
        " / ".join(map(format_seconds, seconds)),
        f"missed: {', '.join(missed)}" if missed else "met" if targets else "",
    )
    return f"| {' | '.join(cells)} |"


def describe_shortfall(name: str, values: list[float], target: float) -> str | None:
    """Returns by how much the mean (of seconds: the median) misses its target; None if it is met."""
    if name.endswith("accuracy"):
        distance = target - statistics.mean(values)
        return f"{100 * distance:.3f} points" if distance > 0 else None
    if name.endswith("correlation"):
        distance = target - statistics.mean(values)
        return format_number(distance) if distance > 0 else None
    if name.startswith("seconds."):
        distance = statistics.median(values) - target
        return format_seconds(distance) if distance > 0 else None
    distance = statistics.mean(values) - target
    return format_number(distance) if distance > 0 else None


def describe_field(name: str) -> str:
    """Returns a field of a summary in words."""
    if name == "views_test_accuracy":
        return "with 16 distorted copies of each image"
    return "time" if name.startswith("seconds.") else name.removeprefix("num_").replace("_", " ")


def format_values(name: str, values: list[float]) -> str:
    """Formats mean ± standard deviation; accuracies in percent."""
    if name.endswith("accuracy"):
        values, form, unit = [100 * value for value in values], "{:.3f}".format, " %"
    else:
        form, unit = format_number, ""
    spread = f" ± {form(statistics.stdev(values))}" if len(set(values)) > 1 else ""
    return f"{form(statistics.mean(values))}{spread}{unit}"


def format_number(value: float) -> str:
    """Formats an integer with commas, any other number with four decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def format_seconds(seconds: float) -> str:
    """Formats a time in seconds, or in minutes from 2 minutes on."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def describe_name(found: Mapping[str, Any]) -> str:
    """Returns the name of an experiment with its variant, and with the device unless that is a CPU."""
    device = found["machine"]["device"]
    return " ".join(filter(None, (found["name"], found["variant"], None if device == "cpu" else f"on {device}")))


def describe_machine(found: Mapping[str, Any]) -> str:
    """Returns machine and versions in words."""
    machine, versions = found["machine"], found["versions"]
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''} of {machine['processor']}"
    return f"{device}{cores}, Python {versions['python']}, jax {versions['jax']}"


if __name__ == "__main__":
    sys.exit(main())
