"""Reads data from files: directories of IDX files (MNIST's format) and CSV files of Kaggle's digit-recognizer.

    arrays = read_idx_files(find_idx_files(Path("data/mnist")))   # raw or .gz
    arrays = read_csv(Path("train.csv"))                          # label,pixel0,...,pixel783
    image = read_csv_images(Path("test.csv").read_bytes(), "test.csv")   # pixel0,...,pixel783, optional label

Readers validate every file and read no more bytes than its header declares.

Reference: the IDX format, https://yann.lecun.com/exdb/mnist/; https://www.kaggle.com/c/digit-recognizer/data.
"""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from mnist_jax.data.dataset import DIGITS, IMAGE_SHAPE, Arrays, check_labels
from mnist_jax.errors import InputError

_NUM_PIXELS = 28 * 28
_CSV_HEADER = ["label", *(f"pixel{i}" for i in range(_NUM_PIXELS))]
_MAX_BYTES = 2**30  # 1.4 million images; the largest data set of this kind, EMNIST, has 814,255
_CHUNK_BYTES = 2**20
_MAX_LINE = 2**14  # characters of a CSV, four times the longest that Kaggle can need
_ROLES = {
    "train_image": ("train", "images", 3),
    "train_label": ("train", "labels", 1),
    "test_image": ("t10k|test", "images", 3),
    "test_label": ("t10k|test", "labels", 1),
}


def find_idx_files(directory: Path) -> dict[str, Path]:
    """Finds the four IDX files of a directory and returns them by role; empty if there are none.

    Args:
        directory: directory to search, without its subdirectories. Files have MNIST's names, optionally with a prefix,
            with ``.gz``, or with a dot before ``idx``: ``train-images-idx3-ubyte.gz``, ``t10k-labels.idx1-ubyte``.

    Raises:
        InputError: only some of the four files exist, or two files fit one role.
    """
    files = sorted(path for path in directory.iterdir() if path.is_file())
    found: dict[str, Path] = {}
    for role, (splits, kind, rank) in _ROLES.items():
        stems = [f"{split}-{kind}{dash}idx{rank}-ubyte" for split in splits.split("|") for dash in "-."]
        paths = [path for path in files if path.name.removesuffix(".gz").endswith(tuple(stems))]
        if len({path.name.removesuffix(".gz") for path in paths}) > 1:
            raise InputError(
                f"{directory}: expected one file for {splits} {kind}, found {', '.join(path.name for path in paths)}"
            )
        if paths:
            found[role] = paths[0]  # sorted: the raw file comes before its .gz
    if found and len(found) < len(_ROLES):
        missing = ", ".join(
            f"{splits.split('|')[0]}-{kind}-idx{rank}-ubyte[.gz]"
            for role, (splits, kind, rank) in _ROLES.items()
            if role not in found
        )
        raise InputError(f"{directory}: expected four IDX files, missing {missing}")
    return found


def read_idx_files(files: dict[str, Path], num_classes: int = len(DIGITS)) -> Arrays:
    """Reads the four files from :func:`find_idx_files`.

    Raises:
        InputError: a file is damaged or not IDX, images are not 28x28, or images and labels do not match.
    """
    arrays = {role: read_idx(path, _ROLES[role][2]) for role, path in files.items()}
    for split in ("train", "test"):
        image, label = arrays[f"{split}_image"], arrays[f"{split}_label"]
        if not len(label):
            raise InputError(f"{files[f'{split}_label']}: expected at least one example, got none")
        if len(image) != len(label):
            raise InputError(
                f"{files[f'{split}_label']}: expected {len(image)} labels, one per image, got {len(label)}"
            )
        check_labels(label, str(files[f"{split}_label"]), num_classes)
        if files[f"{split}_image"].name.startswith("emnist-"):
            image = image.transpose(0, 2, 1)  # EMNIST stores its images column by column
        arrays[f"{split}_image"] = np.ascontiguousarray(image).reshape(-1, *IMAGE_SHAPE)
    return arrays


