"""A thousand good and bad requests, after which the server is as it was at the start."""

import contextlib
import http.client
import io
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from drawing import PHOTOGRAPH
from pages import SEVEN, picture
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc"),
]

SERVER = """
import uvicorn
from mnist_jax import Predictor, TrainConfig, build_state
from mnist_jax.demo import connections, limits, server
from mnist_jax.demo.__main__ import listen

connections.IDLE_SECONDS = limits.BODY_SECONDS = 1.0
predictor = Predictor(build_state(TrainConfig(hidden_sizes=(8,))))
with listen("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(connections.server_config(server.create_app(predictor.read, "0123456789"))).run([listener])
"""


def blank(width, height, mode="RGBA"):
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


class Client:
    """Sends requests of all kinds, and counts the statuses of the answers."""

    def __init__(self, port):
        self.address, self.statuses = f"127.0.0.1:{port}", Counter()
        self.large = blank(2500, 2500)

    def ask(self, body=b"", method="POST", path="/api/predict", **headers):
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=30)) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read()
        return response.status, json.loads(content) if path != "/" else content.decode()

    def send(self, content, wait):
        """Sends bytes; waits until the server closes the connection, or leaves at once."""
        host, port = self.address.split(":")
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection((host, int(port)), timeout=30) as connection,
        ):
            connection.sendall(content)
            while wait and connection.recv(2**16):
                pass

    def begin(self, length, body=b""):
        return f"POST /api/predict HTTP/1.1\r\nHost: {self.address}\r\nContent-Length: {length}\r\n\r\n".encode() + body

    def draw(self):
        return self.ask(picture(SEVEN))

    def expect(self, statuses, *args, **kwargs):
        status, answer = self.ask(*args, **kwargs)
        assert status in statuses, (status, answer)
        assert status in (200, 422) or re.fullmatch(r"[^\n]+", answer["error"])
        self.statuses[status] += 1

    def run(self, number):
        kind = random.Random(number).choices(range(14), [30, *[4] * 12, 1])[0]
        drawing = picture(SEVEN)
        match kind:
            case 0:
                self.expect({200}, drawing)
            case 1:
                self.expect({422, 503}, b"hello" * number)
            case 2:
                self.expect({422}, drawing[: len(drawing) // 2])
            case 3:
                self.expect({422, 503}, blank(1, 20_001, "1"))
            case 4:
                self.expect({422, 503}, self.large)
            case 5:
                self.expect({200, 503}, PHOTOGRAPH.read_bytes())
            case 6:
                self.expect({413, 503}, bytes(10_000_001))
            case 7:
                self.expect({403}, drawing, Origin="http://evil.example")
            case 8:
                self.expect({400}, drawing, Host="evil.example")
            case 9:
                self.expect({404, 405}, method="GET", path=random.choice(["/api/predict", "/nothing"]))
            case 10:
                self.expect({200}, method="GET", path="/")
            case 11:
                self.send(b"hello\r\n\r\n", wait=True)
            case 12:  # gone
                self.send(random.choice([self.begin(999, b"abc"), self.begin(len(self.large), self.large)]), wait=False)
            case 13:  # too slow
                self.send(random.choice([b"", b"GET / HT", self.begin(9_000_000, bytes(number))]), wait=True)


def measure(pid):
    """Numbers of open files and of threads, and megabytes of memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    threads, kilobytes = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("Threads", "VmRSS"))
    return len([*Path(f"/proc/{pid}/fd").iterdir()]), threads, kilobytes / 1000


def test_a_thousand_requests_leave_nothing_behind():
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            client = Client(int(process.stdout.readline()))
            with ThreadPoolExecutor(12) as pool:
                first = client.draw()
                for _ in pool.map(client.run, range(200)):  # starts all threads
                    pass
                time.sleep(1.5)
                files, threads, megabytes = measure(process.pid)
                for _ in pool.map(client.run, range(200, 1200)):
                    pass
            time.sleep(1.5)
            last, after = client.draw(), measure(process.pid)
            assert set(client.statuses) - {503} == {200, 400, 403, 404, 405, 413, 422}
            for _, answer in (first, last):
                del answer["milliseconds"]
            assert last == first
            assert after[0] <= files + 1  # the connection of this drawing
            assert after[1] <= threads
            assert after[2] < megabytes + 50
        finally:
            process.terminate()
            errors = process.communicate(timeout=30)[1]
    assert errors == ""
