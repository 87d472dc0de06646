"""Reports progress and the time left: a bar on a terminal or in a notebook, a line per epoch, a table at the end.

progress = Progress(num_epochs=10, num_examples=55_000, quiet=False)
progress.begin_epoch(1)
progress.update(count=6_400, loss=0.41, accuracy=0.88)
progress.end_epoch({"epoch": 1, "train_loss": 0.3, ...})
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from mnist_jax.training.stderr import Stderr


class Progress:
    """Reports to stderr; ``quiet`` disables it, ``bar`` shows the bar even without a terminal.

    The time left of the whole run is estimated from the speed since the first :meth:`begin_epoch`.

    Args:
        num_epochs: epochs of the run.
        num_examples: N, examples of an epoch.
        quiet: report nothing.
        bar: show the bar even without a terminal.
        clock: returns a time in seconds.
    """

    def __init__(
        self,
        num_epochs: int,
        num_examples: int,
        quiet: bool,
        bar: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._num_epochs = num_epochs
        self._num_examples = num_examples
        self._quiet = quiet
        self._clock = clock
        self._stderr: Any = Stderr()
        self._notebook_bar = None if quiet else _find_notebook_bar()
        self._shows_bar = not quiet and (bar or self._stderr.isatty() or self._notebook_bar is not None)
        self._bar: Any = None
        self._count = 0  # examples trained on since the start of the run
        self._start: tuple[float, int] | None = None  # seconds and count when this process began to train

    def begin_epoch(self, epoch: int, count: int = 0) -> None:
        """Opens the bar of an epoch, of which ``count`` examples are done already."""
        self._count = (epoch - 1) * self._num_examples + count
        if self._start is None:
            self._start = self._clock(), self._count
        if self._shows_bar:
            from tqdm import tqdm

            self._bar = (self._notebook_bar or tqdm)(
                total=self._num_examples,
                initial=count,
                desc=f"epoch {epoch}/{self._num_epochs}",
                unit=" examples",
                leave=False,
                file=self._stderr,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{rate_fmt}{postfix}]",
            )

    def update(self, count: int, loss: float, accuracy: float) -> None:
        """Moves the bar by ``count`` examples and shows the epoch's loss and accuracy so far."""
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
            self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.4f}{self._time_left(', ')}")

    def end_epoch(self, line: Mapping[str, Any]) -> None:
        """Closes the bar and prints the results of the epoch."""
        self.close()
        if not self._quiet:
            epsilon = f"  epsilon {line['epsilon']:.3f}" if "epsilon" in line else ""
            print(
                f"epoch {line['epoch']:>{len(str(self._num_epochs))}}/{self._num_epochs}"
                f"  loss {line['train_loss']:.4f}  accuracy {line['train_accuracy']:.4f}"
                f"  validation loss {line['validation_loss']:.4f}  accuracy {line['validation_accuracy']:.4f}"
                f"{epsilon}  {line['examples_per_second']:,.0f} examples/s{self._time_left('  ')}",
                file=self._stderr,
                flush=True,
            )

    def _time_left(self, separator: str) -> str:
        """Returns the estimated time to the end of the last epoch; nothing before the first examples and at the end."""
        assert self._start is not None
        start, count = self._start
        num_left = self._num_epochs * self._num_examples - self._count
        if num_left <= 0 or self._count == count:
            return ""
        seconds = (self._clock() - start) * num_left / (self._count - count)
        return f"{separator}{format_seconds(seconds)} left"

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def format_seconds(seconds: float) -> str:
    """Returns a rough duration.

    Example:
        >>> [format_seconds(seconds) for seconds in (0.2, 99.4, 100, 5900, 9000)]
        ['1 s', '99 s', '2 min', '98 min', '2.5 h']
    """
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def _find_notebook_bar() -> Any:
    """Returns the bar of tqdm for notebooks, or None outside Jupyter and without ipywidgets."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):  # a terminal
        return None
    from tqdm import notebook

    return notebook.tqdm if notebook.IProgress else None


def _describe_devices(device: Mapping[str, Any]) -> str:
    return device["kind"] if device["count"] == 1 else f"{device['count']} x {device['kind']}"


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
        f"{epochs} epoch{'s' * (epochs != 1)}, seed {summary['seed']}, {_describe_devices(summary['device'])}",
        f"{seconds['train']:.1f} s training, {seconds['total']:.1f} s in all; everything is in {path}",
    ]
    if summary["dataset"] == "digits" and summary["data_path"] is None:
        rows.insert(-1, "trained on scikit-learn's 1,797 small digits, not on MNIST")
    if "epsilon" in summary:
        rows.insert(-1, f"({summary['epsilon']:.3f}, {summary['delta']:g})-differentially private")
    if "stop_reason" in summary:
        rows.insert(-1, f"stopped early: {summary['stop_reason']}")
    return "\n".join(rows)
