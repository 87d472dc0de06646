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
import itertools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.tracers import current_trace
from flax.linen.linear import canonicalize_padding
from jax import lax

from mnist_jax.core.apply import apply_model
from mnist_jax.core.state import PyTree, TrainState
from mnist_jax.models.adapters import LinenAdapter
from mnist_jax.models.conv import ConvCHWN

Where = str | Callable[[str], bool] | None


class Factors(NamedTuple):
    """Holds the gradient of a kernel for each example, as a sum of T outer products.

    Attributes:
        inputs: ``float[B, T, in]``.
        outputs: ``float[B, T, out]``.
    """

    inputs: jax.Array
    outputs: jax.Array

    def squared_norms(self) -> jax.Array:
        """Returns the squared norms of the gradients, ``float[B]``, without forming them where that takes longer."""
        num_positions = self.inputs.shape[1]
        (_, _, num_inputs), (_, _, num_outputs) = self.inputs.shape, self.outputs.shape
        if num_positions == 1:
            return jnp.sum(self.inputs**2, axis=(1, 2)) * jnp.sum(self.outputs**2, axis=(1, 2))
        if num_positions * (num_inputs + num_outputs) < num_inputs * num_outputs:
            products = (jnp.einsum("bti,bsi->bts", each, each) for each in self)
            return jnp.sum(math.prod(products), axis=(1, 2))
        return jnp.sum(self.form() ** 2, axis=(1, 2))

    def form(self) -> jax.Array:
        """Returns the gradients, ``float[B, in, out]``."""
        return jnp.einsum("bti,bto->bio", self.inputs, self.outputs)


Gradient = Factors | jax.Array


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

            def shift(key: str, module: Any, rule: _Rule, x: jax.Array, output: jax.Array) -> jax.Array:
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
        logits, _ = apply_model(state, jax.tree.unflatten(treedef, [*(flat | chosen).values()]), image[None])
        loss: jax.Array = state.recipe.example_loss(logits, label[None])[0]
        return loss

    chosen = {name: flat[name] for name in names}
    return jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(chosen, image, label)


def combine(gradients: Mapping[str, Any], params: PyTree) -> PyTree:
    """Returns the tree of ``params`` with the given leaves, and None for the others."""
    return jax.tree.unflatten(jax.tree.structure(params), [gradients.get(name) for name in parameter_names(params)])


def _dense_rule(module: Any, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    x, grad = (jnp.moveaxis(each, axis, 0) for each in (x, grad))
    grad = grad.reshape(grad.shape[0], -1, grad.shape[-1])
    return {"kernel": Factors(x.reshape(*grad.shape[:2], x.shape[-1]), grad), "bias": grad.sum(axis=1)}


def _conv_rule(module: Any, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    """Takes ``[B, ..., channels]``; strides, dilation and padding are those of an ``nn.Conv``."""
    rank = x.ndim - 2
    strides, dilation, input_dilation = (
        (each,) * rank if isinstance(each, int) else tuple(each or (1,) * rank)
        for each in (module.strides, module.kernel_dilation, module.input_dilation)
    )
    kernel_size = tuple(module.kernel_size)
    padding = canonicalize_padding(module.padding, rank)
    if isinstance(padding, str):
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[1:-1], input_dilation, strict=True)]
        windows = [(size - 1) * step + 1 for size, step in zip(kernel_size, dilation, strict=True)]
        padding = lax.padtype_to_pads(sizes, windows, strides, padding)
    pads = [(low, high, step - 1) for (low, high), step in zip(padding, input_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    patches = []
    for offset in itertools.product(*map(range, kernel_size)):
        start = [index * step for index, step in zip(offset, dilation, strict=True)]
        stop = [low + (size - 1) * step + 1 for low, size, step in zip(start, grad.shape[1:-1], strides, strict=True)]
        patches.append(lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1)))
    grad = grad.reshape(grad.shape[0], -1, grad.shape[-1])
    inputs = jnp.stack(patches, axis=-2).reshape(*grad.shape[:2], -1)
    return {"kernel": Factors(inputs, grad), "bias": grad.sum(axis=1)}


