"""Builds optax optimizers and learning-rate schedules from a ``TrainConfig``.

tx = build_optimizer(config, num_steps=config.epochs * steps_per_epoch)
learning_rate = build_schedule(config, num_steps)(step)
"""

from __future__ import annotations

import functools
from collections.abc import Collection

import jax
import optax

from mnist_jax.config import OPTIMIZER_FIELDS, TrainConfig
from mnist_jax.errors import InputError

# The hyperparameters of each optimizer that its state can hold, instead of being constants of the program.
HYPERPARAMETERS = {
    "sgd": ("learning_rate", "weight_decay"),
    "momentum": ("learning_rate", "weight_decay", "momentum"),
    "adam": ("learning_rate", "weight_decay", "b1", "b2"),
    "adamw": ("learning_rate", "weight_decay", "b1", "b2"),
}


def build_schedule(config: TrainConfig, num_steps: int) -> optax.Schedule:
    """Builds the learning rate as a function of the step.

    ``constant`` stays at ``learning_rate``. ``cosine`` decays from it to 0. ``one_cycle`` rises from 1/25 of it over
    the first 30 % of the steps and decays to nearly 0, both along a cosine. ``warmup_constant`` and ``warmup_cosine``
    first rise linearly from 0 over ``warmup_fraction`` of the steps.

    Args:
        config: the run.
        num_steps: steps of the whole run.

    Example:
        >>> schedule = build_schedule(TrainConfig(schedule="cosine", learning_rate=0.5), num_steps=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10)]
        [0.5, 0.25, 0.0]

    Reference: one-cycle, Smith and Topin, https://arxiv.org/abs/1708.07120.
    """
    peak = config.learning_rate
    warmup = min(round(config.warmup_fraction * num_steps), num_steps - 1)
    match config.schedule:
        case "constant":
            return optax.constant_schedule(peak)
        case "cosine":
            return optax.cosine_decay_schedule(peak, num_steps)
        case "one_cycle":
            return optax.cosine_onecycle_schedule(num_steps, peak)
        case "warmup_constant":  # a warm-up of 0 steps stays at 0 in optax
            return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)
        case "warmup_cosine":
            return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, num_steps)


def build_optimizer(
    config: TrainConfig, num_steps: int, hyperparameters: Collection[str] = ()
) -> optax.GradientTransformation:
    """Builds the optimizer; equal arguments return the same object.

    The gradient is clipped by its global norm, then weight decay is added, then the optimizer is applied; ``adamw``
    uses decoupled weight decay instead. Only kernels decay, not biases.

    Args:
        config: the run.
        num_steps: steps of the whole run, for the schedule.
        hyperparameters: names from ``HYPERPARAMETERS`` to keep in ``opt_state.hyperparams``, so that ``jax.vmap`` can
            give each model its own values. A schedule is scaled to the learning rate kept there.

    Raises:
        InputError: the optimizer does not have one of ``hyperparameters``.

    Example:
        >>> tx = build_optimizer(TrainConfig(optimizer="sgd", learning_rate=0.5), num_steps=10)
        >>> params = {"bias": jax.numpy.ones(2)}
        >>> updates, _ = tx.update({"bias": jax.numpy.ones(2)}, tx.init(params), params)
        >>> updates["bias"].tolist()
        [-0.5, -0.5]
    """
    names = HYPERPARAMETERS[config.optimizer]
    for name in hyperparameters:
        if name not in names:
            raise InputError(f"hyperparameters of {config.optimizer} must be some of {', '.join(names)}, got {name}")

    shared = TrainConfig(**{name: getattr(config, name) for name in OPTIMIZER_FIELDS})
    return _build(shared, 1 if config.schedule == "constant" else num_steps, tuple(sorted(hyperparameters)))


@functools.lru_cache(maxsize=64)  # the same object for equal arguments, so that compiled programs are reused
def _build(config: TrainConfig, num_steps: int, hyperparameters: tuple[str, ...]) -> optax.GradientTransformation:
    schedule = build_schedule(config, num_steps)

    def optimizer(
        learning_rate: float, weight_decay: float, momentum: float, b1: float, b2: float
    ) -> optax.GradientTransformation:
        def scaled_schedule(step: jax.Array) -> jax.Array:
            return learning_rate / config.learning_rate * schedule(step)

        # With a number instead of a schedule, the optimizer's state has no unused step counter.
        rate = learning_rate if config.schedule == "constant" else scaled_schedule
        parts = []
        if config.clip_norm is not None:
            parts.append(optax.clip_by_global_norm(config.clip_norm))
        if config.optimizer != "adamw" and ("weight_decay" in hyperparameters or weight_decay):
            parts.append(optax.add_decayed_weights(weight_decay, mask=_is_kernel))
        match config.optimizer:
            case "sgd":
                parts.append(optax.sgd(rate))
            case "momentum":
                parts.append(optax.sgd(rate, momentum=momentum))
            case "adam":
                parts.append(optax.adam(rate, b1=b1, b2=b2))
            case "adamw":
                parts.append(optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_kernel))
        return optax.chain(*parts)

    values = {name: getattr(config, name) for name in ("learning_rate", "weight_decay", "momentum", "b1", "b2")}
    if not hyperparameters:
        return optimizer(**values)
    return optax.inject_hyperparams(optimizer, static_args=set(values) - set(hyperparameters))(**values)


def _is_kernel(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
