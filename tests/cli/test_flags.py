import json
import logging
import re
import signal
import subprocess
import sys

import pytest

from mnist_jax import InputError, NonFiniteLossError, TrainConfig
from mnist_jax.cli.flags import OneLineParser, parse_flags, run_command
from mnist_jax.config import COMMON_FIELDS, FIELD_GROUPS
from mnist_jax.errors import import_extra, suggest


def parse(*args):
    return parse_flags(TrainConfig(epochs=7), args, "prog")


def test_flags_override_the_default():
    config = parse("--model", "mlp", "--hidden-sizes", "4", "3", "--clip-norm", "1.5", "--ema-decay", "None", "--quiet")
    assert config == TrainConfig(epochs=7, model="mlp", hidden_sizes=(4, 3), clip_norm=1.5, ema_decay=None, quiet=True)
    assert parse() == TrainConfig(epochs=7)


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        ("--hidden-sizes 128 64", {"hidden_sizes": (128, 64)}),
        ("--hidden-sizes=128", {"hidden_sizes": (128,)}),
        ("--hidden-sizes=128 64", {"hidden_sizes": (128, 64)}),
        ("--hidden-sizes 128,64", {"hidden_sizes": (128, 64)}),
        ("--hidden-sizes=128,64 32", {"hidden_sizes": (128, 64, 32)}),
        ("--hidden-sizes", {"hidden_sizes": ()}),
        ("--hidden-sizes --seed 3", {"hidden_sizes": (), "seed": 3}),
        ("--hidden-sizes 1 --hidden-sizes 2 3", {"hidden_sizes": (2, 3)}),
        ("--hidden_sizes 12", {"hidden_sizes": (12,)}),
        ("--hidden_sizes=12", {"hidden_sizes": (12,)}),
        ("--epochs=3", {"epochs": 3}),
        ("--epochs 3 --epochs 4", {"epochs": 4}),
        ("--learning-rate 1", {"learning_rate": 1.0}),
        ("--learning-rate 1e-2", {"learning_rate": 0.01}),
        ("--ema-decay None", {"ema_decay": None}),
        ("--ema-decay=None", {"ema_decay": None}),
        ("--ema-decay None --ema-decay 0.5", {"ema_decay": 0.5}),
        ("--microbatch-size 8", {"microbatch_size": 8}),
        ("--microbatch-size 8 --microbatch-size None", {}),
        ("--data 5", {"data": "5"}),
        ("--data None", {}),
        ("--workdir=-x", {"workdir": "-x"}),
        ("--batch-norm", {"batch_norm": True}),
        ("--batch_norm", {"batch_norm": True}),
        ("--batch-norm --no-batch-norm", {}),
        ("--batch-norm --no_batch_norm", {}),
        ("--no-batch-norm --batch-norm", {"batch_norm": True}),
        ("--quiet --quiet", {"quiet": True}),
        ("--model cnn --channels 8 9", {"model": "cnn", "channels": (8, 9)}),
        ("--model=cnn", {"model": "cnn"}),
    ],
)
def test_each_accepted_form(args, fields):
    assert parse(*args.split()) == TrainConfig(**{"epochs": 7, **fields})


