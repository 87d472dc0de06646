"""Creates the web application of the demo: the page at ``/``, and predictions at ``POST /api/predict``.

    app = create_app(Predictor(state).read, "0123456789", title="cnn on mnist")

The body of a request is a picture, for example a PNG or JPEG file. The response is JSON:

    {"label": 7, "class_name": "7", "probabilities": [K numbers], "doubt": null or why the network is not sure,
     "image": [28 rows of 28, 0..255], "read": "7", "milliseconds": 4.1}

If the picture has several digits, ``read`` has all, such as ``"42"``, and the rest is of the least certain one.

``POST /api/explain``, with the same body, returns the training examples that speak most for the answer, or null while
they are not known; only for a run whose training data is there:

    {"examples": [{"index": 17, "class_name": "7", "image": [28 rows of 28, 0..255]}, ...]}

or ``{"error": "..."}``, with status

    400  wrong Host header, or no HTTP        413  larger than 10 MB
    403  sent by a page of another site       422  not a readable picture, or without ink
    404  405  no such path or method          500  internal error
    408  not complete after 20 seconds        503  too many requests

Small PNG files, like those of the page, do not wait for larger pictures. Memory and threads are limited for any number
of requests.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from mnist_jax.data.dataset import DIGITS
from mnist_jax.demo.explaining import Example, choose_prediction
from mnist_jax.demo.guard import Guard, security_headers
from mnist_jax.demo.limits import Queue, busy, read_body
from mnist_jax.errors import InputError
from mnist_jax.pictures.decode import is_small_png

if TYPE_CHECKING:
    from mnist_jax.pictures.predictor import Prediction

T = TypeVar("T")
LARGEST_BODY = 10_000_000  # bytes
_SMALL_BODY = 2**16
_LARGEST_TOTAL = 50_000_000  # of all bodies above _SMALL_BODY that are held at a time
_DRAWINGS, _PICTURES = 64, 8  # requests: small PNG files, and all other pictures
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def create_app(
    predictor: Callable[[bytes], Sequence[Prediction]],
    class_names: Sequence[str],
    *,
    title: str = "",
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    explain: Callable[[bytes], Sequence[Example] | None] | None = None,
) -> Starlette:
    """Creates the application, for any ASGI server.

    Args:
        predictor: maps the bytes of a picture to a prediction for each digit; called from several threads at once.
        class_names: names of the K classes.
        title: description of the model, shown on the page.
        allowed_hosts: accepted host names; ``["*"]`` for any. The default keeps out other sites, which could point
            their own host name at this machine (DNS rebinding).
        explain: maps the bytes of a picture to training examples that speak for the answer, or to None if they are not
            known yet, see :mod:`mnist_jax.demo.explaining`; None for a page without them.

    Example:
        >>> app = create_app(lambda content: [], "0123456789")
        >>> [route.path for route in app.routes]
        ['/', '/api/predict']
    """
    page = _fill_page(class_names, title, explain is not None)
    headers = security_headers(page)
    drawings, pictures = Queue(_DRAWINGS, num_threads=2), Queue(_PICTURES, num_threads=1, in_background=True)
    num_free = _LARGEST_TOTAL

    async def show_page(request: Request) -> Response:
        del request
        return HTMLResponse(page)

    async def answer(request: Request, call: Callable[[bytes], T]) -> T:
        """Calls ``call`` with the picture in a request, when it is its turn."""
        nonlocal num_free
        length = int(request.headers.get("content-length", LARGEST_BODY))
        num_held = length if _SMALL_BODY < length <= LARGEST_BODY else 0
        if num_held > num_free:
            await read_body(request, 0)
            raise busy()
        num_free -= num_held
        try:
            content = await read_body(request, LARGEST_BODY)
            if content is None:
                error = f"expected a picture of at most {LARGEST_BODY // 1_000_000} MB, got a larger one"
                raise HTTPException(413, error, {"Connection": "close"})
            queue = drawings if is_small_png(content) else pictures
            return await queue.run(request, lambda: call(content))
        finally:
            num_free += num_held

    async def predict(request: Request) -> Response:
        predictions, seconds = await answer(request, _timed(predictor))
        prediction = choose_prediction(predictions)
        return JSONResponse(
            {
                "label": prediction.label,
                "class_name": prediction.class_name,
                "probabilities": prediction.probabilities.tolist(),
                "doubt": prediction.doubt,
                "image": prediction.image[..., 0].tolist(),
                "read": "".join(each.class_name for each in predictions),
                "milliseconds": round(1000 * seconds, 2),
            }
        )

    async def show_examples(request: Request) -> Response:
        assert explain is not None
        examples = await answer(request, explain)
        found = None if examples is None else [_describe(each) for each in examples]
        return JSONResponse({"examples": found})

    async def show_error(request: Request, error: Exception) -> Response:
        del request
        if isinstance(error, HTTPException):
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
        if isinstance(error, ClientDisconnect):
            return Response()
        if isinstance(error, InputError):
            return JSONResponse({"error": str(error)}, 422)
        return JSONResponse({"error": "internal error; see the terminal of the server"}, 500, headers)

    routes = [Route("/", show_page), Route("/api/predict", predict, methods=["POST"])]
    if explain is not None:
        routes.append(Route("/api/explain", show_examples, methods=["POST"]))
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, headers=headers, allowed_hosts=allowed_hosts)],
        exception_handlers=dict.fromkeys((HTTPException, ClientDisconnect, InputError, Exception), show_error),
    )


def _describe(example: Example) -> dict[str, Any]:
    return {"index": example.index, "class_name": example.class_name, "image": example.image[..., 0].tolist()}


def _timed(function: Callable[[bytes], T]) -> Callable[[bytes], tuple[T, float]]:
    """Returns a function that also returns its seconds."""

    def timed(content: bytes) -> tuple[T, float]:
        start_time = time.perf_counter()
        return function(content), time.perf_counter() - start_time

    return timed


def _fill_page(class_names: Sequence[str], title: str, explains: bool) -> str:
    are_digits = tuple(class_names) == DIGITS
    values = {
        "model": title,
        "noun": "digit" if are_digits else "picture",
        "class_names": json.dumps([*class_names]),
        "explains": json.dumps(explains),
    }
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: html.escape(values[match[1]]), page)
