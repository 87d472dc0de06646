import collections
import logging
import os
import re
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import assert_trees_equal, make_split

from mnist_jax import (
    CNN,
    MLP,
    InputError,
    LostProcessError,
    create_train_state,
    restore_checkpoint,
    save_checkpoint,
    train_step,
)
from mnist_jax.training import checkpoint, processes
from mnist_jax.training.checkpoint import clear_unfinished

pytestmark = pytest.mark.uses_adam
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def make_state(model=None, size=4, tx=TX, seed=0, **options):
    return create_train_state(model or MLP(hidden_sizes=(size,)), tx, jax.random.key(seed), **options)


def at_step(state, step):
    return state.replace(step=jnp.int32(step))


def saved_steps(directory):
    return sorted(int(path.name) for path in directory.iterdir())


def test_shapes_are_enough_to_restore(tmp_path):
    state = make_state(ema_decay=0.9)
    save_checkpoint(tmp_path, state)
    restored = restore_checkpoint(tmp_path, jax.eval_shape(lambda: make_state(ema_decay=0.9)))
    assert_trees_equal(restored, state.replace(recipe=restored.recipe))
    assert restored.step.devices() == state.step.devices()


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}])
def test_a_restored_state_is_the_saved_one_bit_for_bit(tmp_path, options):
    state, _ = train_step(make_state(**options), make_split(4)._asdict())
    save_checkpoint(tmp_path, state)
    like = make_state(seed=1, **options)
    restored = restore_checkpoint(tmp_path, like)
    assert_trees_equal(restored, state.replace(recipe=like.recipe))
    batch = make_split(4)._asdict()
    assert_trees_equal(train_step(restored, batch), train_step(state, batch))


def test_the_newest_and_the_best_are_kept(tmp_path):
    state = make_state()
    for step, accuracy in enumerate([0.1, 0.9, 0.5, 0.6, 0.7]):
        save_checkpoint(tmp_path, at_step(state, step), metrics={"validation_accuracy": accuracy}, keep=2)
    assert saved_steps(tmp_path) == [1, 3, 4]
    assert restore_checkpoint(tmp_path, state).step == 4
    assert restore_checkpoint(tmp_path, state, step=1).step == 1
    save_checkpoint(tmp_path, at_step(state, 5), keep=2)
    assert saved_steps(tmp_path) == [1, 4, 5]


@pytest.mark.parametrize("content", ["x", '{"validation_accuracy": "x"}', '{"validation_accuracy": NaN}', "[1]"])
def test_a_checkpoint_with_damaged_metrics_is_not_the_best(tmp_path, content):
    state = make_state()
    for step, accuracy in enumerate([0.9, 0.8, 0.5, 0.6]):
        save_checkpoint(tmp_path, at_step(state, step), metrics={"validation_accuracy": accuracy}, keep=1)
        if step == 0:
            (tmp_path / "0" / "metrics" / "metrics").write_text(content)
    assert saved_steps(tmp_path) == [1, 3]


def test_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, make_state(seed=0))
    save_checkpoint(tmp_path, make_state(seed=1))
    assert_trees_equal(restore_checkpoint(tmp_path, make_state()).params, make_state(seed=1).params)


