import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

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
        '<h2>A &lt;figure&gt;</h2>\n<div class="figure" tabindex="0"><img alt="a &lt;figure&gt;" '
        'src="data:image/png;base64,iVBORw=="></div>',
        "<td>data</td><td>x&lt;y</td><td>None</td>",
        "<td>epochs</td><td>10</td><td></td>",
    ):
        assert shown in text
    assert "$" not in text


def test_without_figures_it_is_still_a_page():
    text = html_report(CONTENT, dict[str, Path](), TrainConfig())
    assert text.startswith("<!doctype html>")
    assert "<img" not in text


def sections_of(text):
    """Headings and tables of hyperparameters, in the order of the page."""
    return re.findall(r"<h2>(.*?)</h2>|<summary>(.*?)</summary>", text)


def test_the_page_begins_with_the_curves(tmp_path):
    for name in ("one", "curves"):
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG")
    figures = {"one": tmp_path / "one.png", "learning curves": tmp_path / "curves.png"}
    found = [heading or summary for heading, summary in sections_of(html_report(CONTENT, figures, TrainConfig()))]
    assert found == ["Learning curves", "Hyperparameters", "By class", "One"]


def hyperparameters_of(text):
    (details,) = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", details)
    return {name: (value, default) for name, value, default in rows}


def test_hyperparameters_that_differ_from_the_defaults_come_first():
    config = TrainConfig(data="mnist", model="cnn", channels=(4,), kernel_sizes=(3,), epochs=3, workdir="runs/x")
    found = hyperparameters_of(html_report(CONTENT | {"model": "cnn"}, {}, config))
    assert list(found.items())[:5] == [
        ("data", ("mnist", "None")),
        ("model", ("cnn", "mlp")),
        ("channels", ("(4,)", "(24, 32)")),
        ("kernel_sizes", ("(3,)", "(5, 3)")),
        ("epochs", ("3", "10")),
    ]
    assert all(default == "" for _, default in list(found.values())[5:])
    assert found["learning_rate"] == ("0.001", "")
    assert not {"workdir", "quiet", "hidden_sizes", "momentum", "augment_smoothness"} & set(found)  # without effect


def test_fields_of_the_model_do_not_describe_a_model_of_the_users_own():
    found = hyperparameters_of(html_report(CONTENT | {"model": "Net"}, {}, TrainConfig(epochs=2)))
    assert next(iter(found)) == "epochs"
    assert not {"model", "hidden_sizes", "dropout_rate"} & set(found)


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome")
    args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=args) as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(tmp_path, chromium, scheme):
    Image.new("RGB", (1350, 1600), "white").save(tmp_path / "one.png")
    content = CONTENT | {"run": "runs/" + "long" * 40, "classes": [CONTENT["classes"][0] | {"name": "n" * 60}] * 3}
    config = TrainConfig(data="d" * 90, hidden_sizes=(512,) * 30)
    (tmp_path / "report.html").write_text(html_report(content, {"one": tmp_path / "one.png"}, config))
    page = chromium.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    page.locator("summary").click()
    assert page.locator("details table").is_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    figure, image = page.locator(".figure"), page.locator("img")
    assert image.bounding_box()["width"] <= 390
    figure.click()
    assert image.bounding_box()["width"] == 960
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    darkness = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == darkness
    card = figure.evaluate("(it) => getComputedStyle(it).backgroundColor")
    assert card == {"light": "rgb(255, 255, 255)", "dark": "rgb(228, 228, 228)"}[scheme]
    assert all(url.startswith(("file:", "data:")) for url in requests)
    page.close()
