"""PNGs in TensorBoard.

show_in_tensorboard(board, Path("figures/learning_curves.png"), step)      # among the events of a run
replace_events(directory, figures.values(), step)                          # of an evaluation, in a file of its own
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


def show_in_tensorboard(board: SummaryWriter, path: Path, step: int) -> None:
    """Adds a PNG to the events of a run under the stem of its name, as it is: ``add_image`` would encode it anew."""
    from matplotlib.image import imread
    from tensorboardX.proto.summary_pb2 import Summary

    height, width, channels = imread(path).shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
    board.file_writer.add_summary(Summary(value=[Summary.Value(tag=path.stem, image=image)]), step)


def replace_events(directory: Path, figures: Iterable[Path], step: int) -> None:
    """Shows the figures of an evaluation in TensorBoard, in the place of those of the last one.

    Args:
        directory: of the run, or of the evaluation.
        figures: PNGs.
        step: that the run has reached.
    """
    from tensorboardX import SummaryWriter

    for last in directory.glob("events.out.tfevents.*.evaluate"):
        last.unlink()
    with SummaryWriter(str(directory), filename_suffix=".evaluate") as board:
        for path in figures:
            show_in_tensorboard(board, path, step)
