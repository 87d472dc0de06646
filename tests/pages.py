"""The page of the demo over real HTTP, and drawings as it sends them."""

import contextlib
import io
import threading

import uvicorn
from PIL import Image, ImageDraw

from mnist_jax.demo.__main__ import listen
from mnist_jax.demo.connections import server_config

DIGITS = tuple("0123456789")
SEVEN = [(80, 60), (200, 60), (130, 220)]


@contextlib.contextmanager
def serving(app):
    """Serves an application at the address it yields."""
    running = uvicorn.Server(server_config(app))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


def picture(points=(), side=280):
    """A drawing as PNG."""
    image, file = Image.new("L", (side, side), "white"), io.BytesIO()
    if points:
        ImageDraw.Draw(image).line(points, "black", 20, joint="curve")
    image.save(file, "PNG")
    return file.getvalue()
