"""mnist_jax: training a digit classifier is a pure function, and a whole run is one compiled program.

    from mnist_jax import MLP, create_train_state, load_dataset, train_step

Every public name can be imported from here; ``__init__.pyi`` lists them. A name is loaded on first use, so that
``python -m mnist_jax.train --help`` does not wait for JAX.
"""

import sys

# "-m" stands for the module to run while Python imports its package; orig_argv has the name.
if "".join(sys.argv[:1]).rpartition("/")[2] == "mnist-jax" or (
    sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").split(".")[0] == __name__ for word in sys.orig_argv)
):  # a command starts: from here on a signal ends it at once
    from mnist_jax.training.signals import leave_on_signals

    leave_on_signals()

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("mnist_jax")
except PackageNotFoundError:  # not installed: imported from a source tree
    __version__ = "unknown"
