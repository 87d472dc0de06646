"""From a picture of a digit to what a trained network reads. The command ``python -m mnist_jax.predict``.

    config, state = load_run("runs/mine")
    predict_image(state, "seven.jpg").class_name    # one picture
    predictor = Predictor(state)                    # many, one by one or at once
    predictor(Path("seven.jpg").read_bytes()).probabilities
    predictor.classify(dataset.test.image)          # float32[N, K], of images that are as MNIST's already

What needs JAX is imported inside the functions: ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.data import class_names_of
from mnist_jax.data.files import read_csv_images
from mnist_jax.errors import InputError
from mnist_jax.pictures.decode import read_picture
from mnist_jax.pictures.normalize import prepare_image

if TYPE_CHECKING:
    from mnist_jax.core.state import TrainState

_DIGITS = tuple("0123456789")
_BATCH_SIZE = 100  # the program for many images; there is another for one
_CSV_START = re.compile(rb'(\xef\xbb\xbf)?"?(label|pixel0)\b')


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network reads in one picture.

    Attributes:
        label: the class with the largest probability, in [0, K).
        class_name: its name.
        probabilities: ``float32[K]``.
        image: ``uint8[28, 28, 1]``, what the network saw.

    Example:
        >>> probabilities = np.eye(10, dtype=np.float32)[7]
        >>> Prediction(7, "7", probabilities, np.zeros((28, 28, 1), np.uint8)).class_name
        '7'
    """

    label: int
    class_name: str
    probabilities: np.ndarray
    image: np.ndarray


class Predictor:
    """A network that reads pictures; may be used from several threads.

    Each of its two programs, for one image and for 100, is compiled at its first use.

    Args:
        state: of a trained network.
        class_names: K names.

    Example:
        >>> from mnist_jax import TrainConfig, build_state, load_dataset
        >>> predictor = Predictor(build_state(TrainConfig(hidden_sizes=(8,))))
        >>> image = load_dataset("digits").test.image
        >>> predictor.classify(image).shape
        (297, 10)
        >>> predictor(image[0]).image.shape
        (28, 28, 1)
    """

    def __init__(self, state: TrainState, class_names: Sequence[str] = _DIGITS) -> None:
        self._state = state
        self._class_names = tuple(class_names)

    def __call__(self, picture: np.ndarray | bytes | str | os.PathLike[str]) -> Prediction:
        """Reads one picture.

        Args:
            picture: an image file, its content, or an array as :func:`mnist_jax.pictures.normalize.prepare_image` takes it.

        Raises:
            InputError: it cannot be read, or no ink is found.
        """
        if isinstance(picture, (str, os.PathLike)):
            picture = read_picture(_read_file(picture), os.fspath(picture))
        elif isinstance(picture, bytes):
            picture = read_picture(picture, "the picture")
        image = prepare_image(picture)
        return self.name(image, self.classify(image[None])[0])

    def classify(self, image: np.ndarray) -> np.ndarray:
        """Probabilities ``float32[N, K]`` of images ``uint8[N, 28, 28, 1]`` as they are, light on dark."""
        size = _BATCH_SIZE if len(image) > 1 else 1
        program = _program()
        found = []
        for start in range(0, len(image), size):
            batch = image[start : start + size]
            padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
            found.append(np.asarray(program(self._state, padded))[: len(batch)])
        return np.concatenate(found)

    def name(self, image: np.ndarray, probabilities: np.ndarray) -> Prediction:
        """The prediction that the probabilities of an image amount to."""
        label = int(probabilities.argmax())
        return Prediction(label, self._class_names[label], probabilities, image)


def predict_image(
    state: TrainState, picture: np.ndarray | bytes | str | os.PathLike[str], class_names: Sequence[str] = _DIGITS
) -> Prediction:
    """Reads one picture of a digit: an image file, its content, or an array.

    Args:
        state: of a trained network.
        picture: PNG, JPEG, WebP, BMP, GIF or TIFF, or grey ``[H, W]`` in [0, 255]; dark on light or light on dark,
            of any size, the digit anywhere.
        class_names: K names.

    Raises:
        InputError: it cannot be read, or no ink is found.

    Example:
        >>> from mnist_jax import TrainConfig, build_state, load_dataset
        >>> state = build_state(TrainConfig(hidden_sizes=(8,)))
        >>> prediction = predict_image(state, load_dataset("digits").test.image[0])
        >>> prediction.probabilities.shape, prediction.image.shape
        ((10,), (28, 28, 1))
    """
    return Predictor(state, class_names)(picture)


@functools.cache
def _program() -> Callable[[TrainState, np.ndarray], Any]:
    import jax

    from mnist_jax.core.state import apply_model

    @jax.jit
    def probabilities(state: TrainState, image: jax.Array) -> jax.Array:
        return jax.nn.softmax(apply_model(state, state.eval_params, image)[0])

    return probabilities


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from None


