import numpy as np
from conftest import read_events
from PIL import Image

from mnist_jax.report.tensorboard import replace_events


def test_the_events_hold_the_figures_of_the_last_evaluation(tmp_path):
    figures = [tmp_path / "first.png", tmp_path / "second.png"]
    for path, side in zip(figures, (4, 6), strict=True):
        Image.fromarray(np.zeros((side, 5, 3), np.uint8)).save(path)
    others = tmp_path / "events.out.tfevents.1.host"
    others.write_bytes(b"")
    replace_events(tmp_path, figures, step=7)
    replace_events(tmp_path, figures[1:], step=8)
    found = {key: value.image for key, value in read_events(tmp_path).items()}
    assert list(found) == [("second", 8)]
    image = found["second", 8]
    assert (image.height, image.width, image.colorspace) == (6, 5, 3)
    assert image.encoded_image_string == figures[1].read_bytes()
    assert others.exists()
