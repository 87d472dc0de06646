"""The benchmarks measure what they say. How fast it is, is no matter of a test."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import make_split

from benchmarks import parallel
from benchmarks.__main__ import SUITES, main
from benchmarks.accuracy import RECIPES
from benchmarks.commands import Worker, run_training
from benchmarks.contestants import FlaxLoop, LaxConv, Ours, Torch
from benchmarks.flops import flops_per_example
from benchmarks.plot import plot_results
from benchmarks.results import choose_path, comparison, insert_table, peers_table, read_results, table, write_results
from benchmarks.setting import Setting, check, spread
from benchmarks.timing import Peaks, measure_in_turns
from mnist_jax import CNN, Dataset, InputError, TrainConfig, build_state, eval_step
from mnist_jax.cli.flags import parse_flags
from mnist_jax.core.apply import apply_model

ROOT = Path(__file__).parent.parent
FILES_TO_COMPARE_WITH = ("2026-11-27-2-cores-amd-epyc-3", "2026-11-26-nvidia-h200")


def results(seconds=1.0, **fields):
    row = {"name": "W", "contestant": "mnist_jax", "model": "mlp", "layers": [8], "batch_size": 32, "dtype": "float32"}
    row |= {"train": True, **spread([seconds, 3 * seconds, 2 * seconds]), "ratio": 1.0, "peak_fraction": 0.5}
    row |= {"test_accuracy": 0.98, "num_parameters": 1234}
    other = {"name": "W", "contestant": "B", "skipped": "no B here"}
    steps = {**row, "name": "train step", "driver": "scanned"}
    return {
        "schema_version": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processor": "Some (R) CPU", "cores": 2},
        "versions": {"jax": "0"},
        "quick": False,
        "load": {"before": None},
        "peaks": {"float32_flops": 2e9, "bfloat16_flops": 1e9, "bandwidth_bytes": 3e9},
        "suites": {
            "steps": {"rows": [steps]},
            "accuracy": {"skipped": "no MNIST"},
            "peers": {"rows": [row, other]},
        },
    } | fields


def test_flops_of_a_forward_pass_are_those_that_xla_counts():
    config = TrainConfig(hidden_sizes=(64, 32))
    batch = make_split(64)._asdict()
    counted = eval_step.lower(build_state(config), batch).compile().cost_analysis()["flops"] / 64
    np.testing.assert_allclose(flops_per_example(config, train=False), counted, rtol=0.06)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(hidden_sizes=(64, 32)),
        TrainConfig(model="cnn"),
        TrainConfig(model="cnn", padding="same", pool_sizes=(1, 3), dense_size=0, dropout_rate=0.0),
    ],
)
def test_flops_are_those_of_the_matrix_products_in_the_program(config):
    def dots(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                lhs = equation.invars[0].aval.shape
                yield 2 * equation.outvars[0].aval.size * int(np.prod([lhs[axis] for axis in contracted]))
            for branch in equation.params.get("branches", [])[:1]:  # of platform_dependent: that for the CPU
                yield from dots(branch.jaxpr)
            if "jaxpr" in equation.params and equation.primitive.name != "scan":
                inner = equation.params["jaxpr"]
                yield from dots(getattr(inner, "jaxpr", inner))

    state, image = build_state(config), np.zeros((8, 28, 28, 1), np.float32)

    def loss(params):
        return apply_model(state, params, image)[0].sum()

    forward = jax.make_jaxpr(loss)(state.params).jaxpr
    both = jax.make_jaxpr(jax.grad(loss))(state.params).jaxpr
    assert sum(dots(forward)) == 8 * flops_per_example(config, train=False)
    assert sum(dots(both)) == 8 * flops_per_example(config, train=True)


def test_calls_take_turns_after_a_round_that_warms_up():
    calls = []
    seconds = measure_in_turns({"A": lambda: calls.append("A"), "B": lambda: calls.append("B")}, rounds=2)
    assert calls == ["A", "B", "A", "B", "A", "B"]
    assert {name: len(values) for name, values in seconds.items()} == {"A": 2, "B": 2}


def test_a_worker_answers_line_by_line_or_says_why_not():
    worker = Worker(["-c", "import sys\nfor line in sys.stdin: print('{\"got\": ' + line.strip() + '}', flush=True)"])
    for number in (1, 2):
        worker.send(f"{number}")
        assert worker.read() == {"got": number}
    worker.close()
    worker = Worker(["-c", "raise SystemExit('no luck')"])
    with pytest.raises(RuntimeError, match="^exit status 1: no luck$"):
        worker.read()
    worker.send("a line for nobody")
    worker.close()


def parallel_rows(monkeypatch, measure, fails=None):
    """Returns the rows of ``parallel`` with times that were not measured."""

    def write_shards(command):
        assert command[:2] == ["-m", "mnist_jax.data.write"]
        assert command[3:] == ["--data", "some", "--num-validation", "10"]
        if fails:
            raise RuntimeError(fails)

    monkeypatch.setattr(parallel, "run_python", write_shards)
    monkeypatch.setattr(parallel, "measure_cases", lambda cases, *_: {case: measure(case) for case in cases})
    return list(parallel.run(Setting(None, small_dataset(), Peaks(1e9, 1e9, 1e9), quick=True)))


def test_each_row_of_devices_and_processes_has_its_ideal(monkeypatch):
    def measure(case):
        """One second, two for each further device or process, and a half for streaming."""
        return [2.0 * (case.config.num_devices + case.num_processes) - 3 + 0.5 * case.config.stream]

    rows = parallel_rows(monkeypatch, measure)
    assert [
        (row["name"], row.get("value"), row["batch_size"], row["seconds"], row["ideal"], row["ratio_to_ideal"])
        for row in rows
    ] == [
        ("by virtual devices", 1, 256, 1, 1, 1),
        ("by virtual devices", 2, 256, 3, 1, 3),
        ("by virtual devices, batch 128 each", 1, 128, 1, 1, 1),
        ("by virtual devices, batch 128 each", 2, 256, 3, 2, 1.5),
        ("by processes", 2, 256, 5, 3, pytest.approx(5 / 3)),
        ("streamed", None, 128, 1.5, 1, 1.5),
    ]
    meanings = ["2 x one device", "one process, 2 virtual devices", "data on the device"]
    assert [row["ideal_meaning"] for row in rows[3:]] == meanings
    shown = table(results(suites={"scaling": {"rows": rows}}))
    assert "by processes mlp 512-256 batch 256 float32 at 2 " in shown
    assert "1.67x the ideal, ideal 3 s (one process, 2 virtual devices)\n" in shown


def test_gpus_ideally_divide_a_fixed_batch(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rows = {(row["name"], row.get("value")): row["ideal"] for row in parallel_rows(monkeypatch, lambda case: [2.0])}
    assert rows["by devices", 2] == 1
    assert rows["by devices, batch 128 each", 2] == 2
    monkeypatch.setattr(jax, "devices", lambda: [None])
    skipped, streamed = parallel_rows(monkeypatch, lambda case: [2.0])
    assert skipped == {"name": "by devices", "skipped": "needs more than one device, got 1"}
    assert (streamed["name"], streamed["ideal"]) == ("streamed", 2)


def test_a_case_that_fails_is_a_row_with_the_reason(monkeypatch):
    rows = parallel_rows(
        monkeypatch, lambda case: "no luck" if case.config.num_devices == 2 else [1.0], "a page of text\nno grain"
    )
    assert [row for row in rows if "skipped" in row] == [
        {"name": "streamed", "model": "mlp", "skipped": "no grain"},
        *(
            {"name": name, "model": "mlp", "value": 2, "skipped": "no luck"}
            for name in ("by virtual devices", "by virtual devices, batch 128 each", "by processes")
        ),
    ]
    rows = parallel_rows(monkeypatch, lambda case: [1.0] if case.config.num_devices == 2 else "no luck")
    assert {row["name"] for row in rows if "ideal" in row} == {"by processes"}


@pytest.mark.slow
def test_cases_take_turns_and_one_that_fails_spares_the_others():
    config = TrainConfig(data="digits", hidden_sizes=(8,), batch_size=512)
    cases = {
        "fine": parallel.Case(config),
        "too large": parallel.Case(dataclasses.replace(config, batch_size=2000)),
        "two": parallel.Case(dataclasses.replace(config, num_devices=2), 2),
        "uneven": parallel.Case(dataclasses.replace(config, num_devices=3), 2),
    }
    found = dict(zip(cases, parallel.measure_cases(list(cases.values()), 2, 1350).values(), strict=True))
    for name in ("fine", "two"):
        assert len(found[name]) == 2 and min(found[name]) > 0, found[name]
    assert "error: batch_size must be at most the 1350 training examples of digits, got 2000" in found["too large"]
    assert "error: num_devices must be a multiple of the 2 processes, got 3" in found["uneven"]


def test_work_that_was_not_done_is_noticed():
    state = build_state(TrainConfig(hidden_sizes=(4,)))
    check(state, 0, 1.0)
    with pytest.raises(AssertionError, match="0 steps instead of 1"):
        check(state, 1, 1.0)
    with pytest.raises(AssertionError, match="the loss is nan"):
        check(state, 0, float("nan"))


def test_results_come_back_and_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.results.DIRECTORY", tmp_path)
    one = choose_path(results(), None)
    write_results(results(), one)
    two = choose_path(results(), None)
    assert [one.name, two.name] == ["2026-01-02-2-cores-some-r-cpu.json", "2026-01-02-2-cores-some-r-cpu-2.json"]
    assert read_results(one)["suites"] == results()["suites"]
    assert choose_path(results(), tmp_path / "new" / "own.json").parent.is_dir()
    with pytest.raises(InputError, match=rf"{one}: Not a directory|{one}: File exists"):
        choose_path(results(), one / "own.json")


def test_the_tables_show_medians_ranges_and_reasons():
    shown = table(results())
    assert "1 x cpu, Some (R) CPU, 2 cores, jax 0; peak 2 GFLOP/s float32, 1 bfloat16, 3 GB/s" in shown
    assert "2 s (1 s to 3 s, n = 3), 50% of the peak, 1.00x, test accuracy 98.00%" in shown
    assert "accuracy: skipped, no MNIST" in shown
    assert "skipped: no B here" in shown
    missed = {"name": "99.0%", "reached": False, **spread([1.0]), "test_accuracy": 0.5}
    assert "NOT REACHED" in table(results(suites={"accuracy": {"rows": [missed]}}))
    assert "steps: failed, KeyError: 'x'" in table(results(suites={"steps": {"failed": "KeyError: 'x'", "rows": []}}))
    assert "| mnist_jax | 2.000 s (1.000 to 3.000) | 50% | 1.00 | 98.00% |" in peers_table(results())


def test_two_files_are_compared_row_by_row():
    before, after, _, *rows = comparison(results(1.0), results(4.0, versions={"python": "3", "jax": "1"})).splitlines()
    assert before == "before: 2026-01-02T03:04:05+00:00, 1 x cpu, Some (R) CPU, 2 cores, jax 0"
    assert after == "after: 2026-01-02T03:04:05+00:00, 1 x cpu, Some (R) CPU, 2 cores, python 3, jax 1"
    assert [row.split()[-5:] for row in rows[:2]] == [["2", "s", "8", "s", "4.00x"]] * 2
    assert "1.50x ~\n" in comparison(results(1.0), results(1.5))  # 1 to 3 s and 1.5 to 4.5 s
    with pytest.raises(InputError, match="the two files have no row in common"):
        comparison(results(), results(suites={}))
    with pytest.raises(InputError, match="one of the two files is from a --quick run: the workloads differ"):
        comparison(results(), results(quick=True))


def test_two_machines_are_compared_by_a_mean_for_each_suite_and_one_for_all():
    one, other = results(1.0), results(0.25)
    (row,) = one["suites"]["steps"]["rows"]
    one["suites"]["steps"]["rows"] = [row, {**row, "batch_size": 64}, {**row, "batch_size": 128}]  # the last only here
    other["suites"]["steps"]["rows"].append({**row, "batch_size": 64, **spread([0.08])})
    assert [line.split() for line in comparison(one, other).splitlines()[-5:]] == [
        [],
        ["geometric", "mean", "of", "the", "ratios", "rows", "ratio"],
        ["steps", "2", "0.10x"],  # 0.25 and 0.04
        ["peers", "1", "0.25x"],
        ["all", "3", "0.14x"],
    ]
    assert comparison(results(1.0), results(0.025)).endswith("0.025x")


def test_the_committed_results_can_be_compared(capsys):
    cpu, gpu = (ROOT / "benchmarks" / "results" / f"{name}.json" for name in FILES_TO_COMPARE_WITH)
    assert main(["compare", str(cpu), str(gpu)]) == 0
    text = capsys.readouterr().out
    assert "AMD EPYC, 2 cores, python 3.13.0, jax 0.12.0.1" in text
    assert "1 x NVIDIA H200, Intel(R) Xeon(R) Processor, 16 cores, python 3.12.3, jax 0.11.2" in text
    assert text.splitlines()[-2].split() == ["epochs", "5", "0.055x"]
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert all(f"results/{name}.json" in readme for name in FILES_TO_COMPARE_WITH)


def test_the_table_goes_between_its_marks(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- peers -->\nold\n<!-- /peers -->\nafter\n")
    insert_table(path, "new")
    assert path.read_text() == "before\n<!-- peers -->\n\nnew\n\n<!-- /peers -->\nafter\n"
    path.write_text("no marks\n")
    with pytest.raises(InputError, match="page.md must have a line <!-- peers --> and a line <!-- /peers -->"):
        insert_table(path, "new")
    with pytest.raises(InputError, match="missing.md: No such file or directory"):
        insert_table(tmp_path / "missing.md", "new")
    with pytest.raises(InputError, match="the results have no peers: run python -m benchmarks peers"):
        peers_table(results(suites={}))


def test_a_picture_is_drawn(tmp_path):
    row = {"name": "by devices", "model": "mlp", "batch_size": 8, **spread([1.0, 2.0]), "ideal": 1.0}
    scaling = {"rows": [{**row, "value": 1}, {**row, "value": 2}, {**row, "name": "streamed"}, {"name": "exponent"}]}
    for suites in (results()["suites"], {"scaling": scaling}, results()["suites"] | {"scaling": scaling}):
        plot_results(results(suites=suites), tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="there is nothing to plot: run python -m benchmarks peers steps scaling"):
        plot_results(results(suites={}), tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nonsense"],
            "suite must be one of steps, augmentation, epochs, startup, accuracy, scaling, populations, answers, "
            "pictures, per_example, memory, peers, got nonsense",
        ),
        (["stepz"], "peers, got stepz; did you mean steps?\n"),
        (["--output", "there.json"], "there.json exists: choose another --output"),
        (["--data", "nowhere"], "nowhere"),
        (["--platform", "abacus"], "platform must be one of cpu, gpu, tpu, got abacus\n"),
        (["compare", "there.json"], "the following arguments are required: after"),
        (["plot", "missing.json"], "missing.json: No such file or directory"),
        (["plot", "there.json"], "there.json is not JSON"),
        (["table", "other.json"], "other.json must have schema_version 1, got 7"),
        (["table", "empty.json"], "empty.json has no created"),
        (["plot", "full.json", "--output", "plot.txt"], "output must end with .png, got plot.txt"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("no JSON")
    Path("other.json").write_text('{"schema_version": 7}')
    Path("full.json").write_text(json.dumps(results()))
    Path("empty.json").write_text('{"schema_version": 1, "suites": {}}')
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert Path("there.json").read_text() == "no JSON"


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("", "steps epochs --platform cpu --quick"),
        (" compare", "before.json after.json"),
        (" plot", "results.json"),
        (" table", "results.json --into benchmarks/README.md"),
    ],
)
def test_help_fits_80_columns_and_ends_with_an_example(command, example, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m benchmarks{command} ")
    assert text.endswith(f"\n\nexample: python -m benchmarks{command} {example}\n")
    assert max(map(len, text.splitlines())) <= 80
    if not command:
        assert "    epochs       2 min  How long is an epoch as one program?\n" in text
        assert set(SUITES) <= {line.split()[0] for line in text.splitlines() if " min  " in line}


def test_the_rows_of_a_stopped_suite_are_kept(tmp_path, monkeypatch):
    def stop(setting):
        yield {"name": "first"}
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.epochs.run", stop)
    monkeypatch.setattr("benchmarks.timing.measure_peaks", lambda quick: Peaks(1.0, 1.0, 1.0))
    path = tmp_path / "found.json"
    assert main(["epochs", "--data", "digits", "--output", str(path)]) == 130
    assert json.loads(path.read_text())["suites"] == {"epochs": {"rows": [{"name": "first"}]}}


def small_dataset():
    return Dataset(make_split(70), make_split(10), make_split(30, seed=1), "some", 10, tuple("0123456789"))


@pytest.mark.slow
@pytest.mark.uses_adam
@pytest.mark.parametrize(
    ("contestant", "config"),
    [
        (Ours, TrainConfig(hidden_sizes=(8,), batch_size=32)),
        (FlaxLoop, TrainConfig(hidden_sizes=(8,), batch_size=32)),
        (LaxConv, TrainConfig(model="cnn", channels=(2, 3), dense_size=4, batch_size=32)),
    ],
)
def test_a_contestant_counts_its_steps(contestant, config):
    one = contestant(config, small_dataset())
    assert [one.num_steps(), np.isfinite(one.run_epoch()), one.num_steps()] == [0, True, 3]
    assert 0 <= one.test_accuracy() <= 1


@pytest.mark.slow
@pytest.mark.uses_adam
def test_the_plain_network_is_the_same_network():
    config = TrainConfig(model="cnn", channels=(2, 3), dense_size=4, batch_size=32)
    plain, ours = (contestant(config, small_dataset())._state for contestant in (LaxConv, Ours))
    assert isinstance(ours.recipe.model.module, CNN)
    image = make_split(9).image
    expected, _ = apply_model(plain, ours.params, image)
    np.testing.assert_allclose(apply_model(ours, ours.params, image)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_whole_suite_runs(tmp_path):
    output = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--data", "digits", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert list(found["suites"]) == list(SUITES)
    assert all(suite.pop("suite_seconds") >= 0 for suite in found["suites"].values())
    assert found["suites"]["accuracy"] == {
        "skipped": "needs MNIST with 55,000 and 10,000 examples, got digits with (1350, 297)"
    }
    for name in set(SUITES) - {"accuracy"}:
        rows = found["suites"][name]["rows"]
        assert rows
        for row in rows:
            assert row.get("seconds", 1) > 0
            if "flops" in row:
                # Virtual devices share the peak of the CPU.
                expected = row["flops"] / row["seconds"] / found["peaks"]["float32_flops"]
                np.testing.assert_allclose(row["peak_fraction"], expected)
                np.testing.assert_allclose(row["examples_per_second"], row["examples"] / row["seconds"])
    scaling = [row for row in found["suites"]["scaling"]["rows"] if "ideal" in row]
    assert len(scaling) == 6
    for row in scaling:
        np.testing.assert_allclose(row["ratio_to_ideal"], row["seconds"] / row["ideal"])
    peers = found["suites"]["peers"]["rows"]
    measured = {row["contestant"] for row in peers if "seconds" in row}
    assert {"mnist_jax", "Flax loop", "lax.conv in a scan"} <= measured
    assert all(row["skipped"].startswith("No module named") for row in peers if row["contestant"] not in measured)
    assert f"written to {output}" in done.stdout


def test_the_recipes_are_flags_of_the_command():
    for command in RECIPES.values():
        if command.startswith("-m mnist_jax.train "):
            parse_flags(TrainConfig(), command.split()[2:], "prog")
        else:
            assert (ROOT / command).exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["-m", "mnist_jax.train"], ["experiments/fast_99.py"]], ids=str)
def test_the_summary_of_a_training_is_found(command):
    summary = run_training([*command, "--epochs", "1", "--seed", "3"], "digits")
    assert (summary["dataset"], summary["seed"], summary["epochs"]) == ("digits", 3, 1)
    assert summary["process_seconds"] > summary["seconds"]["total"]


def test_a_platform_that_is_not_there_is_one_line(run_python):
    done = run_python("-m", "benchmarks", "--platform", "tpu", PYTHONPATH=str(ROOT))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("error: platform: Unable to initialize backend 'tpu'")


@pytest.mark.parametrize("config", [TrainConfig(hidden_sizes=(8,)), TrainConfig(model="cnn", channels=(2, 3))])
def test_pytorch_has_the_same_network(config):
    torch = pytest.importorskip("torch")
    theirs, state = Torch(config, small_dataset()), build_state(config)
    kernels = [module for module in theirs._model if hasattr(module, "weight")]
    with torch.no_grad():
        for name, module in zip(sorted(state.params, key=lambda name: (name[0] != "C", name)), kernels, strict=True):
            kernel = np.asarray(state.params[name]["kernel"])
            if name == "Dense_0" and config.model == "cnn":  # flattened as channels, height, width there
                kernel = kernel.reshape(5, 5, 3, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
            module.weight[:] = torch.from_numpy(kernel.transpose((3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)).copy())
            module.bias[:] = torch.from_numpy(np.array(state.params[name]["bias"]))
        theirs._model.eval()
        image = small_dataset().test.image
        expected = theirs._model(torch.from_numpy(image.transpose(0, 3, 1, 2).astype(np.float32) / 255)).numpy()
    np.testing.assert_allclose(apply_model(state, state.params, image)[0], expected, rtol=1e-3, atol=1e-4)
    assert theirs.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
