"""Finds the pictures that a command line names: files, standard input, and all pictures in a folder.

sources, errors = find_sources(["seven.jpg", "digits"])
sources[1].name, sources[1].folder                        # ("digits/7/a.png", "7")
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mnist_jax.errors import InputError
from mnist_jax.pictures.decode import PICTURE_SUFFIXES

_SHOWN = re.compile(r"-seen(-\d+)?\.png$")  # written by ``predict --show``


@dataclasses.dataclass(frozen=True)
class Source:
    """Names a picture or another file to read.

    Attributes:
        path: path of the file; ``-`` is standard input.
        folder: for a file found inside a given folder: the name of the subfolder that holds it, if it is in one.

    Example:
        >>> Source("digits/7/a.png", "7").name, Source("-").name
        ('digits/7/a.png', 'stdin')
    """

    path: str
    folder: str | None = None

    @property
    def name(self) -> str:
        """Name of the file for messages and results."""
        return "stdin" if self.path == "-" else self.path


def find_sources(paths: Sequence[str]) -> tuple[list[Source], list[InputError]]:
    """Replaces each folder by its pictures, and keeps the other paths as they are.

    A folder is searched recursively. Its hidden files and folders, files that ``--show`` wrote and files without the
    suffix of a picture are skipped.

    Returns:
        The files, those of a folder in the order of their names, and an error for each folder that has no pictures or
        cannot be read.

    Example:
        >>> find_sources(["seven.jpg", "-"])
        ([Source(path='seven.jpg', folder=None), Source(path='-', folder=None)], [])
    """
    sources, errors = [], []
    for path in paths:
        if path == "-" or not Path(path).is_dir():
            sources.append(Source(path))
            continue
        try:
            sources += _find_pictures(Path(path))
        except InputError as error:
            errors.append(error)
    return sources, errors


def _find_pictures(folder: Path) -> list[Source]:
    found = []
    for directory, subfolders, names in os.walk(folder, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(directory, name) for name in names if _is_picture(name)]
    if not found:
        raise InputError(f"{folder}: expected a folder with pictures ({', '.join(PICTURE_SUFFIXES)}), found none")
    return [Source(str(path), None if path.parent == folder else path.parent.name) for path in sorted(found)]


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".") and not _SHOWN.search(name)


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