def test_a_run_directory_will_do(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", make_state())
    assert restore_checkpoint(tmp_path, make_state()).step == 0


def damage(directory):
    largest = max(directory.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, caplog, capfd):
    state = make_state()
    for step in range(3):
        save_checkpoint(tmp_path, at_step(state, step))
    damage(tmp_path / "2")
    (tmp_path / "1" / "checksums.json").write_text("{")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        assert restore_checkpoint(tmp_path, state).step == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # a reader changes nothing
    assert re.search(r"/2: checkpoint skipped: default/.* is damaged$", caplog.messages[0])
    assert re.search(r"/1: checkpoint skipped: checksums.json or a file .* cannot be read", caplog.messages[1])
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        assert restore_checkpoint(tmp_path, state, set_aside=True).step == 0
    assert len(caplog.messages) == 2
    assert re.search(r"2.damaged: checkpoint set aside: default/.* is damaged$", caplog.messages[0])
    assert re.search(r"1.damaged: checkpoint set aside: checksums.json or a file .* cannot be read", caplog.messages[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1.damaged", "2.damaged"]
    assert "Traceback" not in capfd.readouterr().err
    damage(tmp_path / "0")
    with pytest.raises(InputError, match=r"expected an intact checkpoint, but all are damaged: steps \[0\]"):
        restore_checkpoint(tmp_path, state)


@pytest.mark.parametrize(
    "content",
    ["5", "{}", "[]", '{"metrics/metrics": 1}', '[[1, 2], ["a", 3]]', '{"a\\n\\u001b": 1}', f'{{"{"x" * 999}": 1}}'],
)
def test_wrong_checksums_are_damage(tmp_path, content, caplog):
    state = make_state()
    for step in range(2):
        save_checkpoint(tmp_path, at_step(state, step))
    (tmp_path / "1" / "checksums.json").write_text(content)
    assert restore_checkpoint(tmp_path, state).step == 0
    (line,) = caplog.messages
    assert line.isprintable()
    assert len(line.removeprefix(str(tmp_path))) < 200


def test_a_damaged_number_beside_a_checkpoint_is_damage(tmp_path):
    state = make_state()
    for step in range(2):
        save_checkpoint(tmp_path, at_step(state, step))
    (tmp_path / "1" / "metrics" / "metrics").write_text("x")
    assert restore_checkpoint(tmp_path, state, set_aside=True).step == 0
    save_checkpoint(tmp_path, at_step(state, 1))
    assert restore_checkpoint(tmp_path, state).step == 1


def test_without_checksums_it_is_unfinished(tmp_path, caplog):
    state = make_state()
    for step in range(2):
        save_checkpoint(tmp_path, at_step(state, step))
    (tmp_path / "1" / "checksums.json").unlink()
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        assert restore_checkpoint(tmp_path, state).step == 0
    message = f"{tmp_path}/1: checkpoint skipped: it has no checksums.json: it is unfinished, or not by this library"
    assert caplog.messages == [message]


def test_other_files_and_directories_are_no_damage(tmp_path, caplog):
    state = make_state()
    for step in range(3):
        save_checkpoint(tmp_path, at_step(state, step))
    (tmp_path / "2" / ".DS_Store").write_text("x")
    (tmp_path / "2" / "default" / ".nfs0001").write_text("x")
    for name in ("٣", "007", "7.tmp", "1.damaged"):
        (tmp_path / name).mkdir()
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        assert restore_checkpoint(tmp_path, state).step == 2
        assert caplog.messages == []
        damage(tmp_path / "2")
        damage(tmp_path / "1")
        assert restore_checkpoint(tmp_path, state, set_aside=True).step == 0
    assert {"1.damaged", "1.damaged-2", "2.damaged"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["mnist [1]", "a*b?", "{x},~", "\\n", "ü ☃", os.fsdecode(b"\xff\xfe")])
def test_any_path_will_do(tmp_path, name):
    state = make_state()
    for step in range(2):
        save_checkpoint(tmp_path / name, at_step(state, step), keep=1)
    assert_trees_equal(restore_checkpoint(tmp_path / name, make_state(seed=1)).params, state.params)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("RESOURCE_EXHAUSTED: Error writing\n[source locations]"), "no space left"),
        (OSError(28, "No space left on device"), "no space left"),
        (RuntimeError("two\nlines"), "two lines"),
    ],
)
def test_a_save_that_fails_is_one_line_and_leaves_the_others(tmp_path, monkeypatch, error, reason):
    state = make_state()
    save_checkpoint(tmp_path, state)

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(OSError, match=rf"/1: the checkpoint cannot be written \({reason}\); earlier ones are as they"):
        save_checkpoint(tmp_path, at_step(state, 1), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert restore_checkpoint(tmp_path, state).step == 0


def test_a_checkpoint_that_may_not_fit_on_the_disk_is_not_begun(tmp_path, monkeypatch):
    state = make_state()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**17
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(size - 1))
    monkeypatch.setattr(ocp.CheckpointManager, "save", lambda *args, **options: pytest.fail("saved"))
    with pytest.raises(OSError, match=r"/0: the checkpoint cannot be written \(no space left\)"):
        save_checkpoint(tmp_path, state)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(size))
    save_checkpoint(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_what_was_not_written_right_does_not_appear(tmp_path, monkeypatch):
    """As where Orbax skipped its merge, which left a checkpoint that nobody could read."""
    state, save = make_state(), ocp.CheckpointManager.save

    def save_badly(manager, step, **options):
        save(manager, step, **options)
        shutil.rmtree(manager.directory / str(step) / "default" / "d")

    monkeypatch.setattr(ocp.CheckpointManager, "save", save_badly)
    with pytest.raises(OSError, match="/0: the checkpoint cannot be written"):
        save_checkpoint(tmp_path, state)
    assert [*tmp_path.iterdir()] == []


def test_what_a_killed_process_left_is_cleared(tmp_path):
    save_checkpoint(tmp_path, make_state())
    for name in (".unfinished-x/3/default", "14.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir(parents=True)
    assert restore_checkpoint(tmp_path, make_state()).step == 0
    assert len([*tmp_path.iterdir()]) == 3  # a reader changes nothing
    clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    clear_unfinished(tmp_path / "nowhere")


@pytest.mark.slow
def test_readers_beside_a_training_always_find_a_whole_checkpoint(tmp_path, caplog):
    state = make_state()
    save_checkpoint(tmp_path, state)

    def train():
        with jax.numpy_dtype_promotion("standard"):
            for step in range(1, 16):
                save_checkpoint(tmp_path, at_step(state, step), keep=1)

    training = threading.Thread(target=train)
    training.start()
    found = []
    with caplog.at_level(logging.WARNING, "mnist_jax"):
        while training.is_alive():
            restored = restore_checkpoint(tmp_path, state)
            assert_trees_equal(restored.params, state.params)
            found.append(int(restored.step))
    training.join()
    assert found == sorted(found)
    assert len(set(found)) > 1
    assert caplog.messages == []
    assert [path.name for path in tmp_path.iterdir()] == ["15"]


def test_what_is_whole_is_never_set_aside(tmp_path, monkeypatch):
    state = make_state()
    save_checkpoint(tmp_path, state)

    def fail(*args, **options):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
    with pytest.raises(InputError, match=r"^.*/0: cannot be restored: out of memory$"):
        restore_checkpoint(tmp_path, state, set_aside=True)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_damaged_checkpoint_that_cannot_be_set_aside_is_one_line(tmp_path, monkeypatch):
    state = make_state()
    save_checkpoint(tmp_path, state)
    damage(tmp_path / "0")

    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match=r"/0: .* is damaged, and it cannot be set aside \(Permission denied\)$"):
        restore_checkpoint(tmp_path, state, set_aside=True)


def test_what_is_not_there_is_named_and_nothing_created(tmp_path):
    with pytest.raises(InputError, match="nowhere: expected a checkpoint, found none"):
        restore_checkpoint(tmp_path / "nowhere", make_state())
    assert not (tmp_path / "nowhere").exists()
    save_checkpoint(tmp_path, make_state())
    with pytest.raises(InputError, match="expected a checkpoint of step 7, found none"):
        restore_checkpoint(tmp_path, make_state(), step=7)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (lambda: make_state(size=5), r"expected params/Dense_0/bias as float32\[5\], got float32\[4\]"),
        (lambda: make_state(tx=optax.sgd(0.1)), r"expected opt_state/1/0/count as absent, got int32\[\]"),
        (lambda: make_state(ema_decay=0.9), r"expected ema_params/Dense_0/bias as float32\[4\], got absent"),
        (lambda: make_state(model=CNN()), r"expected params/Conv_0/bias as float32\[24\], got absent"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_leaf(tmp_path, like, message):
    save_checkpoint(tmp_path, make_state())
    with pytest.raises(InputError, match=message):
        restore_checkpoint(tmp_path, like())


def test_a_checkpoint_is_on_the_disk_before_it_appears(tmp_path, monkeypatch):
    """Each file that Orbax wrote, each directory, and after the renaming the list of checkpoints."""
    synced, fsync = set(), os.fsync

    def record(descriptor):
        found = os.fstat(descriptor)
        synced.add((found.st_ino, (tmp_path / "new" / "0").exists()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", record)
    save_checkpoint(tmp_path / "new", make_state())
    path = tmp_path / "new" / "0"
    files = [path, *path.rglob("*")]
    assert len(files) > 10
    expected = {(each.stat().st_ino, False) for each in files}
    expected |= {(each.stat().st_ino, True) for each in (tmp_path / "new", tmp_path)}
    assert synced >= expected


def test_a_process_lost_meanwhile_is_named_as_such(tmp_path, monkeypatch):
    def lose(*args):
        raise ValueError("UNKNOWN: Gloo AllReduce failed: Connection closed by peer")

    state = make_state()
    save_checkpoint(tmp_path, state)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: 0)
    monkeypatch.setattr(processes, "_exchange", lambda own: [own, own])
    monkeypatch.setattr(checkpoint, "_write", lose)
    monkeypatch.setattr(checkpoint, "_check_fits", lose)
    for call in (lambda: save_checkpoint(tmp_path, state), lambda: restore_checkpoint(tmp_path, state, set_aside=True)):
        with pytest.raises(LostProcessError, match="^another process of the run has ended .UNKNOWN: Gloo AllReduce"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
