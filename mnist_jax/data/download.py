"""Downloads one file so that it is either whole and verified, or not there.

    download(url, path, size=1_648_877, sha256="8d42...")

Reference: the checksums are those that tensorflow-datasets keeps for the same addresses.
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
from mnist_jax.errors import InputError

# A server that does not answer at all is given up on first: being offline should cost seconds.
ANSWER_TIMEOUT_S = 3.5
STALL_TIMEOUT_S = 15.0
_CHUNK_BYTES = 2**16


class DownloadError(InputError):
    """A file could not be had from its address."""


def download(url: str, path: Path, *, size: int, sha256: str) -> None:
    """Fetches ``url`` into ``path``, with a progress bar where stderr is a terminal.

    One process at a time may do this for the same path.

    Args:
        url: address.
        path: where the file is wanted; left alone if it is there already.
        size: bytes.
        sha256: hexadecimal digest of the content.

    Raises:
        DownloadError: no answer, a status other than 200, or content other than expected. ``path`` is not
            written then.
    """
    if path.exists():
        return
    from tqdm import tqdm

    path.parent.mkdir(parents=True, exist_ok=True)
    digest, received = hashlib.sha256(), 0
    with atomic_write(path) as file:
        try:
            with _open(url) as answer, tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
                # One chunk past the size is enough to know that the content is too long.
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
        return f"expected status 200, got {error.code} {error.reason}"
    cause = getattr(error, "reason", error)  # of a URLError
    if isinstance(cause, TimeoutError):
        return f"no data for {STALL_TIMEOUT_S:g} s"
    return " ".join(str(cause).split()) or type(cause).__name__


def _open(url: str) -> Any:
    """``urlopen`` with a limit on everything up to the first answer, the look-up of the name included."""
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
