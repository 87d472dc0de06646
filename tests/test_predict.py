import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
import pytest
from conftest import make_split
from matplotlib.image import imread
from PIL import Image

from mnist_jax import InputError, Predictor, TrainConfig, evaluate_dataset, fit, load_dataset, load_run, predict_image
from mnist_jax.data import class_names_of
from mnist_jax.predict import main
from mnist_jax.preprocess import prepare_image

CONFIG = TrainConfig(data="digits", hidden_sizes=(32,), epochs=6, quiet=True)
HEADER = ",".join(f"pixel{index}" for index in range(784))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"):
        return fit(dataclasses.replace(CONFIG, workdir=str(tmp_path_factory.mktemp("runs") / "run"))).workdir


@pytest.fixture(scope="module")
def state(run):
    return load_run(run)[1]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").test


def to_png(image):
    file = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(file, "PNG")
    return file.getvalue()


def draw(digit, size=6):
    """An image of MNIST's kind as dark ink on a larger light sheet."""
    sheet = np.full((300, 400), 230.0)
    ink = np.kron(digit[..., 0], np.ones((size, size))) / 255
    sheet[20 : 20 + len(ink), 90 : 90 + len(ink)] -= 200 * ink
    return sheet.astype(np.uint8)


def write_csv(path, image, label=None):
    rows = image.reshape(len(image), -1)
    header = HEADER
    if label is not None:
        rows, header = np.column_stack([label, rows]), f"label,{HEADER}"
    np.savetxt(path, rows, fmt="%d", delimiter=",", header=header, comments="")
    return path


def test_many_images_are_classified_as_they_are_evaluated(state, digits):
    predictor = Predictor(state)
    expected = evaluate_dataset(state, digits).probabilities
    for count in (297, 101, 100, 2):
        np.testing.assert_allclose(predictor.classify(digits.image[:count]), expected[:count], rtol=1e-4, atol=1e-6)
    one_by_one = np.concatenate([predictor.classify(image[None]) for image in digits.image[:5]])
    np.testing.assert_allclose(one_by_one, expected[:5], rtol=1e-4, atol=1e-6)


def test_a_picture_may_be_an_array_bytes_or_a_file(state, digits, tmp_path):
    sheet = draw(digits.image[3])
    (tmp_path / "digit.png").write_bytes(to_png(sheet))
    image = prepare_image(sheet)
    expected = Predictor(state).classify(image[None])[0]
    for picture in (sheet, to_png(sheet), tmp_path / "digit.png", str(tmp_path / "digit.png")):
        prediction = predict_image(state, picture, class_names="abcdefghij")
        np.testing.assert_array_equal(prediction.image, image)
        np.testing.assert_array_equal(prediction.probabilities, expected)
        assert prediction.label == expected.argmax() == digits.label[3]
        assert prediction.class_name == "abcdefghij"[prediction.label]


def test_several_threads_may_ask_at_once(state, digits):
    predictor = Predictor(state)
    sheets = [draw(image) for image in digits.image[:8]]
    expected = [predictor(sheet).probabilities for sheet in sheets]
    found = [None] * 8

    def ask(index):
        found[index] = predictor(sheets[index]).probabilities

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_read_is_said(state, tmp_path):
    with pytest.raises(InputError, match="no ink found"):
        predict_image(state, np.full((50, 50), 255, np.uint8))
    with pytest.raises(InputError, match=r"^the picture: .* wanted, got something else$"):
        predict_image(state, b"no picture")
    with pytest.raises(InputError, match=r"absent.png: cannot be read \(No such file or directory\)$"):
        predict_image(state, tmp_path / "absent.png")


def parse_line(line):
    """File, class and percentages by class of a line of the command."""
    name, label, percent, rest = re.fullmatch(r"(.+?)  +(\S+) +(\d+\.\d) %(?:   \((.*)\))?", line).groups()
    others = [part.split() for part in rest.split(", ")] if rest else []
    return name, label, {label: percent, **{other: value for other, value, _ in others}}


