"""Creates the web application of the demo: the page at ``/``, and predictions at ``POST /api/predict``.

    app = create_app(Predictor(state, class_names), class_names, title="cnn on mnist")

The body of a request is a picture, for example a PNG or JPEG file. The response is JSON:

    {"label": 7, "class_name": "7", "probabilities": [K numbers], "image": [28 rows of 28, 0..255], "milliseconds": 4.1}

or ``{"error": "..."}``, with status

    400  wrong Host header, or no HTTP        413  larger than 10 MB
    403  sent by a page of another site       422  not a readable picture, or without ink
    404  405  no such path or method          500  internal error
    408  not complete after 20 seconds        503  too many requests

Small PNG files, like those of the page, do not wait for larger pictures. Memory and threads are limited for any number
of requests.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import hashlib
import html
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mnist_jax.data.dataset import DIGITS
from mnist_jax.errors import InputError
from mnist_jax.pictures.decode import is_small_png

if TYPE_CHECKING:
    from mnist_jax.pictures.predictor import Prediction

LARGEST_BODY = 10_000_000  # bytes
# A larger body is read and discarded up to this size: most clients read the response only after they have sent it all.
_LARGEST_DISCARDED = 100_000_000
_SMALL_BODY = 2**16
_LARGEST_TOTAL = 50_000_000  # of all bodies above _SMALL_BODY that are held at a time
_BODY_SECONDS = 20.0
_DRAWINGS, _PICTURES = 64, 8  # requests: small PNG files, and all other pictures
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def create_app(
    predictor: Callable[[bytes], Prediction],
    class_names: Sequence[str],
    *,
    title: str = "",
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
) -> Starlette:
    """Creates the application, for any ASGI server.

    Args:
        predictor: maps the bytes of a picture to a prediction; called from several threads at once.
        class_names: names of the K classes.
        title: description of the model, shown on the page.
        allowed_hosts: accepted host names; ``["*"]`` for any. The default keeps out other sites, which could point
            their own host name at this machine (DNS rebinding).

    Example:
        >>> app = create_app(lambda content: None, "0123456789")
        >>> [route.path for route in app.routes]
        ['/', '/api/predict']
    """
    page = _fill_page(class_names, title)
    headers = _security_headers(page)
    drawings, pictures = _Queue(_DRAWINGS, num_threads=2), _Queue(_PICTURES, num_threads=1, in_background=True)
    num_free = _LARGEST_TOTAL

    async def show_page(request: Request) -> Response:
        del request
        return HTMLResponse(page)

    async def predict(request: Request) -> Response:
        nonlocal num_free
        length = int(request.headers.get("content-length", LARGEST_BODY))
        num_held = length if _SMALL_BODY < length <= LARGEST_BODY else 0
        if num_held > num_free:
            await _read_body(request, 0)
            raise _busy()
        num_free -= num_held
        try:
            content = await _read_body(request, LARGEST_BODY)
            if content is None:
                error = f"expected a picture of at most {LARGEST_BODY // 1_000_000} MB, got a larger one"
                raise HTTPException(413, error, {"Connection": "close"})
            start_time = time.perf_counter()
            queue = drawings if is_small_png(content) else pictures
            prediction = await queue.run(request, lambda: predictor(content))
        finally:
            num_free += num_held
        return JSONResponse(
            {
                "label": prediction.label,
                "class_name": prediction.class_name,
                "probabilities": prediction.probabilities.tolist(),
                "image": prediction.image[..., 0].tolist(),
                "milliseconds": round(1000 * (time.perf_counter() - start_time), 2),
            }
        )

    async def show_error(request: Request, error: Exception) -> Response:
        del request
        if isinstance(error, HTTPException):
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
        if isinstance(error, ClientDisconnect):
            return Response()
        if isinstance(error, InputError):
            return JSONResponse({"error": str(error)}, 422)
        return JSONResponse({"error": "internal error; see the terminal of the server"}, 500, headers)

    return Starlette(
        routes=[Route("/", show_page), Route("/api/predict", predict, methods=["POST"])],
        middleware=[Middleware(_Guard, headers=headers, allowed_hosts=allowed_hosts)],
        exception_handlers=dict.fromkeys((HTTPException, ClientDisconnect, InputError, Exception), show_error),
    )


class _Queue:
    """Makes predictions in the order of the requests, in threads of its own.

    Args:
        size: largest number of requests, including those being answered; any more get status 503.
        num_threads: number of predictions at a time.
        in_background: whether other threads have priority, and whether memory is returned to the system after each.
    """

    def __init__(self, size: int, num_threads: int, in_background: bool = False) -> None:
        self._num_free, self._turn, self._in_background = size, asyncio.Semaphore(num_threads), in_background
        self._threads = ThreadPoolExecutor(num_threads, initializer=_yield_cpu if in_background else None)

    async def run(self, request: Request, call: Callable[[], Prediction]) -> Prediction:
        """Calls ``call`` when it is the request's turn.

        Raises:
            HTTPException: the queue is full.
            ClientDisconnect: the client has gone.
        """
        if not self._num_free:
            raise _busy()
        self._num_free -= 1
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, call)
        finally:
            self._num_free += 1

    def _call(self, call: Callable[[], Prediction]) -> Prediction:
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


def _busy() -> HTTPException:
    return HTTPException(503, "the server is busy: try again in a moment", {"Retry-After": "1", "Connection": "close"})


async def _read_body(request: Request, limit: int) -> bytes | None:
    """Returns the body of a request; None if it has more than ``limit`` bytes.

    A body that is too large is read to its end, up to ``_LARGEST_DISCARDED``. An ordinary client would otherwise see a
    connection reset instead of the response. A client that sent ``Expect: 100-continue`` gets the response at once.

    Raises:
        HTTPException: the body takes more than ``_BODY_SECONDS``.
    """
    largest = limit if "expect" in request.headers else _LARGEST_DISCARDED
    if int(request.headers.get("content-length", 0)) > largest:
        return None
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                received += len(chunk)
                if received > _LARGEST_DISCARDED:
                    break
                if received <= limit:
                    body += chunk
                else:
                    body.clear()
    except TimeoutError:
        error = f"expected the whole picture within {_BODY_SECONDS:g} s"
        raise HTTPException(408, error, {"Connection": "close"}) from None
    return bytes(body) if received <= limit else None


def _fill_page(class_names: Sequence[str], title: str) -> str:
    are_digits = tuple(class_names) == DIGITS
    values = {
        "model": title,
        "noun": "digit" if are_digits else "picture",
        "class_names": json.dumps([*class_names]),
    }
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: html.escape(values[match[1]]), page)


def _security_headers(page: str) -> dict[str, str]:
    """Returns the headers of every response: the page runs only its own script, and calls only this server."""

    def sources(element: str) -> str:
        contents = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = {
        "default-src": "'none'",
        "script-src": sources("script"),
        "style-src": sources("style"),
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{directive} {value}" for directive, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


class _Guard:
    """Adds headers to every response, and refuses requests from pages of other sites, as ASGI middleware."""

    def __init__(self, app: ASGIApp, headers: dict[str, str], allowed_hosts: Sequence[str]) -> None:
        self._app, self._headers = app, headers
        self._allowed_hosts = [host.lower() for host in allowed_hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        app = (scope["type"] == "http" and self._refuse(Headers(scope=scope))) or self._app
        await app(scope, receive, send_with_headers)

    def _refuse(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if "*" not in self._allowed_hosts and _host_name(host) not in self._allowed_hosts:
            error = f"expected a request to {', '.join(self._allowed_hosts)}, got one to {host[:80]!r}"
            return JSONResponse({"error": error}, 400)
        if origin is not None and origin.partition("://")[2].lower() != host.lower():  # browsers add it to every POST
            return JSONResponse({"error": f"expected a request from this site, got one from {origin[:80]!r}"}, 403)
        return None


def _host_name(host: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host}").hostname
    return None
