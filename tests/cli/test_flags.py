import io
import json
import logging

import pytest

from mnist_jax import InputError, NonFiniteLossError, TrainConfig
from mnist_jax.cli.flags import parse_flags, run_command
from mnist_jax.errors import import_extra


def parse(*args):
    return parse_flags(TrainConfig(epochs=7), args, "prog")


def test_flags_override_the_default():
    config = parse("--model", "mlp", "--hidden-sizes", "4", "3", "--clip-norm", "1.5", "--ema-decay", "None", "--quiet")
    assert config == TrainConfig(epochs=7, model="mlp", hidden_sizes=(4, 3), clip_norm=1.5, ema_decay=None, quiet=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "rnn"], "'rnn'.*--model.*mlp.*cnn"),
        (["--batch-size", "0"], "^batch_size must be at least 1, got 0$"),
        (["--batch-size", "x"], "--batch-size.*'x'"),
        (["--learning-rate", "nan"], "^learning_rate must be a finite number above 0, got nan$"),
        (["--bogus", "3"], "--bogus"),
        (["--learning-rate"], "--learning-rate"),
        (["stray"], "stray"),
        (["--resume"], "^resume must be given together with --workdir, got no workdir$"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # tyro draws its boxes by the encoding of stdout
def test_a_wrong_flag_is_one_line(args, message, encoding, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(InputError, match=message) as caught:
        parse(*args)
    assert "\n" not in str(caught.value)
    assert not set("╭│─╰") & set(str(caught.value))
    assert "----" not in str(caught.value)
    assert "helptext" not in str(caught.value)


def test_help_lists_every_field_and_exits_with_0(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(("no_color", "colored"), [("1", False), ("", True)])
def test_help_on_a_terminal_is_coloured_unless_no_color_is_set(run_python, no_color, colored):
    code = "import pty, sys; pty.spawn([sys.executable, '-m', 'mnist_jax.train', '--help'])"
    done = run_python("-c", code, NO_COLOR=no_color, TERM="xterm")
    assert "--batch-size" in done.stdout
    assert ("\x1b[" in done.stdout) is colored


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
        ("> /dev/full", 1, "error: [Errno 28] No space left on device\n"),
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
