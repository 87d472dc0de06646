"""``mnist-jax``, also ``python -m mnist_jax``, runs a command: ``mnist-jax train`` is ``python -m mnist_jax.train``.

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
    "evaluate": ("mnist_jax.evaluate", "evaluate a run: numbers, figures, a page"),
    "dynamics": ("mnist_jax.dynamics", "show what a run learned and forgot, example by example"),
    "predict": ("mnist_jax.predict", "classify the digits in pictures"),
    "explain": ("mnist_jax.explain", "show the training digits that a prediction rests on"),
    "demo": ("mnist_jax.demo.__main__", "serve a page on which drawn digits are classified"),
    "export": ("mnist_jax.export.__main__", "write a model as JSON, safetensors, StableHLO or ONNX"),
    "sweep": ("mnist_jax.sweep.__main__", "search for hyperparameters"),
    "runs": ("mnist_jax.runs", "list runs with their results"),
    "label_errors": ("mnist_jax.label_errors", "find images whose label is probably wrong"),
    "compare": ("mnist_jax.compare", "compare runs: settings, results and curves"),
}


def main(args: Sequence[str] | None = None, prog: str = "mnist-jax") -> int:
    """Runs the subcommand that ``args`` (default: the command line) begins with."""
    arguments = list(sys.argv[1:] if args is None else args)

    def command() -> None:
        description = f"Train and use digit classifiers. {prog} COMMAND --help lists the flags of a command."
        parser = OneLineParser(prog, description, "train --model cnn --epochs 3", usage="%(prog)s COMMAND ...")
        parser.add_argument("--version", action="version", version=mnist_jax.__version__)
        commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND [flags]", required=True)
        for name, (_, help_) in COMMANDS.items():
            commands.add_parser(name, help=help_, add_help=False)
        parser.parse_args(arguments[:1] or ["--help"])

    status = run_command(command)
    if status:
        return status
    name, *others = arguments
    return importlib.import_module(COMMANDS[name][0]).main(others, prog=f"{prog} {name}")
