import os
import signal
import threading

import pytest

from mnist_jax.training.signals import Stopped, StopSignals


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
