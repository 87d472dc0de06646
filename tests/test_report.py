import matplotlib.figure
import pytest
from matplotlib.image import imread

from mnist_jax.report import learning_curves


def make_history(num_epochs):
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "validation_loss": 2 / epoch,
            "train_accuracy": 1 - 0.1 / epoch,
            "validation_accuracy": 1 - 0.2 / epoch,
        }
        for epoch in range(1, num_epochs + 1)
    ]


@pytest.mark.parametrize("num_epochs", [1, 4])
def test_the_curves_are_the_history(tmp_path, monkeypatch, num_epochs):
    figures = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **options):
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    history = make_history(num_epochs)
    learning_curves(history, tmp_path / "figures" / "curves.png", "a title")
    (figure,) = figures
    assert figure.get_suptitle() == "a title"
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel().startswith(name)
        for line, split in zip(axes.lines, ("train", "validation"), strict=True):
            assert line.get_xdata().tolist() == [entry["epoch"] for entry in history]
            assert line.get_ydata().tolist() == [entry[f"{split}_{name}"] for entry in history]
            assert line.get_label().startswith(split)
    picture = imread(tmp_path / "figures" / "curves.png")
    assert picture.shape[:2] == (570, 1350)
