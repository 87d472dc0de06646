"""Loads mnist, fashion_mnist, kmnist and emnist/digits with tensorflow-datasets but without TensorFlow.

    arrays = load_named("mnist", data_dir=None)
    prepare_dataset("mnist", "path/to/idx_files", "prepared")    # tfds.data_source("mnist", data_dir="prepared")

The builders that come with tensorflow-datasets need TensorFlow to prepare these data sets. The builders here store
the examples in the ``array_record`` format in their original order, so that tensorflow-datasets reads them without
TensorFlow. ``load_named`` stores plain bytes; ``prepare_dataset`` stores the version of tensorflow-datasets, with PNGs.
After the first load the arrays come from the cache (``cache.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.atomic import atomic_write
from mnist_jax.data.cache import load_cached
from mnist_jax.data.dataset import DIGITS, IMAGE_SHAPE, Arrays, Split, StreamedSplit, check_labels
from mnist_jax.data.download import DownloadError, download
from mnist_jax.data.files import find_idx_files, read_idx_files
from mnist_jax.errors import InputError, one_line, suggest
from mnist_jax.home import find_directory
from mnist_jax.jsonfile import read_json

# The stock builders use 3.x, so both versions can be in one data directory.
_VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Source:
    """Describes the download of a data set.

    Attributes:
        url: base address.
        files: size in bytes and sha256 of each file under ``url``.
        members: files to extract if ``files`` names an archive.
        class_names: K names.
    """

    url: str
    files: dict[str, tuple[int, str]]
    members: tuple[str, ...] = ()
    class_names: tuple[str, ...] = DIGITS


_FOUR_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

SOURCES = {
    "mnist": Source(
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        files={
            _FOUR_FILES[0]: (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            _FOUR_FILES[1]: (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            _FOUR_FILES[2]: (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            _FOUR_FILES[3]: (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        },
    ),
    "fashion_mnist": Source(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files={
            _FOUR_FILES[0]: (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            _FOUR_FILES[1]: (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            _FOUR_FILES[2]: (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            _FOUR_FILES[3]: (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        },
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "kmnist": Source(
        url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        files={
            _FOUR_FILES[0]: (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            _FOUR_FILES[1]: (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            _FOUR_FILES[2]: (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            _FOUR_FILES[3]: (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        },
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "emnist/digits": Source(
        url="https://biometrics.nist.gov/cs_links/EMNIST/",
        files={"gzip.zip": (561753746, "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e")},
        members=tuple(
            f"gzip/emnist-digits-{name}"
            for name in (*_FOUR_FILES[:2], *(n.replace("t10k", "test") for n in _FOUR_FILES[2:]))
        ),
    ),
}


def load_named(name: str, data_dir: Path | None) -> Arrays:
    """Loads a data set from disk; if it is not there, downloads and prepares it first.

    Args:
        name: key of ``SOURCES``.
        data_dir: directory to search first, for IDX files of ``mnist``, or prepared tfds data.

    Raises:
        DownloadError: the data set is not on disk and cannot be downloaded or written.
        InputError: files on disk are damaged.
    """
    roots = [default_tfds_dir()]
    if data_dir is not None:
        roots.insert(0, data_dir)
        if name == "mnist" and (files := find_idx_files(data_dir)):
            return load_cached([*files.values()], lambda: read_idx_files(files))
    for root in roots:
        if prepared := _find_prepared(name, root):
            return _load_prepared(prepared)
    return _download_and_prepare(name, roots[-1])


def prepare_dataset(name: str, idx_dir: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Prepares IDX files for tensorflow-datasets, without TensorFlow and without network.

    ``tfds.data_source(name, data_dir=data_dir)`` then reads the examples in the order of the files, and so does
    ``load_dataset(name, data_dir=data_dir)``.

    Args:
        name: ``mnist``, ``fashion_mnist``, ``kmnist`` or ``emnist/digits``. As everywhere in tensorflow-datasets, the
            images of EMNIST are transposed; ``load_dataset`` turns them upright.
        idx_dir: directory with the four IDX files, raw or ``.gz``.
        data_dir: directory to prepare the data in; default ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.

    Returns:
        The prepared directory, such as ``data_dir/mnist/3.0.1``.

    Raises:
        InputError: the name is unknown, a file is missing or damaged, the prepared directory exists already, or
            ``data_dir`` cannot be written.

    Example:
        >>> prepare_dataset("mnist", "no_such_directory")
        Traceback (most recent call last):
        mnist_jax.errors.InputError: idx_dir must be an existing directory, got 'no_such_directory'
    """
    if name not in SOURCES:
        raise InputError(f"name must be one of {', '.join(SOURCES)}, got {name!r}{suggest(name, SOURCES)}")
    if not Path(idx_dir).is_dir():
        raise InputError(f"idx_dir must be an existing directory, got {os.fspath(idx_dir)!r}")
    if importlib.util.find_spec("array_record") is None:
        raise InputError("prepare_dataset needs the package array_record, which is not installed")
    files = find_idx_files(Path(idx_dir))
    if not files:
        raise InputError(f"{idx_dir}: expected four IDX files in this directory, found none")
    arrays = read_idx_files(files)
    root = default_tfds_dir() if data_dir is None else Path(data_dir)
    try:
        with _lock(name, root):
            return _prepare_stock(name, root, arrays)
    except OSError as error:
        raise InputError(f"{root}: expected a writable directory ({error.strerror})") from None


