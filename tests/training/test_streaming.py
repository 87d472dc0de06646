"""Training on examples that are read meanwhile gives the numbers of training on data in memory."""

import dataclasses
import importlib.util
import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close, assert_trees_equal, make_arrays, make_split, write_idx_files
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from peers import run_together, train_together

from mnist_jax import (
    CNN,
    MLP,
    Augmentation,
    Callback,
    Dataset,
    InputError,
    Metrics,
    NonFiniteLossError,
    Search,
    Split,
    StreamedSplit,
    TrainConfig,
    create_train_state,
    evaluate_run,
    fit,
    load_dataset,
    load_run,
    prepare_dataset,
    run_sweep,
    train_population,
    write_shards,
)
from mnist_jax.training import memory
from mnist_jax.training.epochs import ChunkedEpoch
from mnist_jax.training.streaming import StreamedEpoch

HAS_GRAIN = importlib.util.find_spec("grain") is not None
pytestmark = pytest.mark.skipif(not HAS_GRAIN, reason="needs the extra stream")

BATCH_SIZE = 4
SPLIT = make_split(42)  # 11 steps an epoch, the last one with 2 examples


def streamed(split=SPLIT):
    return StreamedSplit(lambda index: Split(split.image[index], split.label[index]), split.num_examples)


def make_mlp(learning_rate=0.1):
    model = MLP(hidden_sizes=(8,), batch_norm=True, dropout_rate=0.3)
    options = {"ema_decay": 0.9, "augment": Augmentation(shift=2.0)}
    return create_train_state(model, optax.sgd(learning_rate), jax.random.key(3), **options)


def make_cnn():
    model = CNN(channels=(3,), kernel_sizes=(5,), pool_sizes=(4,), dense_size=8)
    return create_train_state(model, optax.sgd(0.05), jax.random.key(3))


def copy(state):
    return jax.tree.map(jnp.copy, state)


def run(epochs, state, **options):
    """Runs on a copy, since the buffers of a state are donated; returns the last state and the sums."""
    total = None
    for chunk in epochs.run(copy(state), int(state.step), **options):
        assert chunk.step == int(chunk.state.step)
        state, total = chunk.state, chunk.total
    return state, total


@pytest.fixture(autouse=True)
def chunks_keep_their_size(monkeypatch):
    monkeypatch.setattr("mnist_jax.training.epochs._CHUNK_S", 0.0)


@pytest.mark.parametrize(
    ("make_state", "num_examples"), [(make_mlp, 42), pytest.param(make_mlp, 44, marks=pytest.mark.slow), (make_cnn, 42)]
)
def test_an_epoch_has_the_numbers_of_data_in_memory_bit_for_bit(make_state, num_examples):
    """Also its last batch: batch statistics show that even the examples that pad it are the same."""
    split = make_split(num_examples)
    state = make_state().replace(step=jnp.int32(11))  # the second epoch
    expected = run(ChunkedEpoch(state, split, BATCH_SIZE), state)
    for block_size in (12, 1000):
        epochs = StreamedEpoch(state, streamed(split), BATCH_SIZE, block_size=block_size)
        assert epochs.steps_per_epoch == 11
        assert_trees_equal(run(epochs, state), expected)
    assert expected[1].count == num_examples


@pytest.mark.parametrize("block_size", [4, 12])
def test_it_starts_at_any_batch(block_size):
    """The step of the state says where: nothing else is kept of an epoch that was left."""
    state = make_mlp()
    epochs = StreamedEpoch(state, streamed(), BATCH_SIZE, block_size=block_size)
    whole = run(epochs, state)
    for steps in (1, 2, 5, 10):
        half, total = run(epochs, state, num_steps=steps)
        assert half.step == steps
        again = StreamedEpoch(state, streamed(), BATCH_SIZE, block_size=block_size)  # another process
        assert_trees_equal(run(again, half, total=total), whole)
    rest, _ = run(epochs, half, num_steps=100)
    assert rest.step == 11


