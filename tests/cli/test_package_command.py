import pytest


@pytest.mark.parametrize("name", ["train", "export"])
def test_a_command_of_the_package_has_its_program_name(run_python, name):
    done = run_python("-m", "mnist_jax", name, "--help")
    assert done.stdout.startswith(f"usage: python -m mnist_jax {name} ")
    assert done.returncode == 0


def test_the_package_lists_its_commands(run_python):
    done = run_python("-m", "mnist_jax", "--help")
    assert done.stdout.startswith("usage: python -m mnist_jax COMMAND ...")
    assert done.stdout.endswith("\nexample: python -m mnist_jax train --model cnn --epochs 3\n")
    wrong = run_python("-m", "mnist_jax", "train", "--epochs", "0")
    assert (wrong.stderr, wrong.returncode) == ("error: epochs must be at least 1, got 0\n", 2)
