import shutil

import pytest

from mnist_jax import export_run, load_export
from mnist_jax.export.__main__ import main


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    """A copy of the directory of a run, in which exports are written."""
    return shutil.copytree(digits_run.workdir, tmp_path_factory.mktemp("run") / "run")


def test_the_command_says_what_it_wrote(run, tmp_path, capsys):
    path = tmp_path / "other.name"
    assert main([str(run), "--format", "safetensors", "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}  safetensors  {path.stat().st_size:,} bytes\n"
    assert list(tmp_path.iterdir()) == [path]
    assert load_export(path)[0].hidden_sizes == (64,)


def test_the_file_goes_into_the_run_and_nothing_is_overwritten(run, capsys):
    path = run / "model.json"
    assert export_run(run, "json") == path
    before = path.read_bytes()
    assert main([str(run), "--format", "json"]) == 2
    assert capsys.readouterr().err == f"error: {path} exists already: name another file with --output\n"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["RUN"], "the following arguments are required: --format"),
        (["RUN", "--format", "pickle"], "format must be one of json, safetensors, stablehlo, onnx, got pickle\n"),
        (["nowhere", "--format", "json"], "nowhere: expected a run with a config.json, found none"),
        (["RUN", "--format", "json", "--output", "RUN"], " exists already: name another file with --output"),
        (["RUN", "--format", "json", "--output", "RUN/no/file"], "cannot be written (No such file or directory)"),
        (["RUN", "--format", "json", "--output", "RUN/config.json/x"], "cannot be written (Not a directory)"),
    ],
    ids=range(6),
)
def test_bad_input_is_one_line(run, capsys, args, message):
    assert main([arg.replace("RUN", str(run)) for arg in args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
