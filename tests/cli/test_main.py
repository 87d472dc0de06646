import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_jax
from mnist_jax import InputError
from mnist_jax.cli.flags import OneLineParser
from mnist_jax.cli.main import COMMANDS, main

SCRIPT = Path(sys.executable).with_name("mnist-jax")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_the_module_of_its_name(monkeypatch, name):
    calls = []
    module = importlib.import_module(COMMANDS[name][0])
    monkeypatch.setattr(module, "main", lambda args, prog: calls.append((args, prog)) or 7)
    assert main([name, "one", "--two"]) == 7
    assert calls == [(["one", "--two"], f"mnist-jax {name}")]
    assert COMMANDS[name][0].removesuffix(".__main__") == f"mnist_jax.{name}"


def test_every_command_helps_without_jax(run_python):
    code = f"""
import contextlib, sys
from mnist_jax.cli.main import main
for name in {[*COMMANDS]}:
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
    heavy = ("jax", "flax", "orbax", "matplotlib", "starlette")
    print("loaded:", [module for module in heavy if module in sys.modules])
"""
    done = run_python("-c", code)
    assert done.returncode == 0
    assert re.findall(r"^usage: mnist-jax (\w+) ", done.stdout, flags=re.MULTILINE) == [*COMMANDS]
    assert re.findall("^loaded: .*$", done.stdout, flags=re.MULTILINE) == ["loaded: []"] * len(COMMANDS)


def test_without_a_command_it_helps(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    text = capsys.readouterr().out
    assert (ended.value.code, text.count("usage: mnist-jax COMMAND")) == (0, 1)
    assert all(help_ in text for _, help_ in COMMANDS.values())


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_80_columns_and_ends_with_an_example_that_parses(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    command = main if not name else importlib.import_module(COMMANDS[name][0]).main
    prog = "mnist-jax" if not name else f"python -m mnist_jax.{name}"
    with pytest.raises(SystemExit):
        command(["--help"], prog)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-2] == ""
    assert lines[-1].startswith(f"example: {prog} ")
    parsed = []

    def parse_args(self, args):
        parsed.append(original(self, args))
        raise InputError("parsed")

    original = OneLineParser.parse_args
    monkeypatch.setattr(OneLineParser, "parse_args", parse_args)
    assert command(lines[-1].removeprefix(f"example: {prog} ").split(), prog) == 2
    assert capsys.readouterr().err == "error: parsed\n"
    assert len(parsed) == 1


def test_the_console_script_is_installed():
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: mnist-jax COMMAND ...")
    for name, (_, help_) in COMMANDS.items():
        assert re.search(rf"^ +{name} +{help_}$", done.stdout, flags=re.MULTILINE)
    wrong = subprocess.run([SCRIPT, "train", "--epochs", "0"], capture_output=True, text=True, check=False)
    assert (wrong.stderr, wrong.returncode) == ("error: epochs must be at least 1, got 0\n", 2)


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{mnist_jax.__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["walk"],
            "command must be one of train, evaluate, predict, explain, demo, export, sweep, runs, compare, got walk",
        ),
        (["trian"], r"command must be one of train, .*, runs, compare, got trian; did you mean train\?"),
        (["--quiet"], "unknown flag --quiet"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, args, message):
    assert main(args) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(f"error: {message}\n", captured.err)
    assert captured.out == ""
