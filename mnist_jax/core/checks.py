"""Checks arguments: shapes and dtypes, also under a trace; values in NumPy arrays only.

check_image(recipe, image)     # at trace time: costs nothing at run time
check_label(logits, label)

@checked_jit(check)            # ``check`` gets the arguments of each call, before they are traced
def step(state, batch): ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.core.sharding import on_any_mesh

if TYPE_CHECKING:
    from mnist_jax.core.state import Recipe
    from mnist_jax.data.dataset import Split

_TOLERANCE = 1e-2  # of probabilities in half precision
_OWN_KEYS = {"image", "label", "mask"}
P = ParamSpec("P")
R = TypeVar("R")


def check_image(recipe: Recipe, image: jax.Array) -> None:
    """Checks shape and dtype of a batch of images; also works under a trace.

    Raises:
        ValueError: the images do not have ``recipe.image_shape``, or the dtype is neither uint8 nor floating point.
    """
    if image.ndim != 4 or image.shape[1:] != recipe.image_shape:
        expected = ", ".join(map(str, ("B", *recipe.image_shape)))
        raise ValueError(f"image must be [{expected}], got {list(image.shape)}")
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image must be uint8, or float in [0, 1], got {image.dtype}")


def check_label(logits: jax.Array, label: jax.Array) -> None:
    """Checks shape and dtype of labels against the logits; also works under a trace.

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


def check_values(recipe: Recipe, image: Any, label: Any) -> None:
    """Checks that NumPy images are finite, and that NumPy labels lie in [0, K) or are probabilities that add up to 1.

    Other arrays pass: an integer label out of range makes the loss NaN, as an image that is not finite does.

    Raises:
        ValueError: an image is not finite, a label lies outside [0, K), or the probabilities of an example do not add
            up to 1.
    """
    if isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
        row = np.argwhere(~np.isfinite(image))[0][0]
        raise ValueError(f"image must be finite, got NaN or infinity in example {row}")
    if isinstance(label, np.ndarray) and label.ndim == 2 and np.issubdtype(label.dtype, np.floating):
        totals = label.sum(axis=1, dtype=np.float64)
        wrong_rows = np.flatnonzero(~((label.min(axis=1) >= 0) & (np.abs(totals - 1) < _TOLERANCE)))
        if wrong_rows.size:
            row = wrong_rows[0]
            raise ValueError(
                f"label must have probabilities that are at least 0 and add up to 1, got {totals[row]:.6g} as the sum "
                f"and {label[row].min():.6g} as the least of example {row}"
            )
    if isinstance(label, np.ndarray) and label.size and np.issubdtype(label.dtype, np.integer):
        lowest, highest = label.min(), label.max()
        if lowest < 0 or highest >= recipe.num_classes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label must be in [0, {recipe.num_classes}), the classes of the model, got {wrong}")


def check_extra_keys(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the batch with None for text in its extra keys, such as file names, which JAX cannot trace.

    Raises:
        ValueError: an extra key holds neither numbers nor text.

    Example:
        >>> check_extra_keys({"label": 3, "weight": 0.5, "file": {"name": "a.png", "size": 9}})
        {'label': 3, 'weight': 0.5, 'file': {'name': None, 'size': 9}}
    """
    extra = {name: value for name, value in batch.items() if name not in _OWN_KEYS}
    return {**batch, **jax.tree_util.tree_map_with_path(_check_leaf, extra)} if extra else batch


def _check_leaf(path: Any, leaf: Any) -> Any:
    kind = leaf.dtype.kind if isinstance(leaf, np.ndarray) else ""
    words = leaf.flat if kind == "O" else [leaf]
    if (kind and kind in "SUT") or all(isinstance(word, (str, bytes)) for word in words):
        return None
    try:
        jax.typeof(leaf)
    except TypeError:
        found = f"an array of {leaf.dtype}" if kind else f"a {type(leaf).__name__}"
        name = jax.tree_util.keystr(path)
        raise ValueError(f"batch{name} must hold numbers or text, got {found}; convert it, or leave it out") from None
    return leaf


def check_split(recipe: Recipe, split: Split) -> None:
    """Checks that a split has a label for each image, and checks both like :func:`check_values`.

    Raises:
        ValueError: images and labels differ in number, or a NumPy image or label is wrong.
    """
    split.check_lengths()
    check_values(recipe, split.image, split.label)


class CheckedJit(Generic[P, R]):
    """Wraps a jitted function with a check of its arguments; passes on other attributes, such as ``lower``."""

    def __init__(
        self, function: Callable[P, R], check: Callable[..., Mapping[str, Any] | None], **options: Any
    ) -> None:
        self._jitted = jax.jit(on_any_mesh(function), **options)
        self._check = check
        self._names = tuple(inspect.signature(function).parameters)
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Checks the arguments, then calls the jitted function."""
        changed = dict(self._check(*args, **kwargs) or {})
        positional = [changed.pop(name, value) for name, value in zip(self._names, args, strict=False)]
        result: R = self._jitted(*positional, **{**kwargs, **changed})
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)


def checked_jit(
    check: Callable[..., Mapping[str, Any] | None], **options: Any
) -> Callable[[Callable[P, R]], CheckedJit[P, R]]:
    """Decorates a function with ``jax.jit`` and a check, which may return arguments to change, by name."""
    return lambda function: CheckedJit(function, check, **options)
