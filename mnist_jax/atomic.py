"""Writes a file whole or not at all.

with atomic_write(path) as file:
    file.write(content)
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a new file beside ``path`` and renames it to ``path`` at the end of the block.

    If the block raises, the new file is deleted and ``path`` stays as it was. A killed process leaves the new file
    behind, as ``NAME.<8 hexadecimal digits>.part``.

    Args:
        path: file to write or replace; its directory must exist.
        mode: permissions of the file, before the umask.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with atomic_write(Path(directory) / "file.txt") as file:
        ...         _ = file.write(b"content")
        ...     [path.name for path in Path(directory).iterdir()]
        ['file.txt']
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb", opener=functools.partial(os.open, mode=mode)) as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
