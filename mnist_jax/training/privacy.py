"""Trains with differential privacy (DP-SGD): clips the gradient of each example, adds noise, and accounts for it.

    fit(TrainConfig(dp_clip=1.0, dp_epsilon=3.0))    # as python -m mnist_jax.train --dp-clip 1 --dp-epsilon 3

    gradient_fn = PrivateGradient(clip_norm=1.0, noise_multiplier=1.1, expected_batch_size=256)
    state = create_train_state(model, tx, key, gradient_fn=gradient_fn)
    order = PoissonOrder(256)(state.key, epoch, num_examples)               # int32[S * B_max], -1 for a gap
    privacy = Privacy(1.0, 1.1, 1e-5, num_examples, 256)
    privacy.epsilon(num_steps)

Clipping, noise and accounting are those of ``jax_privacy``, which is imported on first use (extra ``privacy``). Each
step takes each example with probability B / N, independently of the others, and at most ``B_max`` of them; the
accountant knows of both. Two data sets are neighbours if one has an example more; N and B are public.

Whoever knows the seed of a run can recompute its noise: keep the seed, and with it ``config.json``, secret.

Reference: Abadi et al. (2016), https://arxiv.org/abs/1607.00133; truncated Poisson sampling: Chua et al. (2024),
https://arxiv.org/abs/2411.04205.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.config import TrainConfig
from mnist_jax.core.epoch import count_steps
from mnist_jax.core.gradients import split_examples
from mnist_jax.core.metrics import Metrics
from mnist_jax.errors import InputError

if TYPE_CHECKING:
    from mnist_jax.core.state import LossFn, PyTree, TrainState

# Folded into the key of a run; steps fold in their number, and shuffling 2**32 - 1.
_SAMPLING = 2**32 - 2
# A batch has room for this many standard deviations above its expected size: about one in three million overflows.
_ROOM = 5
# Grid of the accountant. Its epsilon is an upper bound, here at most 0.01 above that of a grid ten times as fine.
_GRID = 1e-3
# With less noise epsilon means nothing, and takes the accountant long.
_LEAST_NOISE = 0.2


def _import(module: str) -> Any:
    """Imports a module of ``jax_privacy``."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = "dp-accounting" if (error.name or "").startswith("dp_accounting") else "jax-privacy"
        raise InputError(
            f'private training needs the package {package}, which is not installed: pip install -e ".[privacy]"'
        ) from None


