"""What is written, and what is refused; that other programs read it: ``test_formats.py``."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import assert_trees_equal, make_split, make_state
from readers import logits_of

from mnist_jax import InputError, TrainConfig, build_state, load_export
from mnist_jax.export import weights
from mnist_jax.export.weights import read_weights, to_json, to_safetensors


def evaluated(state):
    return {"params": state.eval_params, "model_state": state.model_state}


@pytest.fixture(scope="module")
def small():
    config = TrainConfig(hidden_sizes=(2,), batch_norm=True)
    return config, make_state(config)


@pytest.mark.parametrize("write", [to_json, to_safetensors])
def test_any_finite_float32_comes_back_bit_for_bit(tmp_path, write):
    config = TrainConfig(hidden_sizes=(), ema_decay=None)
    bits = np.random.default_rng(0).integers(0, 2**32, (784, 10), dtype=np.uint32)
    kernel = bits.view(np.float32)
    kernel[~np.isfinite(kernel)] = 0.1
    largest, smallest = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    kernel[0] = [0, -0.0, largest, -largest, smallest, np.float32(1) / 3, 1, 16777216, 1e-30, 0.1]
    kernel.view(np.uint32)[1, 0] = 0x15AE43FD  # prints as 7.038531e-26, which as a double is halfway to the next
    state = build_state(config)
    state = state.replace(params={"Dense_0": {**state.params["Dense_0"], "kernel": kernel}})
    (tmp_path / "model").write_bytes(write(config, state))
    read = np.asarray(load_export(tmp_path / "model")[1].params["Dense_0"]["kernel"])
    np.testing.assert_array_equal(read.view(np.uint32), kernel.view(np.uint32))


def test_the_numbers_are_as_short_as_can_be():
    config = TrainConfig(hidden_sizes=())
    state = build_state(config)
    state.eval_params["Dense_0"]["bias"] = np.float32([0.1, 1 / 3, 5e-8, *[2] * 7])
    assert b'"bias":[0.1,0.33333334,5e-08,2.0,2.0' in to_json(config, state)


@pytest.mark.parametrize("write", [to_json, to_safetensors])
def test_parameters_that_are_not_finite_are_not_written(write):
    config = TrainConfig(hidden_sizes=())
    state = build_state(config)
    state.eval_params["Dense_0"]["bias"] = np.float32([np.nan] * 10)
    with pytest.raises(InputError, match="^params.Dense_0.bias: expected finite float32 numbers, got others$"):
        write(config, state)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="/absent: expected an exported model, found no such file$"):
        load_export(tmp_path / "absent")
    with pytest.raises(InputError, match="expected an exported model, found no such file$"):
        load_export(tmp_path)
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)|found no such file"):
        load_export(tmp_path / ("x" * 300))


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "model.json"
    with path.open("wb") as file:
        file.truncate(10**9 + 1)  # takes no space
    with pytest.raises(InputError, match="model.json: expected at most 1,000,000,000 bytes, got 1,000,000,001$"):
        load_export(path)


def bias(content):
    return content["params"]["Dense_1"]["bias"]


HOSTILE = {
    "format": (lambda c: c.update(format="other"), "format must be mnist_jax, got 'other'"),
    "no format": (lambda c: c.pop("format"), "format must be mnist_jax, got None"),
    "version": (lambda c: c.update(version=2), "version must be 1, got 2"),
    "long version": (lambda c: c.update(version="x" * 10**6), "version must be 1, got 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
    "no config": (lambda c: c.pop("config"), "config: must be a JSON object, got NoneType"),
    "config list": (lambda c: c.update(config=[]), "config: must be a JSON object, got list"),
    "class names": (
        lambda c: c.update(class_names="0123456789"),
        "class_names must be a list of strings, got '0123456789'",
    ),
    "no class names": (lambda c: c.update(class_names=[]), r"class_names must be a list of strings, got \[\]"),
    "class numbers": (lambda c: c.update(class_names=[0, 1]), r"class_names must be a list of strings, got \[0, 1\]"),
    "unknown field": (lambda c: c["config"].update(depth=3), "config: unknown field 'depth'"),
    "field": (lambda c: c["config"].update(hidden_sizes=["8"]), r"hidden_sizes must be whole numbers, got \['8'\]"),
    "huge number": (lambda c: c["config"].update(momentum=10**400), r"momentum must be in \[0, 1\), got inf"),
    "huge layer": (
        lambda c: c["config"].update(hidden_sizes=[10**9], batch_norm=False),
        "params.Dense_0.bias: expected .*, got none",
    ),
    "huger layer": (
        lambda c: c["config"].update(hidden_sizes=[10**30]),
        r"hidden_sizes must be below 2\*\*31 each, got \(10{30},\)",
    ),
    "many layers": (
        lambda c: c["config"].update(hidden_sizes=[1] * 10**5),
        r"hidden_sizes must be at most 1000 layers, got \([1, ]{76}\.\.\.",
    ),
    "large kernels": (
        lambda c: c["config"].update(model="cnn", hidden_sizes=[512, 256], padding="same", kernel_sizes=[10**9, 1]),
        r"kernel_sizes must be at most 1000 rows in all, got \(1000000000, 1\)",
    ),
    "kernels too large": (
        lambda c: c["config"].update(model="cnn", hidden_sizes=[512, 256], kernel_sizes=[99, 1]),
        "kernel_sizes and pool_sizes must fit into the image, .*",
    ),
    "other model": (
        lambda c: c["config"].update(model="cnn", hidden_sizes=[512, 256]),
        "params.[^ ]*: expected .*, got none",
    ),
    "no params": (lambda c: c.pop("params"), r"params.BatchNorm_0.bias: expected float32\[2\], got none"),
    "params list": (lambda c: c.update(params=[1]), r"params.BatchNorm_0.bias: expected float32\[2\], got none"),
    "no bias": (lambda c: c["params"]["Dense_1"].pop("bias"), r"params.Dense_1.bias: expected float32\[10\], got none"),
    "no statistics": (lambda c: c.update(model_state={}), "model_state.batch_stats.BatchNorm_0.mean: expected .*"),
    "more": (
        lambda c: c["params"].update(Dense_2={"bias": [1]}),
        "'params.Dense_2.bias' is not a parameter of the model in config",
    ),
    "short": (lambda c: bias(c).pop(), "params.Dense_1.bias: expected a list of 10, got 9"),
    "not a list": (
        lambda c: c["params"]["Dense_1"].update(bias="abc"),
        "params.Dense_1.bias: expected a list of 10, got 'abc'",
    ),
    "ragged": (
        lambda c: c["params"]["Dense_0"]["kernel"][7].append(1.0),
        r"params.Dense_0.kernel\[7\]: expected a list of 2, got 3",
    ),
    "deeper": (
        lambda c: c["params"]["Dense_0"]["kernel"][7].__setitem__(0, [1.0]),
        r"params.Dense_0.kernel\[7\]: expected numbers, got \[1.0\]",
    ),
    "text": (lambda c: bias(c).__setitem__(3, "1.0"), "params.Dense_1.bias: expected numbers, got '1.0'"),
    "truth": (lambda c: bias(c).__setitem__(3, True), "params.Dense_1.bias: expected numbers, got True"),
    "null": (lambda c: bias(c).__setitem__(3, None), "params.Dense_1.bias: expected numbers, got None"),
    **{
        f"{value}"[:9]: (
            lambda c, value=value: bias(c).__setitem__(3, value),
            "params.Dense_1.bias: expected finite float32 numbers, got others",
        )
        for value in (float("nan"), float("inf"), 1e39, -(10**39), 10**400)
    },
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_json_that_does_not_fit_is_named(tmp_path, small, change, message):
    content = json.loads(to_json(*small))
    change(content)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"^{path}: (config: )?{message}$"):
        load_export(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a model exported as json or safetensors, got something else"),
        (b"[1, 2]", "expected a model exported as json or safetensors, got something else"),
        (b"\x80\x04\x95cbuiltins\nexec", "expected a model exported as json or safetensors, got something else"),
        (b"{", "expected a JSON object .*"),
        (b'{"format": "\xff"}', "expected a JSON object .*"),
        (b'{"format": "mnist_jax", "version": 1' + b"0" * 5000 + b"}", "expected a JSON object .*"),
        (b"{}", "format must be mnist_jax, got None"),
        (b'{"params":' * 100_000, "expected a JSON object .nested too deeply."),
        (b'{"params":' + b"[" * 10**6, "expected a JSON object .nested too deeply."),
    ],
    ids=range(9),
)
def test_what_is_no_export_is_refused(tmp_path, content, message):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: {message}$"):
        load_export(path)


@pytest.mark.parametrize("write", [to_json, to_safetensors])
def test_a_truncated_file_is_refused(tmp_path, small, write):
    content, path = write(*small), tmp_path / "model"
    lengths = np.linspace(0, len(content) - 2, 50).astype(int)
    for length in [*range(20), *lengths]:
        path.write_bytes(content[:length])
        with pytest.raises(
            InputError, match=f"^{path}: expected (a model exported|a JSON object|a complete safetensors file)"
        ):
            load_export(path)


def save(tmp_path, small, change=lambda arrays, metadata: None):
    """The small model as safetensors, after ``change``."""
    content = json.loads(to_json(*small))
    leaves = jax.tree_util.tree_leaves_with_path(evaluated(small[1]))
    arrays = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
    metadata = {"format": "mnist_jax", "version": "1", "config": json.dumps(content["config"])}
    change(arrays, metadata)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: m.pop("format"), "format must be mnist_jax, got None"),
        (lambda a, m: m.update(version="7"), "version must be 1, got '7'"),
        (lambda a, m: m.pop("config"), "config: must be a JSON object, got NoneType"),
        (lambda a, m: m.update(config="{"), "config must be JSON .*"),
        (lambda a, m: m.update(config="[" * 10**6), "config must be JSON .nested too deeply."),
        (lambda a, m: m.update(class_names="["), "class_names must be JSON .*"),
        (lambda a, m: m.update(class_names="{}"), "class_names must be a list of strings, got {}"),
        (lambda a, m: m.update(config='{"width": 3}'), "config: unknown field 'width'"),
        (lambda a, m: a.pop("params.Dense_1.bias"), r"params.Dense_1.bias: expected float32\[10\], got none"),
        (lambda a, m: a.update(more=np.zeros(3, np.float32)), "'more' is not a parameter of the model in config"),
        (
            lambda a, m: a.update({"params.Dense_1.bias": np.zeros((10, 1), np.float32)}),
            r"params.Dense_1.bias: expected float32\[10\], got float32\[10, 1\]",
        ),
        (
            lambda a, m: a.update({"params.Dense_1.bias": np.zeros(10, np.float64)}),
            "'params.Dense_1.bias' must be F32, got F64",
        ),
        (
            lambda a, m: a.update({"params.Dense_1.bias": np.full(10, np.inf, np.float32)}),
            "params.Dense_1.bias: expected finite float32 numbers, got others",
        ),
    ],
    ids=range(13),
)
def test_safetensors_that_do_not_fit_are_named(tmp_path, small, change, message):
    assert_trees_equal(evaluated(load_export(save(tmp_path, small))[1]), evaluated(small[1]))
    path = save(tmp_path, small, change)
    with pytest.raises(InputError, match=f"^{path}: {message}$"):
        load_export(path)


def test_safetensors_of_many_dimensions_are_one_line(tmp_path, small):
    path = save(tmp_path, small, lambda a, m: a.update(more=np.zeros(1, np.float32)))
    content = path.read_bytes().replace(
        b'"more":{"dtype":"F32","shape":[1]', b'"more":{"dtype":"F32","shape":[%s]' % b",".join([b"1"] * 65)
    )
    length = int.from_bytes(path.read_bytes()[:8], "little") + 2 * 64
    path.write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(InputError, match=f"^{path}: 'more' must have at most 4 dimensions, got 65$"):
        load_export(path)


def test_a_message_of_safetensors_is_one_printable_line(tmp_path):
    path = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "\x1b[31m" + "x" * 1000, "shape": [], "data_offsets": [0, 0]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=f"^{path}: expected a complete safetensors file") as caught:
        load_export(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300 + len(str(path))


def test_the_reader_in_the_documentation(tmp_path, monkeypatch):
    config = TrainConfig(hidden_sizes=(16, 12))
    state = make_state(config)
    monkeypatch.chdir(tmp_path)
    Path("model.json").write_bytes(to_json(config, state))
    names = {"json": json, "np": np, "Path": Path, "image": make_split(3).image}
    exec(re.search(r"( {4}model = .*?\n)\n", weights.__doc__, re.DOTALL)[1].replace("\n    ", "\n").strip(), names)
    np.testing.assert_allclose(names["logits"], logits_of(state, names["image"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("write", [to_json, to_safetensors])
def test_the_header_has_the_config_and_the_class_names(tmp_path, small, write):
    names = tuple("abcdefghij")
    path = tmp_path / "model"
    path.write_bytes(write(*small, names))
    header, found = read_weights(path)
    assert (header["config"], header["class_names"]) == (small[0], names)
    assert sorted(found)[-1] == "params.Dense_1.kernel"
