import dataclasses
import functools
import hashlib
import json
import random
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.numpy
from conftest import make_split, make_state

from mnist_jax import (
    InputError,
    Split,
    TrainConfig,
    build_state,
    evaluate_dataset,
    fit,
    load_dataset,
    load_run,
    weights,
)
from mnist_jax.config import PRESENTATION
from mnist_jax.core.apply import apply_model
from mnist_jax.export.onnx import to_onnx
from mnist_jax.export.stablehlo import FORMATS, export_run, load_stablehlo, main, to_stablehlo
from mnist_jax.export.weights import load_export, to_json, to_safetensors

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


def logits_of(state, image):
    return np.asarray(jax.jit(lambda image: apply_model(state, state.eval_params, image)[0])(image))


# The other sides: none of them uses this package.


def numpy_logits(model, image):
    """``model`` as in the JSON file; an independent forward pass."""
    config, params = model["config"], jax.tree.map(np.float32, model["params"], is_leaf=lambda x: isinstance(x, list))
    statistics = model["model_state"].get("batch_stats", {})
    num_normalised = iter(range(99))

    def normalise(x):
        if not config["batch_norm"]:
            return x
        name = f"BatchNorm_{next(num_normalised)}"
        layer = params[name]
        mean, var = (np.float32(statistics[name][key]) for key in ("mean", "var"))
        return (x - mean) / np.sqrt(var + np.float32(1e-5)) * layer["scale"] + layer["bias"]

    x = image.astype(np.float32) / 255
    if config["model"] == "cnn":
        pools = config["pool_sizes"] * (len(config["channels"]) if len(config["pool_sizes"]) == 1 else 1)
        for index, (size, pool) in enumerate(zip(config["kernel_sizes"], pools, strict=True)):
            layer = params[f"Conv_{index}"]
            if config["padding"] == "same":
                pad = ((size - 1) // 2, size // 2)
                x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))  # [N, h, w, c, i, j]
            x = np.tensordot(windows, layer["kernel"].transpose(2, 0, 1, 3), 3) + layer.get("bias", 0)
            height, width = x.shape[1] // pool, x.shape[2] // pool
            x = x[:, : height * pool, : width * pool].reshape(len(x), height, pool, width, pool, -1).max(axis=(2, 4))
            x = np.maximum(normalise(x), 0)
        x = x if config["dense_size"] else x.mean(axis=(1, 2))
    x = x.reshape(len(x), -1)
    num_dense = sum(name.startswith("Dense_") for name in params)
    for index in range(num_dense):
        layer = params[f"Dense_{index}"]
        x = x @ layer["kernel"] + layer.get("bias", 0)
        if index < num_dense - 1:
            x = np.maximum(normalise(x), 0)
    return x


def by_json(path, image):
    return numpy_logits(json.loads(path.read_text()), image)


def by_safetensors(path, image):
    model = {"params": {}, "model_state": {}}
    for name, array in safetensors.numpy.load_file(path).items():
        *parts, last = name.split(".")
        functools.reduce(lambda tree, part: tree.setdefault(part, {}), parts, model)[last] = array
    with safetensors.safe_open(path, "numpy") as file:
        model["config"] = json.loads(file.metadata()["config"])
    return numpy_logits(model, image)


def by_jax(path, image):
    return np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(image))


