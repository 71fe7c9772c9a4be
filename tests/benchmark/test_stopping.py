import os
import signal
import threading

import pytest
from benchmark.drivers import wait_for

from synflow_lib.benchmark.stopping import HANGUP, SENTENCE, SIGNALS, gently, heeding
from synflow_lib.training.checkpoint import STOP


@pytest.mark.parametrize("name", SIGNALS)
def test_the_first_signal_asks_and_the_second_does_what_it_did_before(name, capsys):
    heard = []
    before = signal.signal(name, lambda *_: heard.append(name))
    try:
        with gently():
            os.kill(os.getpid(), name)
            wait_for(STOP.is_set)
            assert not heard
            os.kill(os.getpid(), name)
            assert heard == [name] * (name != HANGUP)  # of which a terminal and its shell send one each
        assert not STOP.is_set() and capsys.readouterr().err == SENTENCE + "\n"
        os.kill(os.getpid(), name)
        assert heard == [name] * (1 + (name != HANGUP))
    finally:
        signal.signal(name, before)


def test_a_quiet_block_changes_nothing(capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), gently():
        assert signal.getsignal(signal.SIGINT) is not before
        _ = 1 // 0
    assert signal.getsignal(signal.SIGINT) is before and capsys.readouterr().err == ""


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with gently():
            os.kill(os.getpid(), signal.SIGINT)
        assert not STOP.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_belong_to_the_main_thread():
    seen = []

    def work():
        with gently():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_a_file_stops_what_heeds_it_for_as_long_as_it_does(tmp_path):
    with heeding(tmp_path / "flag", 0.01):
        assert not STOP.is_set()
        (tmp_path / "flag").touch()
        wait_for(STOP.is_set)
    assert not STOP.is_set()
    with heeding(tmp_path / "flag", 60):
        assert STOP.is_set()
    assert not STOP.is_set()
