"""How far the runs are: a bar in a terminal, one line in a notebook, nothing elsewhere."""

import sys
from collections import Counter

from tqdm import tqdm

from synflow_lib.errors import InputError


class Progress:
    """Count the answers of an engine; called with each. Raises InputError for a run that could not be recorded.

    In a notebook it is one line of text, replaced as runs end, so that the stored output is the same each time.
    """

    def __init__(self, total: int, known: int, shown: bool = True):
        self.total = total
        self.statuses = Counter(recorded=known)
        self.bar, self.line = None, None
        if shown and _in_notebook():
            from IPython.display import display

            self.line = display({"text/plain": ""}, raw=True, display_id=True)
        elif shown:
            # disable=None: no bar where standard error is no terminal.
            self.bar = tqdm(total=total, initial=known, unit="run", file=sys.stderr, disable=None)

    def __call__(self, answer: dict) -> None:
        self.statuses[answer["status"]] += 1
        if answer["status"] == "unrecorded":
            raise InputError(answer["error"])
        if self.bar is not None:
            self.bar.set_postfix({name: n for name, n in self.statuses.items() if name in ("failed", "diverged")})
            self.bar.update()
        self._tell(f"{sum(self.statuses.values())} of {self.total} runs done")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        failed = f", {self.statuses['failed']} failed" if self.statuses["failed"] else ""
        self._tell(f"{sum(self.statuses.values())} of {self.total} runs done{failed}")

    def _tell(self, sentence: str) -> None:
        if self.line is not None:
            self.line.update({"text/plain": sentence}, raw=True)


def _in_notebook() -> bool:
    """Whether this is a Jupyter kernel; a plain IPython terminal is not."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")
