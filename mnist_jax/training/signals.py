"""Turns SIGINT and SIGTERM into a flag that is polled between chunks of an epoch.

    with StopSignals() as stop:
        while training and not stop.requested:
            ...

A signal handler cannot run inside a compiled program, and an exception would ruin a save in progress. So the first
signal only sets a flag; a second one takes effect at once.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Stopped(KeyboardInterrupt):
    """Raised when a signal has stopped training and a checkpoint is saved.

    Attributes:
        exit_status: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: signal.Signals | None, step: int, path: Path, finished: bool = False) -> None:
        if finished:
            super().__init__(f"received a signal after training; the run in {path} is complete")
        else:
            super().__init__(
                f"saved at step {step} in {path}; to continue, add --workdir {path} --resume to the command"
            )
        self.exit_status = 128 + (number or signal.SIGINT)


class StopSignals:
    """Catches SIGINT and SIGTERM inside a ``with`` block; does nothing outside the main thread.

    Attributes:
        requested: the signal received, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