@pytest.mark.parametrize("momentum", ["0.9", "0.8"])  # the default, and another value
def test_a_flag_without_effect_is_refused_whatever_its_value(momentum):
    message = "^momentum has no effect with optimizer adam: leave it out, or choose optimizer momentum$"
    with pytest.raises(InputError, match=message):
        parse("--momentum", momentum)
    assert parse("--optimizer", "momentum", "--momentum", momentum).momentum == float(momentum)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--model rnns", "model must be one of mlp, cnn, got rnns"),
        ("--model cn", "model must be one of mlp, cnn, got cn; did you mean cnn?"),
        ("--schedule cosin", "warmup_constant, warmup_cosine, got cosin; did you mean cosine?"),
        ("--batch-size 0", "batch_size must be at least 1, got 0"),
        ("--batch-size x", "batch_size must be a whole number, got 'x'"),
        ("--batch-size 1.0", "batch_size must be a whole number, got '1.0'"),
        ("--batch-size None", "batch_size must be a whole number, got 'None'"),
        ("--ema-decay none", "ema_decay must be a number, got 'none'"),
        ("--hidden-sizes 128,x", "hidden_sizes must be whole numbers, got [128, 'x']"),
        ("--hidden-sizes 128,", "hidden_sizes must be whole numbers, got [128, '']"),
        ("--hidden-sizes -3", "hidden_sizes must be at least 1 each, got (-3,)"),
        ("--seed -1", "seed must be in [0, 2**32), got -1"),
        ("--learning-rate -1e-3", "learning_rate must be a finite number above 0, got -0.001"),
        ("--learning-rate -.5", "learning_rate must be a finite number above 0, got -0.5"),
        ("--learning-rate=-inf", "learning_rate must be a finite number above 0, got -inf"),
        ("--learning-rate nan", "learning_rate must be a finite number above 0, got nan"),
        ("--learning-rate", "argument --learning-rate: expected one argument"),
        ("--data -x", "argument --data: expected one argument"),
        ("--quiet=1", "argument --quiet/--no-quiet: ignored explicit argument '1'"),
        ("--quiet 1", "unrecognized arguments: 1"),
        ("stray", "unrecognized arguments: stray"),
        ("-- --epochs", "unrecognized arguments: -- --epochs"),
        ("-x", "unrecognized arguments: -x"),
        ("--bogus 3", "unknown flag --bogus"),
        ("--hiden-sizes 3", "unknown flag --hiden-sizes; did you mean --hidden-sizes?"),
        ("--hiden_sizes=3", "unknown flag --hiden_sizes; did you mean --hidden-sizes?"),
        ("--no-batchnorm", "unknown flag --no-batchnorm; did you mean --no-batch-norm?"),
        ("--epoch 3", "unknown flag --epoch; did you mean --epochs?"),
        ("--Epochs 3", "unknown flag --Epochs; did you mean --epochs?"),
        ("--resume", "resume must be given together with --workdir, got no workdir"),
    ],
)
def test_a_wrong_flag_is_one_line(args, message):
    with pytest.raises(InputError) as caught:
        parse(*args.split())
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)


def help_of(capsys, flag, default=None, **options):
    with pytest.raises(SystemExit) as caught:
        parse_flags(default or TrainConfig(), [flag], "prog", **options)
    assert caught.value.code == 0
    return capsys.readouterr().out


def flags_by_group(text):
    """The flags in a help, by the title of their group."""
    groups = re.split(r"^([a-z ]+):\n", text, flags=re.MULTILINE)
    found = {
        title: re.findall(r"^  --([a-z0-9-]+)", body, re.MULTILINE)
        for title, body in zip(groups[1::2], groups[2::2], strict=True)
    }
    known = (*FIELD_GROUPS, "several processes")
    return {title: [flag.replace("-", "_") for flag in flags] for title, flags in found.items() if title in known}


def test_help_shows_the_common_flags_and_help_all_every_one(capsys):
    groups = {title: list(names) for title, names in FIELD_GROUPS.items()}
    assert sorted(name for names in groups.values() for name in names) == sorted(TrainConfig.__dataclass_fields__)
    others = {"several processes": ["coordinator", "num_processes", "process_id"]}
    assert flags_by_group(help_of(capsys, "--help-all")) == groups | others
    common = {title: [name for name in names if name in COMMON_FIELDS] for title, names in groups.items()}
    assert flags_by_group(help_of(capsys, "--help")) == flags_by_group(help_of(capsys, "-h")) == common | others
    assert sum(map(len, common.values())) == len(COMMON_FIELDS) == 19


