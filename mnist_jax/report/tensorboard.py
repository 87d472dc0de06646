"""Adds PNGs to TensorBoard.

show_in_tensorboard(writer, Path("figures/learning_curves.png"), step)     # to the events of a run
replace_events(directory, figures.values(), step)                          # of an evaluation, in their own event file
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


def show_in_tensorboard(writer: SummaryWriter, path: Path, step: int) -> None:
    """Adds a PNG to the events of a run, tagged ``path.stem``; unlike ``add_image``, without encoding it again."""
    from matplotlib.image import imread
    from tensorboardX.proto.summary_pb2 import Summary

    height, width, channels = imread(path).shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=path.stem, image=image)]), step)


def replace_events(directory: Path, figures: Iterable[Path], step: int) -> None:
    """Replaces the figures of the last evaluation in TensorBoard.

    Args:
        directory: directory of the run, or of the evaluation.
        figures: paths of the PNGs.
        step: number of steps that the run has taken.
    """
    from tensorboardX import SummaryWriter

    for last in directory.glob("events.out.tfevents.*.evaluate"):
        last.unlink()
    with SummaryWriter(str(directory), filename_suffix=".evaluate") as writer:
        for path in figures:
            show_in_tensorboard(writer, path, step)