def load_prepared(directory: Path) -> tuple[str, Arrays]:
    """Loads a directory that tensorflow-datasets or :func:`prepare_dataset` prepared, with the name of the data set.

    Raises:
        InputError: the directory is damaged, or its format cannot be read without TensorFlow.
    """
    return _name_prepared(directory), _load_prepared(directory)


def open_prepared(directory: Path) -> tuple[str, dict[str, StreamedSplit], str]:
    """Opens such a directory without reading its examples.

    Returns:
        The name of the data set, its splits ``train`` and ``test``, and a checksum of the names and sizes of its files.

    Raises:
        InputError: see :func:`load_prepared`.
    """
    name, files = _name_prepared(directory), sorted(path for path in directory.iterdir() if path.is_file())
    checksum = zlib.crc32(repr([(path.name, path.stat().st_size) for path in files]).encode())
    return name, _open(directory), f"files-{checksum:08x}"


def _name_prepared(directory: Path) -> str:
    try:
        info = dict(read_json(directory / "dataset_info.json"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{directory / 'dataset_info.json'}: cannot be read ({one_line(error)})") from None
    if info.get("fileFormat") != "array_record":
        raise InputError(
            f"{directory}: expected data prepared as array_record, which is read without TensorFlow, "
            f"got {info.get('fileFormat')}; prepare it with mnist_jax.prepare_dataset"
        )
    name = f"{info.get('name')}/{info.get('configName', '')}".strip("/")
    return name if name in SOURCES else directory.resolve().parent.name


def locate_named(name: str, data_dir: Path | None) -> Path | None:
    """Returns the directory from which :func:`load_named` has loaded a data set."""
    if data_dir is not None and name == "mnist" and find_idx_files(data_dir):
        return data_dir.resolve()
    for root in (*([data_dir] if data_dir is not None else []), default_tfds_dir()):
        if prepared := _find_prepared(name, root):
            return prepared.resolve()
    downloads = default_tfds_dir() / "downloads" / "mnist_jax" / name
    return downloads.resolve() if downloads.is_dir() else None


def default_tfds_dir() -> Path:
    """Returns tensorflow-datasets' own directory: ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``."""
    return find_directory("TFDS_DATA_DIR", "tensorflow_datasets")


def _find_prepared(name: str, root: Path) -> Path | None:
    """Returns the directory of a prepared version: ours, else the newest that is readable without TensorFlow."""
    versions = sorted((root / name).glob("*/dataset_info.json"), key=lambda path: (path.parent.name == _VERSION, path))
    for info in reversed(versions):
        with contextlib.suppress(OSError, ValueError):
            if read_json(info).get("fileFormat") == "array_record":
                return info.parent
    return None


def _load_prepared(directory: Path) -> Arrays:
    return load_cached(sorted(path for path in directory.iterdir() if path.is_file()), lambda: _decode(directory))


def _decode(directory: Path) -> Arrays:
    arrays: Arrays = {}
    for split, examples in _open(directory).items():
        image, label = examples.read(np.arange(examples.num_examples))
        arrays |= {f"{split}_image": image, f"{split}_label": label}
    return arrays


def _open(directory: Path) -> dict[str, StreamedSplit]:
    """Opens the splits ``train`` and ``test`` of prepared data."""
    import tensorflow_datasets as tfds

    def open_split(split: str) -> StreamedSplit:
        source = builder.as_data_source(split=split)
        return StreamedSplit(functools.partial(_read, directory, source, is_transposed), len(source))

    with _explain_damage(directory):
        builder = tfds.builder_from_directory(str(directory))
        is_transposed = builder.name == "emnist" and str(builder.version) != _VERSION
        return {split: open_split(split) for split in ("train", "test")}


def _read(directory: Path, source: Any, is_transposed: bool, index: np.ndarray) -> Split:
    """Reads examples of a split by their indices."""
    with _explain_damage(directory), _without_advice():
        examples = source.__getitems__(index.tolist())
        image = np.stack([example["image"] for example in examples])
        label = np.array([example["label"] for example in examples], np.int32)
        if image.shape[1:] != IMAGE_SHAPE or image.dtype != np.uint8:
            raise InputError(f"{directory}: expected uint8 images of 28x28x1, got {image.dtype}{list(image.shape[1:])}")
        check_labels(label, str(directory))
        return Split(_transpose(image) if is_transposed else image, label)


@contextlib.contextmanager
def _explain_damage(directory: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # tensorflow-datasets and array_record have no common error for damage
        reason = one_line(error)
        raise InputError(
            f"{directory}: expected readable prepared data ({reason}); delete the directory to prepare it again"
        ) from None


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Hides the advice of tensorflow-datasets to install OpenCV, which would decode PNGs faster, but only once."""

    def is_other(record: logging.LogRecord) -> bool:
        return "OpenCV" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _download_and_prepare(name: str, root: Path) -> Arrays:
    try:
        with _lock(name, root):
            if prepared := _find_prepared(name, root):  # another process was faster
                return _load_prepared(prepared)
            files = _download(name, root / "downloads" / "mnist_jax" / name)
            if importlib.util.find_spec("array_record") is None:
                return load_cached([*files.values()], lambda: read_idx_files(files))
            return _load_prepared(_prepare(name, root, read_idx_files(files)))
    except OSError as error:
        raise DownloadError(f"{root}: expected a writable directory for downloads ({error.strerror})") from None


@contextlib.contextmanager
def _lock(name: str, root: Path) -> Iterator[None]:
    """Lets one process at a time prepare a data set in ``root``, which is created."""
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".mnist_jax-{name.replace('/', '-')}.lock"):
        yield


def _download(name: str, directory: Path) -> dict[str, Path]:
    source = SOURCES[name]
    for abandoned in directory.glob("*.part"):  # left by a killed process
        abandoned.unlink()
    for file, (size, sha256) in source.files.items():
        download(source.url + file, directory / file, size=size, sha256=sha256)
        for member in source.members:
            target = directory / Path(member).name
            if not target.exists():
                with (
                    zipfile.ZipFile(directory / file) as archive,
                    archive.open(member) as packed,
                    atomic_write(target) as unpacked,
                ):
                    shutil.copyfileobj(packed, unpacked)
    return find_idx_files(directory)


def _prepare(name: str, root: Path, arrays: Arrays) -> Path:
    """Writes the arrays as a tfds data set of plain bytes, version ``_VERSION``."""
    import tensorflow_datasets as tfds

    family, _, config = name.partition("/")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        VERSION = tfds.core.Version(_VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        pkg_dir_path = None

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=IMAGE_SHAPE, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=len(DIGITS)),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label"), disable_shuffling=True
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # not used: offline, its retries take minutes
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            return _examples(arrays, split)

    Builder.name = family
    return _write(Builder, name, root)


def _prepare_stock(name: str, root: Path, arrays: Arrays) -> Path:
    """Writes the arrays with the builder of tensorflow-datasets, apart from its reader, which needs TensorFlow.

    Raises:
        InputError: this version is prepared already.
    """
    import tensorflow_datasets as tfds
    from PIL import Image

    def encode(image: np.ndarray) -> Any:
        return Image.fromarray((_transpose(image[None])[0] if name == "emnist/digits" else image)[..., 0])

    stock = tfds.builder_cls(name.partition("/")[0])

    class Builder(stock, skip_registration=True):  # type: ignore[misc, valid-type, call-arg]
        pkg_dir_path = None

        def _info(self) -> Any:
            info = super()._info()
            info.as_proto.disable_shuffling = True
            return info

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # the files are here
            return {split: _examples(arrays, split, encode) for split in ("train", "test")}

    Builder.name = stock.name
    directory = root / name / str(stock.VERSION)
    if directory.exists():
        raise InputError(f"{directory} exists: delete it to prepare it again, or choose another data_dir")
    return _write(Builder, name, root)


def _examples(
    arrays: Arrays, split: str, encode: Callable[[np.ndarray], Any] = lambda image: image
) -> Iterator[tuple[int, dict[str, Any]]]:
    pairs = zip(arrays[f"{split}_image"], arrays[f"{split}_label"], strict=True)
    for index, (image, label) in enumerate(pairs):
        yield index, {"image": encode(image), "label": int(label)}


def _write(builder_cls: Any, name: str, root: Path) -> Path:
    """Runs a builder; the final rename of tfds makes this atomic.

    No other process may be preparing the same data set: leftovers of killed processes are deleted.
    """
    import tensorflow_datasets as tfds

    for abandoned in (root / name).glob(f"incomplete.*_{builder_cls.VERSION}"):
        shutil.rmtree(abandoned)
    tfds.disable_progress_bar()  # writing takes a few seconds
    with contextlib.redirect_stdout(io.StringIO()):
        builder = builder_cls(data_dir=str(root), config=name.partition("/")[2] or None, file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_dir)


def _transpose(image: np.ndarray) -> np.ndarray:
    """Swaps rows and columns: tensorflow-datasets keeps EMNIST's images column by column."""
    return np.ascontiguousarray(image.swapaxes(1, 2))
