"""``python -m mnist_jax.dynamics RUN`` shows what a run that was trained with ``--record`` learned and forgot.

dynamics = describe_dynamics("runs/mine")

dynamics/scores.csv      one line per training example, for --scores
dynamics/data_map.png    confidence against variability
dynamics/easy.png        contact sheet, as are ambiguous.png, forgotten.png and never_learned.png
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.cli.table import text_table
from mnist_jax.errors import InputError
from mnist_jax.home import prepare_matplotlib
from mnist_jax.training.workdir import lock_directory, write_whole

if TYPE_CHECKING:
    from mnist_jax.core.dynamics import Dynamics


def describe_dynamics(run: str | os.PathLike[str], *, data_dir: str | None = None) -> tuple[Dynamics, str]:
    """Writes scores and figures of what a run recorded into its directory ``dynamics``.

    Args:
        run: the run directory.
        data_dir: directory searched first for the training data; None for the one that the run used.

    Returns:
        What the run recorded, and a table with a line per class.

    Raises:
        InputError: the run recorded nothing, its data cannot be read, or the files cannot be written.
    """
    from mnist_jax.report.dynamics import draw_dynamics, scores_csv
    from mnist_jax.training.kept import read_kept
    from mnist_jax.training.loading import load_run_dataset
    from mnist_jax.training.recording import load_dynamics
    from mnist_jax.training.runs import read_run

    dynamics = load_dynamics(run)
    dataset = load_run_dataset(run, data_dir=data_dir)
    num_examples = dynamics.loss.shape[1]
    if num_examples != dataset.train.num_examples:
        raise InputError(
            f"{run}: expected the values of {dataset.train.num_examples} training examples of {dataset.name}, "
            f"got {num_examples}"
        )
    kept = read_kept(Path(run))
    index = np.arange(num_examples) if kept is None else kept
    directory = Path(run, "dynamics")
    prepare_matplotlib()
    with lock_directory(directory):
        try:
            title = f"{read_run(run).config.model} on {dataset.name}"
            draw_dynamics(directory, dynamics, dataset.train, dataset.class_names, index, title)
        except OSError as error:
            raise InputError(f"{directory}: figures cannot be written ({error.strerror})") from None
        write_whole(directory / "scores.csv", scores_csv(dynamics, dataset.train.label, index))
    return dynamics, dynamics_table(dynamics, dataset.train.label, dataset.class_names)


def dynamics_table(dynamics: Dynamics, label: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns a text table with a line per class: how many examples were never forgotten, forgotten, never learned.

    Args:
        dynamics: of N training examples.
        label: ``int[N]``, their classes.
        class_names: K names.
    """
    events, num_epochs = dynamics.forgetting_events(), len(dynamics.loss)
    margin = dynamics.area_under_margin()
    header = ("class", "examples", "never forgotten", "forgotten", "never learned", "mean margin")
    rows: list[Sequence[str]] = [header]
    of_classes = [(name, label == number) for number, name in enumerate(class_names)]
    for name, chosen in [*of_classes, ("all", np.ones(len(label), bool))]:
        if not (count := int(chosen.sum())):
            continue
        never = int((events[chosen] == num_epochs).sum())
        kept = int((events[chosen] == 0).sum())
        numbers = (count, kept, count - kept - never, never)
        rows.append((name, *(f"{number:,}" for number in numbers), f"{margin[chosen].mean():.2f}"))
    return text_table(rows, num_texts=1)


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.dynamics") -> int:
    """Parses ``args`` (default: the command line), writes scores and figures, and prints the table."""

    def command() -> None:
        description = "Show what a run that was trained with --record learned and forgot, example by example."
        parser = OneLineParser(prog, description, "runs/mine")
        parser.add_argument("run", metavar="RUN", help="directory of the run")
        parser.add_argument("--data-dir", metavar="DIR", help="directory searched first for the training data")
        flags = parser.parse_args(args)
        dynamics, table = describe_dynamics(flags.run, data_dir=flags.data_dir)
        print(f"{dynamics.loss.shape[1]:,} training examples over {len(dynamics.loss)} epochs\n\n{table}\n")
        print(f"scores, data map and contact sheets are in {Path(flags.run, 'dynamics')}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
