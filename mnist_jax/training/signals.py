"""Handles SIGINT and SIGTERM: a command leaves at once, and training stops at the end of a chunk.

    restore = leave_on_signals()        # a command, until restore()
    with StopSignals() as stop:         # training
        while not stop.requested:
            ...

Neither raises an exception: a callback of JAX may swallow it, and it may ruin an import or a save in progress. A signal
that was ignored before, as SIGINT is after ``command &`` in a script, stays ignored. Outside the main thread nothing is
handled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from mnist_jax.training import processes

if TYPE_CHECKING:
    from pathlib import Path


_said_why = False  # whether the command has printed its last line


def leave_on_signals() -> Callable[[], None]:
    """Makes SIGINT and SIGTERM end the process at once, with exit status 130 or 143.

    Returns:
        A function that restores the handlers.
    """
    global _said_why
    _said_why = False
    return _handle_with(_leave)


def say_why(line: str) -> None:
    """Prints the last line of a command that a signal has stopped; a further signal ends the process without one."""
    global _said_why
    _said_why = True
    print(line, file=sys.stderr)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process without running anything else: no destructor of XLA, no ``finally``, no ``atexit``."""
    del frame
    _handle_with(lambda number, frame: os._exit(128 + number))  # a second signal need not wait for a blocked stderr
    if sys.stderr is not None and not _said_why:  # without stderr, file descriptor 2 may be any file
        with contextlib.suppress(OSError):
            os.write(2, b"stopped\n")
    os._exit(128 + number)


def _handle_with(handler: Callable[[int, FrameType | None], None]) -> Callable[[], None]:
    """Sets the handler of both signals, and returns a function that restores their handlers."""
    is_main = threading.current_thread() is threading.main_thread()
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    kept = (signal.SIG_IGN, None)  # None: a handler that was not set by Python, which cannot restore it
    previous = {number: each for number, each in found.items() if each not in kept}
    for number in previous:
        signal.signal(number, handler)

    def restore() -> None:
        while previous:  # once: somebody else may have set a handler meanwhile
            signal.signal(*previous.popitem())

    return restore


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
    """Turns the first SIGINT or SIGTERM inside a ``with`` block into a flag; a second one acts as before the block.

    Several processes of one run see a flag at the same call of :meth:`poll`, whichever of them got the signal.

    Attributes:
        requested: the signal received, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._received: signal.Signals | None = None
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> StopSignals:
        self._restore = _handle_with(self._handle)
        if self._received:  # since the line above began
            self._restore()
        return self

    def poll(self, stop: bool) -> bool:
        """Agrees with the other processes on ``requested``, and on whether one of them wants to ``stop`` otherwise."""
        number, stops = processes.largest(self._received or self.requested or 0, stop)
        self.requested = signal.Signals(number) if number else None
        return bool(stops)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = signal.Signals(number)
        if processes.count() == 1:
            self.requested = self._received
        self._restore()
