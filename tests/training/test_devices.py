"""The devices of a run: how they are chosen, and that the numbers do not depend on them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_arrays, make_split, write_idx_files

from mnist_jax import InputError, TrainConfig, fit, train_population
from mnist_jax.evaluate import evaluate_run
from mnist_jax.training.devices import choose_devices, choose_sharding, put_everywhere

CONFIG = TrainConfig(
    data="digits",
    hidden_sizes=(8,),
    optimizer="momentum",
    learning_rate=0.05,
    epochs=2,
    batch_size=101,
    num_devices=2,
    quiet=True,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run on two devices and on one."""
    path = tmp_path_factory.mktemp("runs")
    configs = [dataclasses.replace(CONFIG, num_devices=n, workdir=str(path / str(n))) for n in (2, 1)]
    return [fit(config) for config in configs]


def test_a_cpu_run_takes_one_device_unless_it_is_told():
    assert choose_devices(None) == jax.devices()[:1]
    assert choose_devices(2) == jax.devices()
    assert choose_sharding(None) is choose_sharding(1) is None


@pytest.mark.parametrize(
    ("num_devices", "message"),
    [
        (0, "num_devices must be at least 1, got 0"),
        (
            3,
            "num_devices must be at most 2, as JAX has 2 cpu devices, got 3; "
            "JAX_NUM_CPU_DEVICES=3 divides a CPU into 3",
        ),
    ],
)
def test_devices_that_are_not_there_are_named(num_devices, message):
    with pytest.raises(InputError) as error:
        choose_devices(num_devices)
    assert str(error.value) == message


def test_arrays_are_put_whole_on_each_device():
    split, key = put_everywhere((make_split(5), jax.random.key(3)), choose_sharding(2))
    for leaf in (*split, key):
        assert [shard.data.shape for shard in leaf.addressable_shards] == [leaf.shape] * 2
    assert_trees_equal(split, make_split(5))
    assert key == jax.random.key(3)


def test_a_run_on_two_devices_is_the_run_on_one(runs):
    two, one = runs
    assert_trees_close(two.state.params, one.state.params, rtol=1e-5, atol=1e-5)
    assert_trees_close(two.state.ema_params, one.state.ema_params, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(two.test.logits, one.test.logits, rtol=1e-4, atol=1e-5)
    assert [run.summary["device"]["count"] for run in runs] == [2, 1]
    assert json.loads((two.workdir / "config.json").read_text())["num_devices"] == 2


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_checkpoint_restores_on_any_number_of_devices(runs, tmp_path, before, after):
    config = dataclasses.replace(CONFIG, epochs=1, workdir=str(tmp_path / "run"), num_devices=before)
    fit(config)
    resumed = fit(dataclasses.replace(config, epochs=2, resume=True, num_devices=after))
    assert len(resumed.state.step.devices()) == after
    assert_trees_close(resumed.state.params, runs[0].state.params, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_run_is_evaluated_on_two_devices(runs):
    run = runs[1]
    report = evaluate_run(run.workdir, num_devices=2)
    np.testing.assert_allclose(report.evaluation.logits, run.test.logits, rtol=1e-5, atol=1e-5)


def test_a_population_takes_as_many_devices_as_divide_it():
    config = dataclasses.replace(CONFIG, epochs=1)
    counts = {(2, 4): 2, (None, 2): 1}
    for (num_devices, num_members), expected in counts.items():
        population = train_population(dataclasses.replace(config, num_devices=num_devices), range(num_members))
        assert len(population.states.step.sharding.device_set) == expected


@pytest.mark.parametrize("num_devices", [1, 2])
def test_labels_beyond_the_classes_of_the_run_are_refused(runs, tmp_path, num_devices):
    arrays = make_arrays()
    arrays["test_label"][3] = 10
    write_idx_files(tmp_path / "data", arrays)
    with pytest.raises(ValueError, match=r"^label must be in \[0, 10\), the classes of the model, got 10$"):
        evaluate_run(runs[1].workdir, data=str(tmp_path / "data"), num_devices=num_devices)
