"""Reads JSON that may be damaged or hostile.

summary = read_json(Path("runs/mine/summary.json"))
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

_MAX_DEPTH = 100
_LARGEST_FILE = 2**24  # bytes; a run of 10,000 epochs has 3 MB of metrics


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: a file of at most 16 MiB.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large or is not JSON.
    """
    return parse_json(read_text(path))


def read_text(path: Path) -> str:
    """Reads a file in UTF-8.

    Args:
        path: a file of at most 16 MiB.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large or is not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"larger than {_LARGEST_FILE} bytes")
    return content.decode()


def is_number(value: Any) -> TypeGuard[float]:
    """Returns whether a JSON value is a finite number that fits a float.

    Example:
        >>> [is_number(value) for value in (3, 0.5, True, "3", float("nan"), 10**400)]
        [True, True, False, False, False, False]
    """
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def parse_json(text: str | bytes) -> Any:
    """Parses JSON like ``json.loads``, but with a ``ValueError`` for every kind of bad input.

    Raises:
        ValueError: the text is not JSON, not UTF-8, or nested more than 100 levels deep.

    Example:
        >>> parse_json("[" * 200_000)
        Traceback (most recent call last):
        ValueError: nested too deeply
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [child for each in level for child in _children(each)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
