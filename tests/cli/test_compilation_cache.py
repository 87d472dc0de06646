"""Compiled programs that commands keep: where, for whom, how many, and that they change no result."""

import importlib.metadata
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from mnist_jax import load_run
from mnist_jax.cli import compilation_cache
from mnist_jax.cli.compilation_cache import use_compilation_cache
from mnist_jax.cli.flags import OneLineParser, add_jax_flags

TRAIN = ("-m", "mnist_jax.train", "--data", "digits", "--hidden-sizes", "8", "--epochs", "1", "--quiet", "--workdir")
VARIABLES = [
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_ENABLE_COMPILATION_CACHE",
    *(
        f"JAX_PERSISTENT_CACHE_{name}"
        for name in ("MIN_COMPILE_TIME_SECS", "MIN_ENTRY_SIZE_BYTES", "ENABLE_XLA_CACHES")
    ),
]
KEEPS = not importlib.metadata.version("jaxlib").startswith("0.10.")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """As in a command that has not imported JAX; ``$XDG_CACHE_HOME`` is a new directory."""
    path = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"jaxlib": "0.12.0"}[name])
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    return path / "mnist_jax" / "programs"


def no_version(name):
    raise importlib.metadata.PackageNotFoundError(name)


def unreadable():
    raise PermissionError("/proc/cpuinfo")


def directory():
    return Path(os.environ.pop("JAX_COMPILATION_CACHE_DIR"))


def test_the_directory_is_private_and_limited(cache):
    use_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(32 * 2**20)
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    found = directory()
    assert found.parent == cache
    assert found.name.startswith("0.12.0-")
    assert found.is_dir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_each_processor_number_of_cores_and_version_has_its_own(cache, monkeypatch):
    def find():
        use_compilation_cache()
        return directory()

    found = [find(), find()]
    assert found[0] == found[1]
    monkeypatch.setenv("PJRT_NPROC", "1")
    found.append(find())
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    found.append(find())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.13.0")
    found.append(find())
    monkeypatch.setattr(compilation_cache, "_describe_processor", lambda: "flags : avx1024")
    found.append(find())
    assert len(set(found)) == 5


def test_what_was_not_used_for_the_longest_time_is_deleted(cache, monkeypatch):
    found = []
    for index in range(5):
        monkeypatch.setenv("PJRT_NPROC", str(index))
        use_compilation_cache()
        found.append(directory())
        for suffix in ("cache", "atime"):
            (found[-1] / f"program-{suffix}").write_bytes(b"")
            os.utime(found[-1] / f"program-{suffix}", (index, index))
        os.utime(found[-1], (0, 0))
        if index == 3:
            os.utime(found[0] / "program-atime", (10, 10))
    assert sorted(cache.iterdir()) == sorted([found[0], *found[2:]])


def test_what_was_used_today_and_files_of_others_stay(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    (cache / ".DS_Store").write_bytes(b"")
    for index in range(6):
        monkeypatch.setenv("PJRT_NPROC", str(index))
        use_compilation_cache()
        directory()
    assert len(list(cache.iterdir())) == 7


def test_a_half_written_program_is_deleted(cache):
    use_compilation_cache()
    found = directory()
    for name in ("whole-cache", "whole-atime", "half-cache", "being-written-cache"):
        (found / name).write_bytes(b"")
        if not name.startswith("being"):
            os.utime(found / name, (0, 0))
    use_compilation_cache()
    assert sorted(path.name for path in found.iterdir()) == ["being-written-cache", "whole-atime", "whole-cache"]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o750])
def test_a_directory_that_is_open_to_others_is_not_used(cache, caplog, mode):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    use_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert caplog.messages == [f"{cache} is not private (mode 700): compiled programs are not kept"]


def test_no_other_user_can_replace_the_directory(cache):
    cache.parent.mkdir(parents=True)
    cache.parent.chmod(0o775)
    use_compilation_cache()
    assert stat.S_IMODE(cache.parent.stat().st_mode) == 0o755


def test_a_directory_of_another_user_is_not_used(cache, caplog, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    use_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert caplog.messages == [f"{cache} is not private (mode 700): compiled programs are not kept"]


@pytest.mark.parametrize(
    "reason", ["the user's", "imported", "0.10", "no jaxlib", "unknown processor", "unreadable", "a file"]
)
def test_nothing_is_kept(cache, monkeypatch, caplog, reason):
    if reason == "the user's":
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    elif reason == "imported":
        monkeypatch.setitem(sys.modules, "jax", None)
    elif reason == "0.10":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.10.1")
    elif reason == "no jaxlib":
        monkeypatch.setattr("importlib.metadata.version", no_version)
    elif reason == "unreadable":
        monkeypatch.setattr(compilation_cache, "_describe_processor", unreadable)
    elif reason == "unknown processor":
        monkeypatch.setattr(compilation_cache, "_describe_processor", lambda: "")
    else:
        cache.parent.parent.write_text("in the way")
    before = dict(os.environ)
    use_compilation_cache()
    assert dict(os.environ) == before
    assert not cache.exists()
    assert caplog.messages == []


def test_the_processor_is_described_by_what_programs_depend_on(monkeypatch):
    info = (
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 2\ncpu MHz\t\t: 2596.1\nflags\t\t: fpu avx\n\nmodel\t: 3"
    )
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", lambda path: info if path == Path("/proc/cpuinfo") else "")
    assert compilation_cache._describe_processor() == "vendor_id\t: GenuineIntel\nmodel\t\t: 2\nflags\t\t: fpu avx"


def test_the_flag_switches_it_off(cache):
    parser = OneLineParser("prog")
    add_jax_flags(parser)
    parser.parse_args(["--no-compilation-cache"])
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert os.environ.pop("JAX_ENABLE_COMPILATION_CACHE") == "false"
    parser.parse_args([])
    assert directory().parent == cache


@pytest.mark.slow
@pytest.mark.uses_adam
def test_the_second_run_finds_each_program_and_has_the_same_bits(run_python, tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    cache, params, kept, used = tmp_path / "cache", [], [], []
    for workdir in (tmp_path / "first", tmp_path / "second"):
        done = run_python(*TRAIN, str(workdir), XDG_CACHE_HOME=str(cache))
        assert (done.returncode, done.stderr) == (0, "")
        params.append(load_run(workdir)[1].params["Dense_0"]["kernel"])
        kept.append(sorted(path.name for path in cache.rglob("*-cache")))
        used.append({path.name: path.read_bytes() for path in cache.rglob("*-atime")})  # JAX writes it on each use
    np.testing.assert_array_equal(*params)
    assert kept[0] == kept[1]
    assert (len(kept[0]) >= 5) == KEEPS
    assert all(used[0][name] != used[1][name] for name in used[0])


@pytest.mark.slow
def test_without_the_cache_a_directory_of_the_user_is_not_touched_either(run_python, tmp_path):
    (tmp_path / "mine").mkdir()
    mine = str(tmp_path / "mine")
    done = run_python(*TRAIN, str(tmp_path / "run"), "--no-compilation-cache", JAX_COMPILATION_CACHE_DIR=mine)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list((tmp_path / "mine").iterdir())
