"""Checks the pictures of the README and the guide, and the command that makes them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mnist_jax import TrainConfig, fit

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "tests" / "images"


def test_each_picture_is_shown_and_each_shown_one_exists():
    shown = set()
    for page in (ROOT / "README.md", ROOT / "mnist_jax" / "README.md"):
        shown |= {(page.parent / path).resolve() for path in re.findall(r"!\[[^]]+\]\((.*?)\)", page.read_text())}
    assert shown == set(IMAGES.glob("*.png"))


@pytest.mark.slow
@pytest.mark.uses_adam
def test_the_pictures_are_made_by_one_command(tmp_path):
    pytest.importorskip("playwright", reason="needs playwright")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("needs chromium, chromium-browser or google-chrome")
    run = tmp_path / "run"
    fit(TrainConfig(data="digits", hidden_sizes=(64,), epochs=5, workdir=str(run), record=True, quiet=True))
    command = [sys.executable, IMAGES / "make.py", run, "--to", tmp_path / "new"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in made] == [
        f"{name}.png" for name in ("confusion_matrix", "data_map", "demo", "explain", "label_errors", "misclassified")
    ]
    for path in made:
        with Image.open(path) as picture:
            assert picture.width >= 900
            assert path.stat().st_size < 200_000
    assert (tmp_path / "run" / "report.html").exists()
