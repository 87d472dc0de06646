"""Writes examples as array_record shards, and reads any of them by index, for data larger than memory.

    write_shards("shards", batches, test, name="mine")            # batches: an iterable of Split
    dataset = load_dataset("shards", stream=True)
    dataset.train.read(np.array([7, 5_000_000]))                  # Split of two examples

A directory of shards holds ``train-00000-of-00006.array_record`` and so on, the same for ``test``, and ``shards.json``
with the names of the data and its classes, and the number of examples in each shard. A record is the 784 bytes of an
image and its label, so a batch is decoded by one ``np.frombuffer``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.atomic import atomic_directory
from mnist_jax.data.dataset import DIGITS, IMAGE_SHAPE, Dataset, Split, StreamedSplit, check_labels
from mnist_jax.errors import InputError, one_line, short_repr
from mnist_jax.jsonfile import read_json

INFO = "shards.json"
_VERSION = 1
# Groups of one record for reads in random order. Snappy takes a third of the space for 0.7 us per example.
_WRITER_OPTIONS = "group_size:1,snappy"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_SHARD_SIZE = 2**20  # examples; reading a batch from many small shards takes longer
_CHUNK_SIZE = 2**14  # examples; limits the memory of writing and of loading
_NUM_PIXELS = int(np.prod(IMAGE_SHAPE))


def write_shards(
    directory: Path | str,
    train: Iterable[Split],
    test: Split,
    *,
    name: str,
    class_names: Sequence[str] = DIGITS,
    num_validation: int | None = None,
    copies: int = 1,
) -> Path:
    """Writes a directory of array_record shards, in bounded memory; it appears whole or not at all.

    Args:
        directory: a new directory.
        train: the training examples in pieces of any size, with the validation examples at the end: ``uint8[n, 28, 28,
            1]`` images and labels in [0, K).
        test: the test examples.
        name: name of the data set.
        class_names: K names, at most 256.
        num_validation: number of validation examples that ``load_dataset`` holds out by default; None as everywhere.
        copies: how often the training examples are repeated with changes. Above 1, ``load_dataset`` never holds out
            more than ``num_validation``, since the examples before them have copies in the training split.

    Returns:
        The directory.

    Raises:
        InputError: the directory exists or cannot be written, or examples do not have this form.

    Example:
        >>> import tempfile
        >>> split = Split(np.zeros((20, 28, 28, 1), np.uint8), np.arange(20) % 10)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     path = write_shards(parent + "/shards", [split, split], split, name="blank")
        ...     sorted(file.name for file in path.iterdir())
        ['shards.json', 'test-00000-of-00001.array_record', 'train-00000-of-00001.array_record']
    """
    target = Path(directory)
    if target.exists():
        raise InputError(f"{target} exists: name a new directory for the shards")
    if not 1 <= len(class_names) <= 256:
        raise InputError(f"class_names must be 1 to 256 names, got {len(class_names)}")
    module = _array_record()
    info: dict[str, Any] = {"version": _VERSION, "name": name, "class_names": [*class_names]}
    info |= {"image_shape": [*IMAGE_SHAPE], "num_validation": num_validation, "copies": copies}
    try:
        with atomic_directory(target) as part:
            for split, pieces in (("train", train), ("test", [test])):
                counts, checksum = _write_split(module, part, split, pieces, len(class_names))
                info |= {f"num_{split}": counts, f"{split}_label_checksum": checksum}
            (part / INFO).write_text(json.dumps(info, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or one_line(error)})") from None
    return target


def _write_split(
    module: Any, directory: Path, split: str, pieces: Iterable[Split], num_classes: int
) -> tuple[list[int], str]:
    """Returns the number of examples in each shard, and the checksum of the labels."""
    counts: list[int] = []
    writer, checksum = None, 0
    for records in _encode(pieces, split, num_classes):
        checksum = zlib.crc32(records[:, -1].tobytes(), checksum)
        with _writing():
            for record in records:
                if writer is None:
                    writer = module.ArrayRecordWriter(str(directory / f"{split}-{len(counts)}"), _WRITER_OPTIONS)
                    counts.append(0)
                writer.write(record.tobytes())
                counts[-1] += 1
                if counts[-1] == _SHARD_SIZE:
                    writer.close()
                    writer = None
    with _writing():
        if writer is not None:
            writer.close()
    if not counts:
        raise InputError(f"{split}: expected at least one example, got none")
    for index, path in enumerate(_shard_paths(directory, split, len(counts))):  # the number of shards is known now
        (directory / f"{split}-{index}").rename(path)
    return counts, f"{checksum:08x}"


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Turns an error of array_record, such as a full disk, into an ``OSError``."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(one_line(error)) from None


def _encode(pieces: Iterable[Split], split: str, num_classes: int) -> Iterator[np.ndarray]:
    """Yields records as ``uint8[n, 785]``."""
    for piece in pieces:
        image, label = np.asarray(piece.image), np.asarray(piece.label)
        if image.shape != (len(label), *IMAGE_SHAPE) or image.dtype != np.uint8:
            raise InputError(
                f"{split}: expected uint8 images of 28x28x1, one per label, "
                f"got {image.dtype}{list(image.shape)} and {len(label)} labels"
            )
        check_labels(label, split, num_classes)
        for start in range(0, len(label), _CHUNK_SIZE):
            rows = slice(start, start + _CHUNK_SIZE)
            pixels = image[rows].reshape(-1, _NUM_PIXELS)
            yield np.concatenate([pixels, label[rows, None].astype(np.uint8)], axis=1)


def _shard_paths(directory: Path, split: str, num_shards: int) -> list[Path]:
    return [directory / f"{split}-{index:05d}-of-{num_shards:05d}.array_record" for index in range(num_shards)]


def load_shards(directory: Path, num_validation: int | None = None, *, stream: bool = False) -> Dataset:
    """Loads a directory that :func:`write_shards` wrote.

    Args:
        directory: the directory.
        num_validation: number of examples to hold out from the end of the training examples; None means the number
            that was chosen when the shards were written.
        stream: leave the training examples on disk; validation and test examples are always read into memory.

    Raises:
        InputError: a file is missing, truncated or damaged, or labels are out of range; the message names it.
    """
    info = _read_info(directory)
    if num_validation is None:
        num_validation = info["num_validation"]
    elif info["copies"] > 1 and info["num_validation"] is not None and num_validation > info["num_validation"]:
        raise InputError(
            f"num_validation must be at most {info['num_validation']}, got {num_validation}: "
            f"{directory} holds {info['copies']} copies of the examples before them"
        )
    train, test = (
        _Records(_shard_paths(directory, split, len(info[f"num_{split}"])), info[f"num_{split}"], info["class_names"])
        for split in ("train", "test")
    )
    examples: dict[str, Split] = {"test": test.read_all()} | ({} if stream else {"train": train.read_all()})
    for split, (_, label) in examples.items():
        if f"{zlib.crc32(label.astype(np.uint8).tobytes()):08x}" != info[f"{split}_label_checksum"]:
            raise InputError(f"{directory}: the labels of {split} differ from those that were written")
    return Dataset.from_splits(
        StreamedSplit(train.read, train.num_examples) if stream else examples["train"],
        examples["test"],
        info["name"],
        num_validation,
        tuple(info["class_names"]),
        str(directory.resolve()),
        info["train_label_checksum"],
    )


def _read_info(directory: Path) -> dict[str, Any]:
    """Reads ``shards.json``."""

    def is_count(value: object) -> bool:
        return type(value) is int and 1 <= value < 2**31

    def is_list(value: object, is_valid: Callable[[Any], bool]) -> bool:
        return isinstance(value, list) and len(value) > 0 and all(map(is_valid, value))

    def is_text(value: object) -> bool:
        return isinstance(value, str)

    checks: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "version": (f"{_VERSION}", lambda value: value == _VERSION),
        "name": ("text", is_text),
        "class_names": ("a list of at most 256 names", lambda value: is_list(value, is_text) and len(value) <= 256),
        "image_shape": (f"{[*IMAGE_SHAPE]}", lambda value: value == [*IMAGE_SHAPE]),
        "num_validation": ("a whole number or null", lambda value: value is None or is_count(value)),
        "copies": ("a whole number above 0", is_count),
        **dict.fromkeys(
            ("num_train", "num_test"),
            ("whole numbers below 2**31 in all", lambda value: is_list(value, is_count) and is_count(sum(value))),
        ),
        **dict.fromkeys(("train_label_checksum", "test_label_checksum"), ("text", is_text)),
    }
    path = directory / INFO
    try:
        info = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(info, Mapping):
        raise InputError(f"{path}: expected a JSON object, got {short_repr(info)}")
    for name, (expected, is_valid) in checks.items():
        if not is_valid(info.get(name)):
            raise InputError(f"{path}: {name} must be {expected}, got {short_repr(info.get(name))}")
    return dict(info)


class _Records:
    """Reads the examples of a split from its shards; threads may share it."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], class_names: Sequence[str]) -> None:
        self._paths, self._num_classes = paths, len(class_names)
        self._readers = [_open_shard(path, count) for path, count in zip(paths, counts, strict=True)]
        self._ends = np.cumsum(counts)

    @property
    def num_examples(self) -> int:
        return int(self._ends[-1])

    def read(self, index: np.ndarray) -> Split:
        """Returns the examples with these indices, in their order."""
        order = np.argsort(index, kind="stable")  # each shard is read once, from its beginning to its end
        ordered = np.asarray(index)[order]
        cuts = [0, *np.searchsorted(ordered, self._ends)]
        image = np.empty((len(order), _NUM_PIXELS), np.uint8)
        label = np.empty(len(order), np.int32)
        for shard in range(len(self._paths)):
            rows = slice(cuts[shard], cuts[shard + 1])
            if rows.start == rows.stop:
                continue
            first = self._ends[shard - 1] if shard else 0
            records = self._read_shard(shard, ordered[rows] - first)
            image[order[rows]], label[order[rows]] = records[:, :-1], records[:, -1]
        return Split(image.reshape(-1, *IMAGE_SHAPE), label)

    def _read_shard(self, shard: int, positions: np.ndarray) -> np.ndarray:
        """Returns records as ``uint8[n, 785]``."""
        path = self._paths[shard]
        try:
            records = self._readers[shard].read(positions.tolist())
        except Exception as error:  # array_record has no type for damage
            raise _damaged(path, one_line(error)) from None
        content = b"".join(records)
        if len(content) != len(positions) * (_NUM_PIXELS + 1):
            raise _damaged(path, f"expected records of {_NUM_PIXELS + 1} bytes, got {len(records[0])}")
        array = np.frombuffer(content, np.uint8).reshape(len(positions), -1)
        wrong = np.flatnonzero(array[:, -1] >= self._num_classes)
        if wrong.size:
            found, position = array[wrong[0], -1], positions[wrong[0]]
            raise InputError(f"{path}: labels must be 0 to {self._num_classes - 1}, got {found} at example {position}")
        return array

    def read_all(self) -> Split:
        """Returns all examples."""
        image = np.empty((self.num_examples, *IMAGE_SHAPE), np.uint8)
        label = np.empty(self.num_examples, np.int32)
        for start in range(0, self.num_examples, _CHUNK_SIZE):
            stop = min(start + _CHUNK_SIZE, self.num_examples)
            image[start:stop], label[start:stop] = self.read(np.arange(start, stop))
        return Split(image, label)


def _open_shard(path: Path, count: int) -> Any:
    module = _array_record()
    if not path.is_file():
        raise InputError(f"{path}: expected a shard, found no such file; write the shards again")
    try:
        reader = module.ArrayRecordReader(str(path), options=_READER_OPTIONS, file_reader_buffer_size=2**15)
        if not reader.ok():
            reader.read([0])  # raises the reason
        found = reader.num_records()
    except Exception as error:
        raise _damaged(path, one_line(error)) from None
    if found != count:
        raise _damaged(path, f"expected {count} examples as in {INFO}, got {found}")
    return reader


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: cannot be read ({reason}); write the shards again")


def _array_record() -> Any:
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError:
        raise InputError(
            "shards need the package array_record, which has wheels for Linux and for macOS on arm64"
        ) from None
