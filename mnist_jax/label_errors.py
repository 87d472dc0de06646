"""``python -m mnist_jax.label_errors`` finds images whose label is probably wrong, by cross-validation.

label_errors.csv    a line per example, the most suspicious first
label_errors.png    the first hundred as a contact sheet
label_errors.npz    labels int32[N], pred_probs float32[N, K]: arguments of cleanlab.filter.find_label_issues
config.json         the TrainConfig of the models

The files go into ``label_errors/<data>-<split>-<time>``, or the new directory that ``--workdir`` names.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.cli.flags import OneLineParser, add_config_flags, replace_fields, run_command
from mnist_jax.cli.table import text_table
from mnist_jax.config import TrainConfig
from mnist_jax.data import load_dataset
from mnist_jax.errors import InputError
from mnist_jax.home import prepare_matplotlib
from mnist_jax.presets import CROSS_VALIDATION
from mnist_jax.report.figures import contact_sheet
from mnist_jax.training.workdir import is_unused, lock_directory, new_directory, write_whole

if TYPE_CHECKING:
    from mnist_jax.training.label_errors import LabelErrors

SPLITS = ("train", "test")
SCORES = ("self_confidence", "normalised_margin")
_NUM_DRAWN = 100
_NUM_PRINTED = 10


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.label_errors") -> int:
    """Parses ``args`` (default: the command line), finds label errors, writes the files and prints the first."""

    def command() -> None:
        config, flags = _parse(args, prog)
        start_time = time.perf_counter()
        if config.workdir is not None:
            _check_unused(Path(config.workdir))
        from mnist_jax.training.label_errors import find_label_errors, join_training

        data = load_dataset(config.data, data_dir=config.data_dir, num_validation=config.num_validation)
        if data.notice:
            logging.getLogger("mnist_jax").warning(data.notice)
        options = {"split": flags.split, "folds": flags.folds, "repeats": flags.repeats}
        errors = find_label_errors(config, dataset=data, **options)
        image = data.test.image if flags.split == "test" else join_training(data).image
        ranking = errors.ranking(flags.rank_by)
        if config.workdir is None:
            path = new_directory(Path("label_errors"), f"{data.name.replace('/', '-')}-{flags.split}")
        else:
            path = Path(config.workdir)
        config = dataclasses.replace(config, data=config.data or data.name)
        with lock_directory(path):
            _check_unused(path)  # by another process, meanwhile
            write_label_errors(path, errors, ranking, image, data.class_names)
            write_whole(path / "config.json", config.to_json())
        print(_table(errors, ranking[:_NUM_PRINTED], data.class_names))
        differing = int((errors.suggested != errors.label).sum())
        examples = f"{len(ranking):,} {flags.split} examples of {data.name}"
        print(f"\nthe prediction differs from the label for {differing:,} of the {examples}")
        print(f"{time.perf_counter() - start_time:.1f} s; everything is in {path}")

    return run_command(command)


def _parse(args: Sequence[str] | None, prog: str) -> tuple[TrainConfig, argparse.Namespace]:
    description = "Find images whose label is probably wrong: models that were trained without an image predict it."
    parser = OneLineParser(prog, description, "--data mnist --split test", usage="%(prog)s [flags]")
    group = parser.add_argument_group("label errors", "Other flags override the fields of the models.")
    help_ = "labels to check: train, with the validation split at its end, or test (default: train)"
    group.add_argument("--split", choices=SPLITS, default="train", help=help_)
    help_ = "parts of the training examples; each model is trained on all but one (default: %(default)s)"
    group.add_argument("--folds", type=int, default=5, metavar="INT", help=help_)
    help_ = "times that the examples are divided anew; the probabilities are averaged (default: %(default)s)"
    group.add_argument("--repeats", type=int, default=1, metavar="INT", help=help_)
    help_ = "score, lowest first: self_confidence or normalised_margin (default: %(default)s)"
    group.add_argument("--rank-by", choices=SCORES, default=SCORES[0], metavar="SCORE", help=help_)
    add_config_flags(parser, CROSS_VALIDATION, args)
    flags = parser.parse_args(args)
    config = replace_fields(CROSS_VALIDATION, flags)
    if config.resume:
        raise InputError("resume has no effect on label errors: leave it out")
    return config, flags


def _check_unused(path: Path) -> None:
    if (path.exists() and not path.is_dir()) or not is_unused(path):
        raise InputError(f"workdir {path} exists: name another directory")


def write_label_errors(
    path: Path, errors: LabelErrors, ranking: np.ndarray, image: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes the table, the contact sheet and the probabilities.

    Args:
        path: a directory that this process has locked.
        errors: labels and probabilities of N examples.
        ranking: ``int[N]``, their indices, the most suspicious first.
        image: ``uint8[N, 28, 28, 1]``.
        class_names: K names.
    """
    columns = {
        "rank": range(1, len(ranking) + 1),
        "index": ranking,
        "label": errors.label[ranking],
        "suggested": errors.suggested[ranking],
        "self_confidence": errors.self_confidence[ranking],
        "normalised_margin": errors.normalised_margin[ranking],
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *zip(*columns.values(), strict=True)])
    write_whole(path / "label_errors.csv", text.getvalue())
    shown = ranking[:_NUM_DRAWN]
    names = [name.replace("$", r"\$") for name in class_names]  # Matplotlib reads $...$ as mathematics
    pairs = [(names[errors.label[index]], names[errors.suggested[index]]) for index in shown]
    captions = [(f"{index}\n{a} → {b}", a != b) for index, (a, b) in zip(shown, pairs, strict=True)]
    title = f"{len(shown)} suspicious labels: index, label → prediction"
    prepare_matplotlib()
    try:
        with atomic_write(path / "label_errors.npz", locked=True) as file:
            np.savez(file, labels=errors.label, pred_probs=errors.probabilities)
        contact_sheet(image[shown, ..., 0], captions, path / "label_errors.png", title, num_columns=10, group=10)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _table(errors: LabelErrors, shown: np.ndarray, class_names: Sequence[str]) -> str:
    rows = [["label", "suggested", "index", "self-confidence", "normalised margin"]]
    for index in shown:
        names = (class_names[labels[index]] for labels in (errors.label, errors.suggested))
        scores = (f"{score[index]:.4f}" for score in (errors.self_confidence, errors.normalised_margin))
        rows.append([*names, str(index), *scores])
    return text_table(rows, num_texts=2)


if __name__ == "__main__":
    sys.exit(main())