def test_the_command_prints_a_line_for_each_file(run, state, digits, tmp_path, capsys):
    names = ["a.png", "a longer name.png"]
    for name, image in zip(names, digits.image, strict=False):
        (tmp_path / name).write_bytes(to_png(draw(image)))
    assert main([str(run), *(str(tmp_path / name) for name in names)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, name, image in zip(lines, names, digits.image, strict=False):
        prediction = predict_image(state, draw(image))
        file, label, percentages = parse_line(line)
        assert (file, label) == (str(tmp_path / name), prediction.class_name)
        order = np.argsort(-prediction.probabilities, kind="stable")[:3]
        wanted = {str(k): f"{100 * prediction.probabilities[k]:.1f}" for k in order}
        shown = {k: value for k, value in wanted.items() if k == label or prediction.probabilities[int(k)] >= 0.0005}
        assert percentages == shown


def test_json_is_an_object_a_line(run, state, digits, tmp_path, capsys):
    (tmp_path / "one.png").write_bytes(to_png(draw(digits.image[0])))
    csv = write_csv(tmp_path / "test.csv", digits.image[:3])
    assert main([str(run), str(tmp_path / "one.png"), str(csv), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    prediction = predict_image(state, draw(digits.image[0]))
    assert lines[0] == {
        "file": str(tmp_path / "one.png"),
        "label": prediction.label,
        "class_name": str(prediction.label),
        "probabilities": prediction.probabilities.tolist(),
    }
    expected = Predictor(state).classify(digits.image[:3])
    assert [line["row"] for line in lines[1:]] == [0, 1, 2]
    assert [line["probabilities"] for line in lines[1:]] == expected.tolist()
    assert {line["file"] for line in lines[1:]} == {str(csv)}


@pytest.mark.parametrize("with_label", [False, True])
def test_the_rows_of_a_csv_are_predicted_as_they_are(run, state, digits, tmp_path, capsys, with_label):
    label = np.zeros(5, int) if with_label else None
    csv = write_csv(tmp_path / "some.csv", digits.image[:5], label)
    assert main([str(run), str(csv)]) == 0
    lines = [parse_line(line) for line in capsys.readouterr().out.splitlines()]
    expected = evaluate_dataset(state, digits).predictions[:5]
    assert [line[:2] for line in lines] == [(f"{csv}[{row}]", str(k)) for row, k in enumerate(expected)]


def test_a_submission_is_what_kaggle_wants(run, state, digits, tmp_path, capsys):
    csv = write_csv(tmp_path / "test.csv", digits.image)
    output = tmp_path / "submission.csv"
    assert main([str(run), str(csv), "--submission", str(output)]) == 0
    assert capsys.readouterr() == ("", f"297 predictions are in {output}\n")
    expected = evaluate_dataset(state, digits).predictions
    assert output.read_text() == "ImageId,Label\n" + "".join(f"{n},{k}\n" for n, k in enumerate(expected, start=1))
    assert main([str(run), str(csv), "--submission", str(output)]) == 2
    assert capsys.readouterr().err == f"error: --submission must name a new file, got the existing {output}\n"


@pytest.mark.parametrize("kind", ["picture", "csv"])
def test_stdin_is_a_picture_or_a_csv(run, state, digits, tmp_path, kind):
    content, expected = to_png(draw(digits.image[0])), [predict_image(state, draw(digits.image[0])).label]
    if kind == "csv":
        content = write_csv(tmp_path / "test.csv", digits.image[:2]).read_bytes()
        expected = evaluate_dataset(state, digits).predictions[:2].tolist()
    command = [sys.executable, "-m", "mnist_jax.predict", str(run), "-", "--json"]
    done = subprocess.run(command, input=content, capture_output=True, cwd=tmp_path, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["label"] for line in lines] == expected
    assert [(line["file"], line.get("row")) for line in lines] == (
        [("stdin", None)] if kind == "picture" else [("stdin", 0), ("stdin", 1)]
    )


def test_show_writes_beside_the_picture_and_over_nothing(run, digits, tmp_path, capsys, monkeypatch):
    shown = []
    save = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **options):
        shown.append([axes.images[0].get_array() for axes in figure.axes])
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    sheet = draw(digits.image[0])
    (tmp_path / "one.png").write_bytes(to_png(sheet))
    (tmp_path / "one-seen.png").write_text("precious")
    for number in (2, 3):
        assert main([str(run), str(tmp_path / "one.png"), "--show"]) == 0
        path = tmp_path / f"one-seen-{number}.png"
        assert capsys.readouterr().err == f"{tmp_path / 'one.png'}: see {path}\n"
        assert imread(path).shape[1] == 840
    assert (tmp_path / "one-seen.png").read_text() == "precious"
    for picture, seen in shown:
        np.testing.assert_allclose(picture, sheet)
        np.testing.assert_array_equal(seen, prepare_image(sheet)[..., 0])


def test_one_bad_file_does_not_stop_the_others(run, digits, tmp_path, capsys):
    (tmp_path / "good.png").write_bytes(to_png(draw(digits.image[0])))
    (tmp_path / "blank.png").write_bytes(to_png(np.full((40, 40), 255)))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "short.csv").write_text("pixel0,pixel1\n1,2\n")
    names = ["absent.png", "blank.png", "text.png", "short.csv", "good.png"]
    assert main([str(run), *(str(tmp_path / name) for name in names)]) == 2
    captured = capsys.readouterr()
    assert [parse_line(line)[0] for line in captured.out.splitlines()] == [str(tmp_path / "good.png")]
    absent, blank, text, short = captured.err.splitlines()
    assert absent == f"error: {tmp_path / 'absent.png'}: cannot be read (No such file or directory)"
    assert blank.startswith(f"error: {tmp_path / 'blank.png'}: no ink found")
    assert text.startswith(f"error: {tmp_path / 'text.png'}: a PNG, JPEG, WebP, BMP, GIF or TIFF picture wanted")
    assert short.startswith(f"error: {tmp_path / 'short.csv'}: columns pixel0,...,pixel783 wanted")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere", "one.png"], "nowhere: a run with a config.json wanted, found none"),
        (["RUN"], "the following arguments are required: FILE"),
        (["RUN", "some.csv", "--show"], "some.csv: --show takes pictures, got a CSV file"),
        (["RUN", "one.png", "--submission", "new.csv"], "one.png: --submission takes a CSV file, got something else"),
        (["RUN", "a.csv", "b.csv", "--submission", "new.csv"], "--submission takes one CSV file, got 2 files"),
        (["RUN", "some.csv", "--submission", "no/new.csv"], "--submission no/new.csv: cannot be written .No such .*"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, digits, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    Path("one.png").write_bytes(to_png(draw(digits.image[0])))
    write_csv("some.csv", digits.image[:2])
    assert main([str(run) if arg == "RUN" else arg for arg in args]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(f"error: {message}\n", captured.err)
    assert captured.out == ""
    assert not Path("new.csv").exists()


def test_classes_have_the_names_of_the_data(run, digits, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "data": "fashion_mnist"}))
    csv = write_csv(tmp_path / "test.csv", make_split(1).image)
    assert main([str(tmp_path / "run"), str(csv), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["class_name"] == class_names_of("fashion_mnist")[line["label"]]


def test_the_photograph_of_the_readme_is_read(run):
    picture = Path(__file__).parent / "images" / "seven.jpg"
    assert predict_image(load_run(run)[1], picture).label == 7


def test_help_does_not_wait_for_jax(run_python):
    code = "import sys\nfrom mnist_jax.predict import main\ntry: main(['--help'])\nfinally: print('jax' in sys.modules)"
    done = run_python("-c", code)
    assert "usage: python -m mnist_jax.predict" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
