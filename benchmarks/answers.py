"""How long does inference take with a trained run: an evaluation, a prediction, a drawing in the demo?

``evaluate beyond start-up`` is ``python -m mnist_jax.evaluate`` on the test split, without imports, data and
checkpoint: predictions, gradient norms, figures, files. The others time single predictions, in process and over HTTP.
"""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.commands import run_python
from benchmarks.setting import Row, Setting, spread
from mnist_jax import Predictor, load_run

_STROKES = [(60, 70, 200, 70), (200, 70, 120, 230)]  # a seven


def run(setting: Setting) -> Iterator[Row]:
    """Yields rows for an MLP and a CNN, each trained for one epoch."""
    for model in ("mlp",) if setting.quick else ("mlp", "cnn"):
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory, "run"))
            flags = ["--model", model, "--epochs", "1", *([] if setting.data is None else ["--data", setting.data])]
            run_python(["-m", "mnist_jax.train", "--quiet", "--workdir", path, *flags])
            for name, seconds in _time_answers(path, setting.quick).items():
                yield {"name": name, "model": model, **spread(seconds)}


def _time_answers(path: str, quick: bool) -> dict[str, list[float]]:
    whole_process, beyond_start_up = [], []
    for _ in range(1 if quick else 7):
        whole_process.append(run_python(["-m", "mnist_jax.evaluate", path])[1])
        seconds = json.loads(Path(path, "evaluation.json").read_text())["seconds"]
        beyond_start_up.append(seconds["evaluate"] + seconds["write"])
    predictor = Predictor(load_run(path)[1])
    picture, repeats = _draw(), 5 if quick else 300
    return {
        "evaluate, whole process": whole_process,
        "evaluate beyond start-up": beyond_start_up,
        "predict a picture": _time_calls(lambda: predictor(picture), repeats),
        "demo, a drawing": _time_demo(path, picture, repeats),
    }


def _draw() -> bytes:
    image, file = Image.new("L", (280, 280), "white"), io.BytesIO()
    for stroke in _STROKES:
        ImageDraw.Draw(image).line(stroke, "black", 20)
    image.save(file, "PNG")
    return file.getvalue()


def _time_demo(path: str, picture: bytes, repeats: int) -> list[float]:
    command = [sys.executable, "-m", "mnist_jax.demo", path, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"http://\S+", server.stdout.readline())

            def predict() -> None:
                with urllib.request.urlopen(f"{url}/api/predict", picture) as response:
                    assert len(json.load(response)["probabilities"]) == 10

            return _time_calls(predict, repeats)
        finally:
            server.send_signal(signal.SIGINT)


def _time_calls(call: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[5:]  # without warm-up calls
