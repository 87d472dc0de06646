"""The console script ``mnist-jax``: ``mnist-jax train`` is ``python -m mnist_jax.train``, and so on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import mnist_jax
from mnist_jax.cli.flags import OneLineParser, exit_status

COMMANDS = {
    "train": ("mnist_jax.train", "train a classifier"),
    "evaluate": ("mnist_jax.evaluate", "evaluate a run in every detail: numbers, figures, a page"),
    "predict": ("mnist_jax.predict", "read the digits in pictures"),
    "demo": ("mnist_jax.demo.__main__", "draw a digit on a page, and see it read"),
    "export": ("mnist_jax.export.stablehlo", "write a model as JSON, safetensors, StableHLO or ONNX"),
    "sweep": ("mnist_jax.sweep.run", "search for hyperparameters"),
    "runs": ("mnist_jax.runs", "list the runs with their results"),
}


def main(args: Sequence[str] | None = None) -> int:
    """The command: hands the rest of ``args`` (default: the command line) to the subcommand that it begins with."""
    arguments = list(sys.argv[1:] if args is None else args)

    def command() -> None:
        parser = OneLineParser(
            prog="mnist-jax", usage="%(prog)s COMMAND ...", epilog="mnist-jax COMMAND --help says more."
        )
        parser.add_argument("--version", action="version", version=mnist_jax.__version__)
        commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
        for name, (_, help_) in COMMANDS.items():
            commands.add_parser(name, help=help_, add_help=False)
        parser.parse_args(arguments[:1])

    status = exit_status(command)
    if status:
        return status
    name, *others = arguments
    return importlib.import_module(COMMANDS[name][0]).main(others, prog=f"mnist-jax {name}")
