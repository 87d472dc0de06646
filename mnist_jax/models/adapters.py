"""Adapters give models of every kind one interface: a pure function of parameters, images and a key.

    adapter, initialise = adapt_model(model, image_shape=(28, 28, 1))
    params, model_state = initialise(key)
    logits, model_state = adapter.apply(params, model_state, image, key)   # training mode
    logits, model_state = adapter.apply(params, model_state, image)        # evaluation mode

The model is a Flax Linen module, which the key initialises; an instance of a Flax NNX or Equinox module, which keeps
its parameters; or a pair ``(init(key) -> params, apply(params, image[B, H, W, C]) -> logits)``, the same in both modes.

Recognising NNX and Equinox models does not import these packages. An adapter is hashable and holds no arrays, so it can
be a static part of a jitted function.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Protocol

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

PyTree = Any
Shape = tuple[int, ...]


class Variables(NamedTuple):
    """Holds the parameters, and the model's other arrays, such as batch statistics."""

    params: PyTree
    model_state: PyTree


class Adapter(Protocol):
    """Represents a model as a pure function; hashable and without arrays."""

    @property
    def name(self) -> str:
        """Name of the model's class or function."""
        ...

    def apply(
        self, params: PyTree, model_state: PyTree, image: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Maps ``float[B, H, W, C]`` to logits ``float[B, K]`` and the new model state.

        With a key the model runs in training mode, without one in evaluation mode.
        """
        ...


def adapt_model(
    model: Any, *, image_shape: Shape = (28, 28, 1), train_argument: str | None = None
) -> tuple[Adapter, Callable[[jax.Array], Variables]]:
    """Returns the adapter of a model, and a function that initialises its variables from a key.

    Args:
        model: a Linen module, an NNX or Equinox module instance, or a pair of functions ``(init, apply)``. An instance
            keeps its parameters, whatever the key.
        image_shape: ``(H, W, C)`` of one image.
        train_argument: the argument that switches a Linen module to training mode, if it is not ``train``,
            ``deterministic`` or ``use_running_average``. The last two, and names that begin with ``not_``, are True in
            evaluation mode.

    Raises:
        TypeError: the model is of an unknown kind, or has an attribute that is not hashable.
        ValueError: the model has dropout or batch norm, but no argument that switches to training mode.

    Example:
        >>> from mnist_jax import MLP
        >>> adapter, initialise = adapt_model(MLP(hidden_sizes=(8,)))
        >>> adapter.train_argument, sorted(initialise(jax.random.key(0)).params)
        ('train', ['Dense_0', 'Dense_1'])
    """
    if train_argument is not None and not isinstance(model, nn.Module):
        raise TypeError(f"train_argument needs a Linen module, got {type(model).__name__}")
    if isinstance(model, nn.Module):
        linen = LinenAdapter(_check_hashable(model), _find_train_argument(model, image_shape, train_argument))
        return linen, lambda key: _init_linen(linen, key, image_shape)
    if _is_instance(model, "flax.nnx", "Module"):
        adapter, variables = _adapt_nnx(model)
        return adapter, lambda key: variables
    if _is_instance(model, "equinox", "Module"):
        equinox_adapter, variables = _adapt_equinox(model)
        return equinox_adapter, lambda key: variables
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        init, apply = model
        return FunctionAdapter(apply), lambda key: Variables(init(key), {})
    raise TypeError(
        "model must be a Flax Linen module, a Flax NNX or Equinox module instance, or a pair of functions "
        f"(init(key), apply(params, image)), got {type(model).__name__}"
    )


def _is_instance(model: Any, module: str, name: str) -> bool:
    imported = sys.modules.get(module)
    return imported is not None and isinstance(model, getattr(imported, name))


def _check_hashable(model: Any) -> Any:
    try:
        hash(model)
    except TypeError as error:
        raise TypeError(
            f"model must have hashable attributes, tuples rather than lists, got {type(model).__name__}: {error}"
        ) from None
    return model


# Conventional names of the argument in Linen modules, and its value in training mode.
TRAIN_ARGUMENTS = {"train": True, "deterministic": False, "use_running_average": False}


@dataclasses.dataclass(frozen=True)
class LinenAdapter:
    """Adapts a Flax Linen module.

    Attributes:
        module: the module.
        train_argument: the argument that switches it to training mode, or None.
    """

    module: nn.Module
    train_argument: str | None

    @property
    def name(self) -> str:
        """Name of the class."""
        return type(self.module).__name__

    def apply(
        self, params: PyTree, model_state: PyTree, image: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Maps images to logits: see :class:`Adapter`."""
        variables = {"params": params, **model_state}
        mode = _mode(self.train_argument, key is not None)
        rngs = None if key is None else {"dropout": key}
        logits, changed = self.module.apply(variables, image, **mode, rngs=rngs, mutable=list(model_state))
        return logits, model_state if key is None else {**model_state, **changed}


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init_linen(adapter: LinenAdapter, key: jax.Array, image_shape: Shape) -> Variables:
    variables = adapter.module.init(key, jnp.zeros((1, *image_shape)), **_mode(adapter.train_argument, False))
    model_state, params = flax.core.pop(variables, "params") if "params" in variables else (variables, {})
    return Variables(params, model_state)


def _mode(argument: str | None, train: bool) -> dict[str, Any]:
    if argument is None:
        return {}
    training_value = TRAIN_ARGUMENTS.get(argument, not argument.startswith("not_"))
    return {argument: training_value == train}


def _find_train_argument(model: nn.Module, image_shape: Shape, given: str | None) -> str | None:
    """Returns the argument that switches a Linen module to training mode: given, in its signature, or in its kwargs.

    Raises:
        ValueError: the module has dropout or batch norm, but no such argument.
    """
    parameters = inspect.signature(type(model).__call__).parameters
    has_kwargs = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if given is not None:
        if given not in parameters and not has_kwargs:
            raise ValueError(f"train_argument must be an argument of {type(model).__name__}.__call__, got {given!r}")
        return given
    for argument in TRAIN_ARGUMENTS:
        if argument in parameters:
            return argument
    for argument in TRAIN_ARGUMENTS if has_kwargs and not _is_bridge(model) else ():
        try:
            _trace(model, image_shape, _mode(argument, False))
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
        else:
            return argument
    if layer := _trace(model, image_shape, {}):
        raise ValueError(
            f"model {type(model).__name__} has {layer}, and its __call__ takes none of "
            f"{', '.join(TRAIN_ARGUMENTS)}, so it cannot be told whether it is training: add such an argument, "
            "or name yours with train_argument="
        )
    return None


def _is_bridge(model: nn.Module) -> bool:
    """Returns whether a Linen module wraps an NNX module, whose layers are not Linen modules."""
    return _is_instance(model, "flax.nnx.bridge", "ToLinen")


def _trace(model: nn.Module, image_shape: Shape, mode: Mapping[str, Any]) -> str | None:
    """Traces a Linen module on shapes alone; returns a layer that behaves differently in training, or None."""
    found: list[str] = []

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        is_dropout = isinstance(module, nn.Dropout) and module.rate > 0
        if (is_dropout or isinstance(module, nn.BatchNorm)) and context.method_name == "__call__":
            found.append(f"{'/'.join(module.path) or 'itself'} ({type(module).__name__})")
            argument = "deterministic" if is_dropout else "use_running_average"
            if not mode and argument not in kwargs and getattr(module, argument) is None:
                kwargs = {**kwargs, argument: True}  # else Flax raises here, with a less helpful message
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        try:
            variables = jax.eval_shape(lambda image: model.init(jax.random.key(0), image, **mode), image)
        except KeyError as error:  # dropout in training mode lacks its random stream
            if _is_bridge(model):
                return " ".join(str(error.args[0]).split())
            raise
    if _is_bridge(model) and "batch_stats" in variables:
        found.append("batch_stats")
    return found[0] if found else None


@dataclasses.dataclass(frozen=True)
class NnxAdapter:
    """Adapts a Flax NNX module, split into parameters, random streams and the rest.

    Attributes:
        name: name of the class.
        train_graph: graph definition in training mode, after ``module.train()``.
        eval_graph: graph definition in evaluation mode, after ``module.eval()``.
        rngs: tree structure of the random streams, and shape and dtype of each leaf.
    """

    name: str
    train_graph: Hashable
    eval_graph: Hashable
    rngs: tuple[Any, tuple[tuple[Shape, Any], ...]]

    def apply(
        self, params: PyTree, model_state: PyTree, image: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Maps images to logits: see :class:`Adapter`."""
        from flax import nnx

        graph: Any = self.eval_graph if key is None else self.train_graph
        module = nnx.merge(graph, nnx.State(params), self._streams(key), nnx.State(model_state))
        logits = module(image)
        if key is None:
            return logits, model_state
        parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        changed = parts[3]
        return logits, nnx.to_pure_dict(changed)

    def _streams(self, key: jax.Array | None) -> Any:
        """Returns new random streams, each with its own key."""
        key = jax.random.key(0) if key is None else key
        treedef, kinds = self.rngs
        leaves = []
        for index, (shape, dtype) in enumerate(kinds):
            if jnp.issubdtype(dtype, jax.dtypes.prng_key):
                stream_key = jax.random.fold_in(key, index)
                leaves.append(jax.random.split(stream_key, shape) if shape else stream_key)
            else:
                leaves.append(jnp.zeros(shape, dtype))
        return jax.tree.unflatten(treedef, leaves)


def _adapt_nnx(model: Any) -> tuple[NnxAdapter, Variables]:
    from flax import nnx

    module = nnx.clone(model)  # copied, because the mode is an attribute
    module.eval()
    eval_graph = nnx.graphdef(module)
    module.train()
    parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
    train_graph, params, rngs, others = parts
    leaves, treedef = jax.tree.flatten(rngs)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    adapter = NnxAdapter(type(model).__name__, train_graph, eval_graph, (treedef, kinds))
    return adapter, Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(others))


@dataclasses.dataclass(frozen=True)
class EquinoxAdapter:
    """Adapts an Equinox module, which takes one image ``float[H, W, C]``, by ``vmap`` over the batch.

    Attributes:
        name: name of the class.
        train_static: tree structure and leaves of the module without its arrays, in training mode.
        eval_static: the same in evaluation mode.
        takes_key: whether ``__call__`` has a ``key`` argument, for dropout.
    """

    name: str
    train_static: tuple[Any, ...]
    eval_static: tuple[Any, ...]
    takes_key: bool

    def apply(
        self, params: PyTree, model_state: PyTree, image: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Maps images to logits: see :class:`Adapter`."""
        import equinox

        treedef, leaves = self.eval_static if key is None else self.train_static
        module = equinox.combine(params, model_state["constants"], jax.tree.unflatten(treedef, leaves))
        if key is None or not self.takes_key:
            return jax.vmap(module)(image), model_state
        keys = jax.random.split(key, image.shape[0])
        return jax.vmap(lambda one, key: module(one, key=key))(image, keys), model_state


def _adapt_equinox(model: Any) -> tuple[EquinoxAdapter, Variables]:
    import equinox

    takes_key = "key" in inspect.signature(type(model).__call__).parameters
    special = (equinox.nn.StateIndex, equinox.nn.Dropout)
    for part in jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, special)):
        if isinstance(part, equinox.nn.StateIndex):
            raise ValueError(
                f"model {type(model).__name__} has a layer with state, such as BatchNorm, which is not supported for "
                "Equinox modules: use GroupNorm or LayerNorm, or a Flax module"
            )
        if isinstance(part, equinox.nn.Dropout) and not takes_key:
            raise ValueError(
                f"model {type(model).__name__} has Dropout, and its __call__ takes no key: add the argument key=None"
            )
    params, others = equinox.partition(model, equinox.is_inexact_array)
    constants, static = equinox.partition(others, equinox.is_array)
    parts = []
    for inference in (False, True):
        leaves, treedef = jax.tree.flatten(equinox.nn.inference_mode(static, inference), is_leaf=lambda x: x is None)
        parts.append((_check_hashable(treedef), _check_hashable(tuple(leaves))))
    return EquinoxAdapter(type(model).__name__, parts[0], parts[1], takes_key), Variables(
        params, {"constants": constants}
    )


@dataclasses.dataclass(frozen=True)
class FunctionAdapter:
    """Adapts a function of parameters and images, which is the same in training and evaluation."""

    function: Callable[[PyTree, jax.Array], jax.Array]

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def apply(
        self, params: PyTree, model_state: PyTree, image: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Maps images to logits: see :class:`Adapter`."""
        del key
        return self.function(params, image), model_state
