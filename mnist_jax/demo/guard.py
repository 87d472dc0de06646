"""Guards the demo: security headers on every response, no requests from pages of other sites.

Middleware(Guard, headers=security_headers(page), allowed_hosts=["127.0.0.1", "localhost"])
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def security_headers(page: str) -> dict[str, str]:
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


class Guard:
    """Adds headers to every response, and refuses requests from pages of other sites, as ASGI middleware."""

    def __init__(self, app: ASGIApp, headers: dict[str, str], allowed_hosts: Sequence[str]) -> None:
        self._app, self._headers = app, headers
        self._allowed_hosts = [host.lower() for host in allowed_hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        app = (scope["type"] == "http" and self._refuse(Headers(scope=scope))) or self._app
        await app(scope, receive, send_with_headers)

    def _refuse(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if "*" not in self._allowed_hosts and _host_name(host) not in self._allowed_hosts:
            names = ", ".join(self._allowed_hosts)
            error = f"Host must be one of {names}, got {host[:80]!r}; start the demo with --host"
            return JSONResponse({"error": error}, 400)
        if origin is not None and origin.partition("://")[2].lower() != host.lower():  # browsers add it to every POST
            return JSONResponse({"error": f"expected a request from this site, got one from {origin[:80]!r}"}, 403)
        return None


def _host_name(host: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host}").hostname
    return None
