"""Searches for hyperparameters on the validation split, training several models in one program.

    search = Search(vary=("learning_rate=1e-4:1e-2", "hidden_sizes=128/512,256"), method="halving")
    sweep = run_sweep(TrainConfig(epochs=9), search)
    fit(sweep.best_config)

``random`` trains every trial for all epochs. ``halving`` (successive halving) has rungs: it trains all trials for few
epochs, keeps the best, and retrains them from scratch for more, so that each rung runs its learning rate schedule to
the end. The test split is never used.

sweep.json     config, search and data     trials.jsonl     one line per trial and rung
figures/sweep.png

JAX is imported inside :func:`run_sweep`, so that ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_jax.config import TrainConfig, effective_config
from mnist_jax.data import Dataset, load_dataset
from mnist_jax.errors import InputError
from mnist_jax.home import prepare_matplotlib
from mnist_jax.jsonfile import parse_json, read_json, read_text
from mnist_jax.sweep.space import Hyperparameters, Search, Trial
from mnist_jax.training.signals import StopSignals
from mnist_jax.training.workdir import is_unused, lock_directory, new_directory, write_whole


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Holds a finished search.

    Attributes:
        config: the config that the trials share, with the name of the data set.
        trials: every trial of every rung, later rungs first and best first within a rung.
        workdir: directory of the sweep.

    Example:
        >>> trial = Trial(0, 0, 3, 0, {"learning_rate": 0.01}, 0.08, 0.975, 1.5)
        >>> Sweep(TrainConfig(), [trial], Path("sweeps/mine")).best_config.learning_rate
        0.01
    """

    config: TrainConfig
    trials: list[Trial]
    workdir: Path

    @property
    def best_config(self) -> TrainConfig:
        """The config of the best trial, for :func:`mnist_jax.fit`."""
        best = self.trials[0]
        fields = {**best.hyperparameters, "epochs": best.epochs, "seed": best.seed, "workdir": None, "resume": False}
        return effective_config({**vars(self.config), **fields})


def run_sweep(config: TrainConfig, search: Search) -> Sweep:
    """Trains and ranks the trials of a search; trial i uses the seed ``config.seed + i``.

    Args:
        config: the config that the trials share; ``epochs`` is for the last rung. ``workdir`` is the directory of the
            sweep, by default ``sweeps/<dataset>-<model>-<time>``, and ``resume`` continues the sweep in it.
        search: the search space and method.

    Returns:
        All trials. A resumed sweep equals an uninterrupted one.

    Raises:
        InputError: the search, the data or the directory cannot be used.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped it; finished populations are saved.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     config = TrainConfig(data="digits", hidden_sizes=(8,), epochs=1, workdir=directory + "/new", quiet=True)
        ...     sweep = run_sweep(config, Search(vary=("learning_rate=1e-4:1e-2",), trials=3))
        >>> len(sweep.trials)
        3
    """
    if config.early_stopping is not None:
        raise InputError(f"early_stopping has no effect on a sweep: leave it out, got {config.early_stopping}")
    if config.stream:
        raise InputError("stream has no effect on a sweep, whose data is in memory: leave it out")
    drawn = search.draw(config)
    saved = _read_saved(config)
    if saved is not None and config.data is None:
        config = dataclasses.replace(config, data=saved["config"].get("data"))

    import jax

    from mnist_jax.report.figures import sweep_results
    from mnist_jax.training.build import build_state, check_batch_size
    from mnist_jax.training.devices import choose_devices

    choose_devices(config.num_devices)
    dataset = load_dataset(config.data, data_dir=config.data_dir, num_validation=config.num_validation)
    config = dataclasses.replace(config, data=config.data or dataset.name)
    for shared_config, _ in search.populations(config, drawn, range(search.trials)):  # checked before any training
        check_batch_size(shared_config, dataset)
        jax.eval_shape(lambda shared_config=shared_config: build_state(shared_config))  # fails if a kernel is too large
    with _open_directory(config, search, dataset, saved) as path, StopSignals() as stop:

        def check_stop(epoch: int) -> None:
            if stop.requested:
                raise _Stopped(stop.requested, path)

        trials = _read_trials(path, drawn)
        survivors: Sequence[int] = range(search.trials)
        rungs = search.rungs(config.epochs)
        for rung, (num_trials, epochs) in enumerate(rungs):
            numbers = sorted(survivors[:num_trials])
            finished = {trial.number for trial in trials if trial.rung == rung}
            for shared_config, members in search.populations(config, drawn, numbers):
                if finished.issuperset(members):
                    continue
                shared_config = dataclasses.replace(shared_config, epochs=epochs)
                trials += _train_trials(shared_config, members, rung, drawn, dataset, check_stop)
                write_whole(path / "trials.jsonl", _to_lines(trials))
                if not config.quiet:
                    _report_progress([trial for trial in trials if trial.rung == rung], num_trials, len(rungs))
            survivors = [trial.number for trial in sorted(trials, key=Trial.rank) if trial.rung == rung]

        sweep = Sweep(config, sorted(trials, key=Trial.rank), path)
        scales = {
            each.name: each.values if each.scale == "choice" else each.scale for each in search.dimensions(config)
        }
        title = f"{search.method} search, {config.model} on {dataset.name}"
        lines = [dataclasses.asdict(trial) for trial in sweep.trials]
        prepare_matplotlib()
        sweep_results(lines, scales, path / "figures" / "sweep.png", title)
        return sweep


