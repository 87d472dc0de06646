"""Reports the progress of a run: a bar on a terminal or in a notebook, a line per epoch, and a table at the end.

progress = Progress(num_epochs=10, num_examples=55_000, quiet=False)
progress.begin_epoch(1)
progress.update(count=6_400, loss=0.41, accuracy=0.88)
progress.end_epoch({"epoch": 1, "train_loss": 0.3, ...})
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mnist_jax.training.stderr import Stderr


class Progress:
    """Reports to stderr; ``quiet`` disables it, ``bar`` shows the bar even without a terminal."""

    def __init__(self, num_epochs: int, num_examples: int, quiet: bool, bar: bool = False) -> None:
        self._num_epochs = num_epochs
        self._num_examples = num_examples
        self._quiet = quiet
        self._stderr: Any = Stderr()
        self._notebook_bar = None if quiet else _find_notebook_bar()
        self._shows_bar = not quiet and (bar or self._stderr.isatty() or self._notebook_bar is not None)
        self._bar: Any = None

    def begin_epoch(self, epoch: int) -> None:
        """Opens the bar of an epoch."""
        if self._shows_bar:
            from tqdm import tqdm

            self._bar = (self._notebook_bar or tqdm)(
                total=self._num_examples,
                desc=f"epoch {epoch}/{self._num_epochs}",
                unit=" examples",
                leave=False,
                file=self._stderr,
            )

    def update(self, count: int, loss: float, accuracy: float) -> None:
        """Moves the bar by ``count`` examples and shows the epoch's loss and accuracy so far."""
        if self._bar is not None:
            self._bar.update(count)
            self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.4f}")

    def end_epoch(self, line: Mapping[str, Any]) -> None:
        """Closes the bar and prints the results of the epoch."""
        self.close()
        if not self._quiet:
            print(
                f"epoch {line['epoch']:>{len(str(self._num_epochs))}}/{self._num_epochs}"
                f"  loss {line['train_loss']:.4f}  accuracy {line['train_accuracy']:.4f}"
                f"  validation loss {line['validation_loss']:.4f}  accuracy {line['validation_accuracy']:.4f}"
                f"  {line['examples_per_second']:,.0f} examples/s",
                file=self._stderr,
                flush=True,
            )

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _find_notebook_bar() -> Any:
    """Returns the bar of tqdm for notebooks, or None outside Jupyter and without ipywidgets."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):  # a terminal
        return None
    from tqdm import notebook

    return notebook.tqdm if notebook.IProgress else None


def closing_table(summary: Mapping[str, Any], path: Any) -> str:
    """Returns the final numbers of a run as a table."""
    rows = [f"{'':<12}{'examples':>10}{'loss':>10}{'accuracy':>11}"]
    for split in ("train", "validation", "test"):
        rows.append(
            f"{split:<12}{summary[f'num_{split}']:>10,}{summary[f'{split}_loss']:>10.4f}"
            f"{summary[f'{split}_accuracy']:>11.2%}"
        )
    epochs, seconds = summary["epochs"], summary["seconds"]
    rows += [
        "",
        f"{summary['model']} on {summary['dataset']}, {summary['num_parameters']:,} parameters, "
        f"{epochs} epoch{'s' * (epochs != 1)}, seed {summary['seed']}, {summary['device']['kind']}",
        f"{seconds['train']:.1f} s training, {seconds['total']:.1f} s in all; everything is in {path}",
    ]
    return "\n".join(rows)
