"""``python -m mnist_jax.data.write SHARDS`` writes a data set as array_record shards, for ``train --stream``.

``--copies`` writes the training examples several times, each copy but the first shifted at random. The validation
examples are written once, after them, as the data that ``load_dataset`` holds out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from mnist_jax.cli.flags import OneLineParser, run_command
from mnist_jax.data import Split, load_dataset
from mnist_jax.data.shards import write_shards
from mnist_jax.errors import InputError

_CHUNK_SIZE = 2**14


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.data.write") -> int:
    """Parses ``args`` (default: the command line), writes the shards, and prints their directory and sizes."""

    def command() -> None:
        parser = OneLineParser(prog, "Write a data set as array_record shards.", "shards --data mnist --copies 100")
        parser.add_argument("shards", metavar="SHARDS", help="a new directory")
        parser.add_argument("--data", metavar="NAME", help="the data set, as in train; default: mnist")
        parser.add_argument("--data-dir", metavar="DIR", help="directory searched first, as in train")
        parser.add_argument("--num-validation", metavar="INT", type=int, help="examples to hold out, as in train")
        parser.add_argument("--copies", metavar="INT", type=int, default=1, help="copies of the training examples")
        parser.add_argument("--shift", metavar="INT", type=int, default=2, help="largest shift of a copy, in pixels")
        parser.add_argument("--seed", metavar="INT", type=int, default=0, help="seed of the shifts")
        flags = parser.parse_args(args)
        ranges = {"copies": (1, 2**31), "shift": (0, 15), "seed": (0, 2**32)}
        for name, (least, end) in ranges.items():
            if not least <= getattr(flags, name) < end:
                raise InputError(f"{name} must be {least} to {end - 1}, got {getattr(flags, name)}")
        dataset = load_dataset(flags.data or "mnist", data_dir=flags.data_dir, num_validation=flags.num_validation)
        num_train, num_validation = dataset.train.num_examples, dataset.validation.num_examples
        total = flags.copies * num_train + num_validation
        if total >= 2**31:
            raise InputError(f"copies must leave fewer than 2**31 examples, got {flags.copies} of {num_train}")

        def train() -> Iterator[Split]:
            for copy in range(flags.copies):
                yield from _shifted(dataset.train, flags.shift if copy else 0, flags.seed, copy)
            yield dataset.validation

        path = write_shards(
            flags.shards,
            train(),
            dataset.test,
            name=dataset.name,
            class_names=dataset.class_names,
            num_validation=num_validation,
            copies=flags.copies,
        )
        size = sum(file.stat().st_size for file in path.iterdir())
        print(f"{path}  {total:,} training, {dataset.test.num_examples:,} test examples  {size:,} bytes")

    return run_command(command)


def _shifted(split: Split, shift: int, seed: int, copy: int) -> Iterator[Split]:
    """Yields the examples in pieces, each shifted by at most ``shift`` whole pixels along both axes."""
    rng = np.random.default_rng([seed, copy])
    for start in range(0, split.num_examples, _CHUNK_SIZE):
        image, label = (leaf[start : start + _CHUNK_SIZE] for leaf in split)
        if shift:
            padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape[1:3], axis=(1, 2))
            rows, columns = rng.integers(0, 2 * shift + 1, (2, len(label)))
            image = windows[np.arange(len(label)), rows, columns, 0][..., None]
        yield Split(image, label)


if __name__ == "__main__":
    sys.exit(main())
