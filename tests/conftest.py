"""Strict JAX, two CPU devices, no network, no files outside temporary directories."""

import dataclasses
import gzip
import importlib.metadata
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before JAX is imported. The workers of pytest-xdist import this file too, and inherit the environment made here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if (
    os.environ["JAX_PLATFORMS"] != "cpu"
):  # GPUs and TPUs round the factors of float32 products, more than tests tolerate
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    # Many tests compile the same programs: a cache of this session, shared by its workers, halves the time they take.
    COMPILATION_CACHE = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILATION_CACHE.name
    os.environ["MNIST_JAX_TESTS_DATA_DIR"] = os.environ.pop("MNIST_JAX_DATA_DIR", "")  # named by the tests that use it
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"  # what is quicker is not worth a file
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # It logs a line to stderr for each program that comes from the cache, and tests compare the stderr of commands.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
MNIST_DIR = os.environ["MNIST_JAX_TESTS_DATA_DIR"] or None
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in ``pytest &`` of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A proxy where nobody listens: whoever asks for an address beyond this machine is refused at once.
for name in ("http_proxy", "https_proxy"):
    os.environ[name] = "http://127.0.0.1:9"
os.environ["no_proxy"] = "127.0.0.1"

import jax
import numpy as np
import pytest
from PIL import Image

from mnist_jax import Run, Split, TrainConfig, TrainState, build_state, fit
from mnist_jax.atomic import atomic_write

jax.config.update("jax_numpy_rank_promotion", "raise")

IDX_NAMES = {
    "train_image": "train-images-idx3-ubyte",
    "train_label": "train-labels-idx1-ubyte",
    "test_image": "t10k-images-idx3-ubyte",
    "test_label": "t10k-labels-idx1-ubyte",
}
CSV_HEADER = ",".join(["label", *(f"pixel{i}" for i in range(784))])


def pytest_configure(config: pytest.Config) -> None:
    """Lets LLVM optimise nothing in the quick tests, which takes two thirds of the time; the slow ones run with all."""
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"


@pytest.fixture(scope="session", autouse=True)
def private_directories(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The cache of decoded data and the tfds directory lie in a temporary directory."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TFDS_DATA_DIR"] = str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """No silent promotion of dtypes, but where optax's Adam runs, which promotes its counter."""
    with jax.numpy_dtype_promotion("standard" if request.node.get_closest_marker("uses_adam") else "strict"):
        yield


@pytest.fixture(scope="module", autouse=True)
def no_programs_of_other_files() -> Iterator[None]:
    """Lets go of compiled programs: those of the whole suite need more mappings of memory than Linux allows."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def plain_learning_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run draws its learning curves as one pixel; those of fixtures that outlive a test are drawn in full."""

    def draw(history: object, path: Path, *texts: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, locked=True) as file:  # as the real one, which deletes what a kill has left
            Image.new("RGBA", (1, 1)).save(file, "PNG")

    monkeypatch.setattr("mnist_jax.report.figures.learning_curves", draw)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The directory of the real MNIST."""
    if MNIST_DIR is None:
        pytest.skip("needs the real MNIST: set MNIST_JAX_DATA_DIR to a directory with its four IDX files")
    return Path(MNIST_DIR)


def make_split(num_examples: int, seed: int = 0) -> Split:
    """Random images and labels."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (num_examples, 28, 28, 1), dtype=np.uint8)
    return Split(image, rng.integers(0, 10, num_examples).astype(np.int32))


def make_arrays(num_train: int = 60, num_test: int = 10) -> dict[str, np.ndarray]:
    """The four arrays of a small data set."""
    train, test = make_split(num_train), make_split(num_test, seed=1)
    return {"train_image": train.image, "train_label": train.label, "test_image": test.image, "test_label": test.label}


