import IPython.display
import pytest

from synflow_lib.benchmark import progress
from synflow_lib.benchmark.progress import Progress
from synflow_lib.errors import InputError


class Line:
    """Stands for an output of a notebook that is replaced."""

    def __init__(self):
        self.texts = []

    def update(self, data, raw):
        assert raw
        self.texts.append(data["text/plain"])


@pytest.fixture
def line(monkeypatch):
    made = Line()
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: made)
    return made


def test_a_notebook_keeps_one_line_whether_runs_were_known_or_not(line):
    with Progress(3, 1) as report:
        report({"key": "a", "status": "done"})
        report({"key": "b", "status": "diverged"})
    assert line.texts[0].startswith("2 of 3 runs done, 0.00 core-hours, about ")
    assert line.texts[1].startswith("3 of 3 runs done, ") and line.texts[2:] == ["3 of 3 runs done"]
    with Progress(3, 3):
        pass
    assert line.texts[-1] == "3 of 3 runs done"


def test_hours_are_those_of_the_devices(line):
    for means, hours in (("cpu", 2, 1), "0.50 core"), (("cuda:0", 2, 5), "0.05 GPU"), (("mps", 1, 1), "0.25 GPU"):
        with Progress(3, 0) as report:
            report.hours_of(*means)
            report({"key": "a", "status": "done", "seconds": 900})
            report({"key": "b", "status": "done"})
        assert line.texts[-2].startswith(f"2 of 3 runs done, {hours}-hours, about ")


def test_waiting_is_told_and_forgotten(line):
    with Progress(2, 1) as report:
        report.waiting(1)
    assert line.texts == ["1 of 2 runs done, waiting for 1 of another process", "1 of 2 runs done"]


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    with Progress(2, 0) as report:
        report({"key": "a", "status": "failed"})
    assert capsys.readouterr().err.startswith("1 of 2 runs done, 1 failed, 0.00 core-hours, about ")


def test_failures_are_counted_at_the_end(line):
    with Progress(2, 0) as report:
        report({"key": "a", "status": "failed"})
        report({"key": "b", "status": "done"})
    assert line.texts[-1] == "2 of 2 runs done, 1 failed"


def test_a_run_that_could_not_be_recorded_stops_the_rest():
    with pytest.raises(InputError, match="no space"), Progress(2, 0, shown=False) as report:
        report({"key": "a", "status": "unrecorded", "error": "no space"})


def test_nothing_is_printed_where_there_is_no_terminal(capsys):
    with Progress(1, 0) as report:
        report({"key": "a", "status": "done"})
    assert capsys.readouterr() == ("", "")


def test_this_is_no_notebook():
    assert progress._in_notebook() is False
