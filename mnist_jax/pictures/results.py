"""Writes predictions as text, JSON, CSV files and pictures, and compares them with the names of folders.

    print(to_json(result))
    with new_csv("out.csv", class_names) as write:
        write(result)

Files are new: no function replaces an existing one.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.data.home import prepare_matplotlib
from mnist_jax.errors import InputError, printable
from mnist_jax.pictures.collect import Source
from mnist_jax.pictures.predictor import Prediction


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds the predictions for one file.

    Attributes:
        source: the file.
        rows: numbers of the rows of a CSV, counted from 0; ``[None]`` for a picture.
        predictions: one per row.
        picture: ``float32[H, W]``, the picture as it was read, for :func:`write_comparison`.
    """

    source: Source
    rows: Sequence[int | None]
    predictions: Sequence[Prediction]
    picture: np.ndarray | None = None


def to_json(result: Result) -> str:
    """Returns one JSON object per prediction, each on a line."""
    return "\n".join(
        json.dumps(
            {
                "file": result.source.name,
                **({} if row is None else {"row": row}),
                "label": prediction.label,
                "class_name": prediction.class_name,
                "probabilities": prediction.probabilities.tolist(),
                "doubt": prediction.doubt,
            }
        )
        for row, prediction in zip(result.rows, result.predictions, strict=True)
    )


def to_text(result: Result, class_names: Sequence[str], width: int = 0) -> str:
    """Returns a line per prediction; the file names are padded to ``width`` characters."""
    name = printable(result.source.name)
    places = [name if row is None else f"{name}[{row}]" for row in result.rows]
    width = max(width, *map(len, places))
    return "\n".join(
        f"{place:<{width}}  {to_line(prediction, class_names)}"
        for place, prediction in zip(places, result.predictions, strict=True)
    )


def to_line(prediction: Prediction, class_names: Sequence[str]) -> str:
    """Returns ``7   99.8 %   (1 0.1 %, 9 0.1 %)``: the class, and the next two if they are not negligible.

    A prediction in doubt ends with the reason: ``4   51.3 %   (9 48.0 %)   not sure: 4 or 9``.
    """
    best, *others = np.argsort(-prediction.probabilities, kind="stable")[:3]

    def percent(label: int) -> str:
        return f"{100 * prediction.probabilities[label]:.1f} %"

    width = max(map(len, class_names))
    line = f"{class_names[best]:<{width}}  {percent(best):>7}"
    likely = [f"{class_names[other]} {percent(other)}" for other in others if prediction.probabilities[other] >= 0.0005]
    line += f"   ({', '.join(likely)})" if likely else ""
    return f"{line}   not sure: {prediction.doubt}" if prediction.doubt else line


def write_comparison(result: Result) -> Path:
    """Writes a picture beside the network input, as ``FILE-seen.png`` or with a number, and returns the path.

    Raises:
        InputError: the file cannot be written.
    """
    assert result.picture is not None
    prediction = result.predictions[0]
    prepare_matplotlib()

    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    for axes, pixels, title in zip(
        figure.subplots(1, 2), (result.picture, prediction.image), ("picture", "network input"), strict=True
    ):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if pixels.ndim == 3 else None)
        axes.set(xticks=[], yticks=[], title=title)
    answer = f"{prediction.class_name}   {100 * prediction.probabilities.max():.1f} %"
    doubt = f"\nnot sure: {prediction.doubt}" if prediction.doubt else ""
    figure.supxlabel(answer + doubt, fontsize=16)
    stem = Path(result.source.name).with_suffix("")
    content, number = io.BytesIO(), 1
    figure.savefig(content, dpi=120)
    while True:
        path = stem.with_name(f"{stem.name}-seen{'' if number == 1 else f'-{number}'}.png")
        try:
            with atomic_write(path, exclusive=True) as output:
                output.write(content.getbuffer())
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def check_new_file(flag: str, path: str) -> None:
    """Checks that the file of a flag does not exist.

    Raises:
        InputError: it exists.
    """
    if os.path.lexists(path):
        raise _already_exists(flag, path)


def _already_exists(flag: str, path: str) -> InputError:
    return InputError(f"{flag} must name a new file, got the existing {path}")


@contextlib.contextmanager
def _new_file(flag: str, path: str) -> Iterator[BinaryIO]:
    try:
        with atomic_write(Path(path), exclusive=True) as file:
            yield file
    except FileExistsError:
        raise _already_exists(flag, path) from None
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be written ({error.strerror})") from None


def write_submission(path: str, result: Result) -> None:
    """Writes the predictions for a CSV in the format of Kaggle's digit-recognizer.

    Raises:
        InputError: the file exists or cannot be written.
    """
    lines = ["ImageId,Label", *(f"{number},{each.label}" for number, each in enumerate(result.predictions, start=1))]
    with _new_file("--submission", path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    print(f"wrote {len(result.predictions)} predictions to {path}", file=sys.stderr)


@contextlib.contextmanager
def new_csv(path: str, class_names: Sequence[str]) -> Iterator[Callable[[Result], None]]:
    """Opens a CSV file with a row per prediction, and yields the function that writes them.

    The columns are ``file``, ``row`` (empty for a picture), ``label``, ``class_name``, ``probability`` (of that class)
    and the probabilities of all K classes, named by class. The file appears at the end of the block.

    Raises:
        InputError: the file exists or cannot be written, or nothing was predicted.
    """
    num_rows = 0
    with _new_file("--csv", path) as file:

        def write(result: Result) -> None:
            nonlocal num_rows
            for row, each in zip(result.rows, result.predictions, strict=True):
                probabilities = each.probabilities
                best = probabilities[each.label]
                _write_row(file, [result.source.name, row, each.label, each.class_name, best, *probabilities])
            num_rows += len(result.predictions)

        _write_row(file, ["file", "row", "label", "class_name", "probability", *class_names])
        yield write
        if not num_rows:
            raise InputError(f"--csv {path}: not written, as no picture could be read")
    print(f"wrote {num_rows} predictions to {path}", file=sys.stderr)


def _write_row(file: BinaryIO, cells: Sequence[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    file.write(text.getvalue().encode("utf-8", "surrogateescape"))  # as Python decodes file names


class FolderScore:
    """Counts pictures whose folder is named like a class, and the predictions that agree with it.

    Example:
        >>> score = FolderScore(["7", "8"])
        >>> prediction = Prediction(0, "7", np.array([0.9, 0.1]), np.zeros((28, 28, 1), np.uint8))
        >>> for folder in ("7", "8", "other"):
        ...     score.count(Result(Source("a.png", folder), [None], [prediction]))
        >>> score.describe(num_unread=1)
        'accuracy 50.0 % (1 of 2), by the names of their folders; 1 could not be read'
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names
        self._num_correct = self._num_pictures = 0

    def count(self, result: Result) -> None:
        """Counts one picture; others than those in such a folder are ignored."""
        if result.source.folder in self._class_names:
            self._num_pictures += 1
            self._num_correct += result.predictions[0].class_name == result.source.folder

    def describe(self, num_unread: int) -> str | None:
        """Returns the accuracy as a sentence; None if no picture was counted."""
        if not self._num_pictures:
            return None
        end = f"; {num_unread} could not be read" if num_unread else ""
        accuracy = self._num_correct / self._num_pictures
        return (
            f"accuracy {100 * accuracy:.1f} % ({self._num_correct} of {self._num_pictures}), "
            f"by the names of their folders{end}"
        )
