import contextlib
import errno
import fcntl
import os

import pytest

from mnist_jax import InputError
from mnist_jax.training.workdir import lock_directory, new_directory, write_whole


def test_new_directories_of_one_second_have_different_names(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "now")
    paths = [new_directory(tmp_path / "runs", "digits-mlp") for _ in range(3)]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "runs/digits-mlp-now",
        "runs/digits-mlp-now-1",
        "runs/digits-mlp-now-2",
    ]
    assert all(path.is_dir() for path in paths)


def test_a_locked_directory_is_free_again_whatever_happens(tmp_path):
    path = tmp_path / "new" / "run"
    with pytest.raises(RuntimeError), lock_directory(path):
        with (
            pytest.raises(
                InputError, match="^workdir .*run is in use by another process: wait for it, or name another directory$"
            ),
            lock_directory(path),
        ):
            raise AssertionError
        raise RuntimeError
    assert list(path.iterdir()) == []
    with lock_directory(path):
        pass


def test_a_deleted_lock_is_no_lock(tmp_path, monkeypatch):
    """The holder deletes its lock file after another process has opened it, and a third makes a new one."""
    first, third = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(lock_directory(tmp_path))
    with monkeypatch.context() as patch:
        flock = fcntl.flock

        def change_hands(file, operation):
            patch.undo()
            first.close()
            third.enter_context(lock_directory(tmp_path))
            return flock(file, operation)

        patch.setattr("fcntl.flock", change_hands)
        with pytest.raises(InputError, match="is in use by another process"), lock_directory(tmp_path):
            raise AssertionError("two processes hold the lock")
    third.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "one\n")
    (tmp_path / "file.0badf00d.part").write_text("left by a killed process")
    write_whole(path, "two\n")
    assert path.read_text() == "two\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_no_bad_input(tmp_path, monkeypatch):
    def fill(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fill)
    with pytest.raises(OSError, match=r": cannot be written \(no space left\)$") as caught:
        write_whole(tmp_path / "file", "text")
    assert not isinstance(caught.value, InputError)
    assert list(tmp_path.iterdir()) == []
