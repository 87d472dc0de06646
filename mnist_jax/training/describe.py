"""Describes a model as a table with a line per layer.

print(model_table(state))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.core.state import TrainState, count_parameters
from mnist_jax.models.adapters import LinenAdapter

_BATCH_SIZE = 7919  # a prime that no layer has as its size, so the batch axis can be told apart


def model_table(state: TrainState) -> str:
    """Returns a table of the layers that have parameters: name, output shape and number of parameters.

    The shapes are of one example. They are known for Flax Linen modules, whose layers are listed as they are called;
    layers of other models are the innermost groups of their parameters.

    Args:
        state: state of any model.

    Example:
        >>> from mnist_jax import TrainConfig, build_state
        >>> print(model_table(build_state(TrainConfig(hidden_sizes=(100,)))))
        layer    output  parameters
        Dense_0     100      78,500
        Dense_1      10       1,010
        total                79,510
    """
    counts: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        counts[jax.tree_util.keystr(path[:-1], simple=True, separator="/")] += math.prod(leaf.shape)
    shapes = _output_shapes(state)
    called = [name for name in shapes if name in counts]
    names = [*called, *(name for name in counts if name not in shapes)]
    rows = [(name or state.recipe.model.name, shapes.get(name, ""), f"{counts[name]:,}") for name in names]
    rows = [("layer", "output" if shapes else "", "parameters"), *rows]
    rows.append(("total", "", f"{count_parameters(state.params):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = [index for index, width in enumerate(widths) if width]
    align = (str.ljust, str.rjust, str.rjust)
    return "\n".join("  ".join(align[index](row[index], widths[index]) for index in columns) for row in rows)


def _output_shapes(state: TrainState) -> dict[str, str]:
    """Returns the output shapes of the layers of a Linen module, in the order of their calls; of others, nothing."""
    model, shapes = state.recipe.model, {}
    if not isinstance(model, LinenAdapter):
        return {}

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(output, jax.Array):
            sizes = [str(size) for size in output.shape if size != _BATCH_SIZE]
            shapes["/".join(context.module.path)] = " x ".join(sizes)
        return output

    image = jax.ShapeDtypeStruct((_BATCH_SIZE, *state.recipe.image_shape), jnp.float32)
    with nn.intercept_methods(intercept):
        jax.eval_shape(model.apply, state.params, state.model_state, image)
    return shapes
