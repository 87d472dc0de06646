import os
import stat

import pytest

from mnist_jax.atomic import atomic_write


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
