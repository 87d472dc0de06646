"""``python -m mnist_jax.predict`` classifies the digits in pictures.

    python -m mnist_jax.predict seven.jpg                          with the newest run, or the network in the box
    python -m mnist_jax.predict runs/mine seven.jpg other.png      with the network of a run; one line per picture
    python -m mnist_jax.predict runs/mine digits --csv out.csv     all pictures in a folder
    python -m mnist_jax.predict runs/mine test.csv --json          one JSON object per row

JAX is imported inside the functions, so that ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnist_jax.cli.flags import OneLineParser, add_jax_flags, run_command
from mnist_jax.data.files import read_csv_images
from mnist_jax.errors import InputError, printable
from mnist_jax.pictures.collect import Source, find_sources
from mnist_jax.pictures.decode import read_file, read_picture
from mnist_jax.pictures.normalize import prepare_images
from mnist_jax.pictures.predictor import Predictor
from mnist_jax.pictures.results import (
    FolderScore,
    Result,
    check_new_file,
    new_csv,
    to_json,
    to_text,
    write_comparison,
    write_submission,
)
from mnist_jax.training.runs import find_runs

_CSV_START = re.compile(rb'(\xef\xbb\xbf)?"?(label|pixel0)\b')
_BATCH_SIZE = 100  # pictures

_Report = Callable[[InputError], None]


class _Input(NamedTuple):
    """Holds what was read from a file: the digits of a picture, or the rows of a CSV."""

    source: Source
    image: np.ndarray  # uint8[N, 28, 28, 1]
    is_csv: bool = False
    picture: np.ndarray | None = None  # float32[H, W], for --show


def _predict_files(options: argparse.Namespace, report: _Report) -> FolderScore:
    """Writes the predictions for each file, and reports each file that cannot be read."""
    from mnist_jax.training.network import load_predictor

    predictor = load_predictor(options.run)
    class_names = predictor.class_names
    score = FolderScore(class_names)
    sources, errors = find_sources(options.file)
    for error in errors:
        report(error)
    width = max((len(printable(source.name)) for source in sources), default=0)
    with contextlib.ExitStack() as stack:
        write_row = stack.enter_context(new_csv(options.csv, class_names)) if options.csv else None
        for result in _classify(predictor, _read_batches(sources, options, report)):
            score.count(result)
            try:
                if options.submission:
                    write_submission(options.submission, result)
                if options.json:
                    print(to_json(result))
                elif write_row is not None:
                    write_row(result)
                elif not options.submission:
                    print(to_text(result, class_names, width))
                if options.show:
                    print(f"{printable(result.source.name)}: wrote {write_comparison(result)}", file=sys.stderr)
            except InputError as error:
                report(error)
    return score


def _read_batches(sources: Sequence[Source], options: argparse.Namespace, report: _Report) -> Iterator[list[_Input]]:
    """Reads up to 100 pictures or one CSV at a time, so that any number of files fits in memory."""
    size = 1 if options.show else _BATCH_SIZE
    batch: list[_Input] = []
    for source in sources:
        try:
            each = _read(source, options)
        except InputError as error:
            report(error)
            continue
        if batch and (len(batch) == size or each.is_csv or batch[0].is_csv):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _read(source: Source, options: argparse.Namespace) -> _Input:
    name = printable(source.name)
    content = sys.stdin.buffer.read() if source.path == "-" else read_file(source.path)
    if name.endswith(".csv") or _CSV_START.match(content):
        if options.show:
            raise InputError(f"{name}: expected a picture for --show, got a CSV file")
        return _Input(source, read_csv_images(content, name), is_csv=True)
    if options.submission:
        raise InputError(f"{name}: expected a CSV file for --submission, got another file")
    picture = read_picture(content, name)
    try:
        image = prepare_images(picture)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return _Input(source, image, picture=picture if options.show else None)


def _classify(predictor: Predictor, batches: Iterable[Sequence[_Input]]) -> Iterator[Result]:
    """Yields the predictions for each file; the files of a batch pass through the network together."""
    for batch in batches:
        image = np.concatenate([each.image for each in batch])
        predictions = iter(predictor.predict(image))
        for each in batch:
            own = [next(predictions) for _ in each.image]
            yield Result(each.source, own, each.is_csv, each.picture)


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.predict") -> int:
    """Parses ``args`` (default: the command line), and prints the predictions for each file."""
    failures: list[InputError] = []

    def report(error: InputError) -> None:
        print(f"error: {error}", file=sys.stderr)
        failures.append(error)

    def command() -> None:
        description = (
            "Classify the digits in pictures or a Kaggle CSV.\n\nRUN is the directory of a run, whose network answers. "
            "Without it, the newest run on MNIST in runs/ answers, or else the trained network of this package."
        )
        parser = OneLineParser(prog, description, "seven.png", usage="%(prog)s [flags] [RUN] FILE ...")
        parser.add_argument(
            "file",
            nargs="+",
            metavar="FILE",
            help="a picture, a folder of pictures, a CSV file of Kaggle's digit-recognizer, or - for stdin",
        )
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object per picture, or per row of a CSV counted from 0"
        )
        parser.add_argument(
            "--show",
            action="store_true",
            help="write FILE-seen.png: the picture beside the network input",
        )
        parser.add_argument("--csv", metavar="CSV", help="write all probabilities as a new CSV file, a row per picture")
        parser.add_argument("--submission", metavar="CSV", help="write the predictions for one CSV in Kaggle's format")
        add_jax_flags(parser)
        options = parser.parse_args(args)
        options.run = options.file.pop(0) if _is_run(options.file[0], is_last=len(options.file) == 1) else None
        if not options.file:
            raise InputError(f"expected a picture, a folder or a CSV after the run {options.run}, got none")
        _check_outputs(options)
        accuracy = _predict_files(options, report).describe(len(failures))
        if accuracy is not None:
            print(accuracy, file=sys.stderr if options.json else sys.stdout)

    return run_command(command) or (2 if failures else 0)


def _is_run(name: str, is_last: bool) -> bool:
    """Returns whether the first argument names a run, or was meant to, not a picture or a folder of pictures."""
    path = Path(name)
    if path.is_dir():
        return (path / "config.json").exists() or bool(find_runs(path)) or not (is_last or find_sources([name])[0])
    return not (is_last or name == "-" or path.suffix or path.exists())


def _check_outputs(options: argparse.Namespace) -> None:
    if options.csv:
        if options.json or options.submission:
            raise InputError(f"--csv cannot be combined with {'--json' if options.json else '--submission'}")
        check_new_file("--csv", options.csv)
    if options.submission:
        if len(options.file) > 1:
            raise InputError(f"expected one CSV file for --submission, got {len(options.file)} files")
        if Path(options.file[0]).is_dir():
            raise InputError(f"expected one CSV file for --submission, got the folder {options.file[0]}")
        check_new_file("--submission", options.submission)


if __name__ == "__main__":
    sys.exit(main())
