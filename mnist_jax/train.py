"""``python -m mnist_jax.train`` trains a classifier, from flags to a finished run directory.

The flags are the fields of ``TrainConfig``; :func:`mnist_jax.fit` does the work. It is imported after the flags have
been parsed, so that ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mnist_jax.cli.flags import parse_flags, run_command
from mnist_jax.config import TrainConfig
from mnist_jax.training import processes


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.train") -> int:
    """Parses ``args`` (default: the command line), trains, and prints the model and the final table."""

    def command() -> None:
        description = "Train a digit classifier. Checkpoints, figures and final numbers go into a run directory."
        example = "--model cnn --epochs 3 --workdir runs/mine"
        config = parse_flags(TrainConfig(), args, prog, description, example)

        processes.connect()

        from mnist_jax.training.callbacks import ModelTable
        from mnist_jax.training.fit import fit
        from mnist_jax.training.progress import closing_table

        shows_table = processes.is_first() and not config.quiet
        run = fit(config, callbacks=[ModelTable()] if shows_table else [])
        if processes.is_first():
            print(closing_table(run.summary, run.workdir))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
