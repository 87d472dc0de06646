"""``TrainConfig``: every choice that makes up a run, in one frozen and validated dataclass.

    config = TrainConfig(model="cnn", epochs=3)
    config == TrainConfig.from_json(config.to_json())   # saved with each run as config.json

The fields are also the flags of ``python -m mnist_jax.train``; the text below a field is its help.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from mnist_jax.errors import InputError

Model = Literal["mlp", "cnn"]
Optimizer = Literal["sgd", "momentum", "adam", "adamw"]
Dtype = Literal["float32", "bfloat16"]
Padding = Literal["valid", "same"]
Schedule = Literal["constant", "cosine", "one_cycle", "warmup_constant", "warmup_cosine"]

# Where a run and its data lie, and how it is shown: free to change when it is resumed.
PRESENTATION = ("data_dir", "checkpoint_every", "keep_checkpoints", "workdir", "resume", "progress", "quiet")

# Fields that have an effect under some values of another field only.
_NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hidden_sizes": ("model", ("mlp",)),
    **dict.fromkeys(("channels", "kernel_sizes", "pool_sizes", "padding", "dense_size"), ("model", ("cnn",))),
    "momentum": ("optimizer", ("momentum",)),
    **dict.fromkeys(("b1", "b2"), ("optimizer", ("adam", "adamw"))),
    "warmup_fraction": ("schedule", ("warmup_constant", "warmup_cosine")),
}
# And this one where the other is above 0.
_NEEDS_ABOVE_0 = {"augment_smoothness": "augment_elastic"}
# What describes the model, the optimizer, and the rest of a step: each is in vain beside one of the user's own.
MODEL_FIELDS = (
    "model",
    "hidden_sizes",
    "channels",
    "kernel_sizes",
    "pool_sizes",
    "padding",
    "dense_size",
    "batch_norm",
    "dropout_rate",
    "dtype",
)
OPTIMIZER_FIELDS = (
    "optimizer",
    "learning_rate",
    "schedule",
    "warmup_fraction",
    "momentum",
    "b1",
    "b2",
    "weight_decay",
    "clip_norm",
)
RECIPE_FIELDS = (
    "label_smoothing",
    "adversarial_radius",
    "ema_decay",
    "augment_shift",
    "augment_rotation",
    "augment_scale",
    "augment_shear",
    "augment_elastic",
    "augment_smoothness",
    "augment_erasing",
    "microbatch_size",
    "seed",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a digit classifier.

    Raises:
        InputError: a field has a value outside its range; the message names field, value and range.

    Example:
        >>> TrainConfig(batch_size=0)
        Traceback (most recent call last):
        mnist_jax.errors.InputError: batch_size must be at least 1, got 0
    """

    data: str | None = None
    """mnist, fashion_mnist, kmnist, emnist/digits, digits, a directory of IDX files or a Kaggle CSV;
    left out: mnist, or the embedded digits where MNIST cannot be had"""
    data_dir: str | None = None
    """directory looked in first for mnist (IDX files or prepared tfds data); default $MNIST_JAX_DATA_DIR"""
    num_validation: int | None = None
    """training examples held out, from the end; default 5000, or a tenth of fewer than 50000"""

    model: Model = "mlp"
    """architecture"""
    hidden_sizes: tuple[int, ...] = (512, 256)
    """mlp: units per hidden layer"""
    channels: tuple[int, ...] = (24, 32)
    """cnn: channels per convolution"""
    kernel_sizes: tuple[int, ...] = (5, 3)
    """cnn: kernel height and width per convolution"""
    pool_sizes: tuple[int, ...] = (2,)
    """cnn: side of the max-pooling after each convolution, 1 for none; one for all, or one each"""
    padding: Padding = "valid"
    """cnn: same keeps height and width, by zeros around the image"""
    dense_size: int = 256
    """cnn: units of the dense layer before the logits; 0: the mean over each channel goes to the logits instead"""
    batch_norm: bool = False
    """normalise over the batch, or microbatch, before each ReLU; evaluation needs some hundred steps of averages"""
    dropout_rate: float = 0.2
    """share of hidden units dropped in training, in [0, 1)"""
    dtype: Dtype = "float32"
    """what the layers compute in; parameters, logits and loss are float32"""

    optimizer: Optimizer = "adam"
    """sgd is plain steepest descent"""
    learning_rate: float = 1e-3
    """peak learning rate, > 0"""
    schedule: Schedule = "constant"
    """learning rate over the run"""
    warmup_fraction: float = 0.1
    """share of all steps the warmup schedules rise for, in [0, 1)"""
    momentum: float = 0.9
    """momentum: decay of the velocity, in [0, 1)"""
    b1: float = 0.9
    """adam, adamw: decay of the first moment, in [0, 1)"""
    b2: float = 0.999
    """adam, adamw: decay of the second moment, in [0, 1)"""
    weight_decay: float = 0.0
    """L2 on the weights, not the biases: decoupled for adamw, added to the gradient for the others"""
    clip_norm: float | None = None
    """largest global norm of the gradient"""
    label_smoothing: float = 0.0
    """share of the target spread over all classes, in [0, 1)"""
    adversarial_radius: float = 0.0
    """virtual adversarial training: L2 length of the perturbation, for pixels in [0, 1]; about triples the work"""
    ema_decay: float | None = 0.999
    """evaluate a running average of the parameters with this decay per step, in [0, 1); None: the parameters"""

    augment_shift: float = 0.0
    """in training, move each image by up to so many pixels either way, in [0, 14]"""
    augment_rotation: float = 0.0
    """turn each image by up to so many degrees, in [0, 45]"""
    augment_scale: float = 0.0
    """enlarge or shrink each image by up to this share along either axis, in [0, 0.5]"""
    augment_shear: float = 0.0
    """slant each image by up to this many pixels per pixel of height, in [0, 0.5]"""
    augment_elastic: float = 0.0
    """distort each image smoothly; standard deviation of a pixel's displacement, in pixels, in [0, 7]"""
    augment_smoothness: float = 4.0
    """standard deviation of the Gaussian that smooths the elastic distortion, in pixels, in [2, 14]"""
    augment_erasing: float = 0.0
    """share of images of which a rectangle is erased, in [0, 1]"""

    batch_size: int = 128
    """examples per step"""
    microbatch_size: int | None = None
    """examples whose gradient is computed at a time, and added to that of the others of the batch;
    default what is fastest: 32 for the cnn on CPU, or else the whole batch. With batch_norm it changes the training"""
    epochs: int = 10
    """passes over the training split"""
    seed: int = 0
    """seed of initialisation, shuffling, dropout and augmentation, in [0, 2**32)"""

    checkpoint_every: int = 1
    """epochs between checkpoints; the last epoch is always saved"""
    keep_checkpoints: int = 3
    """newest checkpoints to keep, besides the best by validation accuracy"""
    workdir: str | None = None
    """directory of the run; default runs/<dataset>-<model>-<time>"""
    resume: bool = False
    """continue the run in --workdir, perhaps to more --epochs; nothing else may differ"""
    progress: bool = False
    """a bar for each epoch even where stderr is no terminal, in a notebook or a log"""
    quiet: bool = False
    """no progress, not even a bar; only the closing table"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _converted(field.name, getattr(self, field.name)))
        for name in (
            "batch_size",
            "microbatch_size",
            "epochs",
            "checkpoint_every",
            "keep_checkpoints",
            "num_validation",
        ):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1", value)
        for name in ("hidden_sizes", "channels", "kernel_sizes", "pool_sizes"):
            value = getattr(self, name)
            _require(all(size >= 1 for size in value), name, "at least 1 each", value)
        _require(0 <= self.seed < 2**32, "seed", "in [0, 2**32)", self.seed)
        _require(
            len(self.channels) == len(self.kernel_sizes) > 0,
            "kernel_sizes",
            f"as long as channels {self.channels} and not empty",
            self.kernel_sizes,
        )
        _require(
            len(self.pool_sizes) in (1, len(self.channels)),
            "pool_sizes",
            f"one for all or as long as channels {self.channels}",
            self.pool_sizes,
        )
        _require(self.dense_size >= 0, "dense_size", "at least 0", self.dense_size)
        for name, largest in (
            ("rotation", 45),
            ("scale", 0.5),
            ("shear", 0.5),
            ("erasing", 1),
            ("shift", 14),
            ("elastic", 7),
        ):
            value = getattr(self, f"augment_{name}")
            _require(0 <= value <= largest, f"augment_{name}", f"in [0, {largest}]", value)
        _require(2 <= self.augment_smoothness <= 14, "augment_smoothness", "in [2, 14]", self.augment_smoothness)
        for name in ("dropout_rate", "warmup_fraction", "momentum", "b1", "b2", "label_smoothing", "ema_decay"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < 1, name, "in [0, 1)", value)
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, name, "a finite number above 0", value)
        for name in ("weight_decay", "adversarial_radius"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, name, "a finite number, 0 or above", value)
        for name in ("data", "data_dir", "workdir"):
            _require(getattr(self, name) != "", name, "a name", "an empty one")
        _require(not (self.resume and self.workdir is None), "resume", "given together with --workdir", "no workdir")
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != field.default:
                check_effect(field.name, vars(self))

    def to_json(self) -> str:
        """The config as a JSON object, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Reads what :meth:`to_json` wrote.

        Raises:
            InputError: the text is no JSON object, or has a field that ``TrainConfig`` has not.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"config: not JSON ({error})") from None
        if not isinstance(fields, Mapping):
            raise InputError(f"config: must be a JSON object, got {type(fields).__name__}")
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise InputError(f"config: unknown field {unknown[0]!r}")
        try:
            return cls(**fields)
        except _NoEffectError:  # in a run of an earlier version, which took it in silence
            return effective_config(fields)

    def differences(self, other: TrainConfig) -> list[str]:
        """Returns the names of the fields that describe the training and differ, ``epochs`` among them.

        A ``microbatch_size`` that ``other`` leaves to be chosen is no difference.
        """
        others = other.training_fields()
        if other.microbatch_size is None:
            others["microbatch_size"] = self.microbatch_size
        return [name for name, value in self.training_fields().items() if value != others[name]]

    def training_fields(self) -> dict[str, Any]:
        """What describes the training and not where, or how it is shown; by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in PRESENTATION}


class _NoEffectError(InputError):
    """A field has no effect beside the others."""


def check_effect(name: str, fields: Mapping[str, Any]) -> None:
    """Checks that a field has an effect beside the others.

    Raises:
        InputError: it has none; the message names what would give it one.

    Example:
        >>> try:
        ...     check_effect("momentum", {"optimizer": "adam"})
        ... except InputError as error:
        ...     print(error)
        momentum has no effect with optimizer adam: leave it out, or choose momentum
    """
    if name in _NEEDS_ABOVE_0 and not fields[_NEEDS_ABOVE_0[name]]:
        other = _NEEDS_ABOVE_0[name]
        raise _NoEffectError(f"{name} has no effect without {other}: leave it out, or choose {other} above 0")
    if name not in _NEEDS:
        return
    decider, values = _NEEDS[name]
    if fields[decider] not in values:
        choice = " or ".join(values)
        raise _NoEffectError(f"{name} has no effect with {decider} {fields[decider]}: leave it out, or choose {choice}")


def effective_config(fields: Mapping[str, Any]) -> TrainConfig:
    """Builds a config from fields, leaving out those that have no effect beside the others.

    Example:
        >>> effective_config({"model": "mlp", "channels": (8, 8), "epochs": 3}) == TrainConfig(epochs=3)
        True
    """
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    effective = dict(fields)
    for name in fields:
        try:
            check_effect(name, {**defaults, **fields})
        except InputError:
            del effective[name]
    return TrainConfig(**effective)


def choose_effect(name: str) -> dict[str, Any]:
    """Returns the value of another field under which a field has an effect; nothing for one that always has.

    Example:
        >>> choose_effect("channels"), choose_effect("epochs")
        ({'model': 'cnn'}, {})
    """
    if name in _NEEDS_ABOVE_0:
        return {_NEEDS_ABOVE_0[name]: 1.0}
    if name not in _NEEDS:
        return {}
    decider, values = _NEEDS[name]
    return {decider: values[0]}


_TYPES = typing.get_type_hints(TrainConfig)


def _converted(name: str, value: Any) -> Any:
    """The value of a field as its type: JSON has lists, and callers have NumPy's numbers and ``Path``."""
    kind, choices = _TYPES[name], typing.get_args(_TYPES[name])
    if type(None) in choices:
        if value is None:
            return None
        kind = choices[0]
    if typing.get_origin(kind) is Literal:
        _require(value in choices, name, f"one of {', '.join(choices)}", value)
        return value
    if kind is bool:
        _require(isinstance(value, bool), name, "True or False", value)
        return value
    converters: dict[type, Callable[[Any], Any]] = {int: _whole, float: _number, str: os.fspath}
    try:
        return tuple(map(_whole, value)) if typing.get_origin(kind) is tuple else converters[kind](value)
    except TypeError:
        wanted = {int: "a whole number", float: "a number", str: "text"}.get(kind, "whole numbers")
        raise InputError(f"{name} must be {wanted}, got {value!r}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | str):
        raise TypeError
    try:
        return float(value)
    except OverflowError:  # of a whole number, which JSON may have as long as it likes
        return math.inf if value > 0 else -math.inf


def _require(condition: bool, name: str, wanted: str, value: Any) -> None:
    if not condition:
        raise InputError(f"{name} must be {wanted}, got {value}")