@pytest.mark.parametrize("block_size", [4, 12])
def test_the_sums_of_an_epoch_do_not_depend_on_its_chunks(block_size):
    state = make_mlp()
    epochs = StreamedEpoch(state, streamed(), BATCH_SIZE, block_size=block_size)
    whole = run(ChunkedEpoch(state, SPLIT, BATCH_SIZE), state)
    for epochs._chunk_steps in (1, 4, 5, 100):
        assert_trees_equal(run(epochs, state), whole)
        chunks = [chunk.step for chunk in epochs.run(copy(state), 0)]
        assert chunks[-1] == 11
        assert all(step % (block_size // BATCH_SIZE) == 0 for step in chunks[:-1])
    total = Metrics.zeros()
    for chunk in epochs.run(copy(state), 0, num_steps=8):
        total = total + chunk.metrics
    assert total.count == 8 * BATCH_SIZE


def test_only_a_few_blocks_are_read_ahead():
    """Memory does not grow with the data: an epoch that is left has read some blocks beyond it."""
    split, indices = make_split(2000), []

    def read(index):
        indices.append(index)
        return Split(split.image[index], split.label[index])

    state = make_mlp()
    epochs = StreamedEpoch(state, StreamedSplit(read, 2000), BATCH_SIZE, block_size=4)
    indices.clear()
    run(epochs, state)
    assert sorted(np.concatenate(indices).tolist()) == list(range(2000))  # each example once
    indices.clear()
    epochs._chunk_steps = 3
    chunks = epochs.run(copy(state), 0)
    next(chunks)
    chunks.close()
    assert len(indices) <= 3 + 3 * 16


def test_one_epoch_at_a_time():
    state = make_mlp()
    epochs = StreamedEpoch(state, streamed(), BATCH_SIZE, block_size=4)
    epochs._chunk_steps = 3
    left = epochs.run(copy(state), 0)
    next(left)
    expected = run(StreamedEpoch(state, streamed(), BATCH_SIZE), state)
    chunks = epochs.run(copy(state), 0)
    next(chunks)
    with pytest.raises(RuntimeError, match="^another epoch was begun before the end of this one$"):
        next(left)
    *_, last = chunks
    assert_trees_equal(last.state, expected[0])
    assert_trees_equal(run(epochs, state), expected)


@pytest.mark.parametrize(("epoch", "example"), [(0, 17), (2, 41)])
@pytest.mark.parametrize("block_size", [4, 12])
def test_the_first_loss_that_is_not_finite_is_named(epoch, example, block_size):
    image = SPLIT.image.astype(np.float32) / 255
    image[example] = np.nan
    split = Split(image, SPLIT.label)
    state = make_mlp(1e-3).replace(step=jnp.int32(11 * epoch))
    errors = []
    for epochs in (
        ChunkedEpoch(state, split, BATCH_SIZE),
        StreamedEpoch(state, streamed(split), BATCH_SIZE, block_size=block_size),
    ):
        epochs._chunk_steps = 5
        with pytest.raises(NonFiniteLossError, match=f"the loss became nan in epoch {epoch + 1}, step ") as caught:
            run(epochs, state)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_an_error_of_a_reader_arrives():
    def read(index):
        if 17 in index:
            raise InputError("example 17 is damaged")
        return Split(SPLIT.image[index], SPLIT.label[index])

    state = make_mlp()
    with pytest.raises(InputError, match="^example 17 is damaged$"):
        run(StreamedEpoch(state, StreamedSplit(read, 42), BATCH_SIZE), state)


def run_on(make_state, num_devices):
    """Trains an epoch in two parts, in batches that no number of devices here divides."""
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices])
    state = jax.device_put(make_state(), NamedSharding(mesh, PartitionSpec()))
    epochs = StreamedEpoch(state, streamed(), 14, sharding=NamedSharding(mesh, PartitionSpec("data")), block_size=30)
    state, _ = run(epochs, state, num_steps=1)
    state, total = run(epochs, state)
    assert all(len(leaf.sharding.device_set) == num_devices for leaf in jax.tree.leaves(state))
    return state.params, state.ema_params, state.model_state, total