def idx_bytes(array: np.ndarray) -> bytes:
    """A ``uint8`` array in IDX format."""
    array = array.astype(np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_files(directory: Path, arrays: dict[str, np.ndarray], compressed: bool = True) -> Path:
    """Writes the four files of a data set."""
    directory.mkdir(parents=True, exist_ok=True)
    for role, name in IDX_NAMES.items():
        content = idx_bytes(arrays[role][..., 0] if role.endswith("image") else arrays[role])
        if compressed:
            (directory / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (directory / name).write_bytes(content)
    return directory


def write_csv(
    path: Path, label: Sequence[int], pixels: Sequence[Sequence[int]] | np.ndarray, header: str = CSV_HEADER
) -> Path:
    """Writes a CSV as Kaggle's digit-recognizer has them."""
    rows = [",".join(map(str, [y, *x])) for y, x in zip(label, pixels, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def idx_dir(tmp_path: Path) -> Path:
    """A directory of IDX files with 60 training and 10 test examples."""
    return write_idx_files(tmp_path / "small", make_arrays())


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on scikit-learn's digits, shared by all tests: copy its directory before you write into it."""
    config = TrainConfig(data="digits", hidden_sizes=(64,), learning_rate=3e-3, epochs=20, quiet=True)
    with jax.numpy_dtype_promotion("standard"):
        return fit(dataclasses.replace(config, workdir=str(tmp_path_factory.mktemp("runs") / "digits")))


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in an empty directory: ``run_python("-m", "mnist_jax.train", "--help")``."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()

    def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *args],
            cwd=directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def run_on_eight_devices(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[[str], None]:
    """Checks that ``run_on`` of a file of tests gives the numbers of one device on 2, 4 and 8, for MLP and CNN."""

    def check(file: str) -> None:
        path = Path(file)
        code = f"""
import jax
from conftest import assert_trees_close
from {path.stem} import make_cnn, make_mlp, run_on
for make_state in (make_mlp, make_cnn):
    expected = run_on(make_state, 1)
    for num_devices in (2, 4, 8):
        assert_trees_close(run_on(make_state, num_devices), expected, rtol=1e-5, atol=1e-5)
print(len(jax.devices()))
"""
        # The name of a worker keeps conftest from setting the number of devices.
        eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTEST_XDIST_WORKER": "none"}
        tests = Path(__file__).parent
        done = run_python("-c", code, PYTHONPATH=os.pathsep.join(map(str, (path.parent, tests, tests.parent))), **eight)
        assert done.stdout.splitlines() == ["8"], done.stderr

    return check


def make_state(config: TrainConfig, seed: int = 0) -> TrainState:
    """A state whose every array is drawn, whose average is not its parameters, and whose channels may be negated."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        kernel = jax.tree_util.keystr(path).endswith("['kernel']")
        scale = 1.5 / np.sqrt(leaf.size / leaf.shape[-1]) if kernel else 0.5
        value = rng.normal(0, scale, leaf.shape)
        return (value**2 + 0.2 if "var" in str(path[-1]) else value).astype(np.float32)

    state = jax.eval_shape(lambda: build_state(config))  # shapes will do for what is not evaluated
    drawn = jax.tree_util.tree_map_with_path(draw, {"params": state.params, "model_state": state.model_state})
    drawn_state = drawn["model_state"]
    averages = None if state.ema_model_state is None else drawn_state
    return state.replace(ema_params=drawn["params"], model_state=drawn_state, ema_model_state=averages)


def read_events(directory: Path) -> dict[tuple[str, int], Any]:
    """What TensorBoard finds in a directory, by tag and step."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:  # records: length, its checksum, the event, its checksum
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            found |= {(value.tag, event.step): value for value in event.summary.value}
            content = content[16 + length :]
    return found


def assert_trees_equal(one: object, other: object) -> None:
    """Bit for bit, typed keys included."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


def assert_trees_close(one: object, other: object, rtol: float = 2e-5, atol: float = 1e-6) -> None:
    """Up to the order of floating-point operations."""
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)
