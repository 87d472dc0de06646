"""Parses the flags of every command, and reports errors as one line and an exit status.

    def main(args=None) -> int:
        return run_command(lambda: fit(parse_flags(TrainConfig(), args, "python -m mnist_jax.train")))

It imports neither JAX nor NumPy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib.util
import inspect
import io
import itertools
import logging
import os
import pkgutil
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NoReturn, TextIO

from mnist_jax.cli.compilation_cache import switch_compilation_cache_off, use_compilation_cache
from mnist_jax.config import COMMON_FIELDS, FIELD_GROUPS, TrainConfig, check_effect, effective_config
from mnist_jax.errors import InputError, LostProcessError, NonFiniteLossError, suggest
from mnist_jax.presets import DESCRIPTIONS, PRESETS
from mnist_jax.training import processes
from mnist_jax.training.runs import config_to_repeat
from mnist_jax.training.signals import leave_on_signals, say_why
from mnist_jax.training.stderr import Stderr


class OneLineParser(argparse.ArgumentParser):
    """Extends ``ArgumentParser`` to raise an ``InputError`` of one line that suggests the flag or choice meant.

    Flags may be written with underscores, and must be written in full.

    Args:
        prog: name of the program.
        description: text above the flags; its paragraphs are wrapped, except for indented ones.
        example: arguments of a command that works; the last line of the help shows it.
        options: passed to ``ArgumentParser``.

    Example:
        >>> parser = OneLineParser("prog", example="--split train")
        >>> _ = parser.add_argument("--split", choices=("test", "train"))
        >>> parser.parse_args(["--split", "tset"])
        Traceback (most recent call last):
        mnist_jax.errors.InputError: split must be one of test, train, got tset; did you mean test?
    """

    def __init__(self, prog: str, description: str | None = None, example: str | None = None, **options: Any) -> None:
        epilog = None if example is None else f"example: {prog} {example}"
        options = {"formatter_class": functools.partial(_Formatter, max_help_position=30), **options}
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False, **options)
        self._negative_number_matcher = re.compile(r"-\.?\d|-inf|-nan")  # else -1e-3 would be a flag

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parses like ``ArgumentParser.parse_args``, and does what a flag of :func:`add_jax_flags` says of the cache.

        Raises:
            InputError: a flag or a value cannot be used.
        """
        arguments = sys.argv[1:] if args is None else list(args)
        flags = super().parse_args(list(self._normalize(arguments)), namespace)
        if "compilation_cache" in flags:
            use_compilation_cache() if flags.compilation_cache else switch_compilation_cache_off()
        return flags

    def error(self, message: str) -> NoReturn:
        """Raises the message as an ``InputError``."""
        raise InputError(message)

    def _normalize(self, args: Sequence[str]) -> Iterator[str]:
        """Yields the arguments, with each flag spelled as it was added.

        Raises:
            InputError: a flag is unknown.
        """
        flags = self._option_string_actions
        end = args.index("--") if "--" in args else len(args)
        for argument in args[:end]:
            name, equals, value = argument.partition("=")
            flag = name.replace("_", "-")
            if not argument.startswith("--"):
                yield argument
            elif flag not in flags:
                raise InputError(f"unknown flag {name}{suggest(flag, flags)}")
            elif equals and flags[flag].nargs == "*":  # --sizes=4 3
                yield from (flag, value)
            else:
                yield f"{flag}{equals}{value}"
        yield from args[end:]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # Python 3.11 also passes the empty list of nargs="*".
        if action.choices is not None and value not in ([], *action.choices):
            choices = ", ".join(action.choices)
            message = f"{action.dest} must be one of {choices}, got {value}{suggest(str(value), action.choices)}"
            raise InputError(message)


class _SplitCommas(argparse.Action):
    """Stores whole numbers that are separated by spaces or commas."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        convert = _converter(int, optional=False)
        setattr(namespace, self.dest, [convert(text) for value in values for text in value.split(",")])


class _SetVariable(argparse.Action):
    """Stores the value of a flag in an environment variable, its ``const``."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        os.environ[self.const] = values


class _ChooseDevice(argparse.Action):
    """Makes JAX compute on a kind of device, which ``check_device`` then looks for; overrides ``$JAX_PLATFORMS``."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        platform = _gpu_platform() if values == "gpu" else values
        os.environ["JAX_PLATFORMS"] = platform
        if "jax" in sys.modules:  # which has read the variable already, but need not have started
            sys.modules["jax"].config.update("jax_platforms", platform)


def _gpu_platform() -> str:
    """Returns ``rocm`` if JAX's plugin for AMD's GPUs is the only one installed, else ``cuda``."""
    spec = importlib.util.find_spec("jax_plugins")
    plugins = [each.name for each in pkgutil.iter_modules(spec.submodule_search_locations)] if spec else []
    has_rocm, has_cuda = (any(name in plugin for plugin in plugins) for name in ("rocm", "cuda"))
    return "rocm" if has_rocm and not has_cuda else "cuda"


class _Formatter(argparse.HelpFormatter):
    """Wraps each paragraph of a description by itself, except for indented ones and the example."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        fill = super()._fill_text
        unwrapped = (" ", "example: ")
        return "\n\n".join(part if part.startswith(unwrapped) else fill(part, width, indent) for part in paragraphs)