def by_onnxruntime(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": image})
    return logits


READERS = {"json": by_json, "safetensors": by_safetensors, "stablehlo": by_jax, "onnx": by_onnxruntime}
WRITERS = {"json": to_json, "safetensors": to_safetensors, "stablehlo": to_stablehlo, "onnx": to_onnx}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each model."""
    common = {"data": "digits", "epochs": 2, "optimizer": "momentum", "learning_rate": 0.05, "quiet": True}
    found = {}
    for model in ("mlp", "cnn"):
        path = tmp_path_factory.mktemp("runs") / model
        fit(TrainConfig(model=model, hidden_sizes=(64, 32), ema_decay=0.9, workdir=str(path), **common))
        found[model] = path
    return found


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


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_stablehlo_needs_nothing_but_jax(runs, run_python, tmp_path, model):
    path = export_run(runs[model], "stablehlo", tmp_path / "model.stablehlo")
    image = make_split(20).image
    np.save(tmp_path / "image.npy", image)
    code = f"""
import sys
import jax, jax.export, numpy
content = open({str(path)!r}, "rb").read()
logits = jax.export.deserialize(bytearray(content)).call(numpy.load({str(tmp_path / "image.npy")!r}))
numpy.save({str(tmp_path / "logits.npy")!r}, logits)
print(any(name.startswith(("mnist_jax", "flax")) for name in sys.modules))
"""
    done = run_python("-c", code)
    assert done.stdout == "False\n", done.stderr
    wanted = logits_of(load_run(runs[model])[1], image)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), wanted, rtol=1e-5, atol=1e-5)


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


def test_stablehlo_of_a_bfloat16_run(tmp_path):
    config = TrainConfig(model="cnn", dtype="bfloat16")
    state = make_state(config)
    (tmp_path / "model").write_bytes(to_stablehlo(config, state))
    image = make_split(8).image
    np.testing.assert_allclose(by_jax(tmp_path / "model", image), logits_of(state, image), rtol=0.02, atol=0.02)


def test_stablehlo_is_for_several_platforms():
    config = TrainConfig(model="cnn")
    exported = jax.export.deserialize(bytearray(to_stablehlo(config, build_state(config))))
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_the_reader_in_the_documentation(tmp_path, monkeypatch):
    config = TrainConfig(hidden_sizes=(16, 12))
    state = make_state(config)
    monkeypatch.chdir(tmp_path)
    Path("model.json").write_bytes(to_json(config, state))
    names = {"json": json, "np": np, "Path": Path, "image": make_split(3).image}
    exec(re.search(r"( {4}model = .*?\n)\n", weights.__doc__, re.DOTALL)[1].replace("\n    ", "\n").strip(), names)
    np.testing.assert_allclose(names["logits"], logits_of(state, names["image"]), rtol=1e-4, atol=1e-5)


def test_what_the_files_say_of_themselves(tmp_path):
    config = TrainConfig(data="fashion_mnist", hidden_sizes=(4,), workdir="somewhere")
    state = build_state(config)
    wanted = {name: value for name, value in dataclasses.asdict(config).items() if name not in PRESENTATION}
    content = json.loads(to_json(config, state))
    assert list(content) == ["format", "version", "config", "class_names", "params", "model_state"]
    (tmp_path / "model").write_bytes(to_safetensors(config, state))
    with safetensors.safe_open(tmp_path / "model", "numpy") as file:
        metadata = file.metadata()
    model = onnx.load_model_from_string(to_onnx(config, state))
    properties = {each.key: each.value for each in model.metadata_props}
    for found in (content, *({k: json.loads(x[k]) for k in ("config", "class_names")} for x in (metadata, properties))):
        assert TrainConfig(**found["config"]) == TrainConfig(**wanted)
        assert set(found["config"]) == set(wanted)
        assert found["class_names"][-1] == "Ankle boot"
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)


@pytest.fixture(scope="module")
def small():
    config = TrainConfig(hidden_sizes=(2,), batch_norm=True)
    return config, make_state(config)


# What load_stablehlo refuses.


def test_a_damaged_stablehlo_file_is_refused_before_jax_sees_it(tmp_path, small):
    content, path = to_stablehlo(*small), tmp_path / "model.stablehlo"
    path.write_bytes(content)
    image = make_split(3).image
    np.testing.assert_allclose(load_stablehlo(path)(image), logits_of(small[1], image), rtol=1e-5, atol=1e-5)
    rng = random.Random(0)
    damaged = [content[: rng.randrange(len(content))] for _ in range(100)]
    for _ in range(200):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    for each in [b"", b"{}", b"x" * 1000, content + b"\n", *damaged]:
        path.write_bytes(each)
        with pytest.raises(InputError, match=f"^{path}: a model exported as stablehlo wanted, got something else"):
            load_stablehlo(path)


def seal(content):
    return content + b"mnist_jax" + hashlib.sha256(content).digest()


def test_a_function_of_other_shapes_is_refused(tmp_path):
    path = tmp_path / "model.stablehlo"
    image = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("B"), 28, 28, 1), np.uint8)
    for function in (lambda image: image + image, lambda image: (image, image)):
        path.write_bytes(seal(bytes(jax.export.export(jax.jit(function))(image).serialize())))
        with pytest.raises(InputError, match=rf"^{path}: a function to logits \[B, 10\] wanted, got another$"):
            load_stablehlo(path)


def test_what_this_jax_cannot_use_is_one_line(tmp_path):
    def double(image):
        return image + image

    path = tmp_path / "model.stablehlo"
    for_tpu = jax.export.export(jax.jit(double), platforms=["tpu"])(np.zeros((1, 28, 28, 1), np.uint8)).serialize()
    for content in (b"", b"x" * 1000, bytes(for_tpu)):
        path.write_bytes(seal(content))
        with pytest.raises(InputError, match=f"^{path}: cannot be used with JAX {jax.__version__} here: [^\n]*$"):
            load_stablehlo(path)


# The command.


def test_the_command_says_what_it_wrote(runs, tmp_path, capsys):
    path = tmp_path / "other.name"
    assert main([str(runs["mlp"]), "--format", "safetensors", "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}  safetensors  {path.stat().st_size:,} bytes\n"
    assert list(tmp_path.iterdir()) == [path]
    assert load_export(path)[0].hidden_sizes == (64, 32)


def test_the_file_goes_into_the_run_and_nothing_is_overwritten(runs, capsys):
    path = runs["mlp"] / "model.json"
    assert export_run(runs["mlp"], "json") == path
    before = path.read_bytes()
    assert main([str(runs["mlp"]), "--format", "json"]) == 2
    assert capsys.readouterr().err == f"error: {path} exists already: name another file with --output\n"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["RUN"], "the following arguments are required: --format"),
        (["RUN", "--format", "pickle"], "argument --format: invalid choice: 'pickle'"),
        (["nowhere", "--format", "json"], "nowhere: a run with a config.json wanted, found none"),
        (["RUN", "--format", "json", "--output", "RUN"], " exists already: name another file with --output"),
        (["RUN", "--format", "json", "--output", "RUN/no/file"], "cannot be written (No such file or directory)"),
        (["RUN", "--format", "json", "--output", "RUN/config.json/x"], "cannot be written (Not a directory)"),
    ],
    ids=range(6),
)
def test_bad_input_is_one_line(runs, capsys, args, message):
    assert main([arg.replace("RUN", str(runs["mlp"])) for arg in args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_an_unknown_format_of_the_function(runs):
    with pytest.raises(InputError, match="^format must be one of json, safetensors, stablehlo, onnx, got 'pickle'$"):
        export_run(runs["mlp"], "pickle")


def test_a_failure_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    def fail(self, target):
        assert self.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(InputError, match=r"model.json: cannot be written \(No space left on device\)$"):
        export_run(runs["mlp"], "json", tmp_path / "model.json")
    assert list(tmp_path.iterdir()) == []


def test_onnx_of_a_bfloat16_run_is_refused():
    config = TrainConfig(dtype="bfloat16", hidden_sizes=(4,))
    with pytest.raises(InputError, match="^dtype must be float32 for onnx, got bfloat16: the other formats take it$"):
        to_onnx(config, build_state(config))


@pytest.mark.parametrize(("module", "write"), [("onnx", to_onnx), ("safetensors", to_safetensors)])
def test_a_missing_extra_is_named(small, monkeypatch, module, write):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if finder is not PathFinder])
    with pytest.raises(InputError, match=rf'^{module} is not installed: pip install -e "\.\[export\]"$'):
        write(*small)


def test_help_does_not_wait_for_jax(run_python):
    code = "import sys\nfrom mnist_jax.export.stablehlo import main\ntry: main(['--help'])\nfinally: print('jax' in sys.modules)"
    done = run_python("-c", code)
    assert done.returncode == 0
    assert "--format" in done.stdout
    assert done.stdout.endswith("False\n")
