"""Downloads one file and verifies it; a partial or wrong file is never left under its name.

    download(url, path, size=1_648_877, sha256="8d42...")

Reference: tensorflow-datasets publishes the same checksums.
"""

from __future__ import annotations

import hashlib
import http.client
import queue
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mnist_jax.atomic import atomic_write
from mnist_jax.errors import InputError, one_line

ANSWER_TIMEOUT_S = 3.5  # until the first answer, so that being offline costs seconds
STALL_TIMEOUT_S = 15.0  # without data during the download
_CHUNK_BYTES = 2**16


class DownloadError(InputError):
    """A file could not be downloaded."""


def download(url: str, path: Path, *, size: int, sha256: str) -> None:
    """Downloads ``url`` to ``path``, with a progress bar if stderr is a terminal.

    Args:
        url: address.
        path: target; an existing file is kept, and nothing is downloaded.
        size: expected size in bytes.
        sha256: expected hexadecimal digest.

    Raises:
        DownloadError: the server does not answer, or answers with a status other than 200 or the wrong content;
            ``path`` is not written.
        OSError: ``path`` cannot be written.
    """
    if path.exists():
        return
    from tqdm import tqdm

    path.parent.mkdir(parents=True, exist_ok=True)
    digest, received = hashlib.sha256(), 0
    with atomic_write(path) as file:
        try:
            with _open(url) as answer, tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
                # Stops at the first chunk past the size, so that an endless response does not fill the disk.
                while received <= size and (chunk := answer.read(_CHUNK_BYTES)):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(f"{url}: {_reason(error)}") from None
        if received < size:
            raise DownloadError(f"{url}: expected {size} bytes, got {received}")
        if received > size or digest.hexdigest() != sha256:
            raise DownloadError(f"{url}: expected content with sha256 {sha256}, got something else")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"expected status 200, got {error.code} {one_line(error.reason)}"
    cause = getattr(error, "reason", error)  # of a URLError
    if isinstance(cause, TimeoutError):
        return f"no data for {STALL_TIMEOUT_S:g} s"
    return one_line(cause) or type(cause).__name__


def _open(url: str) -> Any:
    """Calls ``urlopen`` with a limit on the time to the first answer, including the name look-up."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    given_up = threading.Event()

    def work() -> None:
        try:
            answer = urllib.request.urlopen(url, timeout=STALL_TIMEOUT_S)
        except Exception as error:
            results.put(error)
            return
        if given_up.is_set():
            answer.close()
        else:
            results.put(answer)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = results.get(timeout=ANSWER_TIMEOUT_S)
    except queue.Empty:
        given_up.set()
        raise DownloadError(f"{url}: no answer within {ANSWER_TIMEOUT_S:g} s") from None
    if isinstance(result, Exception):
        raise result
    return result