def parse_flags(
    default: TrainConfig, args: Sequence[str] | None, prog: str, description: str = "", example: str | None = None
) -> TrainConfig:
    """Parses a command line whose flags are the fields of a config; ``--preset`` and ``--config`` name another default.

    Args:
        default: supplies the fields that are not given.
        args: the command line without the program's name; ``sys.argv[1:]`` if None.
        prog: name of the program.
        description: text above the flags.
        example: arguments of a command that works.

    Raises:
        InputError: a flag is unknown, its value does not fit, or the file of ``--config`` cannot be used.
        SystemExit: with status 0, after ``--help`` and ``--help-all``.

    Example:
        >>> parse_flags(TrainConfig(), ["--hidden-sizes", "128", "64"], "prog").hidden_sizes
        (128, 64)
    """
    parser = OneLineParser(prog, description, example, usage="%(prog)s [flags]")
    presets = "\n".join(f"    {name:<10}{text}" for name, text in DESCRIPTIONS.items())
    group = parser.add_argument_group(
        "starting point", f"Other flags override the fields of a preset or a config. The presets are:\n\n{presets}"
    )
    either = group.add_mutually_exclusive_group()
    either.add_argument("--preset", choices=PRESETS, metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    text = "a run, or its config.json: begins a new run with the same training"
    either.add_argument("--config", metavar="RUN", help=text)
    add_config_flags(parser, default, args)
    _add_process_flags(parser)
    flags = parser.parse_args(args)
    if flags.preset is not None:
        default = PRESETS[flags.preset]
    elif flags.config is not None:
        default = config_to_repeat(flags.config)
    return replace_fields(default, flags)


def add_config_flags(parser: argparse.ArgumentParser, default: TrainConfig, args: Sequence[str] | None) -> None:
    """Adds the fields of a config, ``--help-all`` and the flags of :func:`add_jax_flags`.

    Args:
        parser: gets a group of flags for each group of fields.
        default: its values are shown as the defaults.
        args: the command line. If it has ``--help-all``, the help lists all fields, otherwise the common ones.
    """
    arguments = sys.argv[1:] if args is None else args
    texts, kinds = _help_texts(), typing.get_type_hints(TrainConfig)
    parser.add_argument("--help-all", action="help", help=f"show all {len(kinds)} flags of a run and exit")
    add_jax_flags(parser)
    for title, names in FIELD_GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            shown = name in COMMON_FIELDS or "--help-all" in arguments
            text = _describe(texts.get(name, ""), kinds[name], getattr(default, name)) if shown else argparse.SUPPRESS
            flag = f"--{name.replace('_', '-')}"
            group.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text, **_options(name, kinds[name]))


def add_jax_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of each command that uses JAX: ``--device`` and ``--no-compilation-cache``.

    They take effect in :meth:`OneLineParser.parse_args`.

    Example:
        >>> parser = OneLineParser("prog")
        >>> add_jax_flags(parser)
        >>> parser.parse_args(["--device", "gpuu"])
        Traceback (most recent call last):
        mnist_jax.errors.InputError: device must be one of cpu, gpu, tpu, got gpuu; did you mean gpu?
    """
    help_ = "kind of device to compute on: cpu, gpu or tpu; default: the fastest that JAX finds"
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), action=_ChooseDevice, metavar="KIND", help=help_)
    help_ = "compile everything anew: neither read nor keep compiled programs"
    parser.add_argument("--no-compilation-cache", dest="compilation_cache", action="store_false", help=help_)


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run of several processes, which ``processes.connect`` reads from the environment."""
    text = "The same command in each process makes one run. SLURM, Open MPI, Cloud TPU and Kubernetes need no flags."
    group = parser.add_argument_group("several processes", text)
    for flag, variable, metavar, help_ in (
        ("--coordinator", processes.COORDINATOR, "HOST:PORT", "address of process 0, with a free port"),
        ("--num-processes", processes.NUM_PROCESSES, "INT", "number of processes; 1 ignores a launcher"),
        ("--process-id", processes.PROCESS_ID, "INT", "number of this process, from 0"),
    ):
        help_ = f"{help_}; default: ${variable}"
        group.add_argument(flag, action=_SetVariable, const=variable, metavar=metavar, help=help_)


