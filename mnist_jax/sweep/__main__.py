"""``python -m mnist_jax.sweep`` searches for hyperparameters, and prints a table of the trials.

    python -m mnist_jax.sweep --vary learning_rate=1e-4:1e-2 hidden_sizes=128/512,256 --method halving --epochs 9

It takes the flags of a search and all flags of ``mnist_jax.train``.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence

from mnist_jax.cli.flags import OneLineParser, add_config_flags, replace_fields, run_command
from mnist_jax.config import TrainConfig
from mnist_jax.sweep.run import Sweep, run_sweep
from mnist_jax.sweep.space import METHODS, PER_TRIAL, Search, Trial

_LONGEST_TABLE = 20


def parse_sweep_flags(args: Sequence[str] | None, prog: str) -> tuple[TrainConfig, Search]:
    """Parses the flags of a search and those of a run.

    Raises:
        InputError: a flag is unknown or its value does not fit.
        SystemExit: with status 0, after ``--help`` and ``--help-all``.
    """
    description = "Search for hyperparameters: the trial with the best validation accuracy wins."
    example = "--vary learning_rate=1e-4:1e-2 --epochs 3"
    parser = OneLineParser(prog, description, example, usage="%(prog)s --vary NAME=VALUES ... [flags]")
    group = parser.add_argument_group("search", "--workdir is the directory of the sweep; --resume continues it.")
    group.add_argument(
        "--vary",
        nargs="+",
        default=(),
        metavar="NAME=VALUES",
        help="flags of a run with the values to search: a range LOW:HIGH, logarithmic if HIGH is at least 10 times LOW,"
        " or choices A/B/C, as in learning_rate=1e-4:1e-2 hidden_sizes=128/512,256",
    )
    trials = "number of trials (default: %(default)s)"
    method = "random: all trials get all epochs; halving: successive halving (default: %(default)s)"
    eta = "halving: keep the best 1/ETA of the trials, train them ETA times longer (default: %(default)s)"
    population = f"trials trained together; they share all but {', '.join(sorted(PER_TRIAL))} (default: %(default)s)"
    group.add_argument("--trials", type=int, default=Search.trials, metavar="INT", help=trials)
    group.add_argument("--method", choices=METHODS, default=Search.method, help=method)
    group.add_argument("--eta", type=int, default=Search.eta, metavar="INT", help=eta)
    group.add_argument("--population", type=int, default=Search.population, metavar="INT", help=population)
    add_config_flags(parser, TrainConfig(), args)
    flags = parser.parse_args(args)
    search = Search(tuple(flags.vary), flags.trials, flags.method, flags.eta, flags.population)
    return replace_fields(TrainConfig(), flags), search


def results_table(sweep: Sweep) -> str:
    """Returns a text table of the trials in their last rung, best first, and the command that trains the best."""
    last_rungs = sorted({trial.number: trial for trial in reversed(sweep.trials)}.values(), key=Trial.rank)
    names = list(sweep.trials[0].hyperparameters)
    rows = [["trial", "epochs", *names, "validation loss", "accuracy"]]
    for trial in last_rungs[:_LONGEST_TABLE]:
        loss = "diverged" if trial.validation_loss is None else f"{trial.validation_loss:.4f}"
        sampled = (trial.hyperparameters[name] for name in names)
        values = [",".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in sampled]
        rows.append([str(trial.number), str(trial.epochs), *values, loss, f"{trial.validation_accuracy:.2%}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if len(last_rungs) > _LONGEST_TABLE:
        lines.append(f"and {len(last_rungs) - _LONGEST_TABLE} more in {sweep.workdir / 'trials.jsonl'}")
    seconds = sum(trial.seconds for trial in sweep.trials)
    lines += [
        "",
        f"best: python -m mnist_jax.train {shlex.join(_flags(sweep.best_config))}",
        f"{seconds:.1f} s training; everything is in {sweep.workdir}",
    ]
    return "\n".join(lines)


def _flags(config: TrainConfig) -> Iterator[str]:
    """Yields the flags of ``mnist_jax.train`` that result in a config."""
    for field in dataclasses.fields(TrainConfig):
        value, flag = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default or field.name in ("progress", "quiet"):
            continue
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield from (f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,)))


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.sweep") -> int:
    """Parses ``args`` (default: the command line), searches, and prints the table."""

    def command() -> None:
        print(results_table(run_sweep(*parse_sweep_flags(args, prog))))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
