"""``--device`` of every command that uses JAX."""

import os
import re
import sys
import types

import pytest

from mnist_jax.cli import flags
from mnist_jax.cli.flags import OneLineParser, add_jax_flags
from mnist_jax.cli.main import COMMANDS, main


def choose(device):
    parser = OneLineParser("prog")
    add_jax_flags(parser)
    parser.parse_args([] if device is None else ["--device", device])


@pytest.fixture
def updates(monkeypatch):
    """The platforms that JAX was told after its import; the environment is restored."""
    found = []
    config = types.SimpleNamespace(update=lambda name, value: found.append((name, value)))
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setenv("JAX_PLATFORMS", "before")
    return found


@pytest.mark.parametrize(
    ("device", "plugins", "platform"),
    [
        (None, [], None),
        ("cpu", ["xla_cuda13"], "cpu"),
        ("tpu", [], "tpu"),
        ("gpu", [], "cuda"),
        ("gpu", ["xla_cuda13"], "cuda"),
        ("gpu", ["xla_rocm7"], "rocm"),
        ("gpu", ["xla_cuda12", "xla_rocm7"], "cuda"),
    ],
)
def test_the_flag_sets_the_platform_before_and_after_the_import_of_jax(
    monkeypatch, tmp_path, updates, device, plugins, platform
):
    for plugin in plugins:
        (tmp_path / "jax_plugins" / plugin).mkdir(parents=True)
        (tmp_path / "jax_plugins" / plugin / "__init__.py").touch()
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "jax_plugins")]) if plugins else None
    monkeypatch.setattr(flags.importlib.util, "find_spec", lambda name: spec)
    choose(device)
    assert os.environ["JAX_PLATFORMS"] == platform or platform is None
    assert updates == ([] if platform is None else [("jax_platforms", platform)])
    monkeypatch.delitem(sys.modules, "jax")
    choose(device)
    assert len(updates) == (platform is not None)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("dynamics", "runs", "compare")])
def test_each_command_that_uses_jax_has_the_flag(capsys, name):
    assert main([name, "--device", "gpuu"]) == 2
    message = "device must be one of cpu, gpu, tpu, got gpuu; did you mean gpu?"
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize("command", ["train --model cnn", "sweep --model cnn --trials 1 --vary learning_rate=0.1/0.2"])
def test_a_missing_device_is_one_line_and_nothing_is_written(run_python, tmp_path, command):
    done = run_python("-m", "mnist_jax", *command.split(), "--data", "digits", "--device", "tpu")
    assert done.returncode == 2
    line = r"error: device: expected a device of tpu, found none \(.+\); install JAX for it, or use --device cpu\n"
    assert re.fullmatch(line, done.stderr)
    assert [*(tmp_path / "elsewhere").iterdir()] == []


def test_the_flag_overrides_the_environment(run_python):
    code = "from mnist_jax.cli.flags import *; parse_flags(TrainConfig(), ['--device', 'cpu'], ''); import jax"
    done = run_python("-c", f"{code}; print(jax.default_backend())", JAX_PLATFORMS="tpu")
    assert done.stdout == "cpu\n", done.stderr
