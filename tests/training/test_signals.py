import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mnist_jax.training.signals import Stopped, StopSignals, leave_on_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_question_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
        assert signal.getsignal(number) is before  # so a second one acts at once
    assert signal.getsignal(number) is before


def test_without_a_signal_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_nothing_is_caught():
    requested = []

    def work():
        with StopSignals() as stop:
            requested.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requested == [None]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_says_how_to_go_on(number, status):
    stopped = Stopped(number, 42, "runs/x")
    assert stopped.exit_status == status
    assert str(stopped) == "saved at step 42 in runs/x; to continue, add --workdir runs/x --resume to the command"


@pytest.fixture
def sigint_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored(sigint_ignored):
    restore = leave_on_signals()
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert stop.requested is None
    restore()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_signal_while_the_handlers_are_set_is_not_lost(monkeypatch):
    before, set_handler = [signal.getsignal(number) for number in NUMBERS], signal.signal

    def be_interrupted(number, handler):
        set_handler(number, handler)
        if number == signal.SIGINT and handler not in before:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(signal, "signal", be_interrupted)
    with StopSignals() as stop:
        assert stop.requested == signal.SIGINT
        assert [signal.getsignal(number) for number in NUMBERS] == before
    assert [signal.getsignal(number) for number in NUMBERS] == before


def start(code, redirection="", **options):
    code = f"from mnist_jax.training.signals import *\nleave_on_signals()\n{code}"
    command = ["bash", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_at_once(number, status):
    code = f"""
try:
    with StopSignals() as stop:
        signal.raise_signal({number})
        print(int(stop.requested), flush=True)
        signal.raise_signal({number})
except BaseException:
    print("swallowed", flush=True)
finally:
    print("not at once", flush=True)
"""
    with start(code, stderr=subprocess.PIPE) as process:
        assert process.communicate(timeout=60) == (f"{int(number)}\n", "stopped\n")
    assert process.returncode == status


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_after_the_last_line_adds_none(number):
    with start(f"say_why('stopped: saved')\nsignal.raise_signal({number})", stderr=subprocess.PIPE) as process:
        assert process.communicate(timeout=60) == ("", "stopped: saved\n")
    assert process.returncode == 128 + number


def test_a_signal_does_not_wait_for_a_reader_of_stderr():
    reader, writer = os.pipe()
    code = "import time\nos.write(2, bytes(65536))\nprint(flush=True)\ntime.sleep(60)"
    with start(code, stderr=writer) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)  # waits
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    os.close(reader)
    os.close(writer)


def test_without_a_stderr_no_other_file_is_written(tmp_path):
    code = "file = open('file', 'w')\nassert file.fileno() == 2\nsignal.raise_signal(signal.SIGINT)"
    with start(code, "2>&-", cwd=tmp_path) as process:
        assert process.wait(60) == 130
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "mnist_jax.train"),
        ("-um", "mnist_jax"),
        ("-mmnist_jax.runs",),
        (str(Path(sys.executable).with_name("mnist-jax")),),
    ],
)
def test_a_command_handles_signals_before_it_imports(run_python, tmp_path, command):
    (tmp_path / "lazy_loader.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)")
    done = run_python(*command, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "stopped\n")


@pytest.mark.parametrize("command", [("program.py",), ("-m", "program")])
def test_importing_the_library_leaves_signals_alone(run_python, tmp_path, command):
    code = "from signal import *\nbefore = getsignal(SIGINT), getsignal(SIGTERM)\nimport mnist_jax\n"
    code += "assert before == (getsignal(SIGINT), getsignal(SIGTERM))\nprint('imported')"
    package = tmp_path / "elsewhere" / "program"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    (package / "__main__.py").write_text("")
    package.with_suffix(".py").write_text(code)
    assert run_python(*command).stdout == "imported\n"


def test_a_handler_that_was_set_after_a_signal_is_kept():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    signal.signal(signal.SIGINT, before)
