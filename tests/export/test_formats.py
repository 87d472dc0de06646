"""Every format, read by programs that know nothing of this package."""

import dataclasses
import functools
import json
import sys
from importlib.machinery import PathFinder

import jax
import numpy as np
import onnx
import pytest
import safetensors
from conftest import make_split, make_state
from readers import READERS, logits_of

from mnist_jax import (
    InputError,
    Split,
    TrainConfig,
    build_state,
    evaluate_dataset,
    export_run,
    fit,
    load_dataset,
    load_run,
)
from mnist_jax.config import CHANGEABLE_ON_RESUME
from mnist_jax.data import class_names_of
from mnist_jax.export import FORMATS
from mnist_jax.export.onnx import to_onnx
from mnist_jax.export.stablehlo import to_stablehlo
from mnist_jax.export.weights import to_json, to_safetensors

WRITERS = {"json": to_json, "safetensors": to_safetensors, "stablehlo": to_stablehlo, "onnx": to_onnx}
MLP_OPTIONS = [
    {},
    {"hidden_sizes": ()},
    {"hidden_sizes": (16, 12)},
    {"hidden_sizes": (16, 12), "batch_norm": True},
]
CNN_OPTIONS = [
    {"model": "cnn", "channels": (3, 4), "dense_size": 6, **options}
    for options in [
        {},
        {"batch_norm": True},
        {"dense_size": 0},
        {"dense_size": 0, "batch_norm": True, "padding": "same"},
        {"padding": "same"},
        {"padding": "same", "kernel_sizes": (4, 2), "batch_norm": True},
        {"kernel_sizes": (4, 2), "pool_sizes": (3, 5)},
        {"padding": "same", "kernel_sizes": (1, 6), "pool_sizes": (1, 5)},
        {"channels": (3,), "kernel_sizes": (7,), "pool_sizes": (1,)},
        {"channels": (3, 2, 4), "kernel_sizes": (3, 3, 2), "pool_sizes": (2, 1, 3)},
    ]
]


@pytest.fixture(scope="module")
def runs(digits_run, tmp_path_factory):
    """The directory of a short run of each model."""
    config = TrainConfig(data="digits", model="cnn", channels=(4, 6), dense_size=32, epochs=4, learning_rate=5e-3)
    workdir = str(tmp_path_factory.mktemp("runs") / "cnn")
    with jax.numpy_dtype_promotion("standard"):
        return {
            "mlp": digits_run.workdir,
            "cnn": fit(dataclasses.replace(config, workdir=workdir, quiet=True)).workdir,
        }


@functools.cache
def real_images(mnist_dir):
    return load_dataset("mnist", data_dir=mnist_dir).test.image[:1000]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_other_side_gives_the_same_logits_on_real_images(runs, mnist_dir, tmp_path, model, format):
    image = real_images(mnist_dir)
    path = export_run(runs[model], format, tmp_path / f"model.{format}")
    wanted = evaluate_dataset(load_run(runs[model])[1], Split(image, np.zeros(len(image), np.int32))).logits
    assert wanted.std() > 1
    np.testing.assert_allclose(READERS[format](path, image), wanted, rtol=1e-5, atol=1e-5, strict=True)


@pytest.mark.parametrize("options", MLP_OPTIONS + CNN_OPTIONS, ids=str)
def test_every_option_of_the_models(tmp_path, options):
    config = TrainConfig(**options)
    state = make_state(config)
    image = make_split(3).image
    wanted = logits_of(state, image)
    assert wanted.std(axis=0).max() > 1e-3  # the images matter
    for format in FORMATS:
        path = tmp_path / f"model.{format}"
        path.write_bytes(WRITERS[format](config, state))
        for num_images in (1, 3):
            found = READERS[format](path, image[:num_images])
            np.testing.assert_allclose(found, wanted[:num_images], rtol=1e-4, atol=1e-5, err_msg=format, strict=True)


def test_what_the_files_say_of_themselves(tmp_path):
    config = TrainConfig(data="fashion_mnist", hidden_sizes=(4,), workdir="somewhere")
    state = build_state(config)
    wanted = {name: value for name, value in dataclasses.asdict(config).items() if name not in CHANGEABLE_ON_RESUME}
    names = class_names_of(config.data)
    content = json.loads(to_json(config, state, names))
    assert list(content) == ["format", "version", "config", "class_names", "params", "model_state"]
    (tmp_path / "model").write_bytes(to_safetensors(config, state, names))
    with safetensors.safe_open(tmp_path / "model", "numpy") as file:
        metadata = file.metadata()
    model = onnx.load_model_from_string(to_onnx(config, state, names))
    properties = {each.key: each.value for each in model.metadata_props}
    for found in (content, *({k: json.loads(x[k]) for k in ("config", "class_names")} for x in (metadata, properties))):
        assert TrainConfig(**found["config"]) == TrainConfig(**wanted)
        assert set(found["config"]) == set(wanted)
        assert found["class_names"][-1] == "Ankle boot"
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)


@pytest.fixture
def small():
    config = TrainConfig(hidden_sizes=(2,), batch_norm=True)
    return config, make_state(config)


def test_a_missing_extra_is_named(small, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if finder is not PathFinder])
    with pytest.raises(InputError, match=r'^onnx is not installed: pip install -e "\.\[export\]"$'):
        to_onnx(*small)
