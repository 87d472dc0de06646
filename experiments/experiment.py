"""What every experiment shares: flags that override its config, several seeds, and a file with every value.

CONFIG = TrainConfig(...)
if __name__ == "__main__":
    sys.exit(main(CONFIG, __doc__))
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_jax import InputError, TrainConfig, fit
from mnist_jax.command import OneLineParser, exit_status, parse_flags


def main(config: TrainConfig, documentation: str | None, args: Sequence[str] | None = None) -> int:
    """The command of an experiment.

    Args:
        config: of the experiment; every flag of ``mnist_jax.train`` overrides it.
        documentation: shown by ``--help`` in front of the flags.
        args: the command line without the program's name; ``sys.argv[1:]`` if None. ``--seeds 0-9`` or ``1,4``
            repeats the experiment, and ``--results FILE`` writes every value.

    Returns:
        The exit status, as for ``mnist_jax.train``.
    """
    arguments = list(sys.argv[1:] if args is None else args)

    def command() -> None:
        parser = OneLineParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--seeds")
        parser.add_argument("--results", type=Path)
        flags, others = parser.parse_known_args(arguments)
        if {"-h", "--help"} & set(others):
            print(documentation, "\n  --seeds 0-9 or 1,4 repeats it, --results FILE writes every value\n")
        base = parse_flags(config, others, f"python {Path(sys.argv[0])}")
        if flags.results is not None and flags.results.exists():
            raise InputError(f"{flags.results} exists: choose another --results")
        seeds = [base.seed] if flags.seeds is None else parse_seeds(flags.seeds)
        if len(seeds) > 1 and base.workdir is not None:
            raise InputError("workdir must be left out with several seeds, as each run has its own")
        summaries = []
        for seed in seeds:
            summaries.append(fit(dataclasses.replace(base, seed=seed, quiet=base.quiet or len(seeds) > 1)).summary)
            if flags.results is not None:  # after each run, as the next may fail
                flags.results.parent.mkdir(parents=True, exist_ok=True)
                content = {"config": dataclasses.asdict(base), "runs": summaries}
                flags.results.write_text(json.dumps(content, indent=1) + "\n")
        print(report(summaries))

    return exit_status(command)


def parse_seeds(text: str) -> list[int]:
    """``0-3`` or ``1,4`` or both as numbers.

    Raises:
        InputError: it is neither.
    """
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise InputError(f"seeds must be like 0-9 or 1,4, got {text}")
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise InputError(f"seeds must be like 0-9 or 1,4, got {text}")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))


def report(summaries: Sequence[dict[str, Any]]) -> str:
    """A line for each seed, and the mean and standard deviation of all."""
    lines = [f"{'seed':>6}{'validation':>12}{'test':>9}{'training':>12}{'in all':>10}"]
    for summary in summaries:
        seconds = summary["seconds"]
        lines.append(
            f"{summary['seed']:>6}{summary['validation_accuracy']:>12.2%}{summary['test_accuracy']:>9.2%}"
            f"{seconds['train']:>10.2f} s{seconds['total']:>8.2f} s"
        )
    accuracies = [100 * summary["test_accuracy"] for summary in summaries]
    spread = f" ± {statistics.stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
    training = statistics.median(summary["seconds"]["train"] for summary in summaries)
    lines.append(
        f"\ntest accuracy {statistics.mean(accuracies):.3f}{spread} % over {len(accuracies)} seeds, "
        f"{training:.2f} s training at the median"
    )
    return "\n".join(lines)
