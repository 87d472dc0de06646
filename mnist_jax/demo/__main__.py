"""``python -m mnist_jax.demo`` serves the draw-a-digit page with the network of a run.

    python -m mnist_jax.demo               the newest run on MNIST in runs/, else the network in the box
    python -m mnist_jax.demo runs/mine     that run

JAX is imported after the port has been opened, so that ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import ipaddress
import logging
import socket
import sys
from collections.abc import Iterator, Sequence

from mnist_jax.cli.flags import OneLineParser, add_jax_flags, run_command
from mnist_jax.errors import InputError, import_extra
from mnist_jax.training.signals import StopSignals


class _Ended(KeyboardInterrupt):
    """Ends the command with the exit status of a signal."""

    def __init__(self, exit_status: int) -> None:
        super().__init__()
        self.exit_status = exit_status


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket; connections wait in it until the server runs.

    Raises:
        InputError: the port is in use or out of range, or the host is not an address of this machine.

    Example:
        >>> with listen("127.0.0.1", 0) as first:
        ...     listen("127.0.0.1", first.getsockname()[1])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        mnist_jax.errors.InputError: port ... of 127.0.0.1 is in use: choose another with --port, or 0 for any free one
    """
    if not 0 <= port < 2**16:
        raise InputError(f"port must be in [0, 65535], got {port}")
    if not host:
        raise InputError("host must be a name or an address of this machine, got an empty string")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use: choose another with --port, or 0 for any free one"
        elif number == errno.EACCES:
            message = f"port {port} of {host} needs more permissions: choose one above 1023 with --port"
        else:
            message = f"host must be a name or an address of this machine, got {host[:80]!r}"
        raise InputError(message) from None
    # asyncio does not set this for a given socket; without it a response of two packets takes 40 ms longer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(run: str | None, host: str, listener: socket.socket) -> None:
    """Serves the network of a run, or of :func:`mnist_jax.load_predictor`, until SIGINT or SIGTERM arrives.

    Raises:
        InputError: the run cannot be loaded.
        KeyboardInterrupt: a signal ended the server.
    """
    import uvicorn

    from mnist_jax.demo.connections import server_config
    from mnist_jax.demo.explaining import BackgroundExplainer
    from mnist_jax.demo.server import LOOPBACK_HOSTS, create_app
    from mnist_jax.training.network import load_predictor
    from mnist_jax.training.runs import newest_mnist_run

    with StopSignals() as stop:  # delays the exit: XLA crashes if the process exits while it compiles
        directory = newest_mnist_run() if run is None else run
        predictor = load_predictor(run)
        predictor.read(_any_picture())  # compiles
        address, port = listener.getsockname()[:2]
        hosts = sorted({*LOOPBACK_HOSTS, host}) if ipaddress.ip_address(address).is_loopback else ["*"]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield  # ``stop`` catches them

            async def on_tick(self, counter: int) -> bool:
                return await super().on_tick(counter) or stop.requested is not None

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if not stop.requested:
                    print(f"{url}  -  {predictor.title}; stop with Ctrl-C", flush=True)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                closing = asyncio.ensure_future(super().shutdown(sockets))
                while not closing.done():  # does not wait for unfinished requests, nor for those accepted meanwhile
                    for connection in list(self.server_state.connections):
                        connection.transport.abort()
                    await asyncio.wait([closing], timeout=0.05)
                await closing

        explain = None if directory is None else BackgroundExplainer(directory, predictor)
        app = create_app(
            predictor.read, predictor.class_names, title=predictor.title, allowed_hosts=hosts, explain=explain
        )
        with _errors_on_stderr():
            Server(server_config(app)).run([listener])
    if stop.requested:
        raise _Ended(128 + stop.requested)


@contextlib.contextmanager
def _errors_on_stderr() -> Iterator[None]:
    """Writes the errors that uvicorn logs, with tracebacks, to stderr; ``run_command`` hides logs of libraries."""
    log, handler = logging.getLogger("uvicorn"), logging.StreamHandler()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _any_picture() -> bytes:
    from PIL import Image, ImageDraw

    image, file = Image.new("L", (280, 280), "white"), io.BytesIO()
    ImageDraw.Draw(image).line((140, 40, 140, 240), "black", 20)
    image.save(file, "PNG")
    return file.getvalue()


def main(args: Sequence[str] | None = None, prog: str = "python -m mnist_jax.demo") -> int:
    """Parses ``args`` (default: the command line), finds or trains a run, and serves it."""

    def command() -> None:
        description = "Serve a page on which digits are classified while they are drawn."
        parser = OneLineParser(prog, description, "runs/mine --port 8080")
        help_ = "directory of the run; default: the newest on MNIST in runs/, else the trained network of this package"
        parser.add_argument("run", nargs="?", metavar="RUN", help=help_)
        help_ = "address to serve at; default: 127.0.0.1, for this machine only"
        parser.add_argument("--host", default="127.0.0.1", help=help_)
        parser.add_argument(
            "--port", type=int, default=8000, help="port to serve at, 0 for any free one; default: 8000"
        )
        add_jax_flags(parser)
        flags = parser.parse_args(args)
        for module in ("starlette", "uvicorn"):
            import_extra(module, "demo")
        with listen(flags.host, flags.port) as listener:
            serve(flags.run, flags.host, listener)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
