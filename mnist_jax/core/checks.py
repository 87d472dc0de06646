"""Guards against silent nonsense: shapes and dtypes under a trace, values where they are on the host.

check_image(recipe, image)     # inside a program: costs nothing when it runs
check_label(logits, label)

@checked_jit(check)            # ``check`` sees the arguments of each call, before they are traced
def step(state, batch): ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from mnist_jax.core.state import Recipe

P = ParamSpec("P")
R = TypeVar("R")


def check_image(recipe: Recipe, image: jax.Array) -> None:
    """Checks shape and dtype of a batch of images; under a trace, too.

    Raises:
        ValueError: they have another shape than the model was created for, or are integers other than uint8.
    """
    if image.ndim != 4 or image.shape[1:] != recipe.image_shape:
        expected = ", ".join(map(str, ("B", *recipe.image_shape)))
        raise ValueError(f"image must be [{expected}], got {list(image.shape)}")
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image must be uint8, or float in [0, 1], got {image.dtype}")


def check_label(logits: jax.Array, label: jax.Array) -> None:
    """Checks rank, width and dtype of labels against the logits; under a trace, too.

    Raises:
        ValueError: the label is neither ``int[B]`` nor ``float[B, K]``.
    """
    batch_size, num_classes = logits.shape
    integer, floating = (jnp.issubdtype(label.dtype, kind) for kind in (jnp.integer, jnp.floating))
    if not ((label.shape == (batch_size,) and integer) or (label.shape == (batch_size, num_classes) and floating)):
        raise ValueError(
            f"label must be int[{batch_size}], or probabilities float[{batch_size}, {num_classes}], for logits of "
            f"{num_classes} classes, got {label.dtype}{list(label.shape)}"
        )


def check_label_range(recipe: Recipe, label: Any) -> None:
    """Checks that NumPy labels are classes; where they are traced, the loss of others is NaN.

    Raises:
        ValueError: a label lies outside [0, K).
    """
    if isinstance(label, np.ndarray) and label.size and np.issubdtype(label.dtype, np.integer):
        lowest, highest = label.min(), label.max()
        if lowest < 0 or highest >= recipe.num_classes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label must be in [0, {recipe.num_classes}), the classes of the model, got {wrong}")


class CheckedJit(Generic[P, R]):
    """A jitted function whose arguments are checked first; ``lower`` and all else is that of the jitted function."""

    def __init__(
        self, function: Callable[P, R], check: Callable[..., Mapping[str, Any] | None], **options: Any
    ) -> None:
        self._jitted = jax.jit(function, **options)
        self._check = check
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Checks the arguments, and calls the jitted function."""
        changed = self._check(*args, **kwargs) or {}
        result: R = self._jitted(*args, **{**kwargs, **changed})
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)


def checked_jit(
    check: Callable[..., Mapping[str, Any] | None], **options: Any
) -> Callable[[Callable[P, R]], CheckedJit[P, R]]:
    """Decorates a function with ``jax.jit`` and a check of its arguments, which may return keywords to change."""
    return lambda function: CheckedJit(function, check, **options)
