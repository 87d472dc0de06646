"""Makes the pictures of the README and the guide; needs Playwright and Chromium.

    python -m mnist_jax.train --record --workdir runs/mine
    python tests/images/make.py runs/mine --private runs/private

confusion_matrix.png, misclassified.png    from ``python -m mnist_jax.evaluate runs/mine``
data_map.png                               from ``python -m mnist_jax.dynamics runs/mine``
explain.png                                from ``python -m mnist_jax.explain``, of the error with the largest loss
label_errors.png                           from ``python -m mnist_jax.label_errors --split test``, on the same data
private.png                                the learning curves of a private run, such as one of experiments/dp_mnist.py
demo.png                                   from ``python -m mnist_jax.demo`` with the network in the box, and a drawn 6
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.interpolate import CubicSpline

FIGURES = ("confusion_matrix", "misclassified")
# One line without lifting the pen, on a canvas of 100 x 100.
SIX = [(62, 17), (46, 30), (36, 50), (34, 68), (44, 81), (58, 80), (66, 68), (60, 57), (47, 56), (36, 65)]


def save_small(source: Path, target: Path) -> None:
    """Saves a picture with at most 1200 x 1100 pixels and 64 colours, for a small repository."""
    picture = Image.open(source).convert("RGB")
    picture.thumbnail((1200, 1100), Image.Resampling.LANCZOS)
    picture.quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)


def draw_on_demo(target: Path) -> None:
    """Saves a screenshot of the demo page of the network in the box, with a drawn 6."""
    from playwright.sync_api import expect, sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    command = [sys.executable, "-m", "mnist_jax.demo", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as without_runs,
        subprocess.Popen(command, cwd=without_runs, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]) as browser,
    ):
        try:
            assert server.stdout is not None
            address, *_ = server.stdout.readline().split()
            page = browser.new_page(viewport={"width": 1200, "height": 800})
            page.goto(address)
            box = page.locator("#canvas").bounding_box()
            assert box is not None
            smooth = CubicSpline(range(len(SIX)), SIX)(np.linspace(0, len(SIX) - 1, 80))
            points = smooth * (box["width"] / 100, box["height"] / 100) + (box["x"], box["y"])
            page.mouse.move(*points[0])
            page.mouse.down()
            for point in points:
                page.mouse.move(*point)
            page.mouse.up()
            expect(page.locator("#bars")).to_have_attribute("aria-busy", "false")
            page.mouse.move(0, 0)
            page.screenshot(path=target)
        finally:
            server.terminate()


def run(command: str, *arguments: str | Path) -> None:
    """Runs a command of the library."""
    subprocess.run([sys.executable, "-m", f"mnist_jax.{command}", *map(str, arguments)], check=True)


def explain(run_directory: Path, target: Path) -> None:
    """Draws the training digits behind the error of a run with the largest loss on its test split."""
    from mnist_jax import load_run_dataset

    with (run_directory / "examples.csv").open() as file:
        wrong = [row for row in csv.DictReader(file) if row["label"] != row["prediction"]]
    index = int(max(wrong, key=lambda row: float(row["loss"]))["index"])
    image = load_run_dataset(run_directory).test.image[index, ..., 0]
    with tempfile.TemporaryDirectory() as directory:
        picture, drawn = Path(directory, f"test_{index}.png"), Path(directory, "explain.png")
        Image.fromarray(image).resize((280, 280), Image.Resampling.BICUBIC).save(picture)
        run("explain", run_directory, picture, "--output", drawn)
        save_small(drawn, target)


def main() -> None:
    """Parses the command line and writes the pictures."""
    parser = argparse.ArgumentParser(description="Make the pictures of the README and the guide.")
    parser.add_argument("run", metavar="RUN", type=Path, help="run to evaluate for the figures, trained with --record")
    parser.add_argument("--private", metavar="RUN", type=Path, help="private run; default: leave private.png as it is")
    parser.add_argument("--to", metavar="DIR", type=Path, default=Path(__file__).parent, help="default: tests/images")
    flags = parser.parse_args()
    flags.to.mkdir(parents=True, exist_ok=True)
    run("evaluate", flags.run)
    for name in FIGURES:
        save_small(flags.run / "figures" / f"{name}.png", flags.to / f"{name}.png")
    run("dynamics", flags.run)
    save_small(flags.run / "dynamics" / "data_map.png", flags.to / "data_map.png")
    explain(flags.run, flags.to / "explain.png")
    config = json.loads((flags.run / "config.json").read_text())
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory, "found")
        data = ["--data", config["data"], *(["--data-dir", config["data_dir"]] if config["data_dir"] else [])]
        run("label_errors", "--split", "test", *data, "--workdir", found)
        save_small(found / "label_errors.png", flags.to / "label_errors.png")
    if flags.private is not None:
        save_small(flags.private / "figures" / "learning_curves.png", flags.to / "private.png")
    draw_on_demo(flags.to / "demo.png")
    save_small(flags.to / "demo.png", flags.to / "demo.png")


if __name__ == "__main__":
    main()
