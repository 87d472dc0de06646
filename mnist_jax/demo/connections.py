"""Configures uvicorn for the demo: idle connections are closed, and malformed requests get JSON too.

    uvicorn.Server(server_config(app)).run()

uvicorn itself never closes a connection that sends nothing, or half a header.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_SECONDS = 5.0
MAX_CONNECTIONS = 500


def server_config(app: Any) -> uvicorn.Config:
    """Returns the configuration of the server for an ASGI application; only errors of the application are logged."""
    return uvicorn.Config(
        app,
        loop="asyncio",  # "auto" would depend on which packages are installed
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
    )


class Connection(H11Protocol):
    """Aborts a connection that does not send a request, or does not read its response, for ``IDLE_SECONDS``.

    Above ``MAX_CONNECTIONS``, each new connection replaces the one that has been idle for longest.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(IDLE_SECONDS, self._abort_if_idle)
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [each for each in self.connections if isinstance(each, Connection) and each.is_idle]
            min(idle, key=lambda each: each._timer.when()).transport.abort()

    def on_response_complete(self) -> None:
        """Restarts the clock."""
        super().on_response_complete()
        self._timer.cancel()
        self._timer = self.loop.call_later(IDLE_SECONDS, self._abort_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers a malformed request with JSON, unless a response has begun, and closes the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = json.dumps({"error": msg}).encode()
            headers = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close"
            self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{headers}\r\n\r\n".encode() + content)
        self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether an open connection has no request in progress, or nobody reads its response."""
        is_waiting = self.cycle is None or self.cycle.response_complete or self.flow.write_paused
        return is_waiting and not self.transport.is_closing()

    def _abort_if_idle(self) -> None:
        if self.is_idle:
            self.transport.abort()
