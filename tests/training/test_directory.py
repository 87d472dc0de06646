import contextlib
import dataclasses
import gc
import json

import pytest

from mnist_jax import InputError, TrainConfig
from mnist_jax.training.directory import RunDirectory, describe_model, read_config, read_data
from mnist_jax.training.workdir import new_directory, write_whole

DATA = {"name": "digits", "num_train": 1350}


@pytest.fixture
def config(tmp_path):
    return TrainConfig(workdir=str(tmp_path / "run"), data="digits")


@pytest.fixture
def saved(config):
    workdir = RunDirectory.claim(config)
    workdir.create(config, DATA, "mlp")
    workdir.close()
    return dataclasses.replace(config, resume=True)


def check(config, data):
    with contextlib.closing(RunDirectory.claim(config)) as directory:
        directory.check_data(data)


def test_a_new_run_writes_its_config(config, tmp_path):
    workdir = RunDirectory.claim(config)
    assert not (tmp_path / "run").exists()
    workdir.create(config, DATA, "mlp")
    workdir.close()
    assert TrainConfig.from_json((tmp_path / "run" / "config.json").read_text()) == config
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == DATA
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "data.json"]


def test_without_a_name_it_gets_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = RunDirectory.claim(TrainConfig())
    workdir.create(TrainConfig(), {**DATA, "name": "emnist/digits"}, "mlp")
    workdir.close()
    assert workdir.path.parent.name == "runs"
    assert workdir.path.name.startswith("emnist-digits-mlp-2")


def test_two_at_once_do_not_share_a_directory(config):
    first, second = RunDirectory.claim(config), RunDirectory.claim(config)
    first.create(config, DATA, "mlp")
    message = "workdir .*run is in use by another process: wait for it, or name another directory"
    with pytest.raises(InputError, match=message):
        second.create(config, DATA, "mlp")
    with pytest.raises(InputError, match=message):  # before anything of it is read
        RunDirectory.claim(dataclasses.replace(config, resume=True))
    first.close()
    with pytest.raises(InputError, match=message):
        second.create(config, DATA, "mlp")  # it was new when it was claimed, and is not any more
    second.close()
    resumed = RunDirectory.claim(dataclasses.replace(config, resume=True))
    resumed.create(config, DATA, "mlp")
    resumed.close()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", ["nothing", ".lock", "config.json.part", "config.json", "data.json.part", "data.json"])
