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
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.errors import InputError, printable
from mnist_jax.home import prepare_matplotlib
from mnist_jax.pictures.collect import Source
from mnist_jax.pictures.predictor import Prediction


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds the predictions for one file.

    Attributes:
        source: the file.
        predictions: one per row of a CSV, or per digit of a picture, from left to right.
        is_csv: the file is a CSV.
        picture: ``float32[H, W]``, the picture as it was read, for :func:`write_comparison`.
    """

    source: Source
    predictions: Sequence[Prediction]
    is_csv: bool = False
    picture: np.ndarray | None = None

    def numbered(self) -> Iterator[tuple[int | None, Prediction]]:
        """Yields each prediction with its number, counted from 0; None for the only digit of a picture."""
        has_numbers = self.is_csv or len(self.predictions) > 1
        for number, prediction in enumerate(self.predictions):
            yield (number if has_numbers else None), prediction


def to_json(result: Result) -> str:
    """Returns one JSON object per prediction, each on a line."""
    return "\n".join(
        json.dumps(
            {
                "file": result.source.name,
                **({} if number is None else {"row" if result.is_csv else "digit": number}),
                "label": prediction.label,
                "class_name": prediction.class_name,
                "probabilities": prediction.probabilities.tolist(),
                "doubt": prediction.doubt,
            }
        )
        for number, prediction in result.numbered()
    )


def to_text(result: Result, class_names: Sequence[str], width: int = 0) -> str:
    """Returns a line per prediction; the file names are padded to ``width`` characters."""
    name = printable(result.source.name)
    places = [name if number is None else f"{name}[{number}]" for number, _ in result.numbered()]
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

    width = max(map(len, class_names))
    line = f"{class_names[best]:<{width}}  {_percent(prediction, best):>7}"
    likely = [other for other in others if prediction.probabilities[other] >= 0.0005]
    if likely:
        line += f"   ({', '.join(f'{class_names[other]} {_percent(prediction, other)}' for other in likely)})"
    return line + _in_doubt(prediction)


def _percent(prediction: Prediction, label: int | None = None) -> str:
    """Returns the probability of a class, by default of the predicted one."""
    return f"{100 * prediction.probabilities[prediction.label if label is None else label]:.1f} %"


def _in_doubt(prediction: Prediction) -> str:
    return f"   not sure: {prediction.doubt}" if prediction.doubt else ""


def write_comparison(result: Result) -> Path:
    """Writes a picture beside the network input, as ``FILE-seen.png`` or with a number, and returns the path.

    Raises:
        InputError: the file cannot be written.
    """
    assert result.picture is not None
    seen = np.hstack([prediction.image for prediction in result.predictions])
    prepare_matplotlib()

    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    for axes, pixels, title in zip(
        figure.subplots(1, 2), (result.picture, seen), ("picture", "network input"), strict=True
    ):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if pixels.ndim == 3 else None)
        axes.set(xticks=[], yticks=[], title=title)
    answer = ",  ".join(f"{each.class_name}  {_percent(each)}{_in_doubt(each)}" for each in result.predictions)
    figure.supxlabel("\n".join(textwrap.wrap(answer, 60)), fontsize=16 if len(answer) < 60 else 10)
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

    The columns are ``file``, ``row`` (of a CSV; or the number of the digit, if a picture has several), ``label``,
    ``class_name``, ``probability`` (of that class) and the probabilities of all K classes, named by class. The file
    appears at the end of the block.

    Raises:
        InputError: the file exists or cannot be written, or nothing was predicted.
    """
    num_rows = 0
    with _new_file("--csv", path) as file:

        def write(result: Result) -> None:
            nonlocal num_rows
            for number, each in result.numbered():
                probabilities = each.probabilities
                best = probabilities[each.label]
                _write_row(file, [result.source.name, number, each.label, each.class_name, best, *probabilities])
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
        ...     score.count(Result(Source("a.png", folder), [prediction]))
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
            self._num_correct += [each.class_name for each in result.predictions] == [result.source.folder]

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
