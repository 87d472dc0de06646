"""What the README shows is what happens."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
from conftest import MNIST_DIR, assert_trees_equal
from filelock import FileLock

from mnist_jax import TrainConfig, fit
from mnist_jax.cli.flags import parse_flags

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.uses_adam
def test_the_loop_of_the_readme_runs(capsys):
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    loss, accuracy, count = re.fullmatch(
        r"(\d\.\d{3}) on the last batch, (\d+\.\d)% of (\d+) test digits\n", capsys.readouterr().out
    ).groups()
    assert float(loss) < 0.5
    assert float(accuracy) > 90
    assert count == "297"


@pytest.mark.uses_adam
def test_a_run_comes_back_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fit(TrainConfig(data="digits", hidden_sizes=(8,), epochs=1, workdir="runs/mine", quiet=True))
    names = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    assert_trees_equal(names["state"].eval_params, run.state.eval_params)


def test_the_commands_of_the_readme_parse():
    commands = [line.split("#")[0].split() for block in blocks("bash") for line in block.splitlines()]
    trained = [command[command.index("mnist_jax.train") + 1 :] for command in commands if "mnist_jax.train" in command]
    assert len(trained) == 7
    for flags in trained:
        if "--help" not in flags:
            parse_flags(TrainConfig(), flags, "prog")


@pytest.fixture
def port_8000():
    """The port of the demo, for one process at a time: several versions of Python may be tested at once."""
    with FileLock(Path(tempfile.gettempdir()) / "mnist_jax-port-8000.lock", timeout=600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 8000)) == 0:
                pytest.skip("port 8000 is in use")
        yield


def test_the_commands_on_a_run_work_one_after_another(tmp_path, request, port_8000):
    """Those of the README, to the letter, as a new user has them: without runs, and here without a network."""
    (commands,) = (block.splitlines() for block in blocks("bash") if "mnist_jax.evaluate" in block)
    (tmp_path / "tests").symlink_to(Path(__file__).parent)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {} if MNIST_DIR is None else {"MNIST_JAX_DATA_DIR": MNIST_DIR}
    options = {"cwd": tmp_path, "env": environment, "text": True}
    printed = {}
    for command in commands:
        words = command.split()
        if "mnist_jax.demo" in command:
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as server:
                request.addfinalizer(server.kill)
                printed["demo"] = server.stdout.readline()
                body = (tmp_path / "tests" / "images" / "seven.jpg").read_bytes()
                with urllib.request.urlopen("http://127.0.0.1:8000/api/predict", body) as response:
                    answer = json.load(response)
                server.send_signal(signal.SIGINT)
                assert (server.wait(60), server.stderr.read()) == (130, "stopped\n")
        else:
            done = subprocess.run(words, capture_output=True, check=False, timeout=300, **options)
            assert done.returncode == 0, done.stderr
            printed[words[2].removeprefix("mnist_jax.") if words[0] == "python" else words[1]] = done.stdout
    run = tmp_path / "runs" / "mine"
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['test_accuracy']:.2%}" in printed["train"]
    assert f"accuracy {summary['test_accuracy']:.2%}" in printed["evaluate"]
    assert (run / "report.html").exists()
    (label,) = re.match(r"tests/images/seven.jpg +(\d) ", printed["predict"]).groups()
    assert printed["demo"].startswith("http://127.0.0.1:8000 ")
    assert answer["class_name"] == label
    assert label == "7" or MNIST_DIR is None  # the embedded digits are too few to learn how others write
    assert answer.keys() == {"label", "class_name", "probabilities", "image", "milliseconds"}
    assert printed["export"].startswith("runs/mine/model.onnx")
    assert (run / "model.onnx").exists()
    assert f"{summary['test_accuracy']:.2%}" in printed["runs"]


def test_ci_runs_the_test_command_of_the_readme():
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    assert "python -m pytest\n" in blocks("bash")
    assert "python -m pytest" in ci
    assert 'pip install --quiet -e ".[test]"' in ci


def test_every_file_of_the_map_exists():
    package = Path(__file__).parent.parent / "mnist_jax"
    named = set(re.findall(r"\b(\w+)\.py`", README.split("## Map")[1]))
    assert named <= {path.stem for path in package.glob("*.py")}
    hidden = {"__init__", "command", "errors"}
    assert {path.stem for path in package.glob("*.py")} - named == hidden
