"""Writes TensorBoard events: the numbers of a run as it trains, and the figures of an evaluation.

events = EventFile(workdir)
events.add_scalars({"loss/train": 0.3}, step)
events.add_image(Path("figures/learning_curves.png"), step)
replace_events(directory, figures.values(), step)           # of an evaluation, in their own event file
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_jax.atomic import atomic_write, clear_parts

if TYPE_CHECKING:
    from mnist_jax.report.tensorboardx import Event


class EventFile:
    """Appends events to a file; unlike ``SummaryWriter`` of tensorboardX without a thread, which would hide errors.

    Args:
        directory: directory of the run.
        purge_step: TensorBoard ignores events of this and later steps in earlier files of the directory.
    """

    def __init__(self, directory: Path, purge_step: int) -> None:
        from mnist_jax.report.tensorboardx import SessionLog

        self._path = directory / _file_name()
        self._append(_event(file_version="brain.Event:2"))
        self._append(_event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds numbers by tag."""
        from mnist_jax.report.tensorboardx import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._append(_event(step=step, summary=summary))

    def add_image(self, path: Path, step: int) -> None:
        """Adds a PNG, tagged ``path.stem``."""
        self._append(_image_event(path, step))

    def _append(self, event: Event) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(_record(event))
        except OSError as error:
            raise OSError(f"{self._path}: cannot be written ({error.strerror})") from None


def replace_events(directory: Path, figures: Iterable[Path], step: int) -> None:
    """Replaces the figures of the last evaluation in TensorBoard.

    Args:
        directory: directory of the run, or of the evaluation.
        figures: paths of the PNGs.
        step: number of steps that the run has taken.
    """
    last = set(directory.glob("events.out.tfevents.*.evaluate"))
    new = directory / f"{_file_name()}.evaluate"
    clear_parts(directory, "events.out.tfevents.*.evaluate", min_age_s=0)
    with atomic_write(new) as file:
        file.write(_record(_event(file_version="brain.Event:2")))
        file.writelines(_record(_image_event(path, step)) for path in figures)
    for path in last - {new}:
        path.unlink()


def _file_name() -> str:
    return f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"


def _image_event(path: Path, step: int) -> Event:
    from matplotlib.image import imread

    from mnist_jax.report.tensorboardx import Summary

    height, width, channels = imread(path).shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
    return _event(step=step, summary=Summary(value=[Summary.Value(tag=path.stem, image=image)]))


def _event(**fields: Any) -> Event:
    from mnist_jax.report.tensorboardx import Event

    return Event(wall_time=time.time(), **fields)


def _record(event: Event) -> bytes:
    """Returns an event in the format of TFRecord files: its length and its bytes, each with a checksum."""
    from mnist_jax.report.tensorboardx import masked_crc32c

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content))]
    )
