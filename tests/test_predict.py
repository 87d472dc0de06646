import dataclasses
import io
import json
import os
import re
import sys
from csv import reader
from pathlib import Path

import numpy as np
import pytest
from conftest import CSV_HEADER, make_arrays, write_csv
from drawing import PHOTOGRAPH
from PIL import Image

from mnist_jax import Prediction, Predictor, load_dataset, load_predictor
from mnist_jax.data import class_names_of
from mnist_jax.pictures.results import to_line
from mnist_jax.predict import main

NO_LABEL = CSV_HEADER.removeprefix("label,")


@pytest.fixture(scope="module")
def run(digits_run):
    """The directory of a run on scikit-learn's digits."""
    return str(digits_run.workdir)


@pytest.fixture
def picture(tmp_path, monkeypatch):
    """The name of a picture in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("seven.jpg").write_bytes(PHOTOGRAPH.read_bytes())
    return "seven.jpg"


@pytest.fixture
def csv(tmp_path, monkeypatch):
    """The name of a Kaggle CSV in the current directory, of 14 images."""
    monkeypatch.chdir(tmp_path)
    write_digits("test.csv", load_dataset("digits").test.image[:14])
    return "test.csv"


def write_digits(name, image):
    lines = [NO_LABEL, *(",".join(map(str, row)) for row in image.reshape(len(image), -1))]
    Path(name).write_text("\n".join(lines) + "\n")


def set_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_line_for_each_picture(run, picture, capsys):
    Image.new("L", (40, 40), 255).save("a.png")
    Path("longer-name.jpg").write_bytes(PHOTOGRAPH.read_bytes())
    assert main([run, picture, "a.png", "missing.png", "longer-name.jpg"]) == 2
    out, err = capsys.readouterr()
    prediction = load_predictor(run)(picture)
    line = to_line(prediction, tuple("0123456789"))
    assert out == f"seven.jpg        {line}\nlonger-name.jpg  {line}\n"
    assert err == (
        "error: a.png: no ink found: expected a digit that stands out from its background\n"
        "error: missing.png: cannot be read (No such file or directory)\n"
    )


def test_the_line_names_the_likely_classes():
    def predict(probabilities):
        return Prediction(int(probabilities.argmax()), "", probabilities, np.zeros(0))

    prediction = predict(np.array([0.1, 0.85, 0.0496, 0.0004], np.float32))
    assert to_line(prediction, ("zero", "one", "two", "three")) == "one     85.0 %   (zero 10.0 %, two 5.0 %)"
    prediction = predict(np.array([0.0001, 0.9999], np.float32))
    assert to_line(prediction, ("no", "yes")) == "yes  100.0 %"
    doubtful = dataclasses.replace(prediction, doubt="unlike the images it was trained on")
    assert to_line(doubtful, ("no", "yes")) == "yes  100.0 %   not sure: unlike the images it was trained on"


def test_json_lines(run, picture, csv, capsys):
    assert main([run, picture, csv, "--json"]) == 0
    first, *others = map(json.loads, capsys.readouterr().out.splitlines())
    predictor = load_predictor(run)
    prediction = predictor(picture)
    assert list(first) == ["file", "label", "class_name", "probabilities", "doubt"]
    assert (first["file"], first["label"], first["class_name"]) == (picture, prediction.label, prediction.class_name)
    np.testing.assert_allclose(first["probabilities"], prediction.probabilities, rtol=1e-6)
    assert [(each["file"], each["row"]) for each in others] == [(csv, row) for row in range(14)]
    expected = predictor.classify(load_dataset("digits").test.image[:14])
    np.testing.assert_allclose([each["probabilities"] for each in others], expected, rtol=1e-6)


def test_rows_of_a_csv_are_read_as_they_are(run, csv, capsys):
    assert main([run, csv]) == 0
    lines = capsys.readouterr().out.splitlines()
    labels = load_predictor(run).classify(load_dataset("digits").test.image[:14]).argmax(axis=1)
    assert [line.split()[:2] for line in lines] == [[f"test.csv[{i}]", str(label)] for i, label in enumerate(labels)]
    assert len({line.index(" %") for line in lines}) == 1
    assert (labels == load_dataset("digits").test.label[:14]).mean() > 0.7  # the run has learnt something


def test_a_csv_with_labels_or_a_damaged_one(run, picture, capsys):
    arrays = make_arrays(4)
    write_csv(Path("train.csv"), arrays["train_label"], arrays["train_image"].reshape(4, -1))
    write_csv(Path("bad.csv"), [0], [[300] * 784])
    Path("other.csv").write_text("a,b\n1,2\n")
    assert main([run, "train.csv", "bad.csv", "other.csv"]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert err == (
        "error: bad.csv: pixels must be 0 to 255, got 300 at example 0, pixel0\n"
        "error: other.csv: expected columns pixel0,...,pixel783, missing pixel0 and 783 more\n"
    )


def test_stdin_is_told_apart_by_its_content(run, csv, monkeypatch, capsys):
    set_stdin(monkeypatch, PHOTOGRAPH.read_bytes())
    assert main([run, "-", "--json"]) == 0
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["file"], "row" in found) == ("stdin", False)
    set_stdin(monkeypatch, Path(csv).read_bytes())
    assert main([run, "-", "--json"]) == 0
    assert [json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()] == [*range(14)]
    set_stdin(monkeypatch, b"neither")
    assert main([run, "-"]) == 2
    assert capsys.readouterr().err.startswith("error: stdin: expected a PNG, JPEG")


def test_show_writes_a_picture_and_overwrites_none(run, picture, monkeypatch, capsys):
    for name in ("seven-seen.png", "seven-seen-2.png"):
        assert main([run, picture, "--show"]) == 0
        assert capsys.readouterr().err == f"seven.jpg: wrote {name}\n"
    first, second = (np.asarray(Image.open(name)) for name in ("seven-seen.png", "seven-seen-2.png"))
    np.testing.assert_array_equal(first, second)
    assert first.std() > 50
    set_stdin(monkeypatch, PHOTOGRAPH.read_bytes())
    assert main([run, "-", "--show"]) == 0
    assert Path("stdin-seen.png").exists()


def test_show_takes_no_csv(run, picture, csv, capsys):
    assert main([run, csv, picture, "--show"]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "error: test.csv: expected a picture for --show, got a CSV file",
        "seven.jpg: wrote seven-seen.png",
    ]
    assert len(out.splitlines()) == 1


def test_a_picture_that_cannot_be_shown_there_is_one_line(run, picture, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mnist_jax.atomic.open", refuse, raising=False)
    assert main([run, picture, "--show"]) == 2
    assert capsys.readouterr().err == "error: seven-seen.png: cannot be written (Permission denied)\n"


def test_a_submission_for_kaggle(run, csv, capsys):
    assert main([run, csv, "--submission", "out.csv"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "wrote 14 predictions to out.csv\n")
    labels = load_predictor(run).classify(load_dataset("digits").test.image[:14]).argmax(axis=1)
    lines = ["ImageId,Label", *(f"{number},{label}" for number, label in enumerate(labels, start=1))]
    assert Path("out.csv").read_text() == "\n".join(lines) + "\n"
    assert main([run, csv, "--submission", "out.csv"]) == 2
    assert capsys.readouterr().err == "error: --submission must name a new file, got the existing out.csv\n"


@pytest.mark.parametrize(
    ("files", "submission", "message"),
    [
        (["test.csv", "test.csv"], "out.csv", "expected one CSV file for --submission, got 2 files"),
        ([str(PHOTOGRAPH)], "out.csv", f"{PHOTOGRAPH}: expected a CSV file for --submission, got another file"),
        (["test.csv"], "no/out.csv", "--submission no/out.csv: cannot be written (No such file or directory)"),
    ],
)
def test_a_submission_that_cannot_be_made_is_one_line(run, csv, files, submission, message, capsys):
    assert main([run, *files, "--submission", submission]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert not Path(submission).exists()


@pytest.fixture
def folder(run, tmp_path, monkeypatch):
    """A folder ``digits`` of 14 test images, one folder per class, and the names of the files."""
    monkeypatch.chdir(tmp_path)
    test = load_dataset("digits").test
    names = []
    for index, (image, label) in enumerate(zip(test.image[:14, :, :, 0], test.label, strict=False)):
        path = Path("digits", str(label), f"{index:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - image).save(path)
        names.append(str(path))
    return sorted(names)


def test_a_folder_is_read_in_order_and_compared_with_the_names_of_its_folders(run, folder, capsys):
    assert main([run, "digits"]) == 0
    *lines, accuracy = capsys.readouterr().out.splitlines()
    predictor = load_predictor(run)
    assert lines == [f"{name}  {to_line(predictor(name), tuple('0123456789'))}" for name in folder]
    correct = sum(name.split("/")[1] == line.split()[1] for name, line in zip(folder, lines, strict=True))
    assert correct > 7
    assert accuracy == f"accuracy {100 * correct / 14:.1f} % ({correct} of 14), by the names of their folders"


def test_what_cannot_be_read_in_a_folder_is_a_line_and_counted(run, folder, capsys):
    for name in folder[2:]:
        Path(name).unlink()
    Path("digits/7").mkdir(exist_ok=True)
    Path("digits/7/bad.PNG").write_text("no picture")
    Path("digits/7/new\nline.gif").write_text("no picture")
    for skipped in ("digits/7/notes.txt", "digits/7/test.csv", "digits/7/.hidden.png", "digits/7/a-seen-2.png"):
        Path(skipped).write_text("no picture")
    Path("digits/.hidden").mkdir()
    Path("digits/.hidden/a.png").write_text("no picture")
    assert main([run, "digits", "--json"]) == 2
    out, err = capsys.readouterr()
    assert [json.loads(line)["file"] for line in out.splitlines()] == folder[:2]
    message = "expected a PNG, JPEG, WebP, BMP, GIF or TIFF picture, got something else"
    *errors, accuracy = err.splitlines()
    assert errors == [f"error: digits/7/bad.PNG: {message}", f"error: digits/7/new\\nline.gif: {message}"]
    assert accuracy.endswith("of 2), by the names of their folders; 2 could not be read")


def test_folders_of_other_names_say_nothing_of_accuracy(run, folder, capsys):
    names = [name for name in folder if name.startswith(folder[0][:9])]
    assert main([run, folder[0][:8]]) == 0  # the folder of a class, not a folder inside the given one
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


def test_folders_without_pictures_or_that_cannot_be_read(run, folder, picture, monkeypatch, capsys):
    Path("empty/more").mkdir(parents=True)
    Path("empty/notes.txt").touch()
    scandir = os.scandir

    def refuse(path):
        if str(path) == folder[0][:8]:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main([run, "empty", picture, "digits"]) == 2
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [picture]
    assert err == (
        "error: empty: expected a folder with pictures (.png, .apng, .jpg, .jpeg, .jpe, .jfif, .mpo, .webp, .bmp, "
        f".dib, .gif, .tif, .tiff), found none\nerror: {folder[0][:8]}: cannot be read (Permission denied)\n"
    )


def test_many_pictures_pass_through_the_network_together(run, folder, csv, monkeypatch, capsys):
    sizes = []
    predict = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda self, image: sizes.append(len(image)) or predict(self, image))
    monkeypatch.setattr("mnist_jax.predict._BATCH_SIZE", 6)
    assert main([run, "digits", csv, folder[3]]) == 0
    assert sizes == [6, 6, 2, 14, 1]
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert names == [*folder, *(f"{csv}[{row}]" for row in range(14)), folder[3]]


def test_all_probabilities_as_a_csv(run, folder, csv, capsys):
    Path("digits/bad.png").write_text("no picture")
    assert main([run, "digits", csv, "--csv", "out.csv"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("accuracy ")
    assert err.splitlines()[1:] == ["wrote 28 predictions to out.csv"]
    with Path("out.csv").open(newline="") as file:
        header, *rows = reader(file)
    assert header == ["file", "row", "label", "class_name", "probability", *"0123456789"]
    assert [row[:2] for row in rows] == [[name, ""] for name in folder] + [[csv, str(row)] for row in range(14)]
    probabilities = np.array([row[5:] for row in rows], np.float32)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    expected = load_predictor(run).classify(load_dataset("digits").test.image[:14])
    np.testing.assert_array_equal(probabilities[14:], expected)
    labels = probabilities.argmax(1)
    assert [row[2:4] for row in rows] == [[str(label)] * 2 for label in labels]
    np.testing.assert_array_equal(np.array([row[4] for row in rows], np.float32), probabilities.max(1))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["seven.jpg", "--csv", "seven.jpg"], "--csv must name a new file, got the existing seven.jpg"),
        (["seven.jpg", "--csv", "no/out.csv"], "--csv no/out.csv: cannot be written (No such file or directory)"),
        (["seven.jpg", "--csv", "out.csv", "--json"], "--csv cannot be combined with --json"),
        (["test.csv", "--csv", "out.csv", "--submission", "o"], "--csv cannot be combined with --submission"),
        ([".", "--submission", "out.csv"], "expected one CSV file for --submission, got the folder ."),
    ],
)
def test_a_csv_that_cannot_be_written_is_one_line(run, picture, args, message, capsys):
    assert main([run, *args]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert Path(picture).read_bytes() == PHOTOGRAPH.read_bytes()
    assert list(Path().iterdir()) == [Path(picture)]


def test_no_csv_is_written_without_a_prediction(run, picture, capsys):
    Path(picture).write_text("no picture")
    assert main([run, picture, "--csv", "out.csv"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "error: --csv out.csv: not written, as no picture could be read"
    ]
    assert list(Path().iterdir()) == [Path(picture)]


def test_class_names_are_those_of_the_data(run, picture, capsys):
    data = Path(run) / "data.json"
    text = data.read_text()
    try:
        data.write_text(json.dumps({**json.loads(text), "class_names": class_names_of("fashion_mnist")}))
        assert main([run, picture, "--json"]) == 0
    finally:
        data.write_text(text)
    found = json.loads(capsys.readouterr().out)
    assert found["class_name"] == class_names_of("fashion_mnist")[found["label"]]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: FILE"),
        (["nowhere", "seven.jpg"], "nowhere: expected a run with a config.json, found none"),
        (["nowhere", "seven.jpg", "--bogus"], "unknown flag --bogus"),
    ],
)
def test_a_wrong_command_is_one_line(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_without_a_run_the_network_in_the_box_answers(picture, capsys):
    assert main([picture]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"seven\.jpg  7  +\d+\.\d %\n", out)
    assert err == "using the network in the box, a cnn on MNIST and scikit-learn's digits\n"


def test_the_first_argument_is_a_run_a_folder_or_a_picture(run, picture, capsys):
    Path("folder").mkdir()
    Path("folder", "a.jpg").write_bytes(PHOTOGRAPH.read_bytes())
    assert main(["folder", picture]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["folder/a.jpg", "seven.jpg"]
    for args, message in (
        ([run], f"expected a picture, a folder or a CSV after the run {run}, got none"),
        (["nowhere", picture], "nowhere: expected a run with a config.json, found none"),
        ([str(Path(run).parent), picture], f"{Path(run).parent}: expected a run with a config.json, found none; name "),
    ):
        assert main(args) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")