def test_help_has_text_choices_and_default_of_each_flag(capsys):
    text = " ".join(help_of(capsys, "--help-all", TrainConfig(hidden_sizes=(), ema_decay=None)).split())
    for part in (
        "--model NAME architecture (one of mlp, cnn; default: mlp)",
        "--hidden-sizes [INT ...] mlp: units of each hidden layer (default: none)",
        "--channels [INT ...] cnn: output channels of each convolution (default: 24 32)",
        "--learning-rate FLOAT peak learning rate, > 0 (default: 0.001)",
        "--clip-norm FLOAT largest global norm of the gradient; default: no clipping --label-smoothing",
        "None: no average (default: None)",
        "--workdir DIR directory of the run; default: runs/<dataset>-<model>-<time> --resume",
        "--quiet, --no-quiet show no progress, only the final table (default: False)",
    ):
        assert part in text


def test_help_ends_with_the_example_and_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    description = "Words, " * 20 + "\n\nmore\nwords\n\n    as   it is\n"
    text = help_of(capsys, "--help-all", description=description, example="--epochs 3")
    assert text.startswith("usage: prog [flags]\n\nWords, Words")
    assert "\n\nmore words\n\n    as   it is\n\noptions:\n" in text
    assert text.endswith("\n\nexample: prog --epochs 3\n")
    assert max(map(len, text.splitlines())) <= 80


def test_help_without_the_source_of_the_config_has_no_texts(capsys, monkeypatch):
    monkeypatch.setattr("inspect.getsource", lambda _: (_ for _ in ()).throw(OSError("no source")))
    assert "--epochs INT" in help_of(capsys, "--help")


def test_help_on_a_terminal_has_no_colour_if_no_color_is_set(run_python):
    code = "import pty, sys; pty.spawn([sys.executable, '-m', 'mnist_jax.train', '--help'])"
    done = run_python("-c", code, NO_COLOR="1", TERM="xterm")
    assert "--batch-size" in done.stdout
    assert "\x1b[" not in done.stdout


def test_flags_of_any_command_are_spelled_in_full_and_with_either_dash():
    parser = OneLineParser("prog")
    parser.add_argument("--data-dir")
    parser.add_argument("file", nargs="*")
    flags = parser.parse_args(["--data_dir", "a_b", "-3", "--", "--data_dir", "c"])
    assert (flags.data_dir, flags.file) == ("a_b", ["-3", "--data_dir", "c"])
    assert parser.parse_args(["--data_dir=a_b"]).data_dir == "a_b"
    with pytest.raises(InputError, match=r"^unknown flag --data-di; did you mean --data-dir\?$"):
        parser.parse_args(["--data-di", "x"])


@pytest.mark.parametrize(
    ("name", "end"),
    [("fashion-mnist", "; did you mean fashion_mnist?"), ("MNIST", "; did you mean mnist?"), ("cifar10", "")],
)
def test_the_nearest_name_is_suggested(name, end):
    assert suggest(name, ("mnist", "fashion_mnist", "kmnist")) == end


def test_what_only_an_extra_brings_is_asked_for():
    assert import_extra("json", "demo") is json
    with pytest.raises(InputError, match=r'^no_such_module is not installed: pip install -e "\.\[demo\]"$'):
        import_extra("no_such_module.part", "demo")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("epochs must be 1, got 0"), 2, "error: epochs must be 1, got 0\n"),
        (
            NonFiniteLossError(2, 31, float("nan")),
            1,
            "error: the loss became nan in epoch 2, step 31: stopped; a lower --learning-rate may help\n",
        ),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_errors_become_a_line_and_a_status(capsys, error, status, message):
    def command():
        raise error

    assert run_command(command) == status
    assert capsys.readouterr().err == message


def test_a_notice_is_a_line_on_stderr(capsys):
    def command():
        logging.getLogger("mnist_jax").warning("using the %s", "digits")

    for _ in range(2):
        assert run_command(command) == 0
    assert capsys.readouterr().err == "using the digits\nusing the digits\n"


