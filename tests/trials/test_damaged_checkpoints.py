"""Damage to each file of a run: the newest intact parameters come back bit for bit, or one line says what is wrong."""

import contextlib
import dataclasses
import itertools
import logging
import shutil
from pathlib import Path

import pytest
from conftest import assert_trees_equal

from mnist_jax import InputError, TrainConfig, fit, load_run, restore_checkpoint
from mnist_jax.runs import runs_table
from mnist_jax.training.runs import find_runs

pytestmark = pytest.mark.uses_adam
CONFIG = TrainConfig(data="digits", hidden_sizes=(4,), batch_size=450, epochs=3, quiet=True)
STEPS = [3, 6, 9]  # of the checkpoints
RUN_FILES = ["config.json", "data.json", "metrics.jsonl", "summary.json"]


def flip(content, index):
    flipped = bytearray(content)
    flipped[index] ^= 1
    return bytes(flipped)


# Each returns the new content, or None for a file that is removed; what is empty cannot be flipped.
DAMAGES = {
    "removed": lambda content: None,
    "emptied": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "first bit": lambda content: flip(content, 0) if content else content,
    "middle bit": lambda content: flip(content, len(content) // 2) if content else content,
    "last bit": lambda content: flip(content, -1) if content else content,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with three checkpoints; tests leave it as it is."""
    return fit(dataclasses.replace(CONFIG, workdir=str(tmp_path_factory.mktemp("damaged") / "run")))


@pytest.fixture(scope="module")
def older(run):
    """The state before the last epoch."""
    return restore_checkpoint(run.workdir, run.state, step=STEPS[1])


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run.workdir, tmp_path / "run"))


def damage_file(path, damage):
    """Damages a file; returns whether its content differs."""
    content = path.read_bytes()
    new = DAMAGES[damage](content)
    if new is None:
        path.unlink()
    else:
        path.write_bytes(new)
    return new != content


@contextlib.contextmanager
def damaged(path, damage):
    """Damages a file inside the block; yields whether its content differs."""
    content = path.read_bytes()
    yield damage_file(path, damage)
    path.write_bytes(content)


def listing(directory):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in directory.rglob("*")
    }


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def check_reader(run, older, path, damage, caplog):
    """A reader skips the newest checkpoint if one of its files differs, and changes nothing."""
    caplog.clear()
    with damaged(path, damage) as differs:
        before = listing(run.workdir)
        _, state = load_run(run.workdir)
        assert listing(run.workdir) == before
    newest = run.state
    assert_trees_equal(state, (older if differs else newest).replace(recipe=state.recipe))
    assert len(caplog.messages) == differs
    assert all(f"{STEPS[-1]}: checkpoint skipped: " in line and "\n" not in line for line in caplog.messages)


def check_resumed(run, directory):
    """A resumed run ends as if it had not been interrupted."""
    resumed = fit(dataclasses.replace(CONFIG, workdir=str(directory), resume=True))
    assert_trees_equal(resumed.state, run.state.replace(recipe=resumed.state.recipe))
    assert [line["epoch"] for line in resumed.history] == [1, 2, 3]
    assert resumed.summary["test_loss"] == run.summary["test_loss"]


def test_a_reader_skips_a_checkpoint_with_any_damaged_file(run, older, caplog):
    caplog.set_level(logging.WARNING, "mnist_jax")
    damages = itertools.cycle(DAMAGES)
    for path in files_of(run.workdir / "checkpoints" / str(STEPS[-1])):
        check_reader(run, older, path, next(damages), caplog)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reader_skips_a_checkpoint_with_any_damage_to_any_file(run, older, damage, caplog):
    caplog.set_level(logging.WARNING, "mnist_jax")
    files = files_of(run.workdir / "checkpoints" / str(STEPS[-1]))
    assert len(files) > 10
    for path in files:
        check_reader(run, older, path, damage, caplog)


@pytest.mark.parametrize("index", [0, *(pytest.param(index, marks=pytest.mark.slow) for index in range(1, 14))])
def test_a_run_resumes_from_the_newest_intact_checkpoint(run, copy, index):
    files = files_of(copy / "checkpoints" / str(STEPS[-1]))
    differs = damage_file(files[index % len(files)], [*DAMAGES][index % len(DAMAGES)])
    check_resumed(run, copy)
    names = {path.name for path in (copy / "checkpoints").iterdir()}
    assert names == {*map(str, STEPS), *([f"{STEPS[-1]}.damaged"] if differs else [])}


@pytest.mark.parametrize("damage", [pytest.param(each, marks=pytest.mark.slow) for each in DAMAGES])
def test_without_an_intact_checkpoint_it_is_one_line(copy, damage):
    for step in STEPS:
        damage_file(max(files_of(copy / "checkpoints" / str(step)), key=lambda path: path.stat().st_size), damage)
    before = listing(copy)
    message = r"checkpoints: expected an intact checkpoint, but all are damaged: steps \[3, 6, 9\]$"
    with pytest.raises(InputError, match=message):
        load_run(copy)
    assert listing(copy) == before
    with pytest.raises(InputError, match=message):
        fit(dataclasses.replace(CONFIG, workdir=str(copy), resume=True))


def check_run_file(run, path, damage, resume):
    directory = path.parent
    with damaged(path, damage):
        before = listing(directory)
        try:
            _, state = load_run(directory)
            assert_trees_equal(state, run.state.replace(recipe=state.recipe))
        except InputError as error:
            assert str(directory) in str(error)
            assert "\n" not in str(error)
        runs = find_runs(directory.parent)
        assert len(runs_table(runs).splitlines()) == 1 + len(runs)
        assert listing(directory) == before
        if resume:
            try:
                check_resumed(run, directory)
            except InputError as error:
                assert "\n" not in str(error)
                assert path.name in str(error)
                assert listing(directory) == before


@pytest.mark.parametrize("name", RUN_FILES)
def test_damage_to_a_small_file_of_a_run_is_one_line_or_does_not_matter(run, copy, name):
    for damage in DAMAGES:
        check_run_file(run, copy / name, damage, resume=False)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_run_with_a_damaged_small_file_resumes_or_says_why_not(run, copy, name, damage):
    check_run_file(run, copy / name, damage, resume=True)
