"""Computes the gradient of each example of a batch, factored where a layer allows it, in one pass over the batch.

    names = select_parameters(state.params, "Dense_1")
    gradients = example_gradients(state, params, image, label, names)   # {"Dense_1/kernel": Factors(...), ...}

The gradient of a dense kernel is the outer product of the layer's input and the gradient of its output; that of a
convolution is the same, summed over positions, with patches as inputs. So one backward pass to the outputs of all
layers gives the factors of every example; no gradient of a kernel is formed. This applies to layers of Linen modules:
``nn.Dense``, ``nn.Conv``, the convolution of :class:`mnist_jax.CNN` and ``nn.BatchNorm``, if the layer is called once,
with the examples on one axis, and nothing else reads its parameters. All other gradients are formed by ``vmap``.

Reference: Goodfellow, "Efficient Per-Example Gradient Computations", https://arxiv.org/abs/1510.01799; Rochette et al.,
"Efficient Per-Example Gradient Computations in Convolutional Neural Networks", https://arxiv.org/abs/1912.06015.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.tracers import current_trace
from jax import lax

from mnist_jax.core.apply import apply_model
from mnist_jax.core.layer_rules import RULES, Gradient, Rule
from mnist_jax.core.state import PyTree, TrainState
from mnist_jax.models.adapters import LinenAdapter

Where = str | Callable[[str], bool] | None


def parameter_names(params: PyTree) -> list[str]:
    """Returns the path of each parameter, such as ``Dense_0/kernel``, in the order of ``jax.tree.leaves``."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def select_parameters(params: PyTree, where: Where) -> tuple[str, ...]:
    """Returns the paths of the parameters that ``where`` selects: a prefix of whole names, a predicate, None for all.

    Raises:
        ValueError: no parameter is selected.

    Example:
        >>> params = {"Dense_0": {"bias": 1.0, "kernel": 2.0}, "Dense_1": {"bias": 3.0}}
        >>> select_parameters(params, "Dense_0"), select_parameters(params, lambda name: name.endswith("bias"))
        (('Dense_0/bias', 'Dense_0/kernel'), ('Dense_0/bias', 'Dense_1/bias'))
    """
    names = parameter_names(params)
    if where is None:
        return tuple(names)
    if isinstance(where, str):
        found = tuple(name for name in names if f"{name}/".startswith(f"{where.strip('/')}/"))
    else:
        found = tuple(name for name in names if where(name))
    if not found:
        described = repr(where) if isinstance(where, str) else "the predicate"
        raise ValueError(f"where must select a parameter, got {described} for the parameters {', '.join(names)}")
    return found


