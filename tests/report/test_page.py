from pathlib import Path

from mnist_jax import TrainConfig
from mnist_jax.report.page import html_report

CONTENT = {
    "run": "runs/<b>",
    "model": "mlp",
    "dataset": "a & b",
    "split": "test",
    "num_examples": 1234,
    "accuracy": 0.9876,
    "loss": 0.05678,
    "expected_calibration_error": 0.0123,
    "misclassified": [{}] * 15,
    "classes": [{"name": "T-shirt <top>", "num_examples": 1000, "precision": 0.5, "recall": 0.25, "f1": 1 / 3}],
}


def test_names_are_escaped_and_numbers_shown(tmp_path):
    picture = tmp_path / "one.png"
    picture.write_bytes(b"\x89PNG")
    text = html_report(CONTENT, {"a <figure>": picture}, TrainConfig(data="x<y"))
    for shown in (
        "<h1>mlp on a &amp; b</h1>",
        "1,234 test examples, run runs/&lt;b&gt;",
        "<b>98.76%</b>accuracy",
        "<b>0.0568</b>loss, nats",
        "<b>15 of 1,234</b>misclassified",
        "<b>1.23%</b>expected calibration error",
        "<td>T-shirt &lt;top&gt;</td><td>1,000</td><td>50.00%</td><td>25.00%</td><td>33.33%</td>",
        '<h2>A &lt;figure&gt;</h2>\n<img alt="a &lt;figure&gt;" src="data:image/png;base64,iVBORw==">',
        "<td>data</td><td>x&lt;y</td>",
        "<td>epochs</td><td>10</td>",
    ):
        assert shown in text
    assert "$" not in text


def test_without_figures_it_is_still_a_page():
    text = html_report(CONTENT, dict[str, Path](), TrainConfig())
    assert text.startswith("<!doctype html>")
    assert "<img" not in text
