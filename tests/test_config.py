import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from mnist_jax import InputError, TrainConfig
from mnist_jax.config import effective_config


def test_defaults_are_those_of_the_readme():
    config = TrainConfig()
    assert (config.model, config.hidden_sizes, config.dropout_rate) == ("mlp", (512, 256), 0.2)
    assert (config.optimizer, config.batch_size, config.epochs) == ("adam", 128, 10)


def test_json_gives_the_config_back():
    config = TrainConfig(data="digits", hidden_sizes=(3, 2), clip_norm=1.0, ema_decay=None, schedule="cosine")
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("microbatch_size", 0, "microbatch_size must be at least 1, got 0"),
        ("early_stopping", 0, "early_stopping must be at least 1, got 0"),
        ("early_stopping", 0.5, "early_stopping must be a whole number, got 0.5"),
        ("dtype", "float64", "dtype must be one of float32, bfloat16, got float64; did you mean bfloat16\\?"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("batch_size", 1.5, "batch_size must be a whole number, got 1.5"),
        ("epochs", True, "epochs must be a whole number, got True"),
        ("seed", -1, r"seed must be in \[0, 2\*\*32\), got -1"),
        ("seed", 2**32, r"seed must be in \[0, 2\*\*32\), got 4294967296"),
        ("num_validation", 0, "num_validation must be at least 1, got 0"),
        ("hidden_sizes", (3, 0), r"hidden_sizes must be at least 1 each, got \(3, 0\)"),
        ("hidden_sizes", (2**31,), r"hidden_sizes must be below 2\*\*31 each, got \(2147483648,\)"),
        ("hidden_sizes", (1,) * 1001, r"hidden_sizes must be at most 1000 layers, got \([1, ]{76}\.\.\."),
        ("kernel_sizes", (1000, 1), r"kernel_sizes must be at most 1000 rows in all, got \(1000, 1\)"),
        ("epochs", 2**31, r"epochs must be below 2\*\*31, got 2147483648"),
        ("dense_size", 10**400, r"dense_size must be below 2\*\*31, got 10{76}\.\.\."),
        ("hidden_sizes", 5, "hidden_sizes must be whole numbers, got 5"),
        ("hidden_sizes", (3, "x"), r"hidden_sizes must be whole numbers, got \(3, 'x'\)"),
        ("learning_rate", "high", "learning_rate must be a number, got 'high'"),
        ("learning_rate", None, "learning_rate must be a number, got None"),
        ("quiet", "yes", "quiet must be True or False, got yes"),
        ("workdir", 5, "workdir must be text, got 5"),
        ("workdir", "", "workdir must be a name, got an empty string"),
        ("kernel_sizes", (3,), r"kernel_sizes must be as long as channels \(24, 32\) and not empty, got \(3,\)"),
        ("dropout_rate", 1.0, r"dropout_rate must be in \[0, 1\), got 1.0"),
        ("ema_decay", -0.1, r"ema_decay must be in \[0, 1\), got -0.1"),
        ("learning_rate", math.nan, "learning_rate must be a finite number above 0, got nan"),
        ("learning_rate", math.inf, "learning_rate must be a finite number above 0, got inf"),
        ("learning_rate", 10**400, "learning_rate must be a finite number above 0, got inf"),
        ("momentum", -(10**400), r"momentum must be in \[0, 1\), got -inf"),
        ("clip_norm", 0.0, "clip_norm must be a finite number above 0, got 0.0"),
        ("pool_sizes", (2, 2, 2), r"pool_sizes must be one for all or as long as channels \(24, 32\), got \(2, 2, 2\)"),
        ("pool_sizes", (0,), r"pool_sizes must be at least 1 each, got \(0,\)"),
        ("padding", "full", "padding must be one of valid, same, got full"),
        ("dense_size", -1, "dense_size must be at least 0, got -1"),
        ("adversarial_radius", -1.0, "adversarial_radius must be a finite number, 0 or above, got -1.0"),
        ("augment_shift", 15, r"augment_shift must be in \[0, 14\], got 15.0"),
        ("augment_rotation", -1, r"augment_rotation must be in \[0, 45\], got -1.0"),
        ("augment_scale", 0.6, r"augment_scale must be in \[0, 0.5\], got 0.6"),
        ("augment_shear", math.nan, r"augment_shear must be in \[0, 0.5\], got nan"),
        ("augment_elastic", 8, r"augment_elastic must be in \[0, 7\], got 8.0"),
        ("augment_smoothness", 1, r"augment_smoothness must be in \[2, 14\], got 1.0"),
        ("augment_erasing", 1.5, r"augment_erasing must be in \[0, 1\], got 1.5"),
        ("dp_clip", 0.0, "dp_clip must be a finite number above 0, got 0.0"),
        ("dp_noise", -1.0, "dp_noise must be a finite number above 0, got -1.0"),
        ("dp_epsilon", math.inf, "dp_epsilon must be a finite number above 0, got inf"),
        ("dp_delta", 1.0, r"dp_delta must be in \(0, 1\), got 1.0"),
        ("dp_clip", 1.0, "dp_clip must be given together with dp_noise or dp_epsilon, got neither"),
        ("weight_decay", -1.0, "weight_decay must be a finite number, 0 or above, got -1.0"),
        ("model", "rnn", "model must be one of mlp, cnn, got rnn; did you mean cnn\\?"),
        ("model", "transformer", "model must be one of mlp, cnn, got transformer"),
        ("optimizer", "lion", "optimizer must be one of sgd, momentum, adam, adamw, got lion"),
        ("resume", True, "resume must be given together with --workdir, got no workdir"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config: not JSON"),
        ("[]", "config: must be a JSON object, got list"),
        ('{"colour": 1}', "^config: unknown field 'colour'$"),
        ('{"epoch": 1}', r"^config: unknown field 'epoch'; did you mean epochs\?$"),
        ('{"dropout_rate": "high"}', "dropout_rate must be a number, got 'high'"),
        ('{"batch_size": "many"}', "batch_size must be a whole number, got 'many'"),
    ],
)
def test_a_damaged_file_is_named(text, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_json(text)


def test_numbers_of_numpy_and_paths_are_taken():
    config = TrainConfig(learning_rate=np.float32(0.5), epochs=np.int64(3), hidden_sizes=[4], workdir=Path("x"))
    assert config == TrainConfig(learning_rate=0.5, epochs=3, hidden_sizes=(4,), workdir="x")
    assert TrainConfig.from_json(config.to_json()) == config


def test_differences_leave_out_how_a_run_is_shown():
    one = TrainConfig(workdir="a", quiet=True, data_dir="x")
    assert one.differences(dataclasses.replace(one, workdir="b", quiet=False, data_dir=None, resume=True)) == []
    assert one.differences(dataclasses.replace(one, seed=1, epochs=2)) == ["epochs", "seed"]


def test_differences_leave_out_noise_that_was_found():
    asked = TrainConfig(dp_clip=1.0, dp_epsilon=3.0)
    assert dataclasses.replace(asked, dp_noise=1.5).differences(asked) == []
    assert dataclasses.replace(asked, dp_noise=1.5).differences(dataclasses.replace(asked, dp_noise=1.0)) == [
        "dp_noise"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": (8, 8)}, "channels has no effect with model mlp: leave it out, or choose model cnn"),
        ({"kernel_sizes": (3, 3)}, "kernel_sizes has no effect with model mlp: leave it out, or choose model cnn"),
        ({"pool_sizes": (1,)}, "pool_sizes has no effect with model mlp: leave it out, or choose model cnn"),
        ({"padding": "same"}, "padding has no effect with model mlp: leave it out, or choose model cnn"),
        ({"dense_size": 8}, "dense_size has no effect with model mlp: leave it out, or choose model cnn"),
        (
            {"model": "cnn", "hidden_sizes": (8,)},
            "hidden_sizes has no effect with model cnn: leave it out, or choose model mlp",
        ),
        ({"momentum": 0.5}, "momentum has no effect with optimizer adam: leave it out, or choose optimizer momentum"),
        (
            {"optimizer": "sgd", "b1": 0.5},
            "b1 has no effect with optimizer sgd: leave it out, or choose optimizer adam or adamw",
        ),
        (
            {"optimizer": "momentum", "b2": 0.5},
            "b2 has no effect with optimizer momentum: leave it out, or choose optimizer adam or adamw",
        ),
        (
            {"schedule": "cosine", "warmup_fraction": 0.5},
            "warmup_fraction has no effect with schedule cosine: leave it out, "
            "or choose schedule warmup_constant or warmup_cosine",
        ),
        (
            {"augment_smoothness": 5},
            "augment_smoothness has no effect without augment_elastic: leave it out, or choose augment_elastic above 0",
        ),
        ({"dp_noise": 1}, "dp_noise has no effect without dp_clip: leave it out, or choose dp_clip above 0"),
        ({"dp_epsilon": 1}, "dp_epsilon has no effect without dp_clip: leave it out, or choose dp_clip above 0"),
        ({"dp_delta": 1e-6}, "dp_delta has no effect without dp_clip: leave it out, or choose dp_clip above 0"),
        (
            {"dp_clip": 1, "dp_noise": 1, "batch_norm": True},
            "dp_clip cannot protect batch_norm, which mixes the examples of a batch: leave one out",
        ),
        (
            {"dp_clip": 1, "dp_epsilon": 1, "stream": True},
            "dp_clip needs the training examples in memory: leave out stream",
        ),
        (
            {"dp_clip": 1.0, "dp_noise": 1.0, "keep_hardest": 0.5, "scores": "scores.csv"},
            "dp_clip cannot protect keep_hardest, whose choice of examples depends on the data",
        ),
        (
            {"dp_clip": 1.0, "dp_noise": 1.0, "record": True},
            "record needs epochs of all examples, but dp_clip samples them: leave one out",
        ),
    ],
)
def test_a_field_without_effect_is_refused(fields, message):
    with pytest.raises(InputError) as refused:
        TrainConfig(**fields)
    assert str(refused.value) == message


def test_fields_without_effect_can_be_left_out():
    fields = {"model": "cnn", "hidden_sizes": (8,), "channels": (2, 3), "momentum": 0.5, "augment_smoothness": 5}
    assert effective_config(fields) == TrainConfig(model="cnn", channels=(2, 3))


def test_a_run_of_an_earlier_version_may_have_had_fields_without_effect():
    text = TrainConfig(epochs=3).to_json().replace('"momentum": 0.9', '"momentum": 0.5')
    assert TrainConfig.from_json(text) == TrainConfig(epochs=3)
    with pytest.raises(InputError, match=r"momentum must be in \[0, 1\), got 2.0"):
        TrainConfig.from_json(text.replace('"momentum": 0.5', '"momentum": 2'))
