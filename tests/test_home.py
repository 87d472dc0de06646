import os
import stat
import tempfile
from pathlib import Path

import pytest
from conftest import make_arrays

from mnist_jax import home as home_module
from mnist_jax.data.cache import load_cached
from mnist_jax.home import find_directory, prepare_matplotlib


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """Neither ``$HOME`` nor the user's entry in the list of users names a directory."""

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("mnist_jax.home._temporary_home", [])
    with pytest.raises(RuntimeError):
        Path.home()


@pytest.mark.parametrize("home", [None, "missing", "file"])
def test_without_a_home_directory_a_temporary_one_is_used(tmp_path, monkeypatch, caplog, no_home, home):
    (tmp_path / "file").write_text("in the way")
    if home is not None:
        monkeypatch.setenv("HOME", str(tmp_path / home))
    if home == "missing":  # root can write everywhere
        monkeypatch.setattr("os.access", lambda path, mode: mode == os.F_OK and Path(path).exists())
    found = find_directory("XDG_CACHE_HOME", ".cache")
    (temporary,) = tmp_path.glob("mnist_jax-*")
    assert found == temporary / ".cache"
    assert find_directory("TFDS_DATA_DIR", "tensorflow_datasets") == temporary / "tensorflow_datasets"
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert caplog.messages == [f"~/.cache cannot be written: caches and downloads go to {temporary}"]


def test_a_temporary_directory_of_somebody_else_is_not_used(tmp_path, no_home):
    first = find_directory("TFDS_DATA_DIR", "tfds").parent
    for change in (lambda: first.chmod(0o777), lambda: (first.rmdir(), first.symlink_to("/"))):
        change()
        home_module._temporary_home.clear()
        other = find_directory("TFDS_DATA_DIR", "tfds").parent
        assert other.parent == tmp_path
        assert other.name.startswith("mnist_jax-")
        assert other != first


def test_directories_of_the_environment_and_existing_ones_are_used(tmp_path, monkeypatch, caplog, no_home):
    monkeypatch.setenv("TFDS_DATA_DIR", "/proc/nowhere")
    assert find_directory("TFDS_DATA_DIR", "tfds") == Path("/proc/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tfds").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.F_OK and Path(path).exists())
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert find_directory("TFDS_DATA_DIR", "tfds") == tmp_path / "tfds"
    assert caplog.messages == []


def test_without_any_directory_nothing_is_cached(tmp_path, monkeypatch, no_home):
    def fail():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    monkeypatch.setattr("os.environ", {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"})
    prepare_matplotlib()
    assert "MPLCONFIGDIR" not in os.environ
    source, arrays = tmp_path / "source", make_arrays()
    source.write_text("data")
    for _ in range(2):
        assert load_cached([source], lambda: arrays) is arrays


def test_matplotlib_gets_a_directory_only_where_it_has_none(tmp_path, monkeypatch, no_home):
    monkeypatch.setattr("os.environ", {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"})
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_matplotlib()
    assert "MPLCONFIGDIR" not in os.environ
    monkeypatch.delenv("HOME")
    prepare_matplotlib()
    (temporary,) = tmp_path.glob("mnist_jax-*")
    assert os.environ["MPLCONFIGDIR"] == str(temporary / "matplotlib")
