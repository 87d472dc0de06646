"""Creates the web application of the demo: the page at ``/``, and predictions at ``POST /api/predict``.

    app = create_app(Predictor(state, class_names), class_names, title="cnn on mnist")

The body of a request is a picture, for example a PNG or JPEG file. The response is JSON:

    {"label": 7, "class_name": "7", "probabilities": [K numbers], "image": [28 rows of 28, 0..255], "milliseconds": 4.1}

or ``{"error": "..."}``, with status 422 if the picture cannot be read and 413 if it is larger than 10 MB.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mnist_jax.data.dataset import DIGITS
from mnist_jax.errors import InputError

if TYPE_CHECKING:
    from mnist_jax.pictures.predictor import Prediction

LARGEST_BODY = 10_000_000  # bytes
# A larger body is read and discarded up to this size: most clients read the response only after they have sent it all.
_LARGEST_DISCARDED = 100_000_000
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")


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

    async def show_page(request: Request) -> Response:
        del request
        return HTMLResponse(page)

    async def predict(request: Request) -> Response:
        try:
            content = await _read_body(request)
        except ClientDisconnect:
            return Response()  # the client is gone
        if content is None:
            error = f"expected a picture of at most {LARGEST_BODY // 1_000_000} MB, got a larger one"
            return JSONResponse({"error": error}, 413, {"Connection": "close"})
        start_time = time.perf_counter()
        try:
            prediction = await run_in_threadpool(predictor, content)
        except InputError as error:
            return JSONResponse({"error": str(error)}, 422)
        return JSONResponse(
            {
                "label": prediction.label,
                "class_name": prediction.class_name,
                "probabilities": prediction.probabilities.tolist(),
                "image": prediction.image[..., 0].tolist(),
                "milliseconds": round(1000 * (time.perf_counter() - start_time), 2),
            }
        )

    return Starlette(
        routes=[Route("/", show_page), Route("/api/predict", predict, methods=["POST"])],
        middleware=[
            Middleware(_WithHeaders, headers=_security_headers(page)),
            Middleware(TrustedHostMiddleware, allowed_hosts=[*allowed_hosts], www_redirect=False),
        ],
    )


async def _read_body(request: Request) -> bytes | None:
    """Returns the body of a request; None if it is too large.

    A body that is too large is read to its end, up to ``_LARGEST_DISCARDED``. An ordinary client would otherwise see a
    connection reset instead of the response. A client that sent ``Expect: 100-continue`` gets the response at once.
    """
    limit = LARGEST_BODY if "expect" in request.headers else _LARGEST_DISCARDED
    if int(request.headers.get("content-length", 0)) > limit:
        return None
    body, received = bytearray(), 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > _LARGEST_DISCARDED:
            break
        if received <= LARGEST_BODY:
            body += chunk
        else:
            body.clear()
    return bytes(body) if received <= LARGEST_BODY else None


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


class _WithHeaders:
    """Adds headers to every response, as ASGI middleware."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]) -> None:
        self._app, self._headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)
