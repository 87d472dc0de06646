"""The cost model computes what its formula says, and the README shows what it prints."""

import dataclasses
import math
from pathlib import Path

import pytest

from benchmarks.cost_model import (
    CNN,
    H100,
    H200,
    MLP,
    all_reduce_s,
    break_even,
    calibration_table,
    overhead_s,
    scaling_tables,
    split_epoch,
    step_parts_s,
    tables,
    work_s,
)

README = (Path(__file__).parent.parent / "benchmarks" / "README.md").read_text()


def test_a_step_on_one_device_is_the_formula_by_hand():
    num_bytes = 8 * 4 * 535_818 + 4 * 4 * (784 + 512 + 256 + 10) * 128
    assert step_parts_s(MLP, 128, 1, H100) == pytest.approx((3 * 14e-6, num_bytes / 3.35e12 / 0.37, 0.0))
    activations = 784 + 24 * 24 * 24 + 32 * 10 * 10 + 256 + 10
    num_bytes = 8 * 4 * 215_194 + 4 * 2 * activations * 256
    half = dataclasses.replace(CNN, dtype="bfloat16")
    assert step_parts_s(half, 256, 1, H200) == pytest.approx((2 * 34e-6 + 2 * 14e-6, num_bytes / 4.8e12 / 0.10, 0.0))


def test_work_is_bound_by_flops_where_memory_is_fast():
    machine = dataclasses.replace(H100, bandwidth=math.inf)
    flops = 3 * 2 * (784 * 512 + 512 * 256 + 256 * 10) - 2 * 784 * 512
    assert work_s(MLP, 128, machine) == pytest.approx(128 * flops / 494.7e12 / 0.37)


@pytest.mark.parametrize(
    ("num_bytes", "num_devices", "expected"),
    [
        (2_000_000, 1, 0.0),
        (0, 8, 6.8e-6 + 2 * 7 * 0.6e-6),  # the protocol LL
        (2_000_000, 8, 14e-6 + 2 * 7 * 1.25e-6 + 2 * 7 / 8 * 2e6 / (0.92 * 450e9)),  # LL128
        (0, 64, 6.8e-6 + 2 * (7 * 0.6e-6 + 3 * 5e-6)),
        (20_000_000, 64, 14e-6 + 2 * (7 * 1.25e-6 + 3 * 8.5e-6) + 2 * 63 / 64 * 2e7 / (0.92 * 400e9)),
    ],
)
def test_an_all_reduce_is_latency_and_bytes(num_bytes, num_devices, expected):
    assert all_reduce_s(num_bytes, num_devices, H100) == pytest.approx(expected)


def test_a_batch_is_at_most_the_split_and_gives_each_device_an_example():
    assert split_epoch(128, 8, is_per_device=False) == (430, 16)
    assert split_epoch(128, 8, is_per_device=True) == (54, 128)
    assert split_epoch(128, 512, is_per_device=True) == (1, 108)
    assert split_epoch(128, 512, is_per_device=False) is None


def test_the_batch_that_pays_takes_as_long_on_few_devices_as_on_many():
    batch = break_even(CNN, 8, 64)
    few, many = (sum(step_parts_s(CNN, 1, count, H100)) for count in (8, 64))
    per_example = work_s(CNN, 2, H100) - work_s(CNN, 1, H100)
    assert few + per_example * (batch / 8 - 1) == pytest.approx(many + per_example * (batch / 64 - 1))


def test_the_fitted_constants_predict_what_was_measured_within_a_quarter():
    ratios = [float(line.split("|")[-2]) for line in calibration_table().splitlines()[2:]]
    assert len(ratios) == 8
    assert all(0.75 <= ratio <= 1.25 for ratio in ratios)


def test_the_readme_has_what_the_command_prints():
    assert calibration_table() in README
    assert scaling_tables() in README
    assert tables() == f"{calibration_table()}\n\n{scaling_tables()}"
    assert f"{overhead_s(MLP) * 1e6:.0f} + " in README
