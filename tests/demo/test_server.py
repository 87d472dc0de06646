"""The application over real HTTP, and the command in a process of its own."""

import contextlib
import dataclasses
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from conftest import make_arrays, write_idx_files
from pages import DIGITS, SEVEN, picture, serving

from mnist_jax import InputError, TrainConfig, build_state, fit
from mnist_jax.cli.flags import run_command
from mnist_jax.demo import __main__ as demo
from mnist_jax.demo import connections, limits, server
from mnist_jax.demo.server import LARGEST_BODY, create_app
from mnist_jax.pictures.predictor import Prediction, Predictor


def fake_predictor(content):
    """Sure of 7 whatever it is shown."""
    if content == b"blank":
        raise InputError("no ink found: a digit wanted")
    probabilities = np.full(10, 0.05, np.float32)
    probabilities[7] = 0.55
    return [Prediction(7, "7", probabilities, np.full((28, 28, 1), len(content) % 256, np.uint8))]


@pytest.fixture(scope="module")
def address():
    with serving(create_app(fake_predictor, DIGITS, title="<cnn> & co")) as address:
        yield address


def ask(address, body=b"", method="POST", path="/api/predict", **headers):
    """Status, headers and content of an answer; an iterable body is sent in chunks."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        content = response.read()
        return response.status, response.headers, json.loads(content) if content[:1] == b"{" else content.decode()


def connect(address, content=b""):
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(content)
    return connection


def start_sending(address, header="Content-Length: 999", body=b"abc"):
    """A connection on which a request has begun."""
    return connect(address, f"POST /api/predict HTTP/1.1\r\nHost: {address}\r\n{header}\r\n\r\n".encode() + body)


def test_answers_are_those_of_the_predictor_also_many_at_a_time():
    state = build_state(TrainConfig(hidden_sizes=(16,), optimizer="sgd"))
    predictor = Predictor(state, DIGITS)
    pictures = [picture([(80, 60 + shift), (200, 60), (130, 220 - shift)]) for shift in range(0, 60, 5)]
    with serving(create_app(predictor.read, DIGITS)) as address, ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda content: ask(address, content), pictures)]
    assert len({str(answer["probabilities"]) for _, _, answer in answers}) == len(pictures)
    for content, (status, _, answer) in zip(pictures, answers, strict=True):
        wanted = predictor(content)
        assert status == 200
        assert answer.pop("milliseconds") >= 0
        assert answer == {
            "label": wanted.label,
            "class_name": wanted.class_name,
            "probabilities": wanted.probabilities.tolist(),
            "doubt": wanted.doubt,
            "image": wanted.image[..., 0].tolist(),
            "read": wanted.class_name,
        }


@pytest.mark.parametrize(
    ("content", "message"),
    [(picture(), "no ink found"), (b"", "picture"), (b"GIF89a", "picture"), (picture(SEVEN)[:300], "picture")],
)
def test_what_cannot_be_read_is_422_with_the_reason(content, message):
    predictor = Predictor(build_state(TrainConfig(hidden_sizes=(4,), optimizer="sgd")), DIGITS)
    with serving(create_app(predictor.read, DIGITS)) as address:
        status, _, answer = ask(address, content)
    assert status == 422
    assert message in answer["error"]
    assert "\n" not in answer["error"]


def chunks(size):
    return (bytes(2**16) for _ in range(0, size, 2**16))


@pytest.mark.parametrize("chunked", [False, True])
def test_50_mb_are_413_and_take_no_memory(address, chunked):
    size = 800 * 2**16  # 52 MB
    tracemalloc.start()
    try:
        status, headers, answer = ask(address, chunks(size), **({} if chunked else {"Content-Length": str(size)}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, answer) == (413, {"error": "expected a picture of at most 10 MB, got a larger one"})
    assert headers["Connection"] == "close"
    assert peak < 2.5 * LARGEST_BODY
    assert ask(address, b"next")[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_the_limit_itself_is_allowed(address, chunked):
    def body(size):
        return iter([bytes(size)]) if chunked else bytes(size)

    assert ask(address, body(LARGEST_BODY))[0] == 200
    assert ask(address, body(LARGEST_BODY + 1))[0] == 413


@pytest.mark.parametrize("header", ["Content-Length: 5000000000", "Content-Length: 50000000\r\nExpect: 100-continue"])
def test_what_is_announced_too_large_is_refused_before_it_is_sent(address, header):
    with start_sending(address, header, b"") as connection:
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert ask(address, b"next")[0] == 200


def test_a_body_without_end_is_cut_off(address, monkeypatch):
    monkeypatch.setattr(limits, "_LARGEST_DISCARDED", 12_000_000)
    with pytest.raises(ConnectionError):
        ask(address, (bytes(2**16) for _ in iter(int, 1)))
    assert ask(address, b"next")[0] == 200


def test_who_leaves_in_the_middle_disturbs_nobody(address, caplog):
    with start_sending(address):
        pass
    assert ask(address, b"next")[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"method": "GET", "path": "/"}, 200),
        ({"method": "GET", "path": "/nothing"}, 404),
        ({"method": "GET"}, 405),
        ({"method": "POST", "path": "/"}, 405),
        ({"body": b"digit"}, 200),
        ({"body": b"blank"}, 422),
        ({"body": bytes(LARGEST_BODY + 1)}, 413),
        ({"Host": "evil.example"}, 400),
    ],
)
def test_each_answer_forbids_requests_elsewhere(address, request_, status):
    found, headers, _ = ask(address, **request_)
    assert found == status
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'; " in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("127.0.0.1", 200),
        ("evil.example", 400),
        ("127.0.0.1.nip.io", 400),
    ],
)
def test_only_names_of_this_machine_are_answered_to(address, host, status):
    assert ask(address, b"digit", Host=host)[0] == status


def test_other_hosts_can_be_allowed():
    with serving(create_app(fake_predictor, DIGITS, allowed_hosts=["*"])) as address:
        assert ask(address, b"digit", Host="lab.example")[0] == 200


def test_the_page_asks_for_nothing_elsewhere_and_escapes_what_is_filled_in(address):
    _, headers, page = ask(address, method="GET", path="/")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert set(re.findall(r"\w+://[^'\"/]*", page)) == {"http://www.w3.org"}  # the name space of the icon
    assert not re.search(r"\bsrc=|@import|url\(|\{\{", page)
    assert "&lt;cnn&gt; &amp; co" in page
    assert "<h1>Draw a digit</h1>" in page


def test_classes_that_are_no_digits_have_their_names_on_the_page():
    with serving(create_app(fake_predictor, ("T-shirt/top", 'a "b"'))) as address:
        page = ask(address, method="GET", path="/")[2]
    assert "<h1>Draw a picture</h1>" in page
    assert 'data-class-names="[&quot;T-shirt/top&quot;, &quot;a \\&quot;b\\&quot;&quot;]"' in page


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        ({"method": "GET"}, 405, "Method Not Allowed"),
        ({"method": "GET", "path": "/nothing"}, 404, "Not Found"),
        (
            {"Host": "evil.example"},
            400,
            "Host must be one of 127.0.0.1, localhost, ::1, got 'evil.example'; start the demo with --host",
        ),
        (
            {"Host": "[::1"},
            400,
            "Host must be one of 127.0.0.1, localhost, ::1, got '[::1'; start the demo with --host",
        ),
        (
            {"Origin": "http://evil.example"},
            403,
            "expected a request from this site, got one from 'http://evil.example'",
        ),
        ({"Origin": "null"}, 403, "expected a request from this site, got one from 'null'"),
        (
            {"Origin": "http://127.0.0.1:1"},
            403,
            "expected a request from this site, got one from 'http://127.0.0.1:1'",
        ),
    ],
)
def test_errors_are_json(address, request_, status, error):
    found, headers, answer = ask(address, **request_)
    assert (found, headers["Content-Type"], answer) == (status, "application/json", {"error": error})


def test_a_page_of_this_server_may_ask(address):
    assert ask(address, b"digit", Origin=f"http://{address}")[0] == 200
    assert ask(address, b"digit", Host="LOCALHOST:8000", Origin="http://localhost:8000")[0] == 200


def test_an_internal_error_is_json_too(caplog):
    def fail(content):
        raise RuntimeError(f"{len(content)} bytes")

    with serving(create_app(fail, DIGITS)) as address:
        status, headers, answer = ask(address, b"digit")
    assert (status, answer) == (500, {"error": "internal error; see the terminal of the server"})
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "RuntimeError: 5 bytes" in caplog.text


def test_the_traceback_of_an_internal_error_is_on_stderr(capsys, tmp_path, monkeypatch):
    class FailAfterFirst:
        class_names, title, count = DIGITS, "", 0

        def read(self, content):
            self.count += 1
            if self.count > 1:
                raise RuntimeError(f"{len(content)} bytes")

    monkeypatch.setattr("mnist_jax.training.network.load_predictor", lambda run: FailAfterFirst())
    handlers = list(logging.getLogger("uvicorn").handlers)

    def ask_and_stop(address):
        try:
            return ask(address, b"digit")[0]
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with demo.listen("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as pool:
        status = pool.submit(ask_and_stop, f"127.0.0.1:{listener.getsockname()[1]}")
        assert run_command(lambda: demo.serve(tmp_path, "127.0.0.1", listener)) == 130
    errors = capsys.readouterr().err
    assert status.result() == 500
    assert errors.count("Traceback (most recent call last):") == 1
    assert errors.endswith("\nRuntimeError: 5 bytes\nstopped\n")
    assert logging.getLogger("uvicorn").handlers == handlers


class SlowPredictor:
    """Waits for ``release`` on all but small PNG files, which are drawings."""

    def __init__(self):
        self.release, self.contents = threading.Event(), []

    def __call__(self, content):
        self.contents.append(content)
        if not content.startswith(b"\x89PNG"):
            assert self.release.wait(60)
        return fake_predictor(content)


@pytest.fixture
def slow(monkeypatch):
    """A slow predictor with places for three pictures, the address of its server, and a pool of clients."""
    monkeypatch.setattr(server, "_PICTURES", 3)
    predictor = SlowPredictor()
    with ThreadPoolExecutor(8) as pool, serving(create_app(predictor, DIGITS)) as address:
        try:
            yield predictor, address, pool
        finally:
            predictor.release.set()


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


BUSY = {"error": "the server is busy: try again in a moment"}


def test_large_pictures_wait_in_turn_up_to_a_limit_and_drawings_overtake_them(slow):
    predictor, address, pool = slow
    answers = [pool.submit(ask, address, b"picture") for _ in range(6)]
    wait_for(lambda: sum(answer.done() for answer in answers) == 3)
    wait_for(lambda: predictor.contents)
    assert predictor.contents == [b"picture"]
    assert ask(address, picture(SEVEN))[0] == 200
    predictor.release.set()
    found = [answer.result() for answer in answers]
    assert sorted(status for status, _, _ in found) == [200, 200, 200, 503, 503, 503]
    assert all(answer == BUSY and headers["Retry-After"] == "1" for status, headers, answer in found if status == 503)
    assert ask(address, b"picture")[0] == 200


def test_clients_that_have_gone_are_not_served(slow):
    predictor, address, pool = slow
    first = pool.submit(ask, address, b"first")
    wait_for(lambda: predictor.contents)
    with start_sending(address, "Content-Length: 4", b"gone"), start_sending(address, "Content-Length: 4", b"gone"):
        time.sleep(0.2)  # both wait now
    assert ask(address, method="GET", path="/")[0] == 200  # the server knows that they have gone
    predictor.release.set()
    assert first.result()[0] == 200
    wait_for(lambda: ask(address, b"last")[0] == 200)
    assert set(predictor.contents) == {b"first", b"last"}


@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_hold_a_limited_amount_of_memory(monkeypatch, chunked):
    monkeypatch.setattr(server, "_LARGEST_TOTAL", LARGEST_BODY + 100_000)
    large, small = bytes(100_001), bytes(1000)
    header = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {LARGEST_BODY}"
    with serving(create_app(fake_predictor, DIGITS)) as address:
        with start_sending(address, header, b"3\r\nabc\r\n"):
            wait_for(lambda: ask(address, large)[::2] == (503, BUSY))
            assert ask(address, iter([large]))[::2] == (503, BUSY)
            assert ask(address, small)[0] == 200
        wait_for(lambda: ask(address, large)[0] == 200)


def test_a_slow_body_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    with serving(create_app(fake_predictor, DIGITS)) as address, start_sending(address) as connection:
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error":"expected the whole picture within 0.2 s"}')


GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize("content", [b"", GET[:20], GET, GET + GET[:20]])
def test_idle_connections_are_closed(monkeypatch, content):
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.2)
    with serving(create_app(fake_predictor, DIGITS)) as address, connect(address, content) as connection:
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == content.startswith(GET)


def test_who_reads_no_answers_is_cut_off(monkeypatch):
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.2)
    with serving(create_app(fake_predictor, DIGITS)) as address, connect(address) as connection:
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                connection.sendall(100 * GET)
        assert ask(address, b"next")[0] == 200


def test_a_waiting_request_is_not_idle(monkeypatch, slow):
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
    predictor, address, pool = slow
    answer = pool.submit(ask, address, b"picture")
    wait_for(lambda: predictor.contents)
    time.sleep(0.3)
    predictor.release.set()
    assert answer.result()[0] == 200


def test_new_connections_replace_idle_ones(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    with serving(create_app(fake_predictor, DIGITS)) as address, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(address)) for _ in range(20)]
        assert ask(address, b"next")[0] == 200
        for connection in held:
            connection.settimeout(0.1)
        assert sum(is_closed(connection) for connection in held) >= 15


def is_closed(connection):
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("before", [b"", GET])
def test_what_is_no_http_is_answered_with_json_and_not_logged(address, caplog, capfd, before):
    with connect(address, before + b"hello\r\n\r\n") as connection:
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    head, _, content = answer[answer.index(b"HTTP/1.1 400") :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n")
    assert json.loads(content) == {"error": "Invalid HTTP request received."}
    assert not caplog.records
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--port", "65536"], r"port must be in \[0, 65535\], got 65536"),
        (["--port", "-1"], r"port must be in \[0, 65535\], got -1"),
        (["--port", "http"], "argument --port: invalid int value: 'http'"),
        (["--host", "no such host"], "host must be a name or an address of this machine, got 'no such host'"),
        (["--host", "192.0.2.1"], "host must be a name or an address of this machine, got '192.0.2.1'"),
        (["--host", "x" * 70], f"host must be a name or an address of this machine, got '{'x' * 70}'"),
        (["--host", ""], "host must be a name or an address of this machine, got an empty string"),
        (["nowhere", "--port", "0"], "nowhere: expected a run with a config.json, found none"),
        (["--bogus"], "unknown flag --bogus"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, args, message):
    assert demo.main(args) == 2
    assert re.fullmatch(f"error: {message}\n", capsys.readouterr().err)


def test_a_port_in_use_is_said_before_anything_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert demo.main(["--port", str(port)]) == 2
    error = f"error: port {port} of 127.0.0.1 is in use: choose another with --port, or 0 for any free one\n"
    assert capsys.readouterr().err == error
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_a_missing_package_is_said_before_anything_is_loaded(module, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert demo.main(["--port", "0"]) == 2
    assert capsys.readouterr().err == f'error: {module} is not installed: pip install -e ".[demo]"\n'
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_without_a_run_the_network_in_the_box_answers_until_there_is_a_run_on_mnist(tmp_path):
    def start_and_stop(number):
        with subprocess.Popen(
            [sys.executable, "-m", "mnist_jax.demo", "--port", "0"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                line = process.stdout.readline()
                address = re.match("http://([^ ]*)  -  ", line)
                assert address, process.stderr.read()
                answer = ask(address[1], picture(SEVEN))
                with start_sending(address[1]):  # and do not finish: nobody waits for that
                    process.send_signal(number)
                    rest, errors = process.communicate(timeout=60)
                assert not rest
                return line.partition("  -  ")[2], answer, errors, process.returncode
            finally:
                process.kill()

    line, answer, errors, status = start_and_stop(signal.SIGINT)
    title = "the network in the box, a cnn on MNIST and scikit-learn's digits"
    assert line == f"{title}; stop with Ctrl-C\n"
    assert (answer[0], answer[2]["label"], answer[2]["doubt"]) == (200, 7, None)
    assert errors == f"using {title}\nstopped\n"
    assert status == 130

    data = write_idx_files(tmp_path / "data", make_arrays())
    config = TrainConfig(data="mnist", data_dir=str(data), hidden_sizes=(4,), epochs=1, batch_size=16, quiet=True)
    with jax.numpy_dtype_promotion("standard"):
        run = fit(dataclasses.replace(config, workdir=str(tmp_path / "runs" / "mine")))
    line, answer, errors, status = start_and_stop(signal.SIGTERM)
    title = f"mlp on mnist, {run.summary['test_accuracy']:.2%} test accuracy".replace("%", " %")
    assert line == f"{title}; stop with Ctrl-C\n"
    assert errors == f"using the newest run on MNIST, runs/mine: {title}\nstopped\n"
    assert status == 143