def test_wherever_a_new_run_is_killed_it_can_begin_or_go_on(config, tmp_path, monkeypatch, last):
    """As at a kill, the lock and the unfinished file stay."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:

        def write(path, text):
            if path.name == last.removesuffix(".part"):
                unfinished = path.with_name(f"{path.name}.0badf00d.part") if last.endswith(".part") else path
                unfinished.write_text(text)
                raise Killed
            write_whole(path, text)

        patch.setattr("mnist_jax.training.directory.write_whole", write)
        if last not in ("nothing", ".lock"):
            with pytest.raises(Killed):
                RunDirectory.claim(config).create(config, DATA, "mlp")
    if last != "nothing":
        run.mkdir(exist_ok=True)
        (run / ".lock").write_text("")
    gc.collect()  # releases the lock
    is_run = (run / "config.json").exists()
    if not is_run:
        with pytest.raises(InputError, match="resume: expected a run with a config.json in .*run, found none"):
            RunDirectory.claim(dataclasses.replace(config, resume=True))
    with contextlib.closing(RunDirectory.claim(dataclasses.replace(config, resume=is_run))) as directory:
        directory.check_data(DATA)
        directory.create(config, DATA, "mlp")
    assert {path.name for path in run.iterdir()} == {"config.json", "data.json"}
    check(dataclasses.replace(config, resume=True), DATA)


def test_files_that_are_not_ours_do_not_matter(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    RunDirectory.claim(config).create(config, DATA, "mlp")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "data.json", "metrics.jsonl", "summary.json", "checkpoints"])
def test_a_run_is_never_overwritten(config, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("precious")
    with pytest.raises(InputError, match=f"workdir .*run already holds a run .{name}.: name another directory, or"):
        RunDirectory.claim(config)
    assert (tmp_path / "run" / name).read_text() == "precious"


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=rf"^{tmp_path}: .*Is a directory"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**24 + 1)  # takes no space
    with pytest.raises(InputError, match=f"^{path}: larger than 16777216 bytes$"):
        read_config(path)


def test_resuming_may_change_the_epochs_and_how_it_is_shown(saved):
    more = dataclasses.replace(saved, epochs=99, early_stopping=3, quiet=True, data=None)
    with contextlib.closing(RunDirectory.claim(more)) as directory:
        assert directory.saved == dataclasses.replace(saved, resume=False)


def test_a_run_that_goes_on_has_no_final_numbers(saved):
    workdir = RunDirectory.claim(saved)
    workdir.write_summary({"test_accuracy": 0.5})
    with contextlib.closing(workdir):
        workdir.create(saved, DATA, "mlp")
        assert not (workdir.path / "summary.json").exists()


def test_resuming_anything_else_names_the_field(saved, tmp_path):
    with pytest.raises(InputError, match="resume: learning_rate must be 0.001 as in .*config.json, got 0.5"):
        RunDirectory.claim(dataclasses.replace(saved, learning_rate=0.5))
    with pytest.raises(InputError, match="resume: data must be 'digits' as in .*config.json, got 'mnist'"):
        RunDirectory.claim(dataclasses.replace(saved, data="mnist"))
    with pytest.raises(
        InputError, match="resume: expected a run with a config.json in .*other, found none; leave out --resume to"
    ):
        RunDirectory.claim(dataclasses.replace(saved, workdir=str(tmp_path / "other")))
    (tmp_path / "run" / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="config.json: .*can't decode"):
        RunDirectory.claim(saved)
    with pytest.raises(InputError, match="workdir x{80}: cannot be used .File name too long."):
        RunDirectory.claim(dataclasses.replace(saved, workdir="x" * 300))
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: config: not JSON"):
        RunDirectory.claim(saved)


def test_checkpoints_that_are_a_file_are_refused_and_nothing_is_deleted(saved, tmp_path):
    for name in ("checkpoints", "summary.json"):
        (tmp_path / "run" / name).write_text("precious")
    before = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="resume: expected a directory of checkpoints, got the file .*run/checkpoints"):
        RunDirectory.claim(saved)
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == before


def test_resuming_on_other_data_is_refused_and_changes_nothing(saved, tmp_path):
    before = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match=r"resume: expected the data of .*data.json, .*1350.*, got .*60000.*"):
        check(saved, {**DATA, "num_train": 60000})
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == before
    with pytest.raises(InputError, match=r"data.json, {'num_train': 1350}, got {'num_train': 'x+\.\.\.x+'}$"):
        check(saved, {**DATA, "num_train": "x" * 1000})
    (tmp_path / "run" / "data.json").write_text("{")
    with pytest.raises(InputError, match="data.json: expected a JSON object"):
        check(saved, DATA)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], r"expected a JSON object, got \[1\]"),
        ({"class_names": True}, "class_names must be a list of strings, got True"),
        ({"class_names": [0, 1]}, r"class_names must be a list of strings, got \[0, 1\]"),
        ({"num_train": "1350"}, r"num_train must be a whole number below 2\*\*31, got '1350'"),
        ({"num_train": 10**400}, r"num_train must be a whole number below 2\*\*31, got 10+\.\.\.0+"),
        ({"name": [[["x" * 30] * 6] * 6] * 6}, "name must be text, got .{200}"),
        ({"label_checksum": [{}]}, r"label_checksum must be text, got \[{}\]"),
        ({"path": 3}, "path must be text or null, got 3"),
        ({"model": [1] * 1000}, r"model must be text or null, got \[1, 1, 1, 1, 1, 1, \.\.\.\]"),
        ({"has_own_optimizer": 1}, "has_own_optimizer must be true or false, got 1"),
    ],
)
def test_data_of_other_types_is_named(tmp_path, content, message):
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"^{tmp_path}/data.json: {message}$"):
        read_data(tmp_path)


def test_the_name_of_a_model_stays_in_its_line():
    assert describe_model("a\n\x1bb" + "c" * 1000) == f"a custom model, a b{'c' * 197}"
    assert describe_model(None) == "the model of its config"


def test_a_place_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="workdir must be a directory, got the file .*file"):
        RunDirectory.claim(dataclasses.replace(config, workdir=str(tmp_path / "file")))
    inside = dataclasses.replace(config, workdir=str(tmp_path / "file" / "run"))
    message = r"^workdir must be a writable directory, got .*{} \({}\)$"
    with pytest.raises(InputError, match=message.format("file/run", "Not a directory")):
        RunDirectory.claim(inside).create(inside, DATA, "mlp")
    with pytest.raises(InputError, match=message.format("file", "File exists")):
        new_directory(tmp_path / "file", "digits-mlp")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(InputError, match=message.format("dangling", "File exists")):
        new_directory(tmp_path / "dangling", "digits-mlp")
    with pytest.raises(InputError, match=message.format("file", "Not a directory")):
        write_whole(tmp_path / "file" / "config.json", "{}")


def test_the_history_comes_back_as_far_as_asked(saved):
    workdir = RunDirectory.claim(saved)
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds")
    history = [{"epoch": epoch, **dict.fromkeys(names, 0.5 / epoch)} for epoch in (1, 2)]
    workdir.write_history(history)
    assert workdir.read_history(2) == history
    assert workdir.read_history(1) == history[:1]
    with pytest.raises(InputError, match="metrics.jsonl: expected a line for each of the 3 epochs trained, got 2"):
        workdir.read_history(3)
    for value in ("0.5", None, True, float("nan"), 10**400):
        workdir.write_history([history[0], {**history[1], "seconds": value}])
        with pytest.raises(InputError, match="metrics.jsonl: expected a number as seconds of epoch 2, got "):
            workdir.read_history(1)
    (workdir.path / "metrics.jsonl").write_text("1\n2\n")
    with pytest.raises(InputError, match="metrics.jsonl: expected epochs 1, 2, ... one on each line"):
        workdir.read_history(1)
    (workdir.path / "metrics.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(InputError, match="metrics.jsonl: expected a JSON object on each line"):
        workdir.read_history(1)
    (workdir.path / "metrics.jsonl").unlink()
    (workdir.path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics.jsonl: expected a JSON object on each line .*Is a directory"):
        workdir.read_history(1)


def test_the_summary_is_json(saved):
    workdir = RunDirectory.claim(saved)
    workdir.write_summary({"test_accuracy": 0.5})
    assert json.loads((workdir.path / "summary.json").read_text()) == {"test_accuracy": 0.5}
    workdir.close()
    assert sorted(path.name for path in workdir.path.iterdir()) == ["config.json", "data.json", "summary.json"]
