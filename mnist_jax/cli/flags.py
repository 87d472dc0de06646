"""What every command shares: flags from a dataclass, and errors as one line and an exit status.

    def main(args=None) -> int:
        return run_command(lambda: train(parse_flags(TrainConfig(), args, "python -m mnist_jax.train")))

Imports neither JAX nor tyro on its own account, so that ``--help`` stays instant.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from mnist_jax.errors import InputError, NonFiniteLossError

T = TypeVar("T")


def parse_flags(default: T, args: Sequence[str] | None, prog: str) -> T:
    """The flags in ``args`` as a dataclass like ``default``, which supplies what is not given.

    Args:
        default: an instance of a dataclass; its fields are the flags.
        args: the command line without the program's name; ``sys.argv[1:]`` if None.
        prog: the program's name, as ``--help`` shows it.

    Raises:
        InputError: a flag is unknown or its value does not fit.
        SystemExit: with status 0, after ``--help``.
    """
    if os.environ.get("NO_COLOR"):  # https://no-color.org, which tyro does not ask for
        os.environ["PYTHON_TYRO_ANSI_CODES"] = "False"
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(type(default), default=default, args=args, prog=prog)
    except SystemExit as exit_:
        if not exit_.code:
            raise
    raise InputError(_one_line(complaint.getvalue()))


class OneLineParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that says what is wrong in one line, as an ``InputError``, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Raises it."""
        raise InputError(message)


def _one_line(box: str) -> str:
    """The message inside one of tyro's boxes: what stands between its title and the next rule."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [row.strip(" │") for row in text.splitlines()[1:]]

    def is_rule(row: str) -> bool:
        return not row.strip("─-╰╯")

    message = " ".join(itertools.takewhile(lambda row: not is_rule(row), itertools.dropwhile(is_rule, rows)))
    return re.sub(r"^Error parsing \w+: ", "", message) or " ".join(text.split())


def run_command(command: Callable[[], object]) -> int:
    """Runs a command and returns its exit status; what the user must know goes to stderr in one line.

    Returns:
        0 if all went well, 1 after a non-finite loss or where the output cannot be written, 2 after bad input, 130
        after Ctrl-C, 143 after SIGTERM, 141 where nobody reads the output any more.
    """
    # Notices go to stderr as they are, whatever the libraries that are imported later do to logging.
    log, handler = logging.getLogger("mnist_jax"), logging.StreamHandler()
    log.addHandler(handler)
    log.propagate = False
    try:
        command()
        if sys.stdout is not None:  # as it is after ``>&-``
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"stopped: {interrupt}" if str(interrupt) else "stopped", file=sys.stderr)
        return getattr(interrupt, "exit_status", 130)
    except OSError as error:  # of the output: what else may be missing or full is an InputError
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the end of the process would try once more
        if isinstance(error, BrokenPipeError):  # whoever reads, ``head`` for example, has seen enough
            return 141  # 128 + SIGPIPE, which not every platform has
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        log.removeHandler(handler)
        log.propagate = True
    return 0
