"""mnist_jax: training a digit classifier is a pure function, and a whole run is one compiled program.

    from mnist_jax import MLP, create_train_state, load_dataset, train_step

This is the one public door. Its names are imported on first use, so that ``python -m mnist_jax.train --help`` answers
without waiting for JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_jax.checkpoint import restore_checkpoint, save_checkpoint
    from mnist_jax.config import TrainConfig
    from mnist_jax.data import Dataset, Split, load_dataset, prefetch, stream_batches
    from mnist_jax.errors import InputError, NonFiniteLossError
    from mnist_jax.evaluate import Evaluation, evaluate_dataset
    from mnist_jax.models import CNN, MLP, build_model, count_parameters
    from mnist_jax.optim import build_optimizer, build_schedule
    from mnist_jax.per_example import (
        one_example_gradient_norm,
        one_example_loss,
        one_example_margin,
        per_example_gradient_norms,
        per_example_losses,
        per_example_margins,
    )
    from mnist_jax.state import TrainState, create_train_state
    from mnist_jax.step import Metrics, eval_step, loss_fn, train_epoch, train_step
    from mnist_jax.train import Run, fit

_HOMES = {
    "checkpoint": ("restore_checkpoint", "save_checkpoint"),
    "config": ("TrainConfig",),
    "data": ("Dataset", "Split", "load_dataset", "prefetch", "stream_batches"),
    "errors": ("InputError", "NonFiniteLossError"),
    "evaluate": ("Evaluation", "evaluate_dataset"),
    "models": ("CNN", "MLP", "build_model", "count_parameters"),
    "optim": ("build_optimizer", "build_schedule"),
    "per_example": (
        "one_example_gradient_norm",
        "one_example_loss",
        "one_example_margin",
        "per_example_gradient_norms",
        "per_example_losses",
        "per_example_margins",
    ),
    "state": ("TrainState", "create_train_state"),
    "step": ("Metrics", "eval_step", "loss_fn", "train_epoch", "train_step"),
    "train": ("Run", "fit"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("mnist_jax")
        except PackageNotFoundError:  # used from a source tree that is not installed
            return "unknown"
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"mnist_jax.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'mnist_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
