"""How a long piece of work is interrupted: first gently, with nothing lost, and at once when asked again."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synflow_lib.training.checkpoint import STOP

SENTENCE = (
    "synflow: stopping; the runs in progress finish the epoch they are in and are saved, the same command goes on "
    "from there (interrupt again to end at once)"
)
# A terminal's Ctrl-C, what SLURM, Kubernetes and `kill` send before they end a process, and the end of a terminal.
HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = [name for name in (signal.SIGINT, signal.SIGTERM, HANGUP) if name is not None]


@contextmanager
def gently() -> Iterator[None]:
    """For the block, the first of `SIGNALS` sets STOP and says so; the second does what it did before.

    A second hangup does nothing: the terminal and the shell each send one, and neither is a person who asks again.
    Only in the main thread, to which Python gives all signals; elsewhere they belong to someone else and stay as they
    are, and so does a signal that is ignored (as a shell has it for what it starts in the background, or nohup).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.getsignal(name) for name in SIGNALS}
    before = {name: handler for name, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    announcers = []

    def first(*_: object) -> None:
        _restore({name: signal.SIG_IGN if name == HANGUP else handler for name, handler in before.items()})
        # From a thread: a handler that takes the lock of STOP or of the stream, both of which the interrupted code
        # may hold, would wait for itself.
        announcers.append(threading.Thread(target=announce))
        announcers[-1].start()

    try:
        for name in before:
            signal.signal(name, first)
        yield
    finally:
        _restore(before)
        for announcer in announcers:
            announcer.join()
            STOP.clear()


def announce() -> None:
    """Set STOP, and tell the person what happens now."""
    STOP.set()
    with contextlib.suppress(OSError):  # the terminal is gone
        print(SENTENCE, file=sys.stderr, flush=True)


@contextmanager
def heeding(flag: Path, seconds: float) -> Iterator[None]:
    """For the block, STOP is set within `seconds` of the file `flag` being there: the way to processes elsewhere."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            if flag.exists():
                STOP.set()

    watcher = threading.Thread(target=watch, daemon=True)
    if flag.exists():
        STOP.set()
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        STOP.clear()  # the process goes on to serve others


def _restore(handlers: dict) -> None:
    for name, handler in handlers.items():
        signal.signal(name, handler)
