import re
from pathlib import Path

import pytest
from PIL import Image

from mnist_jax.explain import main


@pytest.fixture
def seven():
    return str(Path(__file__).parent / "images" / "seven.jpg")


def test_it_prints_a_table_and_draws_a_picture(digits_run, seven, tmp_path, capsys):
    output = tmp_path / "why.png"
    assert main([str(digits_run.workdir), seven, "--num-examples", "2", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    read = re.fullmatch(rf"{re.escape(seven)}: read as (\d) \(\d+\.\d %\)", lines[0])[1]
    assert re.fullmatch(rf"training digits that speak for and against {read} \(\d+\.\d\d s\):", lines[1])
    assert lines[2].split() == ["speaks", "training", "example", "label", "score"]
    assert [line.split()[0] for line in lines[3:7]] == ["for", "for", "against", "against"]
    assert [line.split()[-1][0] for line in lines[3:7]] == ["+", "+", "-", "-"]
    assert lines[7:] == [f"the picture is {output}"]
    with Image.open(output) as picture:
        assert min(picture.size) > 300
    assert main([str(digits_run.workdir), seven, seven, "--label", "1", "--num-examples", "1"]) == 0
    assert capsys.readouterr().out.count("training digits that speak for and against 1 (") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label", "x"], "--label must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, got x"),
        (["--num-examples", "0"], "--num-examples must be at least 1, got 0"),
        (["--output", "why.pdf"], "--output must be a .png file, got why.pdf"),
        (["other.png", "--output", "new.png"], "expected one picture for --output, got 2"),
    ],
)
def test_bad_flags_get_one_line(digits_run, seven, flags, message, capsys):
    assert main([str(digits_run.workdir), seven, *flags]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_nothing_is_overwritten(digits_run, seven, tmp_path, capsys):
    output = tmp_path / "why.png"
    output.write_text("mine")
    assert main([str(digits_run.workdir), seven, "--output", str(output)]) == 2
    assert capsys.readouterr().err == f"error: --output must name a new file, got the existing {output}\n"
    assert output.read_text() == "mine"
