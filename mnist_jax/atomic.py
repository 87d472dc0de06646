"""Writes a file or a directory whole or not at all, also through a kill or a power cut.

with atomic_write(path) as file:
    file.write(content)
with atomic_directory(path) as directory:
    (directory / "file.txt").write_text("content")
clear_parts(path.parent)   # deletes the leftovers of killed processes
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_RANDOM = "[0-9a-f]" * 8  # in the names of unfinished files
_ABANDONED_S = 3600.0  # no write takes an hour


@contextlib.contextmanager
def atomic_write(
    path: Path, mode: int = 0o666, *, durable: bool = True, exclusive: bool = False, locked: bool = False
) -> Iterator[BinaryIO]:
    """Opens a new file beside ``path`` and renames it to ``path`` at the end of the block.

    If the block raises, the new file is deleted and ``path`` stays as it was. A killed process leaves the new file
    behind, as ``NAME.<8 hexadecimal digits>.part``, which a later write of the same file deletes.

    Args:
        path: file to write or replace; its directory must exist.
        mode: permissions of the file, before the umask.
        durable: wait until the file is on the disk; False for a cache, which may be lost in a power cut.
        exclusive: never replace an existing file.
        locked: no other process can be writing the file, so what is unfinished can be deleted at any age.

    Raises:
        FileExistsError: ``exclusive``, and ``path`` exists.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with atomic_write(Path(directory) / "file.txt") as file:
        ...         _ = file.write(b"content")
        ...     [path.name for path in Path(directory).iterdir()]
        ['file.txt']
    """
    clear_parts(path.parent, glob.escape(path.name), 0.0 if locked else _ABANDONED_S)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb", opener=functools.partial(os.open, mode=mode)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if exclusive:
            _rename_to_new(part, path)
        else:
            part.replace(path)
        if durable:
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Creates a new directory beside ``path`` and renames it to ``path`` at the end of the block.

    If the block raises, the new directory is deleted. A killed process leaves it behind, as
    ``NAME.<8 hexadecimal digits>.part``; a later call for the same ``path`` deletes it.

    Args:
        path: directory to create, with its parents.

    Raises:
        FileExistsError: ``path`` exists.
        OSError: the directory cannot be written.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(path.parent, glob.escape(path.name))
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        yield part
        for each in (*part.iterdir(), part):
            sync(each)
        part.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _rename_to_new(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # a rename would replace ``path``
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        part.replace(path)


def sync(path: Path) -> None:
    """Waits until a file, or the list of files in a directory, is on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # not every system can open and sync a directory
        if not path.is_dir() or error.errno not in (errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ENOTSUP):
            raise


def is_part(path: Path) -> bool:
    """Returns whether a path has the name of an unfinished file of :func:`atomic_write`.

    Example:
        >>> is_part(Path("config.json.0badf00d.part")), is_part(Path("film.part"))
        (True, False)
    """
    return path.match(f"*.{_RANDOM}.part")


def clear_parts(directory: Path, name: str = "*", min_age_s: float = _ABANDONED_S) -> None:
    """Deletes the unfinished files and directories that killed processes left.

    Args:
        directory: directory of the files.
        name: name of the file that they were writing, or a pattern; default any.
        min_age_s: least seconds since an unfinished file was changed. The default spares the files of living processes;
            0 deletes every one, also if the clock was set back, and may be used only if no other process can be
            writing ``name``.
    """
    for part in directory.glob(f"{name}.{_RANDOM}.part"):
        with contextlib.suppress(OSError):
            if min_age_s <= 0 or time.time() - part.stat().st_mtime >= min_age_s:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
