"""Damaged and hostile bytes for every reader: it returns a valid result, or raises one ``InputError`` in one line.

Each input has a bound on seconds and on memory. ``MNIST_JAX_FUZZ=10 pytest -m slow tests/trials/test_fuzzed_readers.py
--hypothesis-seed=1`` tries ten times as many inputs, with another seed.
"""

import contextlib
import copy
import functools
import gzip
import hashlib
import json
import os
import resource
import struct
import time
import tracemalloc
import unicodedata

import jax
import numpy as np
import pytest
from conftest import make_state, write_csv, write_idx_files
from drawing import draw_seven, encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rundirs import write_run

from mnist_jax import InputError, TrainConfig, build_state, load_export, restore_checkpoint, save_checkpoint
from mnist_jax.compare import compare_table
from mnist_jax.data.files import find_idx_files, read_class_names, read_csv, read_csv_images, read_idx_files
from mnist_jax.export.stablehlo import load_stablehlo, to_stablehlo
from mnist_jax.export.weights import to_json, to_safetensors
from mnist_jax.pictures.decode import read_picture
from mnist_jax.runs import runs_table
from mnist_jax.training.directory import RunDirectory, read_config, read_history
from mnist_jax.training.loading import load_class_names, load_run
from mnist_jax.training.runs import config_to_repeat, find_runs, read_run

SCALE = int(os.environ.get("MNIST_JAX_FUZZ", "1"))
MAX_SECONDS, MAX_BYTES, MAX_MESSAGE = 2.0, 50 * 2**20, 300
NAMES = [*"0123456789"]

# Bytes ----------------------------------------------------------------------------------------------------------------

EXTREMES = [
    *(struct.pack(f"{order}{kind}", value)
      for order in "<>" for kind, bits in (("H", 16), ("I", 32), ("Q", 64))
      for value in (0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1)),
    *(b"\0", b"\n", b"\r", b",", b'"', b"{", b"[" * 300, b"}", b"-", b"e", b"nan", b"1e999", b"9" * 5000),
    *("\ufeff".encode(), "\u2028".encode(), "\u0663".encode(), b"\x1b[31m", b"\xff", b"\xed\xa0\x80", b"true", b"null"),
]  # fmt: skip


@st.composite
def changed_bytes(draw, contents):
    """Draws one of ``contents`` after one to four changes, or any bytes."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        size = len(content)
        # The beginning and the end hold headers and footers, so half of the changes go there.
        at = draw(st.integers(0, size) | st.integers(0, min(size, 64)) | st.integers(max(0, size - 64), size))
        length = draw(st.integers(0, 16) | st.integers(0, size))
        match draw(st.sampled_from(["flip", "write", "insert", "delete", "truncate", "splice", "repeat", "any"])):
            case "flip" if at < size:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                extreme = draw(st.sampled_from(EXTREMES) | st.binary(max_size=16))
                content[at : at + len(extreme)] = extreme
            case "insert":
                content[at:at] = draw(st.sampled_from(EXTREMES) | st.binary(max_size=64))
            case "delete":
                del content[at : at + length]
            case "truncate":
                del content[at:]
            case "splice":
                other = draw(st.sampled_from(contents))
                start = draw(st.integers(0, len(other)))
                content[at : at + length] = other[start : start + length]
            case "repeat":
                content[at:at] = content[at : at + length] * draw(st.integers(1, 20))
            case "any" if draw(st.integers(0, 9)) == 0:
                content = bytearray(draw(st.binary(max_size=200)))
    return bytes(content)


# JSON -----------------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, -1, 2, 10**9, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**30), 0.5, 1e308, 5e-324])
TEXTS = st.text(max_size=20) | st.sampled_from(["", "x" * 10**5, "a\nb", "\x1b[31m", "\u2028", "\ud800", "\0", "../x"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5), max_leaves=10
) | st.sampled_from([[1] * 2000, [[]], [0.5], ["8"], [[1, 2], ["a", 3]]])


@st.composite
def changed_json(draw, value, others=()):
    """Draws a copy of ``value`` with one to three of its parts replaced, deleted or added."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        parent, part = None, value
        while isinstance(part, dict | list) and part and (parent is None or draw(st.integers(0, 2))):
            key = draw(st.sampled_from(sorted(part)) if isinstance(part, dict) else st.integers(0, len(part) - 1))
            parent, part = part, part[key]
        new = copy.deepcopy(draw(VALUES | st.sampled_from([*others, part, -1])))
        if parent is None:
            return new
        match draw(st.sampled_from(["replace", "replace", "delete", "add"])):
            case "replace":
                parent[key] = new
            case "delete":
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[draw(TEXTS)] = new
            case "add":
                parent.insert(key, new)
    return value


def json_inputs(value, others=(), encode=lambda value: json.dumps(value).encode()):
    return changed_json(value, others).map(encode) | changed_bytes([encode(value)])


