"""Defines the errors that a command turns into an exit status, and helps to write their messages.

``InputError``          a flag, file or directory cannot be used: one line, exit status 2
``NonFiniteLossError``  training diverged: one line, exit status 1
``LostProcessError``    another process of the run has ended: one line, exit status 1
"""

from __future__ import annotations

import difflib
import importlib
import reprlib
from collections.abc import Iterable
from types import ModuleType


class InputError(ValueError):
    """A flag, file or directory cannot be used.

    The message is one line. It names the field or file, the expected value and the value found.

    Example:
        >>> from mnist_jax import load_dataset
        >>> try:
        ...     load_dataset("digits", num_validation=1500)
        ... except InputError as error:
        ...     print(error)
        num_validation must be 1 to 1499, for 1500 training examples of digits, got 1500
    """


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
        epoch: epoch of the first such loss, counted from 1.
        step: its step, counted from 1 over the whole run.

    Example:
        >>> str(NonFiniteLossError(epoch=2, step=431, loss=float("nan")))
        'the loss became nan in epoch 2, step 431: stopped; a lower --learning-rate may help'
    """

    def __init__(self, epoch: int, step: int, loss: float) -> None:
        super().__init__(
            f"the loss became {loss} in epoch {epoch}, step {step}: stopped; a lower --learning-rate may help"
        )
        self.epoch = epoch
        self.step = step


class LostProcessError(RuntimeError):
    """Another process of the run has ended, so this one cannot continue.

    Example:
        >>> str(LostProcessError("Connection closed by peer"))
        'another process of the run has ended (Connection closed by peer): continue from its checkpoint with --resume'
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"another process of the run has ended ({one_line(reason)}): continue from its checkpoint with --resume"
        )


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about a mistyped name: the nearest known name, or nothing if none is near.

    Neither case nor leading dashes count.

    Example:
        >>> "unknown flag --epoch" + suggest("--epoch", ["--epochs", "--seed"])
        'unknown flag --epoch; did you mean --epochs?'
    """
    names = {each.lstrip("-"): each for each in known}
    nearest = difflib.get_close_matches(name.lstrip("-").lower(), names, n=1)
    return f"; did you mean {names[nearest[0]]}?" if nearest else ""


def one_line(text: object) -> str:
    """Returns at most 200 characters of a text from elsewhere, without line breaks and control characters.

    Example:
        >>> one_line(ValueError("two\\nlines"))
        'two lines'
    """
    spaced = "".join(char if char.isprintable() else " " for char in str(text)[:1000])
    return " ".join(spaced.split())[:200]


def printable(text: str) -> str:
    """Returns a text in which line breaks and control characters, if there are any, are escaped.

    Example:
        >>> printable("two\\nlines")
        'two\\\\nlines'
    """
    return text if text.isprintable() else ascii(text)[1:-1]


def short_repr(value: object) -> str:
    """Returns the beginning and the end of ``repr(value)``, in one line of at most 200 characters.

    Example:
        >>> short_repr("x" * 1000), short_repr([1] * 1000)
        ("'xxxxxxxxxxxx...xxxxxxxxxxxxx'", '[1, 1, 1, 1, 1, 1, ...]')
    """
    return one_line(reprlib.repr(value))


def import_extra(module: str, extra: str) -> ModuleType:
    """Imports a module that an optional dependency provides.

    Raises:
        InputError: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f'{error.name} is not installed: pip install -e ".[{extra}]"') from None