def replace_fields(default: TrainConfig, flags: argparse.Namespace) -> TrainConfig:
    """Returns a config with the fields that were given as flags, without fields of the default that lose their effect.

    Raises:
        InputError: a value does not fit, or a field that was given has no effect, even if its value is the default.
    """
    given = {name: value for name, value in vars(flags).items() if name in vars(default)}
    config = effective_config({**vars(default), **given})
    for name in given:
        check_effect(name, vars(config))
    return config


def _help_texts() -> dict[str, str]:
    """Returns the string below each field of ``TrainConfig``; nothing if its source is not installed."""
    try:
        (definition,) = ast.parse(inspect.getsource(TrainConfig)).body
    except OSError:
        return {}
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for pair in itertools.pairwise(definition.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _describe(text: str, kind: Any, value: Any) -> str:
    """Returns the help of a flag: its text, choices and default value."""
    notes = [f"one of {', '.join(typing.get_args(kind))}"] if typing.get_origin(kind) is Literal else []
    if value is not None or "default:" not in text:
        notes.append(f"default: {' '.join(map(str, value)) or 'none' if isinstance(value, tuple) else value}")
    return f"{text} ({'; '.join(notes)})".removesuffix(" ()").replace("%", "%%")


def _options(name: str, kind: Any) -> dict[str, Any]:
    """Returns the options of ``add_argument`` for a field of type ``kind``."""
    optional = type(None) in typing.get_args(kind)
    if optional:
        kind = typing.get_args(kind)[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is tuple:
        return {"nargs": "*", "action": _SplitCommas, "metavar": "INT"}
    if kind in (int, float):
        return {"type": _converter(kind, optional), "metavar": kind.__name__.upper()}
    return {"type": _converter(str, optional), "metavar": "DIR" if name.endswith("dir") else "NAME"}


def _converter(kind: type, optional: bool) -> Callable[[str], Any]:
    """Returns a function that parses text. It returns invalid text unchanged, which ``TrainConfig`` then refuses."""

    def convert(text: str) -> Any:
        if optional and text == "None":
            return None
        try:
            return kind(text)
        except ValueError:
            return text

    return convert


def run_command(command: Callable[[], object]) -> int:
    """Runs a command and returns its exit status; notices and errors go to stderr, one line each.

    Returns:
        0 for success, 1 after a non-finite loss or if the output cannot be written, 2 after bad input, 130 after
        Ctrl-C, 143 after SIGTERM, 141 if the reader of the output has gone away. A signal that does not stop training
        ends the process with its status.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(leave_on_signals())
        stack.enter_context(_terminal())
        try:
            status = _run(command)
        except Exception:
            if processes.count() == 1:
                raise
            traceback.print_exc()
            status = 1
        if status:
            processes.leave(status)
        return status


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Shows notices of this library and of JAX on stderr, and hides log lines and warnings of other libraries."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed stream would become the next file opened
        pass
    os.close(descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may have characters that it cannot encode
        # Each line is written at once, so that a signal loses none.
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else XLA logs several warnings when it starts on a GPU
    stderr: Any = Stderr()
    log, handler, others = logging.getLogger("mnist_jax"), logging.StreamHandler(stderr), logging.StreamHandler(stderr)
    others.addFilter(logging.Filter("jax"))  # which warns of a device that it cannot use
    with contextlib.redirect_stderr(stderr):
        log.addHandler(handler)
        log.propagate = False
        logging.root.addHandler(others)
        logging.captureWarnings(not sys.warnoptions)
        try:
            yield
        finally:
            _drop_unwritten(sys.__stderr__)
            logging.captureWarnings(False)
            logging.root.removeHandler(others)
            log.removeHandler(handler)
            log.propagate = True


def _drop_unwritten(stream: TextIO | None) -> None:
    """Flushes a stream, or drops its text if that is impossible: Python would try again at exit, and fail."""
    if stream is not None:
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _process() -> str:
    """Returns the beginning of a message that names the process, if it is one of several but not the first."""
    return "" if processes.is_first() else f"process {processes.index()}: "


def _run(command: Callable[[], object]) -> int:
    try:
        command()
        if sys.stdout is not None:  # None after ``>&-``
            sys.stdout.flush()
    except InputError as error:
        print(f"{_process()}error: {error}", file=sys.stderr)
        return 2
    except (LostProcessError, NonFiniteLossError) as error:
        print(f"{_process()}error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        say_why(f"stopped: {interrupt}" if str(interrupt) else "stopped")
        return getattr(interrupt, "exit_status", 130)
    except OSError as error:  # from stdout, or a file of a run
        _drop_unwritten(sys.stdout)
        if isinstance(error, BrokenPipeError):  # the reader, ``head`` for example, has gone away
            return 141  # 128 + SIGPIPE; not every platform has signal.SIGPIPE
        print(f"error: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0
