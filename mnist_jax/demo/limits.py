"""Limits what the requests of the demo hold: places in a queue, and the size and the time of a body.

queue = Queue(size=8, num_threads=1)
content = await read_body(request, limit=10_000_000)      # None if it is larger
prediction = await queue.run(request, lambda: predictor(content))
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")
# A larger body is read and discarded up to this size: most clients read the response only after they have sent it all.
_LARGEST_DISCARDED = 100_000_000
BODY_SECONDS = 20.0


class Queue:
    """Makes predictions in the order of the requests, in threads of its own.

    Args:
        size: largest number of requests, including those being answered; any more get status 503.
        num_threads: number of predictions at a time.
        in_background: whether other threads have priority, and whether memory is returned to the system after each.
    """

    def __init__(self, size: int, num_threads: int, in_background: bool = False) -> None:
        self._num_free, self._turn, self._in_background = size, asyncio.Semaphore(num_threads), in_background
        self._threads = ThreadPoolExecutor(num_threads, initializer=_yield_cpu if in_background else None)

    async def run(self, request: Request, call: Callable[[], T]) -> T:
        """Calls ``call`` when it is the request's turn.

        Raises:
            HTTPException: the queue is full.
            ClientDisconnect: the client has gone.
        """
        if not self._num_free:
            raise busy()
        self._num_free -= 1
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, call)
        finally:
            self._num_free += 1

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        finally:
            if self._in_background:
                _trim_memory()


def _yield_cpu() -> None:
    """Gives the other threads of the process priority over this one; only Linux has priorities of threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _trim_memory() -> None:
    """Returns free memory to the system; glibc would keep most of what large pictures took."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def busy() -> HTTPException:
    """Returns the error of a request for which there is no place."""
    return HTTPException(503, "the server is busy: try again in a moment", {"Retry-After": "1", "Connection": "close"})


async def read_body(request: Request, limit: int) -> bytes | None:
    """Returns the body of a request; None if it has more than ``limit`` bytes.

    A body that is too large is read to its end, up to ``_LARGEST_DISCARDED``. An ordinary client would otherwise see a
    connection reset instead of the response. A client that sent ``Expect: 100-continue`` gets the response at once.

    Raises:
        HTTPException: the body takes more than ``BODY_SECONDS``.
    """
    largest = limit if "expect" in request.headers else _LARGEST_DISCARDED
    if int(request.headers.get("content-length", 0)) > largest:
        return None
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                received += len(chunk)
                if received > _LARGEST_DISCARDED:
                    break
                if received <= limit:
                    body += chunk
                else:
                    body.clear()
    except TimeoutError:
        error = f"expected the whole picture within {BODY_SECONDS:g} s"
        raise HTTPException(408, error, {"Connection": "close"}) from None
    return bytes(body) if received <= limit else None