# The property ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_line(name):
    """Allows an ``InputError`` in one short line that names the file, and nothing else; bounds time and memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
    except InputError as error:
        message = str(error)
        assert name in message
        assert not {*map(unicodedata.category, message)} & {"Cc", "Zl", "Zp"}  # control characters, ends of lines
        assert len(message.replace(name, "")) < MAX_MESSAGE
    finally:
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seconds < MAX_SECONDS
    assert peak < MAX_BYTES


def check_split(image, label, num_classes=10):
    assert (image.dtype, image.shape) == (np.uint8, (len(label), 28, 28, 1))
    assert label.dtype.kind in "iu"
    assert label.ndim == 1
    assert len(label) == 0 or 0 <= label.min() <= label.max() < num_classes


def check_arrays(arrays, num_classes=10):
    for split in ("train", "test"):
        check_split(arrays[f"{split}_image"], arrays[f"{split}_label"], num_classes)
        assert len(arrays[f"{split}_label"]) > 0


def small_arrays():
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (3, 28, 28, 1), np.uint8), np.array([3, 1, 9], np.uint8)
    return {"train_image": image, "train_label": label, "test_image": image[:2], "test_label": label[:2]}


# The readers: each takes an empty directory, and returns a strategy and a check of one input --------------------------


def idx(directory, compressed):
    write_idx_files(directory, small_arrays(), compressed)
    originals = {path: path.read_bytes() for path in sorted(directory.iterdir())}

    def check(path, content):
        path.write_bytes(content)
        with one_line(str(directory)):
            check_arrays(read_idx_files(find_idx_files(directory)))
        path.write_bytes(originals[path])

    contents = [*originals.values()]
    inputs = changed_bytes(contents)
    if compressed:  # damage inside the compressed data too
        inputs |= changed_bytes([gzip.decompress(content) for content in contents]).map(gzip.compress)
    return st.tuples(st.sampled_from([*originals]), inputs), lambda each: check(*each)


def class_names(directory):
    path = directory / "class_names.txt"

    def check(content):
        path.write_bytes(content)
        with one_line(str(path)):
            names = read_class_names(directory, np.arange(10))
            assert len({*names}) == len(names) >= 10

    return changed_bytes(["\n".join(NAMES).encode(), "Öl\ncat\n".encode() * 6]), check


def csv(directory):
    path = directory / "train.csv"
    image = small_arrays()["train_image"].reshape(3, -1)
    content = write_csv(path, range(3), image).read_bytes()
    header, _, cells = content.partition(b"\n")

    def check(content):
        path.write_bytes(content)
        with one_line(str(path)):
            check_arrays(read_csv(path))
        with one_line("test.csv"):
            read = read_csv_images(content, "test.csv")
            check_split(read, np.zeros(len(read), int))

    damaged_cells = changed_bytes([cells, b"1" * 20_000, b"x" * 3000]).map(lambda cells: header + b"\n" + cells)
    return changed_bytes([content]) | damaged_cells, check


def run_file(directory, name):
    """A file of a run, as commands and resumed runs read it."""
    config = TrainConfig(data="digits", hidden_sizes=(2,), epochs=2, workdir=str(directory / "run"), resume=True)
    run = write_run(directory / "run", 1000, hidden_sizes=(2,))
    data = {"name": "digits", "num_train": 1350, "num_validation": 150, "num_test": 297, "label_checksum": "0123abcd"}
    data |= {"path": None, "class_names": NAMES, "model": None, "has_own_optimizer": False}
    numbers = {f"{split}_{kind}": 0.5 for split in ("train", "validation") for kind in ("loss", "accuracy")}
    lines = [{"epoch": epoch, "step": 11 * epoch, "num_examples": 1350, "seconds": 0.5, "learning_rate": 1e-3,
              "examples_per_second": 2700.0, **numbers} for epoch in (1, 2)]  # fmt: skip
    summary = {"dataset": "digits", "model": "mlp", "num_parameters": 12345, "epochs": 2, "seconds": {"train": 0.5},
               "test_loss": 0.5, "test_accuracy": 0.5, **numbers}  # fmt: skip
    run_config = json.loads(TrainConfig(data="digits", hidden_sizes=(2,), epochs=2).to_json())
    contents = {"config.json": run_config, "data.json": data, "metrics.jsonl": lines, "summary.json": summary}
    for other, value in contents.items():
        (run / other).write_text("\n".join(map(json.dumps, lines)) if value is lines else json.dumps(value))
    with contextlib.suppress(InputError):  # there is no checkpoint
        load_run(run)  # the first call imports and compiles, for longer than the bound

    def check(content):
        (run / name).write_bytes(content)
        with one_line(str(directory)):
            found = read_config(run / "config.json")
            assert TrainConfig.from_json(found.to_json()) == found
        with one_line(str(directory)):
            names = load_class_names(run)
            assert names
            assert all(isinstance(each, str) for each in names)
        if name in ("config.json", "data.json"):  # it reads no other
            with one_line(str(directory)):
                load_run(run)
        runs = find_runs(directory)
        assert len(runs_table(runs).splitlines()) == 1 + len(runs)
        with one_line(str(directory)):
            assert len(compare_table([read_run(run)], [read_history(run)]).splitlines()) == 10
        with one_line(str(directory)):
            assert config_to_repeat(run).workdir is None
        with one_line(str(directory)), contextlib.closing(RunDirectory.claim(config)) as workdir:
            workdir.check_data(data)
            for line in workdir.read_history(2):
                assert np.isfinite([float(line[number]) for number in [*numbers, "seconds"]]).all()

    def encode(value):
        lines = value if isinstance(value, list) and name == "metrics.jsonl" else [value]
        return "\n".join(map(json.dumps, lines)).encode()

    choices = ["cnn", "cosine", "sgd", "adamw", "bfloat16", [], [3], [3, 3], "mnist", *run_config]
    return json_inputs(contents[name], choices, encode), check


def checksums(directory):
    """A checkpoint without a valid list of its files is skipped."""
    state = build_state(TrainConfig(hidden_sizes=()))
    save_checkpoint(directory, state)
    restore_checkpoint(directory, state)  # imports
    path = directory / "0" / "checksums.json"
    original = path.read_bytes()
    names = [*json.loads(original)]

    def check(content):
        path.write_bytes(content)
        with one_line(str(directory)):
            assert int(restore_checkpoint(directory, state).step) == 0

    return json_inputs(json.loads(original), [{name: 0} for name in names]), check


def export(directory, write):
    config = TrainConfig(hidden_sizes=(1,), batch_norm=True)
    state, path = make_state(config), directory / "model"
    content = write(config, state, NAMES)
    path.write_bytes(content)
    load_export(path)  # compiles

    def check(content):
        path.write_bytes(content)
        with one_line(str(path)):
            config, state = load_export(path)
            assert TrainConfig.from_json(config.to_json()) == config
            for leaf in jax.tree.leaves((state.eval_params, state.eval_model_state)):
                assert leaf.dtype == np.float32
                assert np.isfinite(leaf).all()

    if write is to_json:
        return json_inputs(json.loads(content)), check
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]

    def encode(header):
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body

    metadata = changed_json(json.loads(header["__metadata__"]["config"])).map(
        lambda config: {**header, "__metadata__": {**header["__metadata__"], "config": json.dumps(config)}}
    )
    return json_inputs(header, encode=encode) | metadata.map(encode), check


def stablehlo(directory):
    config = TrainConfig(hidden_sizes=(1,))
    path, content = directory / "model", to_stablehlo(config, make_state(config))

    def check(content):
        path.write_bytes(content)
        with one_line(str(path)):
            assert load_stablehlo(path)(np.zeros((2, 28, 28, 1), np.uint8)).shape == (2, 10)

    return changed_bytes([content]) | st.binary(max_size=200).map(seal), check


def seal(content):
    return content + b"mnist_jax" + hashlib.sha256(content).digest()


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"),
}


def pictures(directory, format):
    del directory
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    options = {"TIFF": [{"compression": each} for each in ("tiff_lzw", "packbits", "jpeg", "tiff_deflate")]}
    contents = [encode(draw_seven(24, width=3).convert(mode), format) for mode in MODES[format]]
    contents += [encode(draw_seven(24, width=3), format, **each) for each in options.get(format, [{"exif": exif}])]

    def check(content):
        with one_line("seven.png"):
            picture = read_picture(content, "seven.png")
            assert picture.dtype == np.float32
            assert picture.ndim == 2
            assert 0 < min(picture.shape) <= max(picture.shape) <= 1000
            assert 0 <= picture.min() <= picture.max() <= 255  # false for NaN

    return changed_bytes(contents), check


# Each with the number of inputs of the slow test.
READERS = {
    "idx": (lambda directory: idx(directory, compressed=False), 1500),
    "idx.gz": (lambda directory: idx(directory, compressed=True), 1500),
    "class_names.txt": (class_names, 500),
    "csv": (csv, 1500),
    **{
        name: (functools.partial(run_file, name=name), 600)
        for name in ("config.json", "data.json", "metrics.jsonl", "summary.json")
    },
    "checksums.json": (checksums, 500),
    "json": (functools.partial(export, write=to_json), 1000),
    "safetensors": (functools.partial(export, write=to_safetensors), 1000),
    "stablehlo": (stablehlo, 1500),
    **{format: (functools.partial(pictures, format=format), 800) for format in MODES},
}


def fuzz(reader, num_inputs, directory):
    inputs, check = READERS[reader][0](directory)
    profile = settings(
        max_examples=num_inputs,
        derandomize=SCALE == 1,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    profile(given(inputs)(check))()


@pytest.fixture(autouse=True)
def bounded_process():
    """Decoders in C allocate memory that Python does not trace."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize("reader", READERS)
def test_a_sample_of_damaged_input_is_one_line(reader, tmp_path):
    fuzz(reader, 30, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_damaged_input_is_one_line(reader, tmp_path):
    fuzz(reader, READERS[reader][1] * SCALE, tmp_path)
