"""How a finished run shows itself."""

import base64
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.image import imread

from mnist_jax import Run, TrainConfig

LINE = {"epoch": 1, "train_loss": 0.5, "validation_loss": 0.6, "train_accuracy": 0.9, "validation_accuracy": 0.8}
SUMMARY = {
    "model": "<i>mlp</i>",
    "dataset": "cats & <b>dogs</b>",
    "num_parameters": 535_818,
    "epochs": 2,
    "seed": 7,
    "device": {"kind": '"cpu">'},
    "seconds": {"train": 4.56, "total": 9.04},
    **{f"num_{split}": 1000 * count for split, count in (("train", 55), ("validation", 5), ("test", 10))},
    **{f"{split}_loss": 0.5 for split in ("train", "validation", "test")},
    **{f"{split}_accuracy": 0.97999 for split in ("train", "validation", "test")},
}


@pytest.fixture
def run():
    state = SimpleNamespace(recipe=SimpleNamespace(augment=None))
    return Run(TrainConfig(), state, [LINE, {**LINE, "epoch": 2}], {**SUMMARY}, None, Path("runs/mine"))


class Page(HTMLParser):
    """Collects the texts, tags and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.pictures = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attributes))

    def handle_data(self, data):
        self.texts += [data] if data.strip() else []


def test_a_notebook_shows_the_final_numbers_and_the_curves(run):
    page = Page(run._repr_html_())
    assert page.tags == {"div", "p", "b", "table", "tr", "th", "td", "img"}
    assert page.texts == [
        *("<i>mlp</i>", ' on cats & <b>dogs</b>, 535,818 parameters, 2 epochs, seed 7, "cpu">'),
        *("split", "examples", "loss", "accuracy"),
        *("train", "55,000", "0.5000", "98.00%"),
        *("validation", "5,000", "0.5000", "98.00%"),
        *("test", "10,000", "0.5000", "98.00%"),
        "4.6 s training, 9.0 s in all",
    ]
    (picture,) = page.pictures
    assert (picture["alt"], picture["width"]) == ("learning curves", "900")
    content = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
    assert imread(io.BytesIO(content)).shape == (570, 1350, 4)


def test_the_html_sets_no_colour_but_the_background_of_the_picture(run):
    assert re.findall(r"(?:color|background)[^;\"]*", re.sub(r"base64,[^\"]*", "", run._repr_html_())) == [
        "background: #fff"
    ]


def test_one_epoch_is_not_called_epochs(run):
    run.summary["epochs"] = 1
    assert "parameters, 1 epoch, seed" in run._repr_html_()


def test_the_plot_is_a_figure_of_the_history_that_a_notebook_shows(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    figure = run.plot()
    assert figure.get_suptitle() == "<i>mlp</i> on cats & <b>dogs</b>"
    assert figure.axes[0].lines[1].get_ydata().tolist() == [0.6, 0.6]
    png, size = figure._repr_png_()
    assert imread(io.BytesIO(png)).shape == (570, 1350, 4)
    assert size == {"width": 900, "height": 380}
    assert "matplotlib.pyplot" not in sys.modules


def test_a_run_prints_as_one_short_line(run):
    assert repr(run) == "<Run <i>mlp</i> on cats & <b>dogs</b>, test accuracy 98.00%>"
