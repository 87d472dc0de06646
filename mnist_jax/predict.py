"""``python -m mnist_jax.predict`` classifies the digits in pictures with the model of a run.

    python -m mnist_jax.predict runs/mine seven.jpg other.png      one line per picture
    python -m mnist_jax.predict runs/mine test.csv --json          one JSON object per row

JAX is imported inside the functions, so that ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.data.files import read_csv_images
from mnist_jax.data.home import prepare_matplotlib
from mnist_jax.errors import InputError
from mnist_jax.pictures.decode import read_file, read_picture
from mnist_jax.pictures.normalize import prepare_image
from mnist_jax.pictures.predictor import Prediction, Predictor

_CSV_START = re.compile(rb'(\xef\xbb\xbf)?"?(label|pixel0)\b')


def _predict_files(options: argparse.Namespace) -> Iterator[InputError]:
    """Prints the predictions for each file, and yields an error for each file that cannot be read."""
    from mnist_jax.training.loading import load_class_names, load_run

    _, state = load_run(options.run)
    class_names = load_class_names(options.run)
    predictor = Predictor(state, class_names)
    names = ["stdin" if file == "-" else file for file in options.file]
    for file, name in zip(options.file, names, strict=True):
        try:
            content = sys.stdin.buffer.read() if file == "-" else read_file(file)
            if name.endswith(".csv") or _CSV_START.match(content):
                if options.show:
                    raise InputError(f"{name}: expected a picture for --show, got a CSV file")
                image = read_csv_images(content, name)
                rows: list[int | None] = [*range(len(image))]
            elif options.submission:
                raise InputError(f"{name}: expected a CSV file for --submission, got another file")
            else:
                picture = read_picture(content, name)
                image, rows = _prepare(picture, name)[None], [None]
            predictions = [
                predictor.to_prediction(*pair) for pair in zip(image, predictor.classify(image), strict=True)
            ]
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
                print(f"{name}: wrote {_write_comparison(file, picture, predictions[0])}", file=sys.stderr)
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
    """Returns ``7   99.8 %   (1 0.1 %, 9 0.1 %)``: the class, and the next two if they are not negligible."""
    best, *others = np.argsort(-prediction.probabilities, kind="stable")[:3]

    def percent(label: int) -> str:
        return f"{100 * prediction.probabilities[label]:.1f} %"

    width = max(map(len, class_names))
    line = f"{class_names[best]:<{width}}  {percent(best):>7}"
    likely = [f"{class_names[other]} {percent(other)}" for other in others if prediction.probabilities[other] >= 0.0005]
    return f"{line}   ({', '.join(likely)})" if likely else line


def _write_comparison(file: str, picture: np.ndarray, prediction: Prediction) -> Path:
    """Writes a picture beside the network input, and returns the path."""
    prepare_matplotlib()

    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    for axes, pixels, title in zip(
        figure.subplots(1, 2), (picture, prediction.image), ("picture", "network input"), strict=True
    ):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if pixels.ndim == 3 else None)
        axes.set(xticks=[], yticks=[], title=title)
    figure.supxlabel(f"{prediction.class_name}   {100 * prediction.probabilities.max():.1f} %", fontsize=16)
    stem = Path("stdin") if file == "-" else Path(file).with_suffix("")
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


def _write_submission(path: Path, predictions: Sequence[Prediction]) -> None:
    lines = ["ImageId,Label", *(f"{number},{each.label}" for number, each in enumerate(predictions, start=1))]
    if os.path.lexists(path):
        raise _already_exists(path)
    try:
        with atomic_write(path, exclusive=True) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
    except FileExistsError:
        raise _already_exists(path) from None
    except OSError as error:
        raise InputError(f"--submission {path}: cannot be written ({error.strerror})") from None
    print(f"wrote {len(predictions)} predictions to {path}", file=sys.stderr)


def _already_exists(path: Path) -> InputError:
    return InputError(f"--submission must name a new file, got the existing {path}")


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.predict") -> int:
    """Parses ``args`` (default: the command line), and prints the predictions for each file."""
    failures = []

    def command() -> None:
        description = "Classify the digits in pictures or a Kaggle CSV with the model of a run."
        parser = OneLineParser(prog, description, "runs/mine seven.png")
        parser.add_argument("run", metavar="RUN", help="directory of the run")
        parser.add_argument(
            "file", nargs="+", metavar="FILE", help="a picture, a CSV file of Kaggle's digit-recognizer, or - for stdin"
        )
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object per picture, or per row of a CSV counted from 0"
        )
        parser.add_argument(
            "--show",
            action="store_true",
            help="write FILE-seen.png: the picture beside the network input",
        )
        parser.add_argument("--submission", metavar="CSV", help="write the predictions for one CSV in Kaggle's format")
        options = parser.parse_args(args)
        if options.submission:
            if len(options.file) > 1:
                raise InputError(f"expected one CSV file for --submission, got {len(options.file)} files")
            if Path(options.submission).exists():
                raise _already_exists(Path(options.submission))
        for error in _predict_files(options):
            print(f"error: {error}", file=sys.stderr)
            failures.append(error)

    return run_command(command) or (2 if failures else 0)


if __name__ == "__main__":
    sys.exit(main())