@pytest.mark.parametrize("make_state", [pytest.param(make_mlp, marks=pytest.mark.slow), make_cnn])
def test_two_devices_give_the_numbers_of_one(make_state):
    assert_trees_close(run_on(make_state, 2), run_on(make_state, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_four_and_eight_devices_give_the_numbers_of_one(run_on_eight_devices):
    run_on_eight_devices(__file__)


SHARE = """
import sys
sys.path.insert(0, {directory!r})
from mnist_jax.training import processes
processes.connect()
from test_streaming import *
from mnist_jax.training.devices import choose_sharding, put_everywhere
sharding, rows = choose_sharding(4), []
def read(index):
    rows.extend(index.tolist())
    return Split(SPLIT.image[index], SPLIT.label[index])
state = put_everywhere(make_mlp(), sharding)
epochs = StreamedEpoch(state, StreamedSplit(read, 42), 6, sharding=sharding, block_size=12)
rows.clear()
state, total = run(epochs, state)
print(len(rows), float(total.loss_sum), float(optax.tree.norm(jax.device_get(state.params))))
"""


@pytest.mark.slow
def test_each_of_two_processes_reads_its_share(request):
    code = SHARE.format(directory=str(request.path.parent))
    environment = {
        "PYTHONPATH": f"{request.path.parents[1]}:{request.path.parents[2]}",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    results = run_together([["-c", code]] * 2, environment)
    assert [result.status for result in results] == [0, 0], [result.stderr for result in results]
    state = make_mlp()
    state, total = run(StreamedEpoch(state, streamed(), 6), state)
    expected = [float(total.loss_sum), float(optax.tree.norm(state.params))]
    for result in results:
        rows, *found = map(float, result.stdout.split())
        assert rows == 7 * 4  # 7 steps, in which 4 of the 8 rows of a padded batch are here
        np.testing.assert_allclose(found, expected, rtol=1e-5)


# Whole runs


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of a small data set with 200 training examples."""
    arrays = make_arrays(200, 20)
    train = Split(arrays["train_image"], arrays["train_label"])
    test = Split(arrays["test_image"], arrays["test_label"])
    return str(write_shards(tmp_path_factory.mktemp("data") / "shards", [train], test, name="small"))


def make_config(shards, tmp_path, name, **fields):
    options = {"hidden_sizes": (8,), "batch_size": 16, "epochs": 2, "optimizer": "sgd", "quiet": True}
    return TrainConfig(data=shards, workdir=str(tmp_path / name), **{**options, **fields})


def test_a_run_has_the_numbers_of_data_in_memory(shards, tmp_path):
    resident = fit(make_config(shards, tmp_path, "resident"))
    run = fit(make_config(shards, tmp_path, "streamed", stream=True))
    assert_trees_equal(run.state.params, resident.state.params)
    keys = ("train_loss", "validation_loss", "test_loss", "num_train", "num_validation", "num_test", "data_path")
    assert {key: run.summary[key] for key in keys} == {key: resident.summary[key] for key in keys}
    assert (run.summary["streamed"], resident.summary["streamed"]) == (True, False)
    assert run.summary["data_path"] == shards
    data = [json.loads((each.workdir / "data.json").read_text()) for each in (run, resident)]
    assert data[0] == data[1]


@pytest.mark.slow
def test_a_streamed_run_is_evaluated_on_each_split(shards, tmp_path):
    run = fit(make_config(shards, tmp_path, "streamed", stream=True))
    report = evaluate_run(run.workdir)
    assert (report.content["loss"], report.directory) == (run.summary["test_loss"], run.workdir)
    assert evaluate_run(run.workdir, split="validation").content["loss"] == run.summary["validation_loss"]
    assert evaluate_run(run.workdir, split="train").evaluation.num_examples == 180


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_chunk(self, training):
        if training.step >= self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("streams_again", [True, False])
def test_a_run_resumes_at_the_exact_batch(shards, tmp_path, streams_again):
    whole = fit(make_config(shards, tmp_path, "whole"))
    config = make_config(shards, tmp_path, "killed", stream=True)
    with pytest.raises(KeyboardInterrupt):
        fit(config, callbacks=[StopAt(14)])
    assert int(load_run(config.workdir)[1].step) == 14
    resumed = fit(dataclasses.replace(config, resume=True, stream=streams_again))
    assert_trees_equal(resumed.state.params, whole.state.params)
    for line, expected in zip(resumed.history, whole.history, strict=True):
        assert line["train_loss"] == expected["train_loss"]
        assert line["num_examples"] == expected["num_examples"]


@pytest.mark.slow
def test_a_run_resumes_at_the_exact_batch_by_any_number_of_processes(shards, tmp_path):
    """Two processes are stopped in mid-epoch; one goes on, and is stopped; three end the run."""
    whole = fit(make_config(shards, tmp_path, "whole"))
    config = make_config(shards, tmp_path, "several", stream=True)
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    results = train_together(config.to_json(), 2, "SIGTERM", 1, 1, environment=path)
    assert [result.status for result in results] == [143, 143], [result.stderr for result in results]
    resumed = dataclasses.replace(config, resume=True)
    with pytest.raises(KeyboardInterrupt):
        fit(resumed, callbacks=[StopAt(14)])
    assert int(load_run(config.workdir)[1].step) == 14
    results = train_together(resumed.to_json(), 3, environment=path)
    assert [result.stdout for result in results] == ["2 3\n"] * 3, [result.stderr for result in results]
    found = load_run(config.workdir)[1]
    assert int(found.step) == 24
    assert_trees_close(found.params, whole.state.params, rtol=1e-5, atol=1e-5)
    assert not [*Path(config.workdir).rglob("process_*-of-*")]


def test_an_own_source_is_streamed(tmp_path):
    split = make_split(100)
    memory_set = Dataset.from_splits(split, make_split(10, 1), "own", 20)
    streamed_set = Dataset.from_splits(streamed(split), make_split(10, 1), "own", 20)
    config = TrainConfig(hidden_sizes=(8,), batch_size=16, epochs=1, optimizer="sgd", quiet=True)
    runs = [
        fit(dataclasses.replace(config, workdir=str(tmp_path / name)), dataset=dataset)
        for name, dataset in (("memory", memory_set), ("streamed", streamed_set))
    ]
    assert_trees_equal(runs[0].state.params, runs[1].state.params)
    assert runs[1].config.stream
    more = dataclasses.replace(config, workdir=str(tmp_path / "streamed"), resume=True, epochs=2)
    assert fit(more, dataset=streamed_set).summary["epochs"] == 2
    with pytest.raises(InputError, match=r"^stream has no effect on a dataset in memory: load it with load_dataset\("):
        fit(dataclasses.replace(config, stream=True), dataset=memory_set)


def test_prepared_tfds_data_is_streamed(tmp_path):
    arrays = make_arrays(60, 10)
    prepared = prepare_dataset("mnist", write_idx_files(tmp_path / "idx", arrays), tmp_path / "tfds")
    runs = [
        fit(make_config(data, tmp_path, name, stream=stream, data_dir=str(tmp_path / "tfds"), epochs=1))
        for name, data, stream in (("path", str(prepared), True), ("name", "mnist", True), ("memory", "mnist", False))
    ]
    for run in runs[1:]:
        assert_trees_equal(run.state.params, runs[0].state.params)
    assert [run.summary["streamed"] for run in runs] == [True, True, False]


def test_data_that_is_not_in_shards_is_one_line(tmp_path):
    idx = str(write_idx_files(tmp_path / "idx", make_arrays()))
    for data, data_dir in (("digits", None), ("mnist", idx), (idx, None)):
        with pytest.raises(InputError) as error:
            fit(make_config(data, tmp_path, "run", stream=True, data_dir=data_dir))
        assert str(error.value) == (
            f"stream: expected a directory of array_record shards, got data {data}; "
            f"python -m mnist_jax.data.write SHARDS --data {data} writes them"
        )
    with pytest.raises(InputError, match="^data must be one of mnist, .* got 'nowhere'"):
        load_dataset("nowhere", stream=True)
    assert not (tmp_path / "run").exists()


def test_without_grain_there_is_one_line(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(InputError) as error:
        fit(make_config(shards, tmp_path, "run", stream=True))
    assert str(error.value) == (
        'stream needs the package grain, which is not installed: pip install -e ".[stream]"; '
        "grain has no wheel for macOS on Intel"
    )
    assert not (tmp_path / "run").exists()


def test_sweeps_and_populations_do_not_stream():
    config = TrainConfig(data="digits", stream=True)
    with pytest.raises(InputError, match="^stream has no effect on a population, whose data is in memory: leave it ou"):
        train_population(config, [0])
    with pytest.raises(InputError, match="^stream has no effect on a sweep, whose data is in memory: leave it out$"):
        run_sweep(config, Search(vary=("learning_rate=1e-4:1e-2",), trials=1))


def test_the_advice_on_memory_counts_blocks_and_not_the_data(monkeypatch):
    config = TrainConfig(hidden_sizes=(8,), batch_size=64, optimizer="sgd", ema_decay=None)
    image = np.broadcast_to(SPLIT.image[:1], (10**7, 28, 28, 1))
    large = StreamedSplit(lambda index: Split(image[index], np.zeros(len(index), np.int32)), 10**7)
    monkeypatch.setattr(memory, "memory_limit", lambda: 10**9)
    advice = memory.advise_on_batch(config, large, 10)
    assert advice.endswith(" MB; another program may be using the device")
