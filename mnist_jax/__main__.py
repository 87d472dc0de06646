"""``python -m mnist_jax COMMAND`` does the same as ``mnist-jax COMMAND``."""

import sys

from mnist_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m mnist_jax"))
