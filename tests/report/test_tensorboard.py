import re

import numpy as np
import pytest
from conftest import read_events
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mnist_jax.report import tensorboard
from mnist_jax.report.tensorboard import EventFile, replace_events


def test_the_events_hold_the_figures_of_the_last_evaluation(tmp_path):
    figures = [tmp_path / "first.png", tmp_path / "second.png"]
    for path, side in zip(figures, (4, 6), strict=True):
        Image.fromarray(np.zeros((side, 5, 3), np.uint8)).save(path)
    others = tmp_path / "events.out.tfevents.1.host"
    others.write_bytes(b"")
    replace_events(tmp_path, figures, step=7)
    replace_events(tmp_path, figures[1:], step=8)
    found = {key: value.image for key, value in read_events(tmp_path).items()}
    assert list(found) == [("second", 8)]
    image = found["second", 8]
    assert (image.height, image.width, image.colorspace) == (6, 5, 3)
    assert image.encoded_image_string == figures[1].read_bytes()
    assert others.exists()


def test_the_events_of_a_run_are_those_of_tensorboardx(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1795701234.5)
    events = EventFile(tmp_path, purge_step=1)
    events.add_scalars({"loss/train": 0.25, "loss/validation": 0.5}, 11)
    (path,) = tmp_path.iterdir()
    expected = EventsWriter(str(tmp_path / "expected"))
    start = SessionLog(status=SessionLog.START)
    expected.write_event(Event(wall_time=1795701234.5, step=1, session_log=start))
    values = [
        Summary.Value(tag="loss/train", simple_value=0.25),
        Summary.Value(tag="loss/validation", simple_value=0.5),
    ]
    expected.write_event(Event(wall_time=1795701234.5, step=11, summary=Summary(value=values)))
    expected.close()
    (expected_path,) = set(tmp_path.iterdir()) - {path}
    assert path.read_bytes() == expected_path.read_bytes()


def test_an_event_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_file_name", lambda: "events")
    (tmp_path / "events").symlink_to("/dev/full")
    message = f"{tmp_path / 'events'}: cannot be written (No space left on device)"
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        EventFile(tmp_path, purge_step=1)


def test_a_run_does_not_import_pytorch_which_tensorboardx_would(run_python, tmp_path):
    (tmp_path / "torch.py").write_text("Tensor = None")
    code = (
        "import sys, mnist_jax.report.tensorboardx as ours; print('torch' in sys.modules);"
        "import tensorboardX, tensorboardX.record_writer; theirs = tensorboardX.proto.event_pb2.Event;"
        "print('torch' in sys.modules, theirs is ours.Event, tensorboardX.SummaryWriter.__module__)"
    )
    done = run_python("-c", code, PYTHONPATH=str(tmp_path))
    assert done.stdout == "False\nTrue True tensorboardX.writer\n", done.stderr