def test_success_is_0_and_a_bug_keeps_its_traceback():
    assert run_command(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        ("> /dev/full", 1, "error: No space left on device\n"),
        (">&-", 0, ""),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(run_python, tmp_path, redirection, status, message):
    code = "import sys\nfrom mnist_jax.cli.flags import run_command\nsys.exit(run_command(lambda: print('words')))"
    shell = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {code!r}], stdout=OUT))"
    shell = shell.replace(
        "stdout=OUT",
        "preexec_fn=lambda: __import__('os').close(1)" if "-" in redirection else "stdout=open('/dev/full', 'w')",
    )
    done = run_python("-c", shell)
    assert (done.returncode, done.stderr) == (status, message)


def test_output_before_an_error_of_a_file_or_a_signal_is_not_lost(tmp_path):
    code = """
import os, signal, sys
from mnist_jax.cli.flags import run_command

def fail():
    print("first")
    raise OSError(28, "file: cannot be written")

def stop():
    print("second")
    os.kill(os.getpid(), signal.SIGINT)

assert run_command(fail) == 1
run_command(stop)
"""
    done = run_in_shell("", code, tmp_path)
    assert (done.returncode, done.stdout) == (130, "first\nsecond\n")
    assert done.stderr == "error: file: cannot be written\nstopped\n"


def run_in_shell(redirection, code, directory):
    """Runs Python code with a redirection of the shell."""
    command = ["bash", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, code]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-", ">&- 2>&-", "2> >(exit)"])
def test_a_stderr_that_cannot_be_written_is_no_error(tmp_path, redirection):
    code = """
import logging, sys, time
from mnist_jax import InputError
from mnist_jax.cli.flags import run_command
from mnist_jax.training.progress import Progress

def command():
    time.sleep(0.1)  # until the reader has gone away
    progress = Progress(1, 60, quiet=False, bar=True)
    progress.begin_epoch(1)
    progress.update(30, 0.5, 0.75)
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "examples_per_second")
    progress.end_epoch({"epoch": 1, **dict.fromkeys(names, 0.5)})
    logging.getLogger("mnist_jax").warning("a notice")
    print("words", file=sys.stderr)
    file = open("file", "w")
    assert file.fileno() > 2  # else what C++ prints would go there
    print("output")

assert run_command(command) == 0
def fail():
    raise InputError("no")
sys.exit(run_command(fail))
"""
    done = run_in_shell(redirection, code, tmp_path)
    output = "" if ">&- " in redirection else "output\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, output, "")
    assert (tmp_path / "file").read_text() == ""


def test_log_lines_and_warnings_of_other_libraries_are_not_shown(tmp_path):
    code = """
import _thread, logging, sys, threading, warnings
from mnist_jax.cli.flags import run_command

def command():
    done = threading.Event()
    # a thread that Python does not know, as those of C++
    _thread.start_new_thread(lambda: (sys.excepthook(ValueError, ValueError("in C++"), None), done.set()), ())
    done.wait()
    warnings.warn("deprecated")
    logging.getLogger("absl").error("details")
    logging.warning("root")
    logging.getLogger("jax._src.xla_bridge").warning("falling back to cpu")
    logging.getLogger("mnist_jax").warning("a notice")

run_command(command)
warnings.warn("outside")
raise ValueError("outside")
"""
    first, second, warning, *_, error = run_in_shell("", code, tmp_path).stderr.splitlines()
    assert (first, second, error) == ("falling back to cpu", "a notice", "ValueError: outside")
    assert re.fullmatch(r"<string>:\d+: UserWarning: outside", warning)


def test_handlers_of_signals_are_restored():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    def command():
        assert all(signal.getsignal(number) not in before for number in numbers)

    assert run_command(command) == 0
    assert [signal.getsignal(number) for number in numbers] == before
