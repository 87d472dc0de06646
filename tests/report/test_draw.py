import matplotlib.figure
import numpy as np
from conftest import make_split

from mnist_jax import Evaluation
from mnist_jax.report import draw
from mnist_jax.report.draw import draw_evaluation
from mnist_jax.report.numbers import describe_evaluation

DIGITS = tuple("0123456789")


def test_each_figure_says_what_it_shows(tmp_path, monkeypatch):
    split = make_split(40)
    logits = np.eye(10, dtype=np.float32)[split.label]
    logits[:3] = np.roll(logits[:3], 1, axis=1)  # wrong
    logits[2] *= 2  # and most confident
    evaluation = Evaluation(1.5, 37 / 40, 40, logits, split.label)
    content = describe_evaluation(evaluation, DIGITS) | {"dataset": "some", "split": "validation"}
    titles = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **options):
        titles.append(figure.get_suptitle() or figure.axes[0].get_title())
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    shown = []

    def saliency(image):
        shown.append(image)
        return image[..., 0].astype(np.float32)

    figures = draw_evaluation(tmp_path / "new", evaluation, split.image, content, DIGITS, saliency)
    names = [
        "confusion matrix",
        "confused classes",
        "misclassified",
        "saliency",
        "hardest",
        "calibration",
        "predictions",
    ]
    assert list(figures) == names
    assert figures == {name: tmp_path / "new" / f"{name.replace(' ', '_')}.png" for name in names}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.values())
    examples = "40 validation examples of some"
    assert titles == [
        f"accuracy 92.50%, {examples}",
        f"mean images of the most frequent confusions, {examples}",
        f"3 of 3 misclassified, most confident first; {examples}",
        "saliency: more ink raises (red) or lowers (blue) the logit of the predicted class",
        f"largest losses of {examples}",
        f"expected calibration error {content['expected_calibration_error']:.2%}, {examples}",
        f"first of {examples}",
    ]
    first_right = [next(i for i in range(3, 40) if split.label[i] == k) for k in range(10) if k in split.label[3:]]
    np.testing.assert_array_equal(shown[0], split.image[[2, 0, 1, *first_right]])


def test_the_most_confident_errors_come_first(tmp_path, monkeypatch):
    grids = {}
    monkeypatch.setattr(draw, "example_grid", lambda *args: grids.update({args[4].stem: args}))
    monkeypatch.setattr(draw, "saliency_grid", lambda *args: None)
    split = make_split(60)
    wrong = (split.label + 1) % 10
    logits = np.eye(10, dtype=np.float32)[wrong] * np.linspace(2, 5, 60, dtype=np.float32)[:, None]
    evaluation = Evaluation(1.5, 0.0, 60, logits, split.label)
    content = describe_evaluation(evaluation, DIGITS) | {"dataset": "some", "split": "test"}
    draw_evaluation(tmp_path, evaluation, split.image, content, DIGITS, lambda image: image[..., 0])
    image, label, shown_logits, *_, title = grids["misclassified"]
    np.testing.assert_array_equal(image, split.image[:23:-1])
    np.testing.assert_array_equal(label, split.label[:23:-1])
    np.testing.assert_array_equal(shown_logits, logits[:23:-1])
    assert title == "36 of 60 misclassified, most confident first; 60 test examples of some"


def test_dollar_signs_in_names_are_drawn(tmp_path):
    split = make_split(40)
    names = [f"$\\frac${k}" for k in range(10)]
    evaluation = Evaluation(1.5, 0.1, 40, np.eye(10, dtype=np.float32)[split.label[::-1]], split.label)
    content = describe_evaluation(evaluation, names) | {"dataset": "$\\frac$", "split": "test"}
    figures = draw_evaluation(tmp_path, evaluation, split.image, content, names, lambda image: image[..., 0])
    assert all(path.exists() for path in figures.values())