def read_class_names(directory: Path, label: np.ndarray) -> tuple[str, ...]:
    """Returns the class names of a directory of IDX files, from its ``class_names.txt``, or ``0`` to ``K-1``.

    Args:
        directory: directory that may contain ``class_names.txt``: UTF-8, one name per line.
        label: ``int[N]``, all labels of the training and test sets.

    Raises:
        InputError: there are fewer names than classes, or a name is empty or repeated; or there are no names, more
            than ten classes, and a class without examples, which suggests a damaged label.

    Example:
        >>> read_class_names(Path("no_names_here"), np.array([0, 2, 1]))
        ('0', '1', '2')
    """
    num_classes = max(2, int(label.max()) + 1)
    path = directory / "class_names.txt"
    try:
        names = tuple(path.read_text(encoding="utf-8-sig").rstrip().splitlines()) if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if names is None:
        missing = np.setdiff1d(np.arange(num_classes), label)
        if num_classes > len(DIGITS) and missing.size:
            raise InputError(
                f"{directory}: expected examples of each of the classes 0 to {num_classes - 1}, "
                f"got none of {missing[0]}; if that is right, name the classes in class_names.txt"
            )
        return tuple(map(str, range(num_classes)))
    names = tuple(name.strip() for name in names)
    if len(names) < num_classes:
        raise InputError(f"{path}: expected a name for each of {num_classes} classes, got {len(names)}")
    if "" in names:
        raise InputError(f"{path}: expected a name on each line, got an empty line {names.index('') + 1}")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: expected each name once, got {repeated!r} twice")
    return names


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, raw or ``.gz``.

    Args:
        path: file to read.
        rank: expected number of dimensions: 3 for images, 1 for labels.

    Returns:
        ``uint8`` array with the shape in the header.

    Raises:
        InputError: the file cannot be read, or its magic number or size is wrong.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * rank)
            if header[:4] != bytes([0, 0, 8, rank]):
                magic = bytes([0, 0, 8, rank]).hex()
                raise InputError(f"{path}: expected magic number {magic}, got {header[:4].hex()}")
            if len(header) < 4 + 4 * rank:
                raise InputError(f"{path}: truncated inside its header")
            shape = struct.unpack(f">{rank}I", header[4:])
            size = int(np.prod([int(length) for length in shape], dtype=object))
            if size > _MAX_BYTES:
                raise InputError(f"{path}: expected at most {_MAX_BYTES} bytes, got a header that declares {size}")
            if rank == 3 and shape[1:] != (28, 28):
                raise InputError(f"{path}: expected 28x28 images, got {shape[1]}x{shape[2]}")
            body = bytearray()  # grows with what the file has, whatever its header declares
            while len(body) <= size and (chunk := file.read(min(_CHUNK_BYTES, size + 1 - len(body)))):
                body += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if len(body) != size:
        found = f"{len(body)} (truncated)" if len(body) < size else "more"
        raise InputError(f"{path}: expected {size} bytes of data after the header, got {found}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_csv(path: Path) -> Arrays:
    """Reads a CSV with the columns ``label,pixel0,...,pixel783``; the last seventh of the rows is the test split.

    Raises:
        InputError: a column is missing, or a cell is not a whole number in range.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            cells = _read_cells(file, str(path), [_CSV_HEADER], min_rows=2)
    except (OSError, UnicodeDecodeError) as error:
        raise _not_numbers(str(path), error) from None
    label = cells[:, 0]
    check_labels(label, str(path))
    image = _to_image(cells[:, 1:], str(path))
    num_train = len(label) - max(1, len(label) // 7)
    return Arrays(
        train_image=image[:num_train],
        train_label=label[:num_train],
        test_image=image[num_train:],
        test_label=label[num_train:],
    )


def read_csv_images(content: bytes, name: str) -> np.ndarray:
    """Reads the images of a CSV with the columns ``pixel0,...,pixel783``; a first column ``label`` is ignored.

    Args:
        content: content of the file.
        name: name of the file, for messages.

    Returns:
        ``uint8[N, 28, 28, 1]``.

    Raises:
        InputError: a column is missing, or a cell is not a whole number in range.

    Example:
        >>> header = ",".join(f"pixel{i}" for i in range(784))
        >>> row = ",".join(["0"] * 784)
        >>> read_csv_images(f"{header}\\n{row}\\n".encode(), "test.csv").shape
        (1, 28, 28, 1)
    """
    try:
        with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig") as file:
            cells = _read_cells(file, name, [_CSV_HEADER[1:], _CSV_HEADER], min_rows=1)
    except UnicodeDecodeError as error:
        raise _not_numbers(name, error) from None
    return _to_image(cells[:, -_NUM_PIXELS:], name)


def _read_cells(file: TextIO, name: str, headers: Sequence[list[str]], min_rows: int) -> np.ndarray:
    """Returns the cells below the header, one of ``headers``, as ``int32[rows, columns]``; their range is unchecked."""
    header = [cell.strip().strip('"') for cell in file.readline(2**16).split(",")]
    if header not in headers:
        raise InputError(f"{name}: {_header_problem(header, headers[0])}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file is reported below
            cells = np.loadtxt(_read_lines(file), delimiter=",", dtype=np.int32, ndmin=2, comments=None)
    except ValueError as error:
        raise _not_numbers(name, error) from None
    if cells.shape[0] < min_rows or cells.shape[1] != len(header):
        rows = f"{min_rows} row" + "s" * (min_rows > 1)
        raise InputError(f"{name}: expected at least {rows} of {len(header)} cells, got {cells.shape}")
    return cells


def _read_lines(file: TextIO) -> Iterator[str]:
    """Yields the lines of a CSV.

    Raises:
        ValueError: a line is too long to be one of numbers.
    """
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise ValueError(f"a line has more than {_MAX_LINE} characters")
        yield line


def _not_numbers(name: str, error: Exception) -> InputError:
    detail = str(error).split(";")[0].rstrip(".")
    return InputError(f"{name}: expected whole numbers in every cell below the header ({detail})")


def _to_image(pixels: np.ndarray, name: str) -> np.ndarray:
    wrong = np.argwhere((pixels < 0) | (pixels > 255))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(f"{name}: pixels must be 0 to 255, got {pixels[row, column]} at example {row}, pixel{column}")
    return pixels.astype(np.uint8).reshape(-1, *IMAGE_SHAPE)


def _header_problem(header: list[str], columns: list[str]) -> str:
    expected = f"expected columns {'label,' * (columns[0] == 'label')}pixel0,...,pixel783"
    missing = [name for name in columns if name not in header]
    if missing == ["label"]:
        return f"{expected}, label is missing (a file without labels is for prediction, not training)"
    if missing:
        return f"{expected}, missing {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
    return f"{expected} in this order, got {len(header)} columns"
