import matplotlib.figure
import numpy as np
from conftest import make_split

from mnist_jax import Evaluation
from mnist_jax.report.draw import draw_evaluation
from mnist_jax.report.numbers import describe_evaluation

DIGITS = tuple("0123456789")


def test_each_figure_says_what_it_shows(tmp_path, monkeypatch):
    split = make_split(40)
    logits = np.eye(10, dtype=np.float32)[split.label]
    logits[:3] = np.roll(logits[:3], 1, axis=1)  # wrong
    evaluation = Evaluation(1.5, 37 / 40, 40, logits, split.label)
    content = describe_evaluation(evaluation, DIGITS) | {"dataset": "some", "split": "validation"}
    titles = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **options):
        titles.append(figure.get_suptitle() or figure.axes[0].get_title())
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    figures = draw_evaluation(tmp_path / "new", evaluation, split.image, content, DIGITS)
    names = ["confusion matrix", "calibration", "predictions", "misclassified", "hardest"]
    assert figures == {name: tmp_path / "new" / f"{name.replace(' ', '_')}.png" for name in names}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.values())
    examples = "40 validation examples of some"
    assert titles == [
        f"accuracy 92.50%, {examples}",
        f"expected calibration error {content['expected_calibration_error']:.2%}, {examples}",
        f"first of {examples}",
        f"misclassified: 3 of {examples}",
        f"largest losses of {examples}",
    ]
