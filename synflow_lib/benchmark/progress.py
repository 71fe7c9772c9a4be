"""How far the runs are: a bar in a terminal, one line in a notebook, now and then a line in a log.

A bar tells the time left from the mean of this call's runs, and the device-hours that they took: the seconds of each
run, times the cores that it has to itself, or divided by the runs that share its GPU.
"""

import sys
import time
from collections import Counter

from tqdm import tqdm

from synflow_lib.errors import InputError

LINE_EVERY = 600  # seconds between two lines where standard error is no terminal


class Progress:
    """Count the answers of an engine; called with each. Raises InputError for a run that could not be recorded.

    In a notebook it is one line of text, replaced as runs end, and without times when all have, so that the stored
    output is the same each time.
    """

    def __init__(self, total: int, known: int, shown: bool = True):
        self.total, self.known = total, known
        self.statuses = Counter(recorded=known)
        self.hours, self.device, self.share = 0.0, "core", 1.0
        self.started = self.told = time.monotonic()
        self.bar, self.line = None, None
        if shown and _in_notebook():
            from IPython.display import display

            self.line = display({"text/plain": ""}, raw=True, display_id=True)
        elif shown:
            # disable=None: no bar where standard error is no terminal. smoothing=0: runs differ and end in bunches.
            self.bar = tqdm(total=total, initial=known, unit="run", file=sys.stderr, disable=None, smoothing=0)

    def hours_of(self, device: str, threads: int = 1, sharing: float = 1) -> None:
        """Say whose hours are counted: a run has `threads` cores, or a GPU with `sharing` runs on it."""
        on_cpu = device.startswith("cpu")
        self.device, self.share = ("core", threads) if on_cpu else ("GPU", 1 / sharing)

    def __call__(self, answer: dict) -> None:
        self.statuses[answer["status"]] += 1
        if answer["status"] == "unrecorded":
            raise InputError(answer["error"])
        self.hours += answer.get("seconds", 0) / 3600 * self.share
        if self.bar is not None:
            unusual = {name: n for name, n in self.statuses.items() if name in ("failed", "diverged")}
            self.bar.set_postfix({f"{self.device}-hours": f"{self.hours:.2f}", **unusual})
            self.bar.update()
        self._tell(f"{self.count()}, {self.forecast()}")

    @property
    def done(self) -> int:
        """How many runs need no more work."""
        return sum(self.statuses.values())

    def count(self) -> str:
        """How many runs are done, in words, and how many of them failed."""
        failed = f", {self.statuses['failed']} failed" if self.statuses["failed"] else ""
        return f"{self.done} of {self.total} runs done{failed}"

    def forecast(self) -> str:
        """The device-hours so far and the time left, in words."""
        left = (self.total - self.done) * (time.monotonic() - self.started) / max(1, self.done - self.known)
        return f"{self.hours:.2f} {self.device}-hours, about {tqdm.format_interval(left)} left"

    def waiting(self, number: int) -> None:
        """Tell that `number` runs are in the hands of another process."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"waiting for {number} of another process")
        self._tell(f"{self.count()}, waiting for {number} of another process")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        self._show(self.count())

    def _tell(self, sentence: str) -> None:
        self._show(sentence)
        if self.bar is not None and self.bar.disable and time.monotonic() - self.told >= LINE_EVERY:
            self.told = time.monotonic()
            print(sentence, file=sys.stderr, flush=True)

    def _show(self, sentence: str) -> None:
        if self.line is not None:
            self.line.update({"text/plain": sentence}, raw=True)


def _in_notebook() -> bool:
    """Whether this is a Jupyter kernel; a plain IPython terminal is not."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")
