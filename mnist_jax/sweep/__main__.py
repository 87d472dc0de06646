"""The command ``python -m mnist_jax.sweep``: flags of a search beside those of ``mnist_jax.train``, and a table.

python -m mnist_jax.sweep --vary learning_rate=1e-4:1e-2 hidden_sizes=128/512,256 --method halving --epochs 9
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mnist_jax.cli.flags import OneLineParser, parse_flags, run_command
from mnist_jax.config import TrainConfig
from mnist_jax.sweep.run import Sweep, run_sweep
from mnist_jax.sweep.space import PER_TRIAL, Search, Trial

_LONGEST_TABLE = 20


def parse_search_flags(args: Sequence[str] | None, prog: str) -> tuple[dict[str, Any], list[str]]:
    """The flags of a search as fields of ``Search``, and the other flags; writes its part of the help if asked."""
    parser = OneLineParser(
        prog=prog, usage=f"{prog} --vary NAME=VALUES ... [flags]", add_help=False, allow_abbrev=False
    )
    own = parser.add_argument_group(
        "the search", description="validation accuracy decides; besides, it has the flags below"
    )
    vary = (
        "LOW:HIGH (even on a logarithmic axis from a factor of 10) or A/B/C, for flags of mnist_jax.train: "
        "learning_rate=1e-4:1e-2 hidden_sizes=128/512,256"
    )
    eta = "halving keeps one of so many, for so many times the epochs (%(default)s)"
    population = f"trials in one program (%(default)s); they share all but {', '.join(sorted(PER_TRIAL))}"
    own.add_argument("--vary", nargs="+", default=(), metavar="NAME=VALUES", help=vary)
    own.add_argument("--trials", type=int, default=Search.trials, help="settings to try (%(default)s)")
    own.add_argument("--method", choices=("random", "halving"), default=Search.method, help="(%(default)s)")
    own.add_argument("--eta", type=int, default=Search.eta, help=eta)
    own.add_argument("--population", type=int, default=Search.population, help=population)
    flags, others = parser.parse_known_args(args)
    if {"-h", "--help"} & set(others):
        print(parser.format_help())
    return {**vars(flags), "vary": tuple(flags.vary)}, others


def results_table(sweep: Sweep) -> str:
    """The trials as text, each where it got to, best first; and the command that trains the best."""
    last = sorted({trial.number: trial for trial in reversed(sweep.trials)}.values(), key=Trial.rank)
    names = list(sweep.trials[0].hyperparameters)
    rows = [["trial", "epochs", *names, "validation loss", "accuracy"]]
    for trial in last[:_LONGEST_TABLE]:
        loss = "diverged" if trial.validation_loss is None else f"{trial.validation_loss:.4f}"
        drawn = (trial.hyperparameters[name] for name in names)
        values = [",".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in drawn]
        rows.append([str(trial.number), str(trial.epochs), *values, loss, f"{trial.validation_accuracy:.2%}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if len(last) > _LONGEST_TABLE:
        lines.append(f"and {len(last) - _LONGEST_TABLE} more in {sweep.workdir / 'trials.jsonl'}")
    seconds = sum(trial.seconds for trial in sweep.trials)
    lines += [
        "",
        f"the best: python -m mnist_jax.train {shlex.join(_flags(sweep.best_config))}",
        f"{seconds:.1f} s training; everything is in {sweep.workdir}",
    ]
    return "\n".join(lines)


def _flags(config: TrainConfig) -> Iterator[str]:
    """The flags of ``mnist_jax.train`` that make this config."""
    for field in dataclasses.fields(TrainConfig):
        value, flag = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default or field.name in ("progress", "quiet"):
            continue
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield from (f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,)))


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.sweep") -> int:
    """The command: parses ``args`` (default: the command line), searches, prints the table."""

    def command() -> None:
        fields, others = parse_search_flags(args, prog)
        config = parse_flags(TrainConfig(), others, prog)  # which answers --help
        print(results_table(run_sweep(config, Search(**fields))))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
