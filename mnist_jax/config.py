"""Defines ``TrainConfig``: every choice that makes up a run, in one frozen and validated dataclass.

    config = TrainConfig(model="cnn", epochs=3)
    config == TrainConfig.from_json(config.to_json())   # each run saves it as config.json

The fields are also the flags of ``python -m mnist_jax.train``. The string below a field is its help.
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

from mnist_jax.errors import InputError, printable, suggest
from mnist_jax.jsonfile import parse_json

Model = Literal["mlp", "cnn"]
Optimizer = Literal["sgd", "momentum", "adam", "adamw"]
Dtype = Literal["float32", "bfloat16"]
Padding = Literal["valid", "same"]
Schedule = Literal["constant", "cosine", "one_cycle", "warmup_constant", "warmup_cosine"]

# fmt: off
MODEL_FIELDS = ("model", "hidden_sizes", "channels", "kernel_sizes", "pool_sizes", "padding", "dense_size",
                "batch_norm", "dropout_rate", "dtype")
OPTIMIZER_FIELDS = ("optimizer", "learning_rate", "schedule", "warmup_fraction", "momentum", "b1", "b2", "weight_decay",
                    "clip_norm")
LOSS_FIELDS = ("label_smoothing", "adversarial_radius", "ema_decay")
AUGMENTATION_FIELDS = ("augment_shift", "augment_rotation", "augment_scale", "augment_shear", "augment_elastic",
                       "augment_smoothness", "augment_erasing")
PRIVACY_FIELDS = ("dp_clip", "dp_noise", "dp_epsilon", "dp_delta")
# The remaining fields of a training step.
RECIPE_FIELDS = (*LOSS_FIELDS, *AUGMENTATION_FIELDS, *PRIVACY_FIELDS, "microbatch_size", "seed")
# These fields do not affect the training, so they may change when a run is resumed.
CHANGEABLE_ON_RESUME = ("data_dir", "stream", "num_devices", "checkpoint_every", "keep_checkpoints", "workdir",
                        "resume", "record", "progress", "quiet")
# ``--help-all`` shows all fields in these groups, ``--help`` the common ones.
FIELD_GROUPS = {
    "data": ("data", "data_dir", "num_validation", "stream", "keep_hardest", "scores"),
    "model": MODEL_FIELDS,
    "optimizer": (*OPTIMIZER_FIELDS, *LOSS_FIELDS),
    "augmentation": AUGMENTATION_FIELDS,
    "privacy": PRIVACY_FIELDS,
    "run": ("batch_size", "microbatch_size", "epochs", "early_stopping", "seed", "num_devices", "checkpoint_every",
            "keep_checkpoints", "workdir", "resume", "record", "progress", "quiet"),
}
COMMON_FIELDS = ("data", "data_dir", "stream", "model", "hidden_sizes", "optimizer", "learning_rate", "schedule",
                 "augment_shift", "augment_rotation", "dp_clip", "dp_epsilon", "batch_size", "epochs", "seed",
                 "num_devices", "workdir", "resume", "record")
# fmt: on

# Each of these fields has an effect only with these values of another field.
_NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hidden_sizes": ("model", ("mlp",)),
    **dict.fromkeys(("channels", "kernel_sizes", "pool_sizes", "padding", "dense_size"), ("model", ("cnn",))),
    "momentum": ("optimizer", ("momentum",)),
    **dict.fromkeys(("b1", "b2"), ("optimizer", ("adam", "adamw"))),
    "warmup_fraction": ("schedule", ("warmup_constant", "warmup_cosine")),
}
# Each of these has an effect only if the other field is above 0.
_NEEDS_ABOVE_0 = {
    "augment_smoothness": "augment_elastic",
    **dict.fromkeys(("dp_noise", "dp_epsilon", "dp_delta"), "dp_clip"),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Describes a training run: data, model, optimizer, augmentation, and how the run is saved and shown.

    Raises:
        InputError: a field has a value outside its range; the message names field, range and value.

    Example:
        >>> TrainConfig(batch_size=0)
        Traceback (most recent call last):
        mnist_jax.errors.InputError: batch_size must be at least 1, got 0
    """

    data: str | None = None
    """mnist, fashion_mnist, kmnist, emnist/digits, digits, mnist+digits, a directory of IDX files, of prepared tfds
    data or of shards, or a Kaggle CSV; default: mnist, or scikit-learn's digits if MNIST is not available"""
    data_dir: str | None = None
    """directory searched first: IDX files of mnist, or prepared tfds data; default: $MNIST_JAX_DATA_DIR"""
    num_validation: int | None = None
    """examples held out from the end of the training set; default: 5000, or a tenth of fewer than 50000"""
    stream: bool = False
    """read the training examples from array_record shards while training, for data larger than memory"""
    keep_hardest: float | None = None
    """train on this fraction of the training examples, those with the highest scores, in (0, 1]; needs --scores"""
    scores: str | None = None
    """score of each training example, higher for harder: the scores.csv of python -m mnist_jax.dynamics, or any .csv,
    .npy or .npz with score"""

    model: Model = "mlp"
    """architecture"""
    hidden_sizes: tuple[int, ...] = (512, 256)
    """mlp: units of each hidden layer"""
    channels: tuple[int, ...] = (24, 32)
    """cnn: output channels of each convolution"""
    kernel_sizes: tuple[int, ...] = (5, 3)
    """cnn: kernel height and width of each convolution"""
    pool_sizes: tuple[int, ...] = (2,)
    """cnn: window of the max-pooling after each convolution, 1 for no pooling; one for all, or one each"""
    padding: Padding = "valid"
    """cnn: same pads with zeros to keep height and width"""
    dense_size: int = 256
    """cnn: units of the dense layer before the logits; 0 for global average pooling instead"""
    batch_norm: bool = False
    """normalise over the batch, or microbatch, before each ReLU; its running averages need hundreds of steps"""
    dropout_rate: float = 0.2
    """probability of dropping a hidden unit in training, in [0, 1)"""
    dtype: Dtype = "float32"
    """dtype of the layers; parameters, logits and loss stay float32"""

    optimizer: Optimizer = "adam"
    """update rule; sgd is plain gradient descent"""
    learning_rate: float = 1e-3
    """peak learning rate, > 0"""
    schedule: Schedule = "constant"
    """learning rate over the run"""
    warmup_fraction: float = 0.1
    """warmup schedules: fraction of all steps in which the learning rate rises, in [0, 1)"""
    momentum: float = 0.9
    """momentum: decay of the velocity, in [0, 1)"""
    b1: float = 0.9
    """adam, adamw: decay of the first moment, in [0, 1)"""
    b2: float = 0.999
    """adam, adamw: decay of the second moment, in [0, 1)"""
    weight_decay: float = 0.0
    """L2 penalty on weights, not on biases: decoupled for adamw, added to the gradient otherwise"""
    clip_norm: float | None = None
    """largest global norm of the gradient; default: no clipping"""
    label_smoothing: float = 0.0
    """fraction of the target probability spread over all classes, in [0, 1)"""
    adversarial_radius: float = 0.0
    """virtual adversarial training: L2 norm of the perturbation, for pixels in [0, 1]; about triples the time"""
    ema_decay: float | None = 0.999
    """evaluate an exponential moving average of the parameters with at most this decay, in [0, 1); None: no average"""

    augment_shift: float = 0.0
    """largest shift of a training image along each axis, in pixels, in [0, 14]"""
    augment_rotation: float = 0.0
    """largest rotation, in degrees, in [0, 45]"""
    augment_scale: float = 0.0
    """largest change of scale along each axis, as a fraction, in [0, 0.5]"""
    augment_shear: float = 0.0
    """largest shear, in pixels per pixel of height, in [0, 0.5]"""
    augment_elastic: float = 0.0
    """elastic distortion: standard deviation of the displacement, in pixels, in [0, 7]"""
    augment_smoothness: float = 4.0
    """elastic distortion: standard deviation of the Gaussian that smooths it, in pixels, in [2, 14]"""
    augment_erasing: float = 0.0
    """probability of erasing a rectangle, in [0, 1]"""

    dp_clip: float | None = None
    """train with differential privacy: largest L2 norm of the gradient of an example. Needs the extra privacy, and
    dp_noise or dp_epsilon; batch_size becomes a mean, as each step samples its examples"""
    dp_noise: float | None = None
    """standard deviation of the noise in the sum of the gradients, divided by dp_clip; default: the smallest with which
    all epochs fit into dp_epsilon"""
    dp_epsilon: float | None = None
    """largest epsilon: training stops before the epoch that would exceed it; default: no limit"""
    dp_delta: float = 1e-5
    """delta of the epsilon that is reported, in (0, 1); less than 1 / (training examples)"""

    batch_size: int = 128
    """examples per step"""
    microbatch_size: int | None = None
    """most examples per gradient; larger batches accumulate gradients. With batch_norm this changes the training;
    default: the fastest, 32 for the cnn on CPU and the whole batch otherwise"""
    epochs: int = 10
    """passes over the training split"""
    early_stopping: int | None = None
    """stop after this many epochs without a lower validation loss; default: train all epochs"""
    seed: int = 0
    """seed of initialisation, shuffling, dropout and augmentation, in [0, 2**32)"""

    num_devices: int | None = None
    """devices that share each batch, over all processes; default: all GPUs or TPUs, but one CPU"""
    checkpoint_every: int = 1
    """epochs between checkpoints; the last epoch is always saved"""
    keep_checkpoints: int = 3
    """number of newest checkpoints to keep, besides the best by validation accuracy"""
    workdir: str | None = None
    """directory of the run; default: runs/<dataset>-<model>-<time>"""
    resume: bool = False
    """continue the run in --workdir; --epochs may grow and --early-stopping change, the rest of the training must
    stay the same"""
    record: bool = False
    """record loss, correctness and margin of each training example in each epoch, for python -m mnist_jax.dynamics"""
    progress: bool = False
    """show a bar for each epoch even if stderr is not a terminal, as in a notebook or a log"""
    quiet: bool = False
    """show no progress, only the final table"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _converted(field.name, getattr(self, field.name)))

        def check(expected: str, is_valid: Callable[[Any], bool], *names: str) -> None:
            for name in names:
                value = getattr(self, name)
                _require(value is None or is_valid(value), name, expected, value)

        epochs = ("epochs", "early_stopping", "checkpoint_every", "keep_checkpoints")
        counts = ("batch_size", "microbatch_size", "num_validation", "num_devices", *epochs)
        check("at least 1", lambda value: value >= 1, *counts)
        sizes = ("hidden_sizes", "channels", "kernel_sizes", "pool_sizes")
        check("at least 1 each", lambda value: all(size >= 1 for size in value), *sizes)
        check("below 2**31 each", lambda value: all(size < 2**31 for size in value), *sizes)
        check("at most 1000 layers", lambda value: len(value) <= 1000, "hidden_sizes")  # each takes time to trace
        check("at most 1000 rows in all", lambda value: sum(value) <= 1000, "kernel_sizes")  # as above
        check("below 2**31", lambda value: value < 2**31, *counts, "dense_size")
        check("in [0, 2**32)", lambda value: 0 <= value < 2**32, "seed")
        expected = f"as long as channels {_shorten(self.channels)} and not empty"
        check(expected, lambda value: len(self.channels) == len(value) > 0, "kernel_sizes")
        expected = f"one for all or as long as channels {_shorten(self.channels)}"
        check(expected, lambda value: len(value) in (1, len(self.channels)), "pool_sizes")
        check("at least 0", lambda value: value >= 0, "dense_size")
        fractions = ("dropout_rate", "warmup_fraction", "momentum", "b1", "b2", "label_smoothing", "ema_decay")
        check("in [0, 1)", lambda value: 0 <= value < 1, *fractions)
        above_0 = ("learning_rate", "clip_norm", "dp_clip", "dp_noise", "dp_epsilon")
        check("a finite number above 0", lambda value: 0 < value < math.inf, *above_0)
        check("in (0, 1)", lambda value: 0 < value < 1, "dp_delta")
        nonnegative = ("weight_decay", "adversarial_radius")
        check("a finite number, 0 or above", lambda value: 0 <= value < math.inf, *nonnegative)
        check("in [0, 14]", lambda value: 0 <= value <= 14, "augment_shift")
        check("in [0, 45]", lambda value: 0 <= value <= 45, "augment_rotation")
        check("in [0, 0.5]", lambda value: 0 <= value <= 0.5, "augment_scale", "augment_shear")
        check("in [0, 7]", lambda value: 0 <= value <= 7, "augment_elastic")
        check("in [2, 14]", lambda value: 2 <= value <= 14, "augment_smoothness")
        check("in [0, 1]", lambda value: 0 <= value <= 1, "augment_erasing")
        check("in (0, 1]", lambda value: 0 < value <= 1, "keep_hardest")
        for name in ("data", "data_dir", "workdir", "scores"):
            _require(getattr(self, name) != "", name, "a name", "an empty string")
        _require(not (self.resume and self.workdir is None), "resume", "given together with --workdir", "no workdir")
        keeps = self.keep_hardest is not None
        _require(not keeps or self.scores is not None, "keep_hardest", "given with --scores", "no scores")
        _require(keeps or self.scores is None, "scores", "given with --keep-hardest", f"{self.scores} alone")
        _require(not (keeps and self.stream), "keep_hardest", "given without --stream", "both")
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != field.default:
                check_effect(field.name, vars(self))
        if self.dp_clip is not None:
            self._check_privacy()

    def _check_privacy(self) -> None:
        if self.dp_noise is None and self.dp_epsilon is None:
            raise InputError("dp_clip must be given together with dp_noise or dp_epsilon, got neither")
        if self.batch_norm:
            raise InputError("dp_clip cannot protect batch_norm, which mixes the examples of a batch: leave one out")
        if self.stream:
            raise InputError("dp_clip needs the training examples in memory: leave out stream")
        if self.keep_hardest is not None:
            raise InputError("dp_clip cannot protect keep_hardest, whose choice of examples depends on the data")
        if self.record:
            raise InputError("record needs epochs of all examples, but dp_clip samples them: leave one out")

    def to_json(self) -> str:
        """Returns the config as a JSON object, one field per line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Reads a config that :meth:`to_json` wrote.

        Raises:
            InputError: the text is not a JSON object, or it has an unknown field or an invalid value.
        """
        try:
            fields = parse_json(text)
        except ValueError as error:
            raise InputError(f"config: not JSON ({error})") from None
        if not isinstance(fields, Mapping):
            raise InputError(f"config: must be a JSON object, got {type(fields).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in sorted(set(fields) - set(known)):
            raise InputError(f"config: unknown field {_shorten(repr(name))}{suggest(name[:80], known)}")
        try:
            return cls(**fields)
        except _NoEffectError:  # earlier versions saved fields without effect
            return effective_config(fields)

    def differences(self, other: TrainConfig) -> list[str]:
        """Returns the names of the training fields whose values differ.

        A ``microbatch_size`` or ``dp_noise`` of None in ``other`` counts as equal.
        """
        others = other.training_fields()
        for name in ("microbatch_size", "dp_noise"):
            if others[name] is None:
                others[name] = getattr(self, name)
        return [name for name, value in self.training_fields().items() if value != others[name]]

    def training_fields(self) -> dict[str, Any]:
        """Returns the fields that describe the training, by name: all but ``CHANGEABLE_ON_RESUME``."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in CHANGEABLE_ON_RESUME}