def _predict_files(options: argparse.Namespace) -> Iterator[InputError]:
    """Predicts each file, prints the predictions, and yields what went wrong with a file."""
    from mnist_jax.training.build import load_run

    config, state = load_run(options.run)
    class_names = class_names_of(config.data)
    predictor = Predictor(state, class_names)
    names = ["stdin" if file == "-" else file for file in options.file]
    for file, name in zip(options.file, names, strict=True):
        try:
            content = sys.stdin.buffer.read() if file == "-" else _read_file(file)
            if name.endswith(".csv") or _CSV_START.match(content):
                if options.show:
                    raise InputError(f"{name}: --show takes pictures, got a CSV file")
                image = read_csv_images(content, name)
                rows: list[int | None] = [*range(len(image))]
            elif options.submission:
                raise InputError(f"{name}: --submission takes a CSV file, got something else")
            else:
                picture = read_picture(content, name)
                image, rows = _prepare(picture, name)[None], [None]
            predictions = [predictor.name(*pair) for pair in zip(image, predictor.classify(image), strict=True)]
            if options.submission:
                _write_submission(Path(options.submission), predictions)
            if options.json:
                for row, prediction in zip(rows, predictions, strict=True):
                    print(_to_json(name, row, prediction))
            elif not options.submission:
                places = [name if row is None else f"{name}[{row}]" for row in rows]
                width = max(map(len, places + names))
                for place, prediction in zip(places, predictions, strict=True):
                    print(f"{place:<{width}}  {_to_line(prediction, class_names)}")
            if options.show:
                print(f"{name}: see {_show(file, picture, predictions[0])}", file=sys.stderr)
        except InputError as error:
            yield error


def _prepare(picture: np.ndarray, name: str) -> np.ndarray:
    try:
        return prepare_image(picture)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _to_json(name: str, row: int | None, prediction: Prediction) -> str:
    return json.dumps(
        {
            "file": name,
            **({} if row is None else {"row": row}),
            "label": prediction.label,
            "class_name": prediction.class_name,
            "probabilities": prediction.probabilities.tolist(),
        }
    )


def _to_line(prediction: Prediction, class_names: Sequence[str]) -> str:
    """``7   99.8 %   (1 0.1 %, 9 0.1 %)``: the class, and the next two as far as they are not next to nothing."""
    best, *others = np.argsort(-prediction.probabilities, kind="stable")[:3]

    def percent(label: int) -> str:
        return f"{100 * prediction.probabilities[label]:.1f} %"

    width = max(map(len, class_names))
    line = f"{class_names[best]:<{width}}  {percent(best):>7}"
    likely = [f"{class_names[other]} {percent(other)}" for other in others if prediction.probabilities[other] >= 0.0005]
    return f"{line}   ({', '.join(likely)})" if likely else line


def _show(file: str, picture: np.ndarray, prediction: Prediction) -> Path:
    """Writes the picture beside what the network saw of it, and returns where."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    for axes, pixels, title in zip(
        figure.subplots(1, 2), (picture, prediction.image), ("the picture", "what the network sees"), strict=True
    ):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if pixels.ndim == 3 else None)
        axes.set(xticks=[], yticks=[], title=title)
    figure.supxlabel(f"{prediction.class_name}   {100 * prediction.probabilities.max():.1f} %", fontsize=16)
    stem = Path("stdin") if file == "-" else Path(file).with_suffix("")
    number = 1
    while True:
        path = stem.with_name(f"{stem.name}-seen{'' if number == 1 else f'-{number}'}.png")
        try:
            with path.open("xb") as output:
                figure.savefig(output, dpi=120)
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _write_submission(path: Path, predictions: Sequence[Prediction]) -> None:
    lines = ["ImageId,Label", *(f"{number},{each.label}" for number, each in enumerate(predictions, start=1))]
    try:
        with path.open("x") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise InputError(f"--submission {path}: cannot be written ({error.strerror})") from None
    print(f"{len(predictions)} predictions are in {path}", file=sys.stderr)


def _exists(path: Path) -> InputError:
    return InputError(f"--submission must name a new file, got the existing {path}")


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.predict") -> int:
    """The command: prints what a run reads in each file."""
    failures = []

    def command() -> None:
        parser = OneLineParser(prog=prog, description="Read digits in pictures or a Kaggle CSV with a trained run.")
        parser.add_argument("run", metavar="RUN", help="directory of the run")
        parser.add_argument(
            "file", nargs="+", metavar="FILE", help="a picture, a CSV of Kaggle's digit-recognizer, or - for stdin"
        )
        parser.add_argument("--json", action="store_true", help="a JSON object a line, rows of a CSV counted from 0")
        parser.add_argument(
            "--show", action="store_true", help="write <FILE>-seen.png: the picture as the network sees it"
        )
        parser.add_argument("--submission", metavar="CSV", help="write ImageId,Label of the one CSV for Kaggle")
        options = parser.parse_args(args)
        if options.submission:
            if len(options.file) > 1:
                raise InputError(f"--submission takes one CSV file, got {len(options.file)} files")
            if Path(options.submission).exists():
                raise _exists(Path(options.submission))
        for error in _predict_files(options):
            print(f"error: {error}", file=sys.stderr)
            failures.append(error)

    return run_command(command) or (2 if failures else 0)


if __name__ == "__main__":
    sys.exit(main())
