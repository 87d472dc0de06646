"""The command line as a whole: ``mnist-jax train`` and ``python -m mnist_jax train`` are ``python -m mnist_jax.train``.

A subcommand is a module with a function ``main(args, prog)``. It is imported when it is called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import mnist_jax
from mnist_jax.cli.flags import OneLineParser, run_command

COMMANDS = {
    "train": ("mnist_jax.train", "train a classifier"),
    "evaluate": ("mnist_jax.evaluate", "evaluate a run in every detail: numbers, figures, a page"),
    "predict": ("mnist_jax.predict", "read the digits in pictures"),
    "demo": ("mnist_jax.demo.__main__", "draw a digit on a page, and see it read"),
    "export": ("mnist_jax.export.__main__", "write a model as JSON, safetensors, StableHLO or ONNX"),
    "sweep": ("mnist_jax.sweep.__main__", "search for hyperparameters"),
    "runs": ("mnist_jax.runs", "list the runs with their results"),
}


def main(args: Sequence[str] | None = None, prog: str = "mnist-jax") -> int:
    """The command: hands the rest of ``args`` (default: the command line) to the subcommand that it begins with."""
    arguments = list(sys.argv[1:] if args is None else args)

    def command() -> None:
        parser = OneLineParser(prog=prog, usage="%(prog)s COMMAND ...", epilog=f"{prog} COMMAND --help says more.")
        parser.add_argument("--version", action="version", version=mnist_jax.__version__)
        commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
        for name, (_, help_) in COMMANDS.items():
            commands.add_parser(name, help=help_, add_help=False)
        parser.parse_args(arguments[:1])

    status = run_command(command)
    if status:
        return status
    name, *others = arguments
    return importlib.import_module(COMMANDS[name][0]).main(others, prog=f"{prog} {name}")
