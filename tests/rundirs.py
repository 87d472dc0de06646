"""Run directories without a training."""

import json
import os

from mnist_jax import TrainConfig

SUMMARY = {
    "num_parameters": 12345,
    "validation_accuracy": 0.975,
    "test_accuracy": 0.9625,
    "seconds": {"train": 1.25},
}


def write_run(path, modified, num_epochs=2, summary=None, **fields):
    path.mkdir(parents=True)
    (path / "config.json").write_text(TrainConfig(data="digits", epochs=2, **fields).to_json())
    os.utime(path / "config.json", (modified, modified))
    if num_epochs:
        (path / "metrics.jsonl").write_text("{}\n" * num_epochs)
        os.utime(path / "metrics.jsonl", (modified, modified))
    if summary:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def write_runs(directory):
    """Finished, unfinished and damaged runs, and what is none."""
    write_run(directory / "old", 1000, summary=SUMMARY)
    write_run(directory / "new", 3000, summary={**SUMMARY, "test_accuracy": 0.5}, model="cnn")
    write_run(directory / "going", 4000, num_epochs=1)
    write_run(directory / "started", 2000, num_epochs=0)
    (directory / "notes.txt").write_text("not a run")
    (directory / "empty").mkdir()
    damaged = write_run(directory / "damaged", 5000)
    (damaged / "config.json").write_text("{")
    write_run(directory / "incomplete", 5000, summary={"test_accuracy": 0.5})
    damaged = write_run(directory / "damaged too", 5000)
    (damaged / "summary.json").write_text("[3]")
    return directory
