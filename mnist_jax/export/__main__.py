"""``python -m mnist_jax.export RUN --format FORMAT`` writes a trained model to a file.

It exports the parameters that evaluation uses: the moving average, if there is one. An existing file is never
overwritten.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mnist_jax.cli.flags import OneLineParser, add_jax_flags, run_command
from mnist_jax.export import FORMATS
from mnist_jax.training.export import export_run


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.export") -> int:
    """Parses ``args`` (default: the command line), writes the file, and prints its name, format and size."""

    def command() -> None:
        parser = OneLineParser(prog, "Write the trained model of a run to a file.", "runs/mine --format json")
        parser.add_argument("run", metavar="RUN", help="directory of the run")
        parser.add_argument("--format", required=True, choices=FORMATS, help="format of the file")
        parser.add_argument("--output", metavar="FILE", help="a new file; default: RUN/model.FORMAT")
        add_jax_flags(parser)
        flags = parser.parse_args(args)
        path = export_run(flags.run, flags.format, flags.output)
        print(f"{path}  {flags.format}  {path.stat().st_size:,} bytes")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
