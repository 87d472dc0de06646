import matplotlib.figure
import numpy as np
import pytest
import scipy.stats
from conftest import make_split
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from mnist_jax import DataMap
from mnist_jax.core.calibration import Calibration
from mnist_jax.report.figures import (
    _wilson_interval,
    confused_classes,
    confusion_matrix,
    data_map,
    example_grid,
    learning_curves,
    reliability_diagram,
    saliency_grid,
    sweep_results,
)

DIGITS = tuple("0123456789")


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **options):
        saved.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return saved


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
def test_the_curves_are_the_history(tmp_path, figures, num_epochs):
    history = make_history(num_epochs)
    learning_curves(history, tmp_path / "figures" / "curves.png", "a title", "train (with dropout)")
    (figure,) = figures
    assert figure.get_suptitle() == "a title"
    (legend,) = figure.legends
    labels = ["train (with dropout)", "validation (after the epoch)"]
    assert [text.get_text() for text in legend.get_texts()] == labels
    assert [axes.get_legend() for axes in figure.axes] == [None, None]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel().startswith(name)
        for line, split in zip(axes.lines, ("train", "validation"), strict=True):
            assert line.get_xdata().tolist() == [entry["epoch"] for entry in history]
            assert line.get_ydata().tolist() == [entry[f"{split}_{name}"] for entry in history]
            assert line.get_label().startswith(split)
    picture = imread(tmp_path / "figures" / "curves.png")
    assert picture.shape[:2] == (570, 1350)


def test_the_curves_of_a_private_run_show_what_epsilon_bought(tmp_path, figures):
    history = [{**line, "epsilon": 0.5 * line["epoch"]} for line in make_history(4)]
    learning_curves(history, tmp_path / "curves.png", "a title")
    (line,) = figures[0].axes[2].lines
    assert line.get_xdata().tolist() == [0.5, 1.0, 1.5, 2.0]
    assert line.get_ydata().tolist() == [entry["validation_accuracy"] for entry in history]


def test_a_data_map_has_each_example_at_its_place(tmp_path, figures):
    rng = np.random.default_rng(0)
    place = DataMap(rng.random(9), rng.random(9) / 2, np.arange(9) / 8)
    data_map(place, tmp_path / "map.png", "a title")
    (points,) = figures[0].axes[0].collections
    order = np.argsort(points.get_array())
    np.testing.assert_array_equal(points.get_array()[order], place.correctness)
    np.testing.assert_allclose(points.get_offsets()[order], np.stack([place.variability, place.confidence], axis=1))


@pytest.mark.parametrize("class_names", [DIGITS, ("T-shirt/top", *DIGITS[1:9], "Ankle boot")])
def test_each_cell_counts_its_examples(tmp_path, figures, class_names):
    rng = np.random.default_rng(0)
    label, predictions = rng.integers(0, 9, (2, 200))  # no 9: a class without examples
    confusion_matrix(label, predictions, class_names, tmp_path / "figures" / "matrix.png", "a title")
    (axes,) = figures[0].axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("a title", "predicted", "true")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(class_names)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(class_names)
    cells = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert len(cells) == 100
    for (predicted, true), count in cells.items():
        assert count == sum(1 for pair in zip(label, predictions, strict=True) if pair == (true, predicted))
    assert imread(tmp_path / "figures" / "matrix.png").shape[:2] == (1050, 1050)


def read_grid(figure, height=28):
    """The images of a grid with the text above each, from what was drawn."""
    (axes,) = figure.axes
    if not axes.texts:
        return []
    canvas = axes.images[0].get_array()
    found = []
    for text in axes.texts:
        x, y = text.get_position()
        left, top = round(x - 13.5), round(y + 3)
        found.append((canvas[top : top + height, left : left + 28], text.get_text(), text.get_color()))
    return found


