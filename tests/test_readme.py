"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest
from conftest import assert_trees_equal

from mnist_jax import TrainConfig, fit
from mnist_jax.command import parse_flags

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
    assert len(trained) == 6
    for flags in trained:
        if "--help" not in flags:
            parse_flags(TrainConfig(), flags, "prog")


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