def _train_trials(
    shared_config: TrainConfig,
    numbers: Sequence[int],
    rung: int,
    drawn: Sequence[Hyperparameters],
    dataset: Dataset,
    before_epoch: Callable[[int], None],
) -> list[Trial]:
    from mnist_jax.training.optimizer import HYPERPARAMETERS
    from mnist_jax.training.population import train_population

    start_time = time.perf_counter()
    names = [name for name in HYPERPARAMETERS[shared_config.optimizer] if name in drawn[numbers[0]]]
    seeds = [(shared_config.seed + number) % 2**32 for number in numbers]
    hyperparameters = {name: [drawn[number][name] for number in numbers] for name in names}
    population = train_population(shared_config, seeds, hyperparameters, dataset, before_epoch)
    seconds = (time.perf_counter() - start_time) / len(numbers)
    losses = [loss if math.isfinite(loss) else None for loss in population.validation_loss[-1].tolist()]
    accuracies = population.validation_accuracy[-1].tolist()
    return [
        Trial(number, rung, shared_config.epochs, seed, drawn[number], loss, accuracy, seconds)
        for number, seed, loss, accuracy in zip(numbers, seeds, losses, accuracies, strict=True)
    ]


def _report_progress(finished: Sequence[Trial], num_trials: int, num_rungs: int) -> None:
    last, best = finished[-1], min(finished, key=Trial.rank)
    print(
        f"rung {last.rung + 1}/{num_rungs}  epochs {last.epochs}  trials {len(finished)}/{num_trials}"
        f"  best validation accuracy {best.validation_accuracy:.4f}",
        file=sys.stderr,
        flush=True,
    )


class _Stopped(KeyboardInterrupt):
    def __init__(self, number: signal.Signals, path: Path) -> None:
        super().__init__(f"finished trials are in {path}; to continue, add --workdir {path} --resume to the command")
        self.exit_status = 128 + number


def _read_saved(config: TrainConfig) -> dict[str, Any] | None:
    """Returns the ``sweep.json`` of the sweep to resume; None for a new sweep."""
    if config.workdir is None:
        return None
    path = Path(config.workdir)
    try:
        if config.resume:
            saved = read_json(path / "sweep.json")
            return {part: {**saved[part]} for part in ("config", "search", "data")}
        if not is_unused(path):
            raise _not_empty(path)
        return None
    except FileNotFoundError:
        raise InputError(
            f"resume: expected a sweep with a sweep.json in {path}, found none; leave out --resume to begin one"
        ) from None
    except OSError as error:
        raise InputError(f"workdir {config.workdir[:80]}: cannot be used ({error.strerror})") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path / 'sweep.json'}: expected a JSON object ({error})") from None
    except (TypeError, LookupError):
        raise InputError(f"{path / 'sweep.json'}: expected config, search and data, got something else") from None


@contextlib.contextmanager
def _open_directory(
    config: TrainConfig, search: Search, dataset: Dataset, saved: Mapping[str, Any] | None
) -> Iterator[Path]:
    """Creates and locks the directory of a sweep, writes its ``sweep.json``, and yields its path."""
    if config.workdir is None:
        path = new_directory(Path("sweeps"), f"{dataset.name.replace('/', '-')}-{config.model}")
    else:
        path = Path(config.workdir)
    text = json.dumps(
        {"config": config.training_fields(), "search": dataclasses.asdict(search), "data": dataset.identity()}, indent=2
    )
    for part, fields in json.loads(text).items():
        for name, value in fields.items():
            expected = value if saved is None else saved[part].get(name)
            if value != expected:
                raise InputError(
                    f"resume: {part} {name} must be {expected!r} as in {path / 'sweep.json'}, got {value!r}"
                )
    with lock_directory(path):
        if saved is None and not is_unused(path):  # another process began a sweep meanwhile
            raise _not_empty(path)
        write_whole(path / "sweep.json", text + "\n")
        yield path


def _not_empty(path: Path) -> InputError:
    return InputError(f"workdir {path} exists: name another directory, or continue the sweep in it with --resume")


def _to_lines(trials: Iterable[Trial]) -> str:
    return "".join(json.dumps(dataclasses.asdict(trial)) + "\n" for trial in trials)


def _read_trials(path: Path, drawn: Sequence[Hyperparameters]) -> list[Trial]:
    file = path / "trials.jsonl"
    if not file.exists():
        return []
    try:
        text = read_text(file)
        # The hyperparameters come from ``drawn``, since JSON turns tuples into lists.
        lines = map(parse_json, text.splitlines())
        trials = [Trial(**{**line, "hyperparameters": drawn[line["number"]]}) for line in lines]
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{file}: expected one trial per line, got something else ({error})") from None
    if _to_lines(trials) != text:  # another version of NumPy, for example, may sample others
        raise InputError(f"{file} does not match the hyperparameters this version samples; start a new sweep")
    return trials
