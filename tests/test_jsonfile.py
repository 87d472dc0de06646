import json

import pytest

from mnist_jax import InputError, TrainConfig
from mnist_jax.config import _shorten
from mnist_jax.jsonfile import parse_json, read_json
from mnist_jax.training.directory import read_data
from mnist_jax.training.runs import find_runs


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "x"]}, [], 3, [[[{"b": {}}]]]])
def test_what_was_written_is_read(tmp_path, value):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit .* for integer string conversion"),
        (b"\xff", "can't decode byte"),
        ("{", "Expecting property name"),
    ],
    ids=range(6),
)
def test_bad_json_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_a_hundred_levels_are_read():
    assert parse_json("[" * 100 + "]" * 100)


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b" " * (2**24 + 1))
    with pytest.raises(ValueError, match="^larger than 16777216 bytes$"):
        read_json(path)


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_one_hostile_run_does_not_hide_the_others(tmp_path, name):
    for run in ("good", "hostile"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.json").write_text(TrainConfig().to_json())
    (tmp_path / "hostile" / name).write_text("[" * 200_000)
    assert [run.path.name for run in find_runs(tmp_path)] == ["good"]


def test_hostile_files_of_a_run_are_one_line(tmp_path):
    (tmp_path / "data.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match=r"data.json: expected a JSON object \(nested too deeply\)$"):
        read_data(tmp_path)
    with pytest.raises(InputError, match=r"^config: not JSON \(nested too deeply\)$"):
        TrainConfig.from_json("[" * 200_000)


def test_messages_show_the_beginning_of_a_value():
    with pytest.raises(InputError, match=r"^model must be one of mlp, cnn, got x{77}\.\.\.$"):
        TrainConfig(model="x" * 1000)
    with pytest.raises(InputError, match=r"^epochs must be at least 1, got -1{76}\.\.\.$"):
        TrainConfig(epochs=-int("1" * 1000))
    assert _shorten("x" * 80) == "x" * 80
    with pytest.raises(InputError, match=r"^model must be one of mlp, cnn, got a\\n\\x1bb$"):
        TrainConfig(model="a\n\x1bb")
    with pytest.raises(
        InputError, match=r"^kernel_sizes must be as long as channels \([1, ]{76}\.\.\. and not empty, got"
    ):
        TrainConfig(model="cnn", channels=[1] * 1000)
    with pytest.raises(InputError, match=r"^config: unknown field '(\\x00){19}\.\.\.$"):
        TrainConfig.from_json(json.dumps({"\0" * 80: 1}))
