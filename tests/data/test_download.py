import hashlib
import threading
import time

import pytest
from servers import send, serve

from mnist_jax import InputError
from mnist_jax.data import download as module
from mnist_jax.data.download import DownloadError, download

CONTENT = bytes(range(256)) * 1000


def fetch(url, path):
    download(url + "file", path, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


def test_a_good_file_arrives_whole(tmp_path):
    with serve(lambda handler: send(handler, CONTENT)) as url:
        fetch(url, tmp_path / "deep" / "file")
    assert (tmp_path / "deep" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_file_that_is_there_is_not_fetched(tmp_path):
    (tmp_path / "file").write_text("mine")
    fetch("http://127.0.0.1:9/", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def stall(handler):
    send(handler, CONTENT[:1000], length=len(CONTENT))
    handler.wfile.flush()
    threading.Event().wait(1.5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda handler: handler.send_error(404), "file: expected status 200, got 404 Not Found"),
        (lambda handler: send(handler, CONTENT[:-1]), "expected 256000 bytes, got 255999"),
        (
            lambda handler: send(handler, CONTENT[:-1], len(CONTENT)),
            "expected 256000 bytes, got 255999",
        ),
        (lambda handler: send(handler, CONTENT[::-1]), "expected content with sha256 [0-9a-f]{64}, got something else"),
        (lambda handler: send(handler, CONTENT * 2), "expected content with sha256 [0-9a-f]{64}, got something else"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "file: nonsense"),
        (lambda handler: threading.Event().wait(1.5), "no answer within 0.5 s"),
        (stall, "no data for 0.4 s"),
    ],
    ids=["404", "short", "truncated", "wrong", "long", "not http", "hanging", "stalling"],
)
def test_a_bad_answer_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, answer, message):
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(module, "STALL_TIMEOUT_S", 0.4 if answer is stall else 5.0)
    with serve(answer) as url, pytest.raises(DownloadError, match=message) as caught:
        fetch(url, tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nobody_there_is_known_at_once(tmp_path):
    start = time.monotonic()
    with pytest.raises(InputError, match="127.0.0.1:9/file: .*Connection refused"):
        fetch("http://127.0.0.1:9/", tmp_path / "file")
    assert time.monotonic() - start < 2


def test_the_default_limit_is_seconds():
    assert module.ANSWER_TIMEOUT_S < 5
