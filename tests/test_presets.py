import dataclasses
import re

import pytest

from mnist_jax import InputError, TrainConfig, preset
from mnist_jax.cli.flags import parse_flags
from mnist_jax.presets import DESCRIPTIONS, PRESETS
from mnist_jax.train import main


def parse(*args):
    return parse_flags(TrainConfig(), args, "prog")


@pytest.mark.parametrize("name", PRESETS)
def test_the_command_takes_each_preset(name):
    assert parse("--preset", name) == preset(name) == PRESETS[name]
    assert not {"workdir", "resume", "data_dir"} & {
        field.name for field in dataclasses.fields(TrainConfig) if getattr(preset(name), field.name) != field.default
    }


def test_flags_override_the_fields_of_a_preset():
    expected = dataclasses.replace(preset("fast"), epochs=2, ema_decay=0.9)
    assert parse("--preset", "fast", "--epochs", "2", "--ema-decay", "0.9") == expected
    assert parse("--epochs", "2", "--preset", "fast", "--ema-decay=0.9") == expected


def test_fields_of_a_preset_that_lose_their_effect_are_dropped():
    mlp = parse("--preset", "accurate", "--model", "mlp", "--augment-elastic", "0", "--optimizer", "sgd")
    assert (mlp.model, mlp.channels, mlp.b2) == ("mlp", TrainConfig.channels, TrainConfig.b2)
    assert (mlp.epochs, mlp.schedule, mlp.augment_rotation) == (16, "one_cycle", 10)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--preset fats", "preset must be one of fast, accurate, demo, digits, got fats; did you mean fast?"),
        (
            "--preset fast --model mlp --channels 3",
            "channels has no effect with model mlp: leave it out, or choose model cnn",
        ),
        (
            "--preset accurate --channels 8 8",
            "kernel_sizes must be as long as channels (8, 8) and not empty, got (5, 3, 3)",
        ),
        ("--preset fast --model mpl", "model must be one of mlp, cnn, got mpl; did you mean mlp?"),
        ("--preset fast --resume", "resume must be given together with --workdir, got no workdir"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, args, message):
    assert main(args.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_unknown_preset_is_refused_by_the_library():
    with pytest.raises(
        InputError, match=r"^preset must be one of fast, accurate, demo, digits, got demmo; did you mean demo\?$"
    ):
        preset("demmo")


def test_help_has_a_line_for_each_preset(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert DESCRIPTIONS.keys() == PRESETS.keys()
    for name, description in DESCRIPTIONS.items():
        assert re.search(rf"^ +{name} +{re.escape(description)}$", text, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.uses_adam
def test_a_preset_trains(tmp_path, capsys):
    flags = ["--channels", "2", "2", "--data", "digits", "--workdir", str(tmp_path / "run"), "--quiet"]
    assert main(["--preset", "fast", *flags]) == 0
    assert "cnn on digits" in capsys.readouterr().out
