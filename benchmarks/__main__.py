"""How fast is mnist_jax on this machine, compared with the limits of the machine and with other libraries?

    python -m benchmarks                        # all suites
    python -m benchmarks --quick                # checks that all of them work
    python -m benchmarks compare BEFORE AFTER   # two results files or machines
    python -m benchmarks plot RESULTS           # RESULTS with .png
    python -m benchmarks table RESULTS          # the peers, in Markdown

The suites write a results file in ``benchmarks/results``, which the other commands read. All of them take about 45
minutes on 2 CPU cores, or two with ``--quick``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mnist_jax import InputError
from mnist_jax.cli.flags import OneLineParser, run_command

# The question of each suite, and about how many minutes it takes.
SUITES = {
    "steps": (6, "How long is a step, by model, batch size and dtype?"),
    "augmentation": (2, "How much time does augmentation add to a step?"),
    "epochs": (2, "How long is an epoch as one program?"),
    "startup": (5, "How long do import, data and compilation take?"),
    "accuracy": (8, "How many seconds does 98 or 99 % test accuracy take?"),
    "scaling": (6, "How does time scale with data, batch, width, devices?"),
    "populations": (2, "How much faster is training several models at once?"),
    "answers": (5, "How long do evaluate, predict and demo take?"),
    "pictures": (3, "How accurate is predict on pictures unlike MNIST?"),
    "per_example": (3, "How long do gradient norms of all examples take?"),
    "memory": (1, "How much memory does training take?"),
    "peers": (9, "How long is an epoch in PyTorch, Keras and plain Flax?"),
}


def _parser() -> argparse.ArgumentParser:
    suites = "\n".join(f"    {name:<13}{minutes} min  {question}" for name, (minutes, question) in SUITES.items())
    parser = OneLineParser("python -m benchmarks", f"{__doc__}\n{suites}", "steps epochs --platform cpu --quick")
    help_ = f"any of {', '.join(SUITES)}; default: all"
    parser.add_argument("suite", nargs="*", choices=SUITES, metavar="SUITE", help=help_)
    parser.add_argument("--quick", action="store_true", help="small workloads, to check that everything works")
    parser.add_argument("--data", help="as for mnist_jax.train")
    parser.add_argument("--platform", choices=["cpu", "gpu", "tpu"], help="default: chosen by JAX")
    parser.add_argument("--output", type=Path, help="results file; default benchmarks/results/<date>-<device>.json")
    return parser


def _files_parser(command: str) -> argparse.ArgumentParser:
    description, example = {
        "compare": (
            "Compare two results files row by row, with a mean ratio for each suite and one for all: 0.5x means that "
            "AFTER took half the time of BEFORE. The README of the benchmarks names files to compare with.",
            "before.json after.json",
        ),
        "plot": ("Draw the figures of a results file.", "results.json"),
        "table": ("Print the peers of a results file as a Markdown table.", "results.json --into benchmarks/README.md"),
    }[command]
    parser = OneLineParser(f"python -m benchmarks {command}", description, example)
    if command == "compare":
        parser.add_argument("before", type=Path)
        parser.add_argument("after", type=Path)
    else:
        parser.add_argument("results", type=Path)
    if command == "table":
        parser.add_argument("--into", type=Path, help="Markdown file to put it in, between two marks")
    if command == "plot":
        parser.add_argument("--output", type=Path, help="PNG; default RESULTS with .png")
    return parser


def _run(flags: argparse.Namespace) -> None:
    if flags.platform is not None:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(flags.platform, flags.platform)
    # Several processes share the device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from benchmarks.results import choose_path, new_results, table, write_results
    from benchmarks.setting import Setting, SkippedError
    from benchmarks.timing import measure_peaks
    from mnist_jax import load_dataset

    if flags.output is not None and flags.output.exists():
        raise InputError(f"{flags.output} exists: choose another --output")
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] or f"this JAX was installed without {flags.platform}"
        raise InputError(f"platform: {reason}") from None
    dataset = load_dataset(flags.data)
    # Commands that are run as a whole have another working directory.
    data = str(Path(flags.data).resolve()) if flags.data and Path(flags.data).exists() else flags.data
    setting = Setting(data, dataset, measure_peaks(flags.quick), flags.quick)
    results = new_results(setting)
    path = choose_path(results, flags.output)
    for name in flags.suite or SUITES:
        rows: list[dict[str, object]] = []
        results["suites"][name] = {"rows": rows}
        start = time.perf_counter()
        try:
            for row in importlib.import_module(f"benchmarks.{name}").run(setting):
                rows.append(row)
                write_results(results, path)  # a suite that is stopped shall not be lost
                if sys.stderr.isatty():
                    print(f"{name}: {len(rows)} rows", end="\r", file=sys.stderr, flush=True)
        except SkippedError as reason:
            results["suites"][name] = {"skipped": str(reason)}
        except Exception as error:  # the other suites shall not be lost
            results["suites"][name] = {"failed": f"{type(error).__name__}: {error}", "rows": rows}
        seconds = time.perf_counter() - start
        results["suites"][name]["suite_seconds"] = round(seconds, 1)
        print(f"{name}: {len(rows)} rows in {seconds:.0f} s", file=sys.stderr)
        write_results(results, path)
    print(table(results))
    print(f"\nwritten to {path}")
    if any("failed" in suite for suite in results["suites"].values()):
        raise SystemExit(1)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the suites; returns 0, 1 if a suite failed, or 2 after bad input."""
    arguments = list(sys.argv[1:] if args is None else args)

    def command() -> None:
        if arguments[:1] not in (["compare"], ["plot"], ["table"]):
            _run(_parser().parse_args(arguments))
            return
        from benchmarks.plot import plot_results
        from benchmarks.results import comparison, insert_table, peers_table, read_results

        flags = _files_parser(arguments[0]).parse_args(arguments[1:])
        match arguments[0]:
            case "compare":
                print(comparison(read_results(flags.before), read_results(flags.after)))
            case "plot":
                path = flags.output or flags.results.with_suffix(".png")
                if path.suffix != ".png":
                    raise InputError(f"output must end with .png, got {path}")
                plot_results(read_results(flags.results), path)
                print(path)
            case "table":
                text = peers_table(read_results(flags.results))
                print(text) if flags.into is None else insert_table(flags.into, text)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