@pytest.mark.parametrize("num_examples", [0, 1, 8])
def test_the_grid_shows_each_example(tmp_path, figures, num_examples):
    split = make_split(num_examples)
    logits = np.random.default_rng(0).normal(0, 100, (num_examples, 10)).astype(np.float32)
    example_grid(split.image, split.label, logits, DIGITS, tmp_path / "figures" / "grid.png", "a title")
    (figure,) = figures
    assert figure.get_suptitle() == "a title"
    grid = read_grid(figure)
    assert len(grid) == num_examples
    for (shown, text, color), image, label, logit in zip(grid, split.image, split.label, logits, strict=True):
        np.testing.assert_array_equal(shown, image[..., 0])
        probability = 1 / sum(np.exp(float(other - logit.max())) for other in logit)
        assert text == f"true {label}\npredicted {logit.argmax()}\n{probability:.1%}"
        assert color == ("black" if logit.argmax() == label else "firebrick")
    assert (tmp_path / "figures" / "grid.png").stat().st_size > 1000


def test_no_text_of_the_grid_overlaps_another_or_an_image(tmp_path, figures):
    split = make_split(12)
    names = ("Ankle boot",) * 10
    example_grid(split.image, split.label, np.zeros((12, 10)), names, tmp_path / "grid.png", "a title")
    (figure,) = figures
    figure.set_dpi(150)  # as it was saved
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in (figure._suptitle, *axes.texts)]
    for text in axes.texts:  # the frame of the image below it
        x, y = text.get_position()
        corners = axes.transData.transform([(x - 15, y + 1.5), (x + 15, y + 31.5)])
        boxes.append(Bbox([corners.min(axis=0), corners.max(axis=0)]))
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_the_reliability_diagram_shows_each_bin(tmp_path, figures):
    calibration = Calibration.compute(np.array([[0.6, 0.4], [0.3, 0.7], [0.05, 0.95]]), np.array([0, 0, 1]), 10)
    reliability_diagram(calibration, tmp_path / "figures" / "calibration.png", "a title")
    (figure,) = figures
    assert figure.get_suptitle() == "a title"
    accuracy, count = figure.axes
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("confidence", "accuracy")
    assert (count.get_xlabel(), count.get_ylabel(), count.get_yscale()) == ("confidence", "examples", "log")
    assert [(round(bar.get_x(), 6), bar.get_height()) for bar in count.patches] == [(0.5, 1), (0.6, 1), (0.9, 1)]
    assert all(bar.get_width() == pytest.approx(0.1) for axes in figure.axes for bar in axes.patches)
    (points,) = accuracy.containers
    assert points.get_label() == "accuracy at mean confidence, with 95% Wilson interval"
    line, _, (bars,) = points.lines
    np.testing.assert_allclose(line.get_xydata(), [[0.6, 1], [0.7, 0], [0.95, 1]])
    for (x, y), ((low_x, low), (high_x, high)) in zip(line.get_xydata(), bars.get_segments(), strict=True):
        assert low_x == high_x == x
        np.testing.assert_allclose((low, high), (0.206549, 1) if y else (0, 0.793451), atol=1e-5)
    assert imread(tmp_path / "figures" / "calibration.png").shape[:2] == (630, 1350)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (3, 3), (9, 25), (9760, 9800)])
def test_the_error_bars_are_wilson_intervals(right, count):
    low, high = _wilson_interval(np.array([right / count]), np.array([count]))
    expected = scipy.stats.binomtest(right, count).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose([low[0], high[0]], expected, atol=1e-4)
    assert 0 <= low[0] <= right / count <= high[0] <= 1


def test_the_confused_classes_are_means(tmp_path, figures):
    split = make_split(30)
    label = np.repeat([3, 5, 8], 10)
    predictions = label.copy()
    predictions[[0, 1]], predictions[10], predictions[20:23] = 7, 3, 5  # no 7 exists
    confused_classes(split.image, label, predictions, DIGITS, tmp_path / "confused.png", "a title")
    (figure,) = figures
    assert figure.get_suptitle() == "a title"
    expected = [
        ("true 8\n10 examples", range(20, 30)),
        ("true 8\npredicted 5\n3 examples", range(20, 23)),
        ("true 5\n10 examples", range(10, 20)),
        ("true 3\n10 examples", range(10)),
        ("true 3\npredicted 7\n2 examples", range(2)),
        ("true 7\n0 examples", ()),
        ("true 5\n10 examples", range(10, 20)),
        ("true 5\npredicted 3\n1 example", (10,)),
        ("true 3\n10 examples", range(10)),
    ]
    for (shown, text, color), (caption, members) in zip(read_grid(figure), expected, strict=True):
        assert text == caption
        assert color == ("firebrick" if "predicted" in caption else "black")
        mean = split.image[list(members), ..., 0].mean(axis=0) if members else np.zeros((28, 28))
        np.testing.assert_array_equal(shown, mean.astype(np.uint8))


