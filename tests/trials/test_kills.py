"""Kills with signal 9 at every kind of moment: what follows equals what an uninterrupted process gives, bit for bit."""

import os
import re
import shutil
import time

import numpy as np
import pytest
from conftest import assert_trees_equal, make_arrays, write_idx_files
from kills import count_changes, run_killed, run_module

from mnist_jax import load_dataset, load_export, load_run
from mnist_jax.evaluate import main as evaluate
from mnist_jax.export.__main__ import main as export
from mnist_jax.sweep.__main__ import main as sweep
from mnist_jax.train import main as train

pytestmark = [pytest.mark.slow, pytest.mark.uses_adam]

TRAIN = ("--data", "digits", "--hidden-sizes", "8", "--epochs", "4", "--batch-size", "256", "--quiet")
SWEEP = (*TRAIN, "--epochs", "1", "--vary", "learning_rate=1e-3:1e-2", "--trials", "3", "--population", "1")
_TIMES = re.compile(r'"(?:seconds|examples_per_second|total|import|data|compile|train|evaluate|start|write)": [\d.e-]+')


def content(directory):
    """The files of a directory, without what depends on time: JSON texts without seconds, names alone of the others."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = re.sub(r"tfevents\..*", "tfevents", str(path.relative_to(directory)))
        if path.suffix in (".json", ".jsonl") and "checkpoints" not in name:
            text = path.read_text().replace(str(directory), "DIRECTORY")
            found[name] = _TIMES.sub('"seconds": 0', text).replace('"resume": true', '"resume": false')
        elif path.suffix == ".csv":
            found[name] = path.read_text()
        else:
            found[name] = ""
    return {name: text for name, text in found.items() if not re.search(r"checkpoints/\d+/", name)}


def spread(total, number):
    """``number`` of the moments 1 to ``total``, evenly; not the last few, as their number varies by one or two."""
    return sorted({round(moment) for moment in np.linspace(1, max(1, 0.97 * total), number)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run, its number of changes and its seconds."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    start = time.perf_counter()
    total = count_changes([workdir], run_module("mnist_jax.train"), *TRAIN, "--workdir", str(workdir))
    return workdir, total, time.perf_counter() - start


def check_training(workdir, finished):
    """Goes on with a killed run and compares it with the uninterrupted one."""
    flags = (*TRAIN, "--workdir", str(workdir))
    assert train([*flags, "--resume"] if (workdir / "config.json").exists() else flags) == 0
    assert_trees_equal(load_run(workdir)[1], load_run(finished)[1])
    assert content(workdir) == content(finished)


@pytest.mark.parametrize("part", range(5))
def test_a_training_killed_at_a_change_to_its_files(finished, tmp_path, part):
    expected, total, _ = finished
    for number in spread(total, 25)[part::5]:
        workdir = tmp_path / str(number)
        killed, _ = run_killed(number, [workdir], run_module("mnist_jax.train"), *TRAIN, "--workdir", str(workdir))
        assert killed
        check_training(workdir, expected)


def test_a_training_killed_at_any_time(finished, tmp_path):
    expected, _, whole = finished
    for index, seconds in enumerate(np.random.default_rng(0).uniform(0.1, whole, 8)):
        workdir = tmp_path / str(index)
        source, flags = run_module("mnist_jax.train"), (*TRAIN, "--workdir", str(workdir))
        run_killed(0, [workdir], source, *flags, seconds=seconds)
        if not (workdir / "summary.json").exists():
            check_training(workdir, expected)


def test_a_sweep_killed_at_a_change_to_its_files(tmp_path):
    expected = tmp_path / "expected"
    source = run_module("mnist_jax.sweep")
    total = count_changes([expected], source, *SWEEP, "--workdir", str(expected))
    for number in spread(total, 6):
        workdir = tmp_path / str(number)
        flags = (*SWEEP, "--workdir", str(workdir))
        assert run_killed(number, [workdir], source, *flags)[0]
        assert sweep([*flags, "--resume"] if (workdir / "sweep.json").exists() else flags) == 0
        assert content(workdir) == content(expected)


def test_an_evaluation_killed_at_a_change_to_its_files(finished, tmp_path):
    expected = tmp_path / "expected"
    shutil.copytree(finished[0], expected)
    source = run_module("mnist_jax.evaluate")
    total = count_changes([expected], source, str(expected))
    for number in spread(total, 5):
        workdir = tmp_path / str(number)
        shutil.copytree(finished[0], workdir)
        assert run_killed(number, [workdir], source, str(workdir))[0]
        assert_trees_equal(load_run(workdir)[1], load_run(finished[0])[1])
        assert evaluate([str(workdir)]) == 0
        assert content(workdir) == content(expected)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_an_export_killed_at_a_change_to_its_files(finished, tmp_path, name):
    directory = tmp_path / "exports"
    directory.mkdir()
    flags = (str(finished[0]), "--format", name.split(".")[1], "--output")
    source = run_module("mnist_jax.export")
    total = count_changes([directory], source, *flags, str(directory / name))
    expected = load_export(directory / name)[1]
    for number in spread(total, 2):
        output = directory / f"{number}-{name}"
        assert run_killed(number, [directory], source, *flags, str(output))[0]
        if output.exists():
            assert_trees_equal(load_export(output)[1], expected)
            output.unlink()
        assert export([*flags, str(output)]) == 0
        assert_trees_equal(load_export(output)[1], expected)


def test_a_cache_killed_at_a_change_to_its_files(tmp_path, monkeypatch):
    arrays = make_arrays()
    data = write_idx_files(tmp_path / "small", arrays)
    source = "import sys, mnist_jax; mnist_jax.load_dataset(sys.argv[1], num_validation=6)"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "counted"))
    total = count_changes([tmp_path / "counted"], source, str(data))
    for number in range(1, total + 1):
        cache = tmp_path / str(number)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        assert run_killed(number, [cache], source, str(data))[0]
        for part in cache.rglob("*.part"):
            os.utime(part, (0, 0))  # as if the kill was long ago
        for _ in range(2):
            test = load_dataset(str(data), num_validation=6).test
            np.testing.assert_array_equal(test.image, arrays["test_image"])
            np.testing.assert_array_equal(test.label, arrays["test_label"])
        assert [path.suffix for path in (cache / "mnist_jax").iterdir()] == [".npz"]
