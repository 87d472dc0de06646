import pytest
from conftest import assert_trees_equal, make_state

from mnist_jax import InputError, TrainConfig, build_state, export_run, fit, load_export
from mnist_jax.export.weights import to_json, to_safetensors

OPTIONS = [
    {"hidden_sizes": (16, 12), "batch_norm": True},
    {"model": "cnn", "channels": (3, 4), "dense_size": 0, "batch_norm": True, "padding": "same"},
]


def evaluated(state):
    return {"params": state.eval_params, "model_state": state.model_state}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run on scikit-learn's digits."""
    path = tmp_path_factory.mktemp("runs") / "mlp"
    fit(TrainConfig(data="digits", hidden_sizes=(64, 32), epochs=1, optimizer="sgd", workdir=str(path), quiet=True))
    return path


@pytest.mark.parametrize("write", [to_json, to_safetensors])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_read_back_is_what_was_written(tmp_path, options, write):
    config = TrainConfig(**options, seed=3)
    state = make_state(config)
    path = tmp_path / "model"
    path.write_bytes(write(config, state))
    read_config, read = load_export(path)
    assert read_config == config
    assert_trees_equal(evaluated(read), evaluated(state))
    assert_trees_equal(read.params, read.eval_params)
    assert read.recipe.model == state.recipe.model


@pytest.mark.parametrize("ema_decay", [None, 0.99])
def test_with_and_without_a_running_average(tmp_path, ema_decay):
    config = TrainConfig(hidden_sizes=(4,), ema_decay=ema_decay)
    state = build_state(config)
    (tmp_path / "model").write_bytes(to_json(config, state))
    _, read = load_export(tmp_path / "model")
    assert (read.ema_params is None) == (ema_decay is None)
    assert_trees_equal(read.eval_params, state.eval_params)


def test_an_unknown_format_of_the_function(run):
    with pytest.raises(InputError, match="^format must be one of json, safetensors, stablehlo, onnx, got 'pickle'$"):
        export_run(run, "pickle")


def test_a_failure_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def fail(descriptor):
        assert len(list(tmp_path.iterdir())) == 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=r"model.json: cannot be written \(No space left on device\)$"):
        export_run(run, "json", tmp_path / "model.json")
    assert list(tmp_path.iterdir()) == []