def test_without_confusions_the_figure_is_empty(tmp_path, figures):
    split = make_split(4)
    confused_classes(split.image, split.label, split.label, DIGITS, tmp_path / "confused.png", "a title")
    assert read_grid(figures[0]) == []


@pytest.mark.parametrize("num_examples", [0, 7])
def test_each_image_stands_above_its_saliency(tmp_path, figures, num_examples):
    split = make_split(num_examples)
    maps = np.zeros((num_examples, 28, 28), np.float32)
    maps[:6, 2, 3], maps[:6, 4, 5], maps[:6, 6, 7] = 0.5, -0.5, -0.25  # the last map is 0 everywhere
    logits = np.eye(10, dtype=np.float32)[split.label]
    saliency_grid(split.image, maps, split.label, logits, DIGITS, tmp_path / "saliency.png", "a title")
    (figure,) = figures
    assert figure.get_suptitle() == "a title"
    grid = read_grid(figure, height=56)
    assert len(grid) == num_examples
    for index, (shown, text, _) in enumerate(grid):
        assert text.startswith(f"true {split.label[index]}\npredicted {split.label[index]}\n")
        np.testing.assert_array_equal(shown[:28], 255 - np.repeat(split.image[index], 3, axis=-1))
        colours = shown[28:].astype(int)
        assert np.ptp(colours[0, 0]) <= 2  # grey where the gradient is 0
        if index < 6:
            red, blue, pale = colours[2, 3], colours[4, 5], colours[6, 7]
            assert red[0] > red[2] + 50
            assert blue[2] > blue[0] + 50
            assert blue[0] < pale[0] < pale[2]


def test_the_figure_of_a_sweep_shows_each_trial(tmp_path, figures):
    lines = [
        {"number": 0, "epochs": 3, "hyperparameters": {"b1": 0.5, "size": (8,)}, "accuracy": 0.98},
        {"number": 0, "epochs": 1, "hyperparameters": {"b1": 0.5, "size": (8,)}, "accuracy": 0.97},
        {"number": 1, "epochs": 1, "hyperparameters": {"b1": 0.05, "size": (8, 4)}, "accuracy": 0.96},
        {"number": 2, "epochs": 1, "hyperparameters": {"b1": 0.2, "size": (8,)}, "accuracy": 0.1},
        {"number": 3, "epochs": 1, "hyperparameters": {"b1": 0.3, "size": (8,)}, "accuracy": 0.1, "loss": None},
    ]
    lines = [
        {"validation_accuracy": line["accuracy"], "validation_loss": line.get("loss", 0.1), **line} for line in lines
    ]
    sweep_results(lines, {"b1": "log", "size": ((8,), (8, 4))}, tmp_path / "figures" / "sweep.png", "a title")
    (figure,) = figures
    assert figure.get_suptitle() == "a title"
    numbers, choices = figure.axes
    assert (numbers.get_xlabel(), numbers.get_xscale(), choices.get_xlabel()) == ("b1", "log", "size")
    points = {each.get_label(): each.get_offsets().data.tolist() for each in numbers.collections}
    assert points["3 epochs"] == [[0.5, 0.98]]
    assert points["1 epoch"] == [[0.5, 0.97], [0.05, 0.96]]
    ((low_x, low_y),) = points["1 epoch, lower"]
    ((diverged_x, diverged_y),) = points["1 epoch, diverged"]
    assert (low_x, diverged_x) == (0.2, 0.3)
    assert low_y == diverged_y < 0.96
    assert [label.get_text() for label in choices.get_xticklabels()] == ["8", "8,4"]
    at = {each.get_label(): each.get_offsets()[:, 0].tolist() for each in choices.collections}
    assert at["1 epoch"] == [0, 1]
    assert at["1 epoch, lower"] == [0]
    assert all(each.get_alpha() == 0.5 for each in choices.collections)
    assert (tmp_path / "figures" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(figure, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left on device"):
        learning_curves(make_history(2), tmp_path / "figures" / "curves.png", "title")
    assert not [*(tmp_path / "figures").iterdir()]