def _chwn_kernel_rule(module: ConvCHWN, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    """Takes ``[channels, height, width, B]``."""
    rows = columns = module.size
    height, width = grad.shape[1:3]
    # Images are moved before they are cut into patches, which are many times larger.
    x, grad = (jnp.moveaxis(each, -1, 0) for each in (x, grad))
    pads = lax.padtype_to_pads(x.shape[2:], (rows, columns), (1, 1), module.padding)
    x = jnp.pad(x, ((0, 0), (0, 0), *pads))
    x = jnp.stack([x[:, :, i : i + height] for i in range(rows)], axis=1)
    x = jnp.stack([x[..., j : j + width] for j in range(columns)], axis=2)
    inputs, outputs = (each.reshape(each.shape[0], -1, height * width).swapaxes(1, 2) for each in (x, grad))
    return {"kernel": Factors(inputs, outputs)}


def _chwn_bias_rule(module: ConvCHWN, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    return {"bias": grad.sum(axis=(1, 2)).T}


def _normalize(module: Any, x: jax.Array) -> jax.Array:
    """Returns the input of a batch norm, normalised by its running averages."""
    shape = [x.shape[axis] if axis == module.axis % x.ndim else 1 for axis in range(x.ndim)]
    mean, variance = (module.get_variable("batch_stats", name).reshape(shape) for name in ("mean", "var"))
    return (x - mean) * lax.rsqrt(variance + module.epsilon)


def _batch_norm_rule(module: Any, x: jax.Array, grad: jax.Array, axis: int) -> dict[str, Gradient]:
    x, grad = (
        jnp.moveaxis(each, (axis, module.axis), (0, -1)).reshape(each.shape[axis], -1, each.shape[module.axis])
        for each in (x, grad)
    )
    return {"scale": jnp.sum(grad * x, axis=1), "bias": grad.sum(axis=1)}


def _is_plain_dense(module: Any, x: jax.Array, axis: int) -> bool:
    return module.dot_general is None and module.dot_general_cls is None and axis != x.ndim - 1


def _is_plain_conv(module: Any, x: jax.Array, axis: int) -> bool:
    is_own = module.conv_general_dilated is not None or module.conv_general_dilated_cls is not None
    is_masked = module.mask is not None or module.feature_group_count != 1
    padding = canonicalize_padding(module.padding, len(module.kernel_size))
    is_lax = not isinstance(padding, str) or padding in ("SAME", "VALID")
    return not is_own and not is_masked and is_lax and axis == 0 and x.ndim == len(module.kernel_size) + 2


def _is_plain_batch_norm(module: Any, x: jax.Array, axis: int) -> bool:
    return isinstance(module.axis, int) and axis != module.axis % x.ndim


class _Rule(NamedTuple):
    """Describes how the gradients of a layer follow from one of its methods.

    Attributes:
        parameters: names of the parameters.
        gradients: returns gradients by parameter from what was recorded and the gradient of the output.
        applies: returns whether the rule holds for a layer, its input and the axis of the examples.
        record: returns what is kept of the input.
    """

    parameters: tuple[str, ...]
    gradients: Callable[[Any, jax.Array, jax.Array, int], dict[str, Gradient]]
    applies: Callable[[Any, jax.Array, int], bool] = lambda module, x, axis: True
    record: Callable[[Any, jax.Array], jax.Array] = lambda module, x: x


_RULES = {
    (nn.Dense, "__call__"): _Rule(("kernel", "bias"), _dense_rule, _is_plain_dense),
    (nn.Conv, "__call__"): _Rule(("kernel", "bias"), _conv_rule, _is_plain_conv),
    (nn.BatchNorm, "__call__"): _Rule(("scale", "bias"), _batch_norm_rule, _is_plain_batch_norm, _normalize),
    (ConvCHWN, "__call__"): _Rule(("bias",), _chwn_bias_rule),
    (ConvCHWN, "convolve"): _Rule(("kernel",), _chwn_kernel_rule),
}


class _Call(NamedTuple):
    """Describes a call of a layer: shapes of input and output, and whether it is outside loops and other transforms."""

    module: Any
    rule: _Rule
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

        def record(key: str, module: Any, rule: _Rule, x: jax.Array, output: Any) -> Any:
            shapes = (jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (x, output))
            calls.setdefault(key, []).append(_Call(module.clone(parent=None), rule, *shapes, current_trace() == level))
            return output

        with _intercept(record):
            return apply_model(state, params, image)[0]

    jax.eval_shape(run, jax.ShapeDtypeStruct((size, *image.shape[1:]), image.dtype))
    return calls


def _find_tied(state: TrainState, params: PyTree, image: jax.Array, layers: Mapping[str, _Layer]) -> set[str]:
    """Returns the names of parameters of these layers that are also read elsewhere."""

    def run(params: PyTree) -> Any:
        """Runs the model with an output of zeros for each of these layers, without reading their parameters."""

        def replace(key: str, module: Any, rule: _Rule, x: jax.Array, output: Any) -> Any:
            return jnp.zeros_like(layers[key].call.output) if key in layers else output

        with _intercept(replace, skipped=layers):
            return apply_model(state, params, jnp.zeros(image.shape, image.dtype))[0]

    jaxpr = jax.make_jaxpr(run)(params).jaxpr
    read = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
    return {name for name, var in zip(parameter_names(params), jaxpr.invars, strict=True) if id(var) in read}


class _BatchStatisticsError(Exception):
    """A batch norm takes the statistics of the batch, in evaluation mode too, so that examples affect each other."""


def _intercept(
    function: Callable[[str, Any, _Rule, jax.Array, Any], Any], skipped: Collection[str] = ()
) -> contextlib.AbstractContextManager[None]:
    """Replaces outputs of methods that have a rule by ``function(key, module, rule, x, output)``, with ``path/method``
    as the key; does not call the ``skipped`` ones."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        rule = _RULES.get((type(module), context.method_name))
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
