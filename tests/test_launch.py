"""The recipes of ``mnist_jax/launch.md`` parse, and their flags, fields and variables are those of the library."""

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from mnist_jax import TrainConfig
from mnist_jax.cli.flags import parse_flags
from mnist_jax.training.processes import _START_TIMEOUT, COORDINATOR, NUM_PROCESSES, PROCESS_ID

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "mnist_jax" / "launch.md").read_text()


def blocks(language):
    """Returns the code blocks in a language by the title of their section."""
    found = {}
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE):
        for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL):
            found[title] = block
    return found


MANIFESTS = {title: yaml.safe_load(block) for title, block in blocks("yaml").items()}


def container_of_the_jobset():
    (job,) = MANIFESTS["Kubernetes, JobSet"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return job, container


def commands():
    """Yields each command that trains, as words."""
    scripts = [*blocks("bash").values(), MANIFESTS["SkyPilot"]["run"]]
    for line in (line for script in scripts for line in script.splitlines() if "python -m" in line):
        _, python, rest = " ".join(shlex.split(line)).partition("python -m")  # the command may be a quoted argument
        yield f"{python}{rest}".split()
    yield container_of_the_jobset()[1]["command"]
    yield MANIFESTS["Kubeflow TrainJob"]["spec"]["trainer"]["command"]


def test_every_recipe_has_a_block_and_a_row():
    titles = re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    assert {**blocks("bash"), **MANIFESTS, **blocks("python")}.keys() == set(titles)
    anchors = re.findall(r"^\| \[.+?\]\(#(.+?)\)", PAGE, flags=re.MULTILINE)
    assert anchors == [title.lower().replace(",", "").replace(" ", "-") for title in titles]


def test_links_lead_to_files_and_headings():
    links = re.findall(r"\]\(([^)#]*)#([^)]+)\)", PAGE)
    assert ("README.md", "several-devices-and-several-machines") in links
    for file, anchor in links:
        text = (ROOT / "mnist_jax" / (file or "launch.md")).read_text()
        titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        assert anchor in [title.lower().replace(",", "").replace(" ", "-") for title in titles]


def test_each_command_trains_and_shares_a_run_directory():
    found = list(commands())
    assert len(found) == 6
    for words in found:
        assert words[:3] == ["python", "-m", "mnist_jax.train"]
        config = parse_flags(TrainConfig(), words[3:], "prog")
        assert config.data == "mnist"
        assert config.workdir.endswith("runs/mine")


@pytest.mark.parametrize("title", ["SLURM", "Open MPI", "Cloud TPU"])
def test_the_scripts_are_of_bash(title):
    subprocess.run(["bash", "-n"], input=blocks("bash")[title], text=True, check=True)


def test_the_jobset_names_its_first_pod_and_its_size():
    job, container = container_of_the_jobset()
    spec = job["template"]["spec"]
    name = MANIFESTS["Kubernetes, JobSet"]["metadata"]["name"]
    env = {each["name"]: each for each in container["env"]}
    assert env.keys() >= {COORDINATOR, NUM_PROCESSES, PROCESS_ID}
    assert env[COORDINATOR]["value"].startswith(f"{name}-{job['name']}-0-0.{name}:")
    assert int(env[NUM_PROCESSES]["value"]) == spec["parallelism"] == spec["completions"]
    assert "job-completion-index" in env[PROCESS_ID]["valueFrom"]["fieldRef"]["fieldPath"]
    (volume,) = spec["template"]["spec"]["volumes"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/runs"}]


def test_the_trainjob_mounts_what_the_jobset_mounts():
    (patch,) = MANIFESTS["Kubeflow TrainJob"]["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    jobset_job, container = container_of_the_jobset()
    assert pod["volumes"] == jobset_job["template"]["spec"]["template"]["spec"]["volumes"]
    assert pod["containers"] == [{"name": job["name"], "volumeMounts": container["volumeMounts"]}]


def test_skypilot_sets_the_three_variables(tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\nenv | grep "^JAX_" | sort\n')
    (tmp_path / "python").chmod(0o755)
    given = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    script = ["bash", "-c", MANIFESTS["SkyPilot"]["run"]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **given}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{COORDINATOR}=10.0.0.1:1234", f"{NUM_PROCESSES}=2", f"{PROCESS_ID}=1"]


def test_the_function_for_ray_makes_a_config():
    (function,) = (node for node in ast.parse(blocks("python")["Ray"]).body if isinstance(node, ast.FunctionDef))
    (call,) = (node for node in ast.walk(function) if isinstance(node, ast.Call) and node.func.id == "TrainConfig")
    TrainConfig(**{keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords})


def test_every_variable_is_one_that_somebody_reads():
    known = {COORDINATOR, NUM_PROCESSES, PROCESS_ID, _START_TIMEOUT, "JAX_PLATFORMS", "JAX_LOCAL_DEVICE_IDS"}
    assert set(re.findall(r"\b(?:MNIST_)?JAX_[A-Z_]+\b", PAGE)) - {"JAX_"} == known
