"""Parses ``vary`` into a search space, samples trials, and groups them into populations and rungs.

    search = Search(vary=("learning_rate=1e-4:1e-2", "hidden_sizes=128/512,256"), trials=27, method="halving")
    drawn = search.draw(config)                     # 27 times {"learning_rate": ..., "hidden_sizes": ...}
    search.rungs(epochs=9)                          # [(27, 1), (9, 3), (3, 9)]
    search.populations(config, drawn, range(27))    # a config and its trial numbers for each program

This module does not import JAX; ``run.py`` trains the trials.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mnist_jax.config import CHANGEABLE_ON_RESUME, TrainConfig, check_effect, choose_effect, effective_config
from mnist_jax.errors import InputError, suggest

METHODS = ("random", "halving")
# Sampled for each trial, since train_population can vary them in one program; others are sampled for each population.
PER_TRIAL = {"learning_rate", "weight_decay", "momentum", "b1", "b2"}
# The same in all trials, so that they are comparable.
_IN_COMMON = {"data", "num_validation", "epochs", "early_stopping", "seed"}
_TYPES = typing.get_type_hints(TrainConfig)
_EXAMPLE = "like learning_rate=1e-4:1e-2 or hidden_sizes=128/512,256"

Hyperparameters = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Search:
    """Describes a search space and a search method.

    Attributes:
        vary: ``NAME=LOW:HIGH``, sampled uniformly, on a logarithmic scale if HIGH is at least 10 times a positive LOW;
            or ``NAME=A/B/C``, where all choices are used once before any is repeated. NAME is a field of
            ``TrainConfig``.
        trials: number of trials.
        method: ``random`` or ``halving``.
        eta: successive halving keeps the best 1/eta of the trials and trains them eta times longer.
        population: number of trials trained in one program. They share every field that changes the program, such as
            layer sizes or the batch size; learning_rate, weight_decay, momentum, b1 and b2 differ between trials.

    Raises:
        InputError: a field has a value outside its range; the message names field, value and range.

    Example:
        >>> Search(vary=("learning_rate=1e-4:1e-2",), trials=27, method="halving").rungs(epochs=10)
        [(27, 1), (9, 3), (3, 10)]
    """

    vary: tuple[str, ...]
    trials: int = 16
    method: Literal["random", "halving"] = "random"
    eta: int = 3
    population: int = 4

    def __post_init__(self) -> None:
        if not self.vary:
            raise InputError(f"vary must name the values to search, {_EXAMPLE}, got nothing")
        for name, least in (("trials", 1), ("eta", 2), ("population", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.method not in METHODS:
            raise InputError(f"method must be one of random, halving, got {self.method}{suggest(self.method, METHODS)}")

    def rungs(self, epochs: int) -> list[tuple[int, int]]:
        """Returns the number of trials and of epochs of each rung; the last rung has ``epochs``.

        Reference: halving is the inner loop of Hyperband, https://arxiv.org/abs/1603.06560.
        """
        num_rungs = 1
        while self.method == "halving" and self.eta**num_rungs <= min(self.trials, epochs):
            num_rungs += 1
        factors = [self.eta**rung for rung in range(num_rungs)]
        return [(self.trials // factor, epochs // factors[-1 - rung]) for rung, factor in enumerate(factors)]

    def dimensions(self, config: TrainConfig) -> list[Dimension]:
        """Parses ``vary`` for trials that otherwise have the fields of ``config``.

        Raises:
            InputError: a name or value in ``vary`` cannot be used; the message names the expected one.
        """
        dimensions = [_parse_dimension(text, config) for text in self.vary]
        names = [dimension.name for dimension in dimensions]
        if len(set(names)) < len(names):
            raise InputError(f"vary must name each hyperparameter once, got {', '.join(names)}")
        for name in names:
            if not {*choose_effect(name)} & {*names}:
                check_effect(name, vars(config))
        return dimensions

    def draw(self, config: TrainConfig) -> list[Hyperparameters]:
        """Samples the hyperparameters of each trial; those of trial i depend on i and ``config.seed`` alone.

        Raises:
            InputError: as in :meth:`dimensions`.

        Example:
            >>> search = Search(vary=("batch_size=64/128",), trials=4, population=2)
            >>> sorted(trial["batch_size"] for trial in search.draw(TrainConfig()))
            [64, 64, 128, 128]
        """
        dimensions = self.dimensions(config)
        drawn: list[Hyperparameters] = []
        for number in range(self.trials):
            values = {}
            for place, each in enumerate(dimensions):
                index = number if each.name in PER_TRIAL else number // self.population
                values[each.name] = each.draw((config.seed, place), index)
            drawn.append(values)
        return drawn

    def populations(
        self, config: TrainConfig, drawn: Sequence[Hyperparameters], numbers: Iterable[int]
    ) -> Iterator[tuple[TrainConfig, list[int]]]:
        """Groups trials into programs: yields the config and the trial numbers of each."""
        groups: dict[TrainConfig, list[int]] = {}
        for number in numbers:
            shared = {name: value for name, value in drawn[number].items() if name not in PER_TRIAL}
            groups.setdefault(effective_config({**vars(config), **shared}), []).append(number)
        for shared_config, members in groups.items():
            for start in range(0, len(members), self.population):
                yield shared_config, members[start : start + self.population]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Holds the result of a trial in one rung: a line of ``trials.jsonl``.

    Attributes:
        number: trial number from 0, the same in all rungs.
        rung: rung from 0.
        epochs: epochs in this rung.
        seed: seed of the training.
        hyperparameters: the sampled hyperparameters.
        validation_loss: loss after the last epoch; None if it diverged.
        validation_accuracy: accuracy after the last epoch, in [0, 1].
        seconds: time of its population, divided by the number of trials in it.

    Example:
        >>> Trial(0, 0, 3, 0, {"learning_rate": 0.01}, 0.08, 0.975, 1.5).validation_accuracy
        0.975
    """

    number: int
    rung: int
    epochs: int
    seed: int
    hyperparameters: Hyperparameters
    validation_loss: float | None
    validation_accuracy: float
    seconds: float

    def rank(self) -> tuple[Any, ...]:
        """Returns a sort key: later rungs first, the best first within a rung, diverged trials last."""
        loss = math.inf if self.validation_loss is None else self.validation_loss
        return (-self.rung, math.isinf(loss), -self.validation_accuracy, loss, self.number)


