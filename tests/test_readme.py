"""Checks that what the README and the guide show is what happens."""

import importlib.util
import inspect
import json
import operator
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import MNIST_DIR, assert_trees_close, assert_trees_equal
from filelock import FileLock

import mnist_jax
from mnist_jax import (
    MLP,
    TrainConfig,
    create_train_state,
    cross_entropy,
    fit,
    load_dataset,
    load_run,
    loss_fn,
    mean_gradient,
    restore_checkpoint,
    train_epoch,
)
from mnist_jax.cli.flags import parse_flags
from mnist_jax.training.processes import COORDINATOR, NUM_PROCESSES, PROCESS_ID

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "mnist_jax" / "README.md").read_text()


def blocks(language, text=README + GUIDE):
    """Returns the code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_snippet(text):
    """Runs the one snippet of Python that contains ``text`` and returns its names."""
    (code,) = (block for block in blocks("python") if text in block)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.uses_adam
def test_the_loop_of_the_readme_runs(capsys):
    (code,) = blocks("python", README)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    pattern = r"(\d\.\d{3}) on the last batch, (\d+\.\d)% of 297 test digits\n"
    loss, accuracy = map(float, re.fullmatch(pattern, capsys.readouterr().out).groups())
    shown_loss, shown_accuracy = map(float, re.search(pattern, README).groups())
    assert abs(loss - shown_loss) < 0.02
    assert abs(accuracy - shown_accuracy) < 0.5


@pytest.mark.uses_adam
def test_a_run_comes_back_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fit(TrainConfig(data="digits", hidden_sizes=(8,), epochs=1, workdir="runs/mine", quiet=True))
    (code,) = re.findall(r"`config, state = (load_run\(.*?\))`", GUIDE)
    config, state = eval(code, {"load_run": load_run})
    assert config == run.config
    assert_trees_equal(state, run.state)


@pytest.mark.slow
@pytest.mark.uses_adam
def test_a_loss_of_ones_own_trains_three_seeds_as_a_loop_over_them_does():
    names = run_snippet("focal_loss")
    losses = names["metrics"].loss
    assert losses.shape == (3,)
    assert len(set(losses.tolist())) == 3
    params = [jax.tree.map(operator.itemgetter(index), names["states"].params) for index in range(3)]
    for index, key in enumerate(names["keys"]):
        state = create_train_state(names["model"], names["tx"], key, example_loss=names["focal_loss"])
        history = []
        for _ in range(3):
            state, metrics = train_epoch(state, names["split"], 100)
            history.append(float(metrics.loss))
        assert history[0] > 1.5 * history[-1]
        np.testing.assert_allclose(losses[index], metrics.loss, rtol=1e-4)
        assert_trees_close(params[index], state.params, 1e-3, 1e-4)


def test_the_focal_loss_of_the_readme_is_the_published_one():
    """``(1 - p)^2`` times the cross-entropy, where ``p`` is the probability of the label."""
    (code,) = (block for block in blocks("python") if "focal_loss" in block)
    names = {"jax": jax, "jnp": jnp}
    exec(code[code.index("def focal_loss") : code.index("model, tx")], names)
    logits, label = jax.random.normal(jax.random.key(0), (5, 10)), jnp.array([3, 1, 4, 1, 5])
    probability = jax.nn.softmax(logits)[jnp.arange(5), label]
    expected = (1 - probability) ** 2 * cross_entropy(logits, label)
    np.testing.assert_allclose(names["focal_loss"](logits, label), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.uses_adam
def test_a_model_of_ones_own_is_trained_and_resumed_by_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_snippet("nnx.Module")
    epochs, norms = zip(*(line.split() for line in capsys.readouterr().out.splitlines()), strict=True)
    assert epochs == ("1", "2")  # the callback, of the first call of fit alone
    assert len(set(norms)) == 2
    uninterrupted = fit(TrainConfig(data="digits", epochs=4, workdir="runs/whole", quiet=True), **names["own"])
    assert_trees_equal(names["run"].state.params, uninterrupted.state.params)
    assert_trees_equal(names["state"], names["run"].state)
    assert names["config"] == names["run"].config
    run = tmp_path / "runs" / "own"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["model"], summary["epochs"]) == ("Net", 4)
    assert summary["test_accuracy"] == uninterrupted.summary["test_accuracy"] > 0.8
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert (run / "figures" / "learning_curves.png").exists()


def test_a_state_of_ones_own_is_trained_by_fit_and_comes_back_as_the_readme_says(tmp_path):
    assert "`restore_checkpoint(directory, state)`" in GUIDE
    state = create_train_state(MLP(hidden_sizes=(8,)), optax.sgd(0.1), jax.random.key(0), gradient_fn=mean_gradient)
    run = fit(TrainConfig(data="digits", epochs=1, workdir=str(tmp_path / "run"), quiet=True), state=state)
    assert_trees_equal(restore_checkpoint(run.workdir, state), run.state)


@pytest.mark.slow
def test_gradients_of_examples_have_that_of_the_batch_as_their_mean():
    names = run_snippet("equinox")
    state, batch = names["state"], {"image": names["image"], "label": names["label"]}
    grads, (metrics, _) = jax.grad(loss_fn, has_aux=True)(state.params, state, batch)
    assert int(metrics.count) == 64
    assert {leaf.shape[0] for leaf in jax.tree.leaves(names["gradients"])} == {64}
    assert_trees_close(jax.tree.map(lambda leaf: leaf.mean(axis=0), names["gradients"]), grads)


@pytest.mark.slow
@pytest.mark.uses_adam
def test_memorisation_of_the_readme_is_that_of_the_hard_examples():
    names = run_snippet("memorisation")
    found = names["memorisation"](names["correct"], names["mask"])
    assert found.shape == (1350,)
    easy = np.asarray(names["correct"]).mean(axis=0) == 1
    assert np.nanmax(np.abs(found[easy])) < 1e-6
    assert np.nanmean(found[~easy]) > 0


@pytest.mark.uses_adam
def test_the_epoch_on_several_devices_is_that_of_one():
    names = run_snippet("AxisType")
    state = create_train_state(MLP(hidden_sizes=(128,)), optax.adam(1e-3), jax.random.key(0))
    _, metrics = train_epoch(state, load_dataset("digits").train, batch_size=128)
    assert len(names["state"].step.devices()) == jax.device_count() == 2
    assert_trees_close(names["metrics"], metrics)


def test_the_arguments_of_the_readme_are_those_of_create_train_state():
    rows = GUIDE.split("| argument |")[1].split("\n\n")[0].splitlines()[2:]
    arguments = {re.match(r"\| `(\w+)`", row).group(1) for row in rows}
    assert arguments < inspect.signature(create_train_state).parameters.keys()
    names = {name for row in rows for name in re.findall(r"`(\w+)", row)} - arguments
    assert names <= set(mnist_jax.__all__)


def test_the_commands_of_the_readme_parse(monkeypatch):
    for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID):  # restored afterwards, as flags set them
        monkeypatch.setenv(name, "")
    commands = [line.split("#")[0].rstrip("& ").split() for block in blocks("bash") for line in block.splitlines()]
    trained = [command[command.index("mnist_jax.train") + 1 :] for command in commands if "mnist_jax.train" in command]
    assert len(trained) == 12
    for flags in trained:
        parse_flags(TrainConfig(), flags, "prog")


@pytest.mark.slow
@pytest.mark.uses_adam
@pytest.mark.skipif(importlib.util.find_spec("jax_privacy") is None, reason="needs the extra privacy")
def test_a_private_run_of_the_guide_spends_its_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_snippet("dp_epsilon")
    (spent, noise), (epsilon,) = (map(float, line.split()) for line in capsys.readouterr().out.splitlines()[-2:])
    assert 2.97 < spent <= 3.0
    assert noise == names["run"].config.dp_noise
    assert 0.8 < epsilon < 1.2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("grain") is None, reason="needs the extra stream")
def test_the_commands_for_data_larger_than_memory_work(run_python, idx_dir):
    (commands,) = (block.splitlines() for block in blocks("bash") if "mnist_jax.data.write" in block)
    for command in commands:
        done = run_python(*command.partition("#")[0].split()[1:], MNIST_JAX_DATA_DIR=str(idx_dir))
        assert done.returncode == 0, done.stderr
    assert "cnn on mnist" in done.stdout
    assert "training         5,886" in done.stdout.replace("train   ", "training")


@pytest.fixture
def port_8000():
    """The port of the demo, for one process at a time: several versions of Python may be tested at once."""
    with FileLock(Path(tempfile.gettempdir()) / "mnist_jax-port-8000.lock", timeout=600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 8000)) == 0:
                pytest.skip("port 8000 is in use")
        yield


@pytest.mark.slow
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
    assert label == "7" or MNIST_DIR is None  # scikit-learn's digits are too few to learn how others write
    assert answer.keys() == {"label", "class_name", "probabilities", "doubt", "image", "read", "milliseconds"}
    assert printed["export"].startswith("runs/mine/model.onnx")
    assert (run / "model.onnx").exists()
    assert f"{summary['test_accuracy']:.2%}" in printed["runs"]


def test_ci_runs_the_test_command_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "python -m pytest\n" in blocks("bash", README)
    assert "    python -m pytest\n" in ci
    assert '    python -m pytest -m "slow or not slow"\n' in ci
    assert 'pip install --quiet -e ".[test]"' in ci


def test_the_map_names_what_exists_and_every_folder():
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", GUIDE.split("## Where")[1].split("\n## ")[0], flags=re.MULTILINE)
    folders = set()
    for places, text in rows:
        first, *others = re.findall(r"`([\w/.]+)`", places)
        path = ROOT / first
        named = [path, *(path.parent / other for other in others)]
        if first.endswith("/"):
            folders.add(path)
            named += [path / name for name in re.findall(r"`(\w+\.py)`", text)]
        assert [str(place) for place in named if not place.exists()] == []
    packages = {path.parent for path in (ROOT / "mnist_jax").glob("*/__init__.py")}
    assert packages | {ROOT / "tests", ROOT / "experiments", ROOT / "benchmarks"} == folders


def test_paths_into_the_package_exist():
    paths = re.findall(r"`((?:mnist_jax|tests|benchmarks|experiments)/[\w./-]+)", README + GUIDE)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("text", [README, GUIDE], ids=["README", "guide"])
def test_links_to_files_lead_somewhere(text):
    folder = ROOT if text is README else ROOT / "mnist_jax"
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (folder / link).exists()] == []


def test_the_front_page_is_short():
    assert len(README.splitlines()) < 150
