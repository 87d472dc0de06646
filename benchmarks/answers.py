"""How long does inference take with a trained run: an evaluation, a prediction, a drawing in the demo?

``evaluate beyond start-up`` is ``python -m mnist_jax.evaluate`` on the test split, without imports, data and
checkpoint: predictions, gradient norms, figures, files. It compiles its programs, or finds those of an earlier process
(``second time``). The others time single predictions, in process and over HTTP; ``demo, 16 clients`` as 16 pages would
ask, and beside a client that sends pictures of 24 million pixels without pause.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.commands import run_python
from benchmarks.setting import Row, Setting, spread
from mnist_jax import Predictor, TrainConfig, fit, load_run

_STROKES = [(60, 70, 200, 70), (200, 70, 120, 230)]  # a seven
_NUM_CLIENTS = 16
_PAUSE_S = 0.05  # of a page, between a response and the next request


def run(setting: Setting) -> Iterator[Row]:
    """Yields rows for an MLP and a CNN, each trained for one epoch."""
    for model in setting.models:
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory, "run"))
            fit(
                TrainConfig(data=setting.data, model=model, epochs=1, workdir=path, quiet=True), dataset=setting.dataset
            )
            for name, seconds in _time_answers(path, setting.quick).items():
                row = {"name": name, "model": model, **spread(seconds)}
                if "clients" in name:
                    row["seconds_p99"] = statistics.quantiles(seconds, n=100, method="inclusive")[-1]
                yield row


def _time_answers(path: str, quick: bool) -> dict[str, list[float]]:
    command, cache = ["-m", "mnist_jax.evaluate", path], f"{path}-cache"
    run_python(command, XDG_CACHE_HOME=cache)  # keeps the programs
    evaluations: dict[str, list[float]] = {}
    for _ in range(1 if quick else 7):
        for time_, flags in (("", ["--no-compilation-cache"]), (", second time", [])):
            process_seconds = run_python([*command, *flags], XDG_CACHE_HOME=cache)[1]
            seconds = json.loads(Path(path, "evaluation.json").read_text())["seconds"]
            beyond_start_up = seconds["evaluate"] + seconds["write"]
            evaluations.setdefault(f"evaluate, whole process{time_}", []).append(process_seconds)
            evaluations.setdefault(f"evaluate beyond start-up{time_}", []).append(beyond_start_up)
    predictor = Predictor(load_run(path)[1])
    picture, repeats = _draw(), 5 if quick else 300
    return {
        **evaluations,
        "predict a picture": _time_calls(lambda: predictor(picture), repeats),
        **_time_demo(path, picture, repeats),
    }


def _draw() -> bytes:
    image, file = Image.new("L", (280, 280), "white"), io.BytesIO()
    for stroke in _STROKES:
        ImageDraw.Draw(image).line(stroke, "black", 20)
    image.save(file, "PNG")
    return file.getvalue()


def _time_demo(path: str, picture: bytes, repeats: int) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "mnist_jax.demo", path, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"http://\S+", server.stdout.readline())
            address = url.removeprefix("http://")

            def predict() -> None:
                with urllib.request.urlopen(f"{url}/api/predict", picture) as response:
                    assert len(json.load(response)["probabilities"]) == 10

            seconds = {"demo, a drawing": _time_calls(predict, repeats)}
            seconds[f"demo, {_NUM_CLIENTS} clients"] = _time_clients(address, picture, repeats)
            with _hostile_client(address):
                seconds[f"demo, {_NUM_CLIENTS} clients beside a hostile one"] = _time_clients(address, picture, repeats)
            return seconds
        finally:
            server.terminate()  # SIGINT is ignored by what a shell script runs in the background


def _time_clients(address: str, picture: bytes, repeats: int) -> list[float]:
    """Returns the seconds of all requests of clients that ask as pages do, each over one connection."""

    def run_client(_: int) -> list[float]:
        with contextlib.closing(http.client.HTTPConnection(address)) as connection:

            def predict() -> None:
                connection.request("POST", "/api/predict", picture)
                assert len(json.load(connection.getresponse())["probabilities"]) == 10

            return _time_calls(predict, repeats, _PAUSE_S)

    with ThreadPoolExecutor(_NUM_CLIENTS) as pool:
        return [seconds for client in pool.map(run_client, range(_NUM_CLIENTS)) for seconds in client]


@contextlib.contextmanager
def _hostile_client(address: str) -> Iterator[None]:
    """Sends pictures of 24 million pixels without pause, in a thread, and asserts that the server decodes them."""
    file, stop, num_decoded = io.BytesIO(), threading.Event(), 0
    Image.new("RGBA", (4898, 4898), "white").save(file, "PNG")

    def send() -> None:
        nonlocal num_decoded
        while not stop.is_set():
            with contextlib.closing(http.client.HTTPConnection(address)) as connection:
                connection.request("POST", "/api/predict", file.getvalue())
                num_decoded += b"no ink found" in connection.getresponse().read()

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        try:
            yield
        finally:
            stop.set()
        sent.result()
    assert num_decoded, "the server decoded no large picture"


def _time_calls(call: Callable[[], object], repeats: int, pause_s: float = 0.0) -> list[float]:
    seconds = []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
        time.sleep(pause_s)
    return seconds[5:]  # without warm-up calls