@dataclasses.dataclass(frozen=True)
class Dimension:
    """Describes one varied field.

    Attributes:
        name: name of the field.
        scale: scale on which numbers are sampled, or ``choice``.
        values: the lowest and the highest number, or all choices.
    """

    name: str
    scale: Literal["log", "linear", "choice"]
    values: tuple[Any, ...]

    def draw(self, seeds: tuple[int, ...], index: int) -> Any:
        """Returns value ``index`` of the infinite random sequence that ``seeds`` define."""
        if self.scale == "choice":
            # Each pass over the choices has its own order, so that two dimensions are not correlated.
            turn, place = divmod(index, len(self.values))
            return self.values[np.random.default_rng([*seeds, turn]).permutation(len(self.values))[place]]
        low, high = self.values
        whole = isinstance(low, int)
        end = high + whole  # whole numbers are rounded down, so the highest needs a whole interval, too
        uniform = np.random.default_rng([*seeds, index]).random()
        value = low * (end / low) ** uniform if self.scale == "log" else low + (end - low) * uniform
        return min(int(value), high) if whole else min(max(float(f"{value:.4g}"), low), high)


def _parse_dimension(text: str, config: TrainConfig) -> Dimension:
    name, _, content = text.partition("=")
    name = name.replace("-", "_")
    if not content:
        raise InputError(f"vary must be {_EXAMPLE}, got {text}")
    known = [known for known in _TYPES if known not in (*CHANGEABLE_ON_RESUME, *_IN_COMMON)]
    if name not in known:
        raise InputError(f"vary must name a hyperparameter of mnist_jax.train, got {name}{suggest(name, known)}")
    low, colon, high = content.partition(":")
    if not colon:
        return Dimension(name, "choice", _parse_values(name, content.split("/"), config))
    if _TYPES[name] not in (int, float, int | None, float | None):
        raise InputError(f"vary must have choices for {name}, as in {name}=A/B, got the range {content}")
    first, last = _parse_values(name, (low, high), config)
    if first is None or last is None or first >= last:
        raise InputError(f"vary must have a range from low to high for {name}, got {content}")
    return Dimension(name, "log" if first > 0 and last / first >= 10 else "linear", (first, last))


def _parse_values(name: str, texts: Sequence[str], config: TrainConfig) -> tuple[Any, ...]:
    """Parses values into the type of their field, and lets ``TrainConfig`` check them."""
    values = []
    for text in texts:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # a word
            value = text
        if isinstance(getattr(config, name), tuple) and not isinstance(value, tuple):
            value = (value,)
        values.append(getattr(effective_config({**vars(config), **choose_effect(name), name: value}), name))
    return tuple(values)