def example_gradients(
    state: TrainState, params: PyTree, image: jax.Array, label: jax.Array, names: Collection[str]
) -> dict[str, Gradient]:
    """Computes the gradient of each example's loss with respect to the named parameters, in evaluation mode.

    Args:
        state: supplies model and loss; in evaluation mode, examples must not depend on each other.
        params: the parameters, which may differ from those of the state.
        image: ``uint8`` or float ``[B, H, W, C]``.
        label: ``int[B]``.
        names: from :func:`select_parameters`.

    Returns:
        By name: ``Factors``, or ``float[B, ...]``.
    """
    layers = _find_layers(state, params, image, names)
    found: dict[str, Gradient] = {}
    if layers:

        def loss(shifts: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
            recorded = {}

            def shift(key: str, module: Any, rule: Rule, x: jax.Array, output: jax.Array) -> jax.Array:
                if key not in layers:
                    return output
                recorded[key] = rule.record(module, x)
                return output + shifts[key]

            with _intercept(shift):
                logits, _ = apply_model(state, params, image)
            return jnp.sum(state.recipe.example_loss(logits, label)), recorded

        shifts = {key: jnp.zeros_like(layer.call.output) for key, layer in layers.items()}
        # Without the barrier XLA computes these again for each patch, which doubles the time on CPU.
        output_grads, recorded = lax.optimization_barrier(jax.grad(loss, has_aux=True)(shifts))
        for key, (call, covered, axis) in layers.items():
            grad = output_grads[key]
            x = recorded[key].astype(grad.dtype)  # as the layer computes
            if grad.dtype.itemsize < 4:
                x, grad = x.astype(jnp.float32), grad.astype(jnp.float32)
            gradients = call.rule.gradients(call.module, x, grad, axis)
            found |= {name: gradients[name.rpartition("/")[2]] for name in covered}
    others = [name for name in names if name not in found]
    if others:
        found |= _form_gradients(state, params, image, label, others)
    return {name: found[name] for name in names}


def _form_gradients(
    state: TrainState, params: PyTree, image: jax.Array, label: jax.Array, names: Collection[str]
) -> dict[str, Gradient]:
    """Forms the gradients with respect to the named parameters, by ``vmap`` over single examples."""
    leaves, treedef = jax.tree.flatten(params)
    flat = dict(zip(parameter_names(params), leaves, strict=True))

    def loss(chosen: Mapping[str, jax.Array], image: jax.Array, label: jax.Array) -> jax.Array:
        logits, _ = apply_model(state, jax.tree.unflatten(treedef, [*{**flat, **chosen}.values()]), image[None])
        loss: jax.Array = state.recipe.example_loss(logits, label[None])[0]
        return loss

    chosen = {name: flat[name] for name in names}
    return jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(chosen, image, label)


def combine(gradients: Mapping[str, Any], params: PyTree) -> PyTree:
    """Returns the tree of ``params`` with the given leaves, and None for the others."""
    return jax.tree.unflatten(jax.tree.structure(params), [gradients.get(name) for name in parameter_names(params)])


class _Call(NamedTuple):
    """Describes a call of a layer: shapes of input and output, and whether it is outside loops and other transforms."""

    module: Any
    rule: Rule
    x: Any
    output: Any
    is_outside: bool


class _Layer(NamedTuple):
    """Describes a layer whose gradients follow from a rule: its names of parameters, and the axis of the examples."""

    call: _Call
    names: tuple[str, ...]
    axis: int


def _find_layers(state: TrainState, params: PyTree, image: jax.Array, names: Collection[str]) -> dict[str, _Layer]:
    """Returns, by path and method, the calls of layers whose gradients with respect to ``names`` follow from a rule."""
    if not isinstance(state.recipe.model, LinenAdapter):
        return {}
    # Axes of the examples are those that change with their number.
    try:
        calls, others = (_record_calls(state, params, image, size) for size in (image.shape[0], image.shape[0] + 1))
    except _BatchStatisticsError:
        return {}
    layers = {}
    for key, found in calls.items():
        (call, *again), other = found, others[key][0]
        axes = [axis for axis, size in enumerate(call.x.shape) if size != other.x.shape[axis]]
        covered = tuple(f"{key.rpartition('/')[0]}/{name}" for name in call.rule.parameters)
        covered = tuple(name for name in covered if name in names)
        is_batch = len(axes) == 1 and call.x.shape[axes[0]] == image.shape[0]
        if covered and not again and call.is_outside and is_batch and call.rule.applies(call.module, call.x, axes[0]):
            layers[key] = _Layer(call, covered, axes[0])
    tied = _find_tied(state, params, image, layers)
    return {key: layer for key, layer in layers.items() if not tied.intersection(layer.names)}


def _record_calls(state: TrainState, params: PyTree, image: jax.Array, size: int) -> dict[str, list[_Call]]:
    """Traces the model on ``size`` images; returns the calls by path and method."""
    calls: dict[str, list[_Call]] = {}

    def run(image: jax.Array) -> jax.Array:
        level = current_trace()

        def record(key: str, module: Any, rule: Rule, x: jax.Array, output: Any) -> Any:
            before, after = (jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (x, output))
            call = _Call(module.clone(parent=None), rule, before, after, current_trace() == level)
            calls.setdefault(key, []).append(call)
            return output

        with _intercept(record):
            return apply_model(state, params, image)[0]

    jax.eval_shape(run, jax.ShapeDtypeStruct((size, *image.shape[1:]), image.dtype))
    return calls


def _find_tied(state: TrainState, params: PyTree, image: jax.Array, layers: Mapping[str, _Layer]) -> set[str]:
    """Returns the names of parameters of these layers that are also read elsewhere."""

    def run(params: PyTree) -> Any:
        """Runs the model with an output of zeros for each of these layers, without reading their parameters."""

        def replace(key: str, module: Any, rule: Rule, x: jax.Array, output: Any) -> Any:
            return jnp.zeros_like(layers[key].call.output) if key in layers else output

        with _intercept(replace, skipped=layers):
            return apply_model(state, params, jnp.zeros(image.shape, image.dtype))[0]

    jaxpr = jax.make_jaxpr(run)(params).jaxpr
    read = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    return {name for name, var in zip(parameter_names(params), jaxpr.invars, strict=True) if id(var) in read}


class _BatchStatisticsError(Exception):
    """A batch norm takes the statistics of the batch, in evaluation mode too, so that examples affect each other."""


def _intercept(
    function: Callable[[str, Any, Rule, jax.Array, Any], Any], skipped: Collection[str] = ()
) -> contextlib.AbstractContextManager[None]:
    """Replaces outputs of methods that have a rule by ``function(key, module, rule, x, output)``, with ``path/method``
    as the key; does not call the ``skipped`` ones."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        rule = RULES.get((type(module), context.method_name))
        if rule is None or not args:
            return call(*args, **kwargs)
        if isinstance(module, nn.BatchNorm):
            given = args[1] if len(args) > 1 else kwargs.get("use_running_average", module.use_running_average)
            if not given:
                raise _BatchStatisticsError
        key = "/".join((*module.path, context.method_name))
        output = None if key in skipped else call(*args, **kwargs)
        return function(key, module, rule, args[0], output)

    return nn.intercept_methods(intercept)
