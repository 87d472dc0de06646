import errno
import os
import stat
import time

import pytest

from mnist_jax.atomic import atomic_directory, atomic_write, clear_parts, sync


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with atomic_write(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"after")
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "parent" / "directory"
    with atomic_directory(path) as part:
        (part / "file").write_text("content")
        assert not path.exists()
    assert (path / "file").read_text() == "content"
    assert [*path.parent.iterdir()] == [path]
    with pytest.raises(FileExistsError), atomic_directory(path):
        pass
    with pytest.raises(ValueError), atomic_directory(tmp_path / "parent" / "other") as part:
        (part / "file").write_text("content")
        raise ValueError
    assert [*path.parent.iterdir()] == [path]


def test_two_writers_at_once_do_not_meet(tmp_path):
    with atomic_write(tmp_path / "file") as first:
        with atomic_write(tmp_path / "file") as second:
            second.write(b"second")
        first.write(b"first")
    assert (tmp_path / "file").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_target_that_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "directory") as file:
        file.write(b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "missing" / "file"):
        pass


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        for name, mode in (("shared", 0o666), ("private", 0o600)):
            with atomic_write(tmp_path / name, mode):
                pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_the_disk_before_it_appears_under_its_name(tmp_path, monkeypatch, durable):
    events, fsync = [], os.fsync

    def record(descriptor):
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(("directory" if is_directory else "file", (tmp_path / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", record)
    with atomic_write(tmp_path / "file", durable=durable) as file:
        file.write(b"content")
    assert events == ([("file", False), ("directory", True)] if durable else [])


def test_what_killed_processes_left_is_deleted_but_no_file_that_is_being_written(tmp_path):
    for name in ("one.0badf00d.part", "two.0badf00d.part", "three.12345678.part", "mine.part", "one"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / "two.0badf00d.part", (0, time.time() - 60))
    clear_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"two.0badf00d.part", "mine.part", "one"}
    clear_parts(tmp_path, "one", min_age_s=0)
    assert (tmp_path / "two.0badf00d.part").exists()
    clear_parts(tmp_path, "two", min_age_s=0)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.part", "one"}
    clear_parts(tmp_path / "missing")


def test_a_locked_file_has_no_leftovers_even_if_the_clock_was_set_back(tmp_path):
    part = tmp_path / "figure.png.0badf00d.part"
    part.write_text("")
    os.utime(part, (time.time() + 86_400,) * 2)
    with atomic_write(tmp_path / "figure.png", locked=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("has_links", [True, False])
def test_an_exclusive_file_replaces_none_that_appears_meanwhile(tmp_path, monkeypatch, has_links):
    if not has_links:

        def refuse(source, target):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr("os.link", refuse)
    path = tmp_path / "file"
    with atomic_write(path, exclusive=True) as file:
        file.write(b"first")
    with pytest.raises(FileExistsError), atomic_write(path, exclusive=True) as file:
        file.write(b"second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "is_error"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_directory_that_a_system_cannot_sync_is_no_error_but_a_broken_disk_is(
    tmp_path, monkeypatch, number, is_error
):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    if is_error:
        with pytest.raises(OSError, match="Input/output error"):
            sync(tmp_path)
    else:
        sync(tmp_path)