@dataclasses.dataclass(frozen=True)
class PrivateGradient:
    """Sums the clipped gradients of the examples, adds Gaussian noise, and divides by the expected batch size.

    A ``gradient_fn``. The loss is computed on batches of one example, so no layer or loss can mix examples, and each
    example has its own key for dropout and augmentation. A masked example, and one whose gradient is not finite,
    contributes nothing. The guarantee needs batches from a :class:`PoissonOrder`, and is that of :class:`Privacy`. The
    metrics are not protected.

    Attributes:
        clip_norm: largest L2 norm of the gradient of an example.
        noise_multiplier: standard deviation of the noise in the sum, divided by ``clip_norm``; 0 adds none.
        expected_batch_size: the mean number of examples in a batch, B; the actual number would reveal something.
        microbatch_size: examples whose gradients are in memory at the same time; None for the whole batch.

    Raises:
        ValueError: an attribute is out of range.
        InputError: when it is called: training changes the model state, as batch norm does; or jax-privacy is not
            installed.

    Example:
        >>> PrivateGradient(clip_norm=1.0, noise_multiplier=-1, expected_batch_size=256)
        Traceback (most recent call last):
        ValueError: noise_multiplier must be a finite number, 0 or above, got -1
    """

    clip_norm: float
    noise_multiplier: float
    expected_batch_size: int
    microbatch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be a finite number above 0, got {self.clip_norm}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be a finite number, 0 or above, got {self.noise_multiplier}")
        for name in ("expected_batch_size", "microbatch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def __call__(
        self, loss_fn: LossFn, state: TrainState, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[PyTree, Metrics, PyTree]:
        """Computes the gradient: see :func:`mnist_jax.mean_gradient`."""
        jax_privacy = _import("jax_privacy")
        batch_size = batch["image"].shape[0]
        size = batch_size if self.microbatch_size is None else min(self.microbatch_size, batch_size)
        padding = -batch_size % size
        mask = jnp.asarray(batch.get("mask", jnp.ones(batch_size, bool)))
        mask = jnp.concatenate([mask, jnp.zeros(padding, mask.dtype)])
        examples, merge = split_examples(batch)
        if padding:
            examples = [jnp.concatenate([x, x[:padding]]) for x in examples]

        def one_loss(params: PyTree, example: list[jax.Array], key: jax.Array) -> tuple[jax.Array, Metrics]:
            loss, (metrics, _) = loss_fn(params, state, merge(example), key)
            return loss, metrics

        _check_model_state(lambda state: loss_fn(state.params, state, merge([x[:1] for x in examples]), key), state)
        clipped_grad = jax_privacy.clipped_grad(
            one_loss, has_aux=True, l2_clip_norm=self.clip_norm, prng_argnum=2, microbatch_size=size
        )
        noise_key, example_key = jax.random.split(key)
        grads, aux = clipped_grad(state.params, examples, example_key, is_padding_example=~mask)
        recorded = jax.tree.map(lambda x: x[:batch_size], aux.aux.examples)
        metrics = jax.tree.map(lambda x: jnp.sum(x, where=mask, dtype=x.dtype), aux.aux.replace(examples=None))
        if self.noise_multiplier:
            privatizer = jax_privacy.noise_addition.gaussian_privatizer(
                stddev=self.clip_norm * self.noise_multiplier, prng_key=noise_key
            )
            grads, _ = privatizer.update(grads, privatizer.init(grads))
        grads = jax.tree.map(lambda grad: grad / self.expected_batch_size, grads)
        return grads, metrics.replace(examples=recorded), state.model_state


def _check_model_state(loss_and_aux: Callable[[TrainState], Any], state: TrainState) -> None:
    """Checks by tracing that a step leaves the model state as it is: running statistics would have no noise.

    Raises:
        InputError: a step changes it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state.model_state)
    traced = jax.make_jaxpr(lambda model_state: loss_and_aux(state.replace(model_state=model_state))[1][1])
    program = traced(state.model_state).jaxpr
    for (path, _), before, after in zip(leaves, program.invars, program.outvars, strict=True):
        if after is not before:
            raise InputError(
                "private training needs a model whose state does not change while it trains, as batch norm's does; "
                f"got {jax.tree_util.keystr(path, simple=True, separator='/')}"
            )


@dataclasses.dataclass(frozen=True)
class PoissonOrder:
    """Samples the batches of an epoch: each example with probability B / N in each of the ``ceil(N / B)`` steps.

    Attributes:
        batch_size: B, the mean number of examples in a batch.

    Example:
        >>> order = PoissonOrder(batch_size=20)(jax.random.key(0), epoch=0, num_examples=60)
        >>> order.shape, [int((batch >= 0).sum()) for batch in order.reshape(3, -1)]
        ((144,), [17, 16, 14])
    """

    batch_size: int

    def __call__(self, key: jax.Array, epoch: jax.Array | int, num_examples: int) -> jax.Array:
        """Returns the batches one after another.

        Args:
            key: PRNG key, ``state.key``.
            epoch: number of the epoch, from 0.
            num_examples: N.

        Returns:
            ``int32[S * B_max]``, indices of examples and, after those of each batch, -1. Of a batch that is too large,
            a random subset of ``B_max`` is taken.
        """
        room = self.max_batch_size(num_examples)
        # Beyond this many, a probability of about 1e-30, those with the smallest indices would be preferred.
        num_candidates = min(num_examples, self.batch_size + math.ceil(12 * math.sqrt(self.batch_size)) + 64)
        threshold = jnp.uint32(min(self.batch_size * 2**32 // num_examples, 2**32 - 1))

        def sample(key: jax.Array) -> jax.Array:
            bits = jax.random.bits(key, (num_examples,))
            chosen = jnp.nonzero(bits < threshold, size=num_candidates, fill_value=-1)[0].astype(jnp.int32)
            # Random bits again decide which of them there is room for.
            rank = jnp.where(chosen >= 0, bits[chosen], jnp.uint32(2**32 - 1))
            return chosen[jnp.argsort(rank)[:room]]

        epoch_key = jax.random.fold_in(jax.random.fold_in(key, _SAMPLING), epoch)
        keys = jax.random.split(epoch_key, count_steps(num_examples, self.batch_size))
        return lax.map(sample, keys).reshape(-1)

    def max_batch_size(self, num_examples: int) -> int:
        """Returns ``B_max``, the room in a batch.

        Example:
            >>> PoissonOrder(256).max_batch_size(55_000), PoissonOrder(50).max_batch_size(60)
            (336, 60)
        """
        return min(num_examples, -(-(self.batch_size + math.ceil(_ROOM * math.sqrt(self.batch_size))) // 8) * 8)


@dataclasses.dataclass(frozen=True)
class Privacy:
    """Accounts for the privacy of a run: epsilon after a number of steps, with ``jax_privacy``'s PLD accountant.

    Attributes:
        clip_norm: largest norm of the gradient of an example.
        noise_multiplier: standard deviation of the noise, divided by ``clip_norm``.
        delta: the delta of the guarantee, well below 1 / N.
        num_examples: N.
        batch_size: B, the mean number of examples in a batch.

    Raises:
        ValueError: an attribute is out of range.

    Example:
        >>> privacy = Privacy(clip_norm=1.0, noise_multiplier=1.1, delta=1e-5, num_examples=60_000, batch_size=256)
        >>> privacy.describe()["sampling"]["max_batch_size"]
        336
    """

    clip_norm: float
    noise_multiplier: float
    delta: float
    num_examples: int
    batch_size: int

    def __post_init__(self) -> None:
        PrivateGradient(self.clip_norm, self.noise_multiplier, self.batch_size)  # checks them
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}")
        count_steps(self.num_examples, self.batch_size)

    @classmethod
    def of_run(cls, config: TrainConfig, num_examples: int) -> Privacy:
        """Returns the privacy of a run; without ``dp_noise``, the noise with which all epochs fit into ``dp_epsilon``.

        Raises:
            InputError: ``dp_epsilon`` is too small, even for the first epoch if ``dp_noise`` is given.
        """
        assert config.dp_clip is not None
        steps_per_epoch = count_steps(num_examples, config.batch_size)
        noise = config.dp_noise
        if noise is None:
            assert config.dp_epsilon is not None
            noise = _find_noise(config, num_examples, config.epochs * steps_per_epoch)
        privacy = cls(config.dp_clip, noise, config.dp_delta, num_examples, config.batch_size)
        if config.dp_epsilon is not None and (spent := privacy.epsilon(steps_per_epoch)) > config.dp_epsilon:
            raise InputError(
                f"dp_epsilon must be at least {spent:.3f}, that of the first epoch with dp_noise {noise:.4g}, "
                f"got {config.dp_epsilon}"
            )
        return privacy

    @functools.lru_cache(maxsize=256)  # noqa: B019
    def epsilon(self, num_steps: int) -> float:
        """Returns epsilon after a number of steps; infinite without noise."""
        if self.noise_multiplier == 0:
            return math.inf if num_steps else 0.0
        accounting = _import("jax_privacy.accounting")
        return float(_accountant().compute_epsilon(num_steps, self._params(accounting)))

    def sampling(self) -> PoissonOrder:
        """Returns what samples the batches."""
        return PoissonOrder(self.batch_size)

    def describe(self) -> dict[str, Any]:
        """Returns the entries of ``summary.json``, but epsilon."""
        return {
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.clip_norm,
            "sampling": {
                "method": "truncated Poisson",
                "probability": self.batch_size / self.num_examples,
                "max_batch_size": self.sampling().max_batch_size(self.num_examples),
            },
        }

    def _params(self, accounting: Any) -> Any:
        return accounting.DpParams(
            noise_multipliers=self.noise_multiplier,
            num_samples=self.num_examples,
            delta=self.delta,
            batch_size=self.batch_size,
            truncated_batch_size=self.sampling().max_batch_size(self.num_examples),
        )


def _accountant() -> Any:
    accounting = _import("jax_privacy.accounting")
    config = accounting.PldAccountantConfig(value_discretization_interval=_GRID)
    return accounting.DpsgdTrainingAccountant(config)


def _find_noise(config: TrainConfig, num_examples: int, num_steps: int) -> float:
    """Returns the smallest noise multiplier with which a number of steps fits into ``dp_epsilon``, up to 0.001.

    It is at least 0.125, even if less would do.
    """
    accounting, accountant = _import("jax_privacy.accounting"), _accountant()
    assert config.dp_clip is not None
    assert config.dp_epsilon is not None
    largest = 1.0  # the accountant is slow for little noise, so its search begins with much
    while True:
        if largest < _LEAST_NOISE:
            return largest
        privacy = Privacy(config.dp_clip, largest / 2, config.dp_delta, num_examples, config.batch_size)
        if privacy.epsilon(num_steps) > config.dp_epsilon:
            break
        largest /= 2
    noise: float = accounting.calibrate_noise_multiplier(
        target_epsilon=config.dp_epsilon,
        accountant=accountant,
        batch_sizes=config.batch_size,
        num_updates=num_steps,
        num_samples=num_examples,
        target_delta=config.dp_delta,
        truncated_batch_size=PoissonOrder(config.batch_size).max_batch_size(num_examples),
        initial_min_noise=largest / 2,
        initial_max_noise=largest,
        tol=1e-3,
    )
    return noise


def prepare_privacy(config: TrainConfig, num_examples: int, state: TrainState | None = None) -> Privacy | None:
    """Returns the privacy of a run of ``fit``; None if it is not private.

    Args:
        config: the run.
        num_examples: N.
        state: the user's own, or None.

    Raises:
        InputError: see :meth:`Privacy.of_run`; or the state has a :class:`PrivateGradient`, but the run does not sample
            its batches as this needs.
    """
    if state is not None and isinstance(state.recipe.gradient_fn, PrivateGradient):
        raise InputError(
            "a state with a PrivateGradient needs batches of a PoissonOrder, not those of fit: give dp_clip and "
            "dp_noise in the config, and model and tx instead of state"
        )
    return None if config.dp_clip is None else Privacy.of_run(config, num_examples)
