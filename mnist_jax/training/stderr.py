"""``Stderr`` writes to stderr as long as that is possible."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import Any


class Stderr:
    """Writes to stderr; if the disk is full or the reader has gone away, the text is lost without an error.

    The text of threads that Python did not start is dropped: those of Orbax print errors that it also raises.
    """

    def __init__(self) -> None:
        self._stream: Any = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  (None after ``2>&-``)

    def write(self, text: str) -> None:
        """Writes a text."""
        if not isinstance(threading.current_thread(), threading._DummyThread):
            with contextlib.suppress(OSError):
                self._stream.write(text)

    def flush(self) -> None:
        """Flushes what was written."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
