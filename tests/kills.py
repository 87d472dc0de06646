"""Processes that are killed at a chosen change to their files, with nothing in them but Python's audit events."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PROGRAM = """
import os, signal, sys

number, roots, source = int(sys.argv[1]), tuple(sys.argv[2].split(os.pathsep)), sys.argv[3]
sys.argv[1:] = sys.argv[4:]
count = 0


def count_changes(event, args):
    global count
    if event == "open":
        is_change = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        is_change = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
    if is_change and isinstance(args[0], (str, bytes, os.PathLike)):
        if os.path.abspath(os.fsdecode(args[0])).startswith(roots):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(count_changes)
try:
    exec(source, {"__name__": "__main__"})
finally:
    print(count)
"""


def run_killed(
    number: int, roots: Sequence[Path], source: str, *args: str, seconds: float | None = None
) -> tuple[bool, str]:
    """Runs Python source, and kills it before it makes its ``number``-th change below ``roots``, or after ``seconds``.

    Returns:
        Whether the process was killed, and its stdout; the last line is the number of changes.
    """
    command = [sys.executable, "-c", _PROGRAM, str(number), os.pathsep.join(map(str, roots)), source, *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate(timeout=seconds or 120)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            assert seconds is not None, errors
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0, output


def count_changes(roots: Sequence[Path], source: str, *args: str) -> int:
    """Runs Python source to its end and returns the number of its changes below ``roots``."""
    killed, output = run_killed(0, roots, source, *args)
    assert not killed
    return int(output.split()[-1])


def run_module(name: str) -> str:
    """Source that runs a module as ``python -m`` does."""
    return f"import runpy; runpy.run_module('{name}', run_name='__main__', alter_sys=True)"