class _NoEffectError(InputError):
    """A field has no effect with the values of the others."""


def check_effect(name: str, fields: Mapping[str, Any]) -> None:
    """Checks that a field has an effect with the values of the others.

    Raises:
        InputError: it has none; the message names the value that would give it one.

    Example:
        >>> try:
        ...     check_effect("momentum", {"optimizer": "adam"})
        ... except InputError as error:
        ...     print(error)
        momentum has no effect with optimizer adam: leave it out, or choose optimizer momentum
    """
    if name in _NEEDS_ABOVE_0 and not fields[_NEEDS_ABOVE_0[name]]:
        other = _NEEDS_ABOVE_0[name]
        raise _NoEffectError(f"{name} has no effect without {other}: leave it out, or choose {other} above 0")
    if name not in _NEEDS:
        return
    other, values = _NEEDS[name]
    if fields[other] not in values:
        choice = " or ".join(values)
        raise _NoEffectError(
            f"{name} has no effect with {other} {fields[other]}: leave it out, or choose {other} {choice}"
        )


def effective_config(fields: Mapping[str, Any]) -> TrainConfig:
    """Builds a config from fields, leaving out those without effect.

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
    """Returns the field and value that give a field an effect; nothing for a field that always has one.

    Example:
        >>> choose_effect("channels"), choose_effect("epochs")
        ({'model': 'cnn'}, {})
    """
    if name in _NEEDS_ABOVE_0:
        return {_NEEDS_ABOVE_0[name]: 1.0}
    if name not in _NEEDS:
        return {}
    other, values = _NEEDS[name]
    return {other: values[0]}


_TYPES = typing.get_type_hints(TrainConfig)


def _converted(name: str, value: Any) -> Any:
    """Converts a value, such as a JSON list, a NumPy number or a path, to the type of its field."""
    kind, choices = _TYPES[name], typing.get_args(_TYPES[name])
    if type(None) in choices:
        if value is None:
            return None
        kind = choices[0]
    if typing.get_origin(kind) is Literal:
        if value not in choices:
            raise InputError(
                f"{name} must be one of {', '.join(choices)}, got {_shorten(value)}{suggest(_shorten(value), choices)}"
            )
        return value
    if kind is bool:
        _require(isinstance(value, bool), name, "True or False", value)
        return value
    converters: dict[type, Callable[[Any], Any]] = {int: _whole, float: _number, str: os.fspath}
    try:
        return tuple(map(_whole, value)) if typing.get_origin(kind) is tuple else converters[kind](value)
    except TypeError:
        expected = {int: "a whole number", float: "a number", str: "text"}.get(kind, "whole numbers")
        raise InputError(f"{name} must be {expected}, got {_shorten(repr(value))}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | str):
        raise TypeError
    try:
        return float(value)
    except OverflowError:  # JSON integers may be too large for a float
        return math.inf if value > 0 else -math.inf


def _require(condition: bool, name: str, expected: str, value: Any) -> None:
    if not condition:
        raise InputError(f"{name} must be {expected}, got {_shorten(value)}")


def _shorten(value: Any) -> str:
    """Returns at most 80 characters of a value, for messages."""
    text = printable(str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
