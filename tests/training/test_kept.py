"""``keep_hardest`` trains on a part of the examples, and the run knows which."""

import dataclasses

import numpy as np
import pytest
from conftest import assert_trees_equal

from mnist_jax import (
    InputError,
    TrainConfig,
    evaluate_run,
    fit,
    load_dataset,
    load_run_dataset,
    train_population,
)
from mnist_jax.data.subset import take_examples
from mnist_jax.train import main

pytestmark = pytest.mark.uses_adam
CONFIG = TrainConfig(data="digits", hidden_sizes=(8,), epochs=1, batch_size=100, quiet=True)
SCORE = np.random.default_rng(0).random(1350)
KEPT = np.sort(np.argsort(-SCORE)[:675])


@pytest.fixture
def config(tmp_path):
    np.save(tmp_path / "score.npy", SCORE)
    return dataclasses.replace(
        CONFIG, workdir=str(tmp_path / "run"), keep_hardest=0.5, scores=str(tmp_path / "score.npy")
    )


def test_the_run_is_one_on_the_hardest_examples(config, tmp_path):
    run = fit(config)
    alone = fit(
        dataclasses.replace(CONFIG, workdir=str(tmp_path / "alone")),
        dataset=take_examples(load_dataset("digits"), KEPT),
    )
    assert_trees_equal(run.state.params, alone.state.params)
    assert run.summary["num_train"] == 675
    np.testing.assert_array_equal(np.load(run.workdir / "kept.npy"), KEPT)
    np.testing.assert_array_equal(load_run_dataset(run.workdir).train.image, load_dataset("digits").train.image[KEPT])
    # It is the run's own test split, so the report lies in the run.
    assert evaluate_run(run.workdir).directory == run.workdir
    # The scores may be gone when the run goes on.
    (tmp_path / "score.npy").unlink()
    assert fit(dataclasses.replace(config, resume=True, epochs=2)).summary["num_train"] == 675


def test_a_population_is_trained_on_them_too(config):
    member = train_population(config, [0]).member(0)
    assert int(member.step) == 7


def test_bad_combinations_and_files_are_refused(config, tmp_path, capsys):
    for arguments, message in (
        (["--keep-hardest", "0.5"], "keep_hardest must be given with --scores, got no scores"),
        (["--scores", "x.csv"], "scores must be given with --keep-hardest, got x.csv alone"),
        (["--keep-hardest", "0", "--scores", "x.csv"], "keep_hardest must be in (0, 1], got 0.0"),
        (
            ["--keep-hardest", "0.5", "--scores", "x.csv", "--stream"],
            "keep_hardest must be given without --stream, got both",
        ),
        (["--keep-hardest", "0.5", "--scores", "x.csv"], "scores x.csv: no such file"),
    ):
        assert main(["--data", "digits", "--workdir", str(tmp_path / "new"), *arguments]) == 2
        assert message in capsys.readouterr().err
    run = fit(config)
    np.save(run.workdir / "kept.npy", np.array([0.5]))
    with pytest.raises(InputError, match=r"kept.npy: expected numbers of training examples, got float64\[1\]"):
        load_run_dataset(run.workdir)
    np.save(run.workdir / "kept.npy", np.array([2000], np.int32))
    with pytest.raises(InputError, match="kept.npy: expected examples of the 1350 of digits, got 2000"):
        load_run_dataset(run.workdir)
    (run.workdir / "kept.npy").write_text("damaged")
    with pytest.raises(InputError, match="kept.npy: expected numbers of training examples"):
        load_run_dataset(run.workdir)
