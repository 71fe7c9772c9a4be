import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import synflow_lib as sf
from synflow_lib import cli, reproduce
from synflow_lib.benchmark import Run

QUICK = ["bench", "--model", "mlp", "--width", "0.25", "--recipe", "smoke", "--device", "cpu"]


@pytest.fixture(autouse=True)
def current_folder(tmp_path, monkeypatch):
    """Work in the folder of the test, where `records` is."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["reproduce", "bench", "status", "data", "prune"])
def test_each_help_ends_with_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2] == "example:"
    words = lines[-1].split()
    assert words[:2] == ["synflow", name]
    cli.parser().parse_args(words[1:])


def test_help_answers_without_importing_torch():
    code = "import sys; from synflow_lib.cli import parser; parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "synflow_lib.cli", "data"], capture_output=True, text=True, check=True)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(sf.data.DATASETS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("bench --dataset cifra10", "unknown data set 'cifra10'; did you mean 'cifar10'?"),
        ("bench --model vgg12", "unknown model 'vgg12'; did you mean"),
        ("bench --pruner synflow snipp", "unknown pruning method 'snipp'; did you mean 'snip'?"),
        ("bench --recipe slow", "unknown recipe 'slow' (known: described, fast, smoke)"),
        ("bench --recipe published", "unknown recipe 'published'"),
        ("bench --schedule cubic", "unknown schedule 'cubic'"),
        ("bench --scope all", "unknown scope 'all'"),
        ("bench --engine ray", "unknown engine 'ray'"),
        ("bench --device tpu", "unknown device 'tpu'"),
        ("bench --device cuda:99", "device 'cuda:99' is not available"),
        ("bench --compression 0.5", "compression must be a ratio from 1 to rho_max"),
        ("bench --compression 10 1e9", "compression must be a ratio from 1 to rho_max"),
        ("bench --compression 0", "--compression is a ratio of at least 1, not 0"),
        ("bench --compression -3", "--compression is a ratio of at least 1, not -3"),
        ("bench --compression nan", "--compression is a ratio of at least 1, not nan"),
        ("bench --compression inf", "--compression is a ratio of at least 1, not inf"),
        ("bench --seed -1", "seed and cycles must not be negative"),
        ("bench --width 0", "width must be a positive factor"),
        ("bench --iterations 0", "iterations must be at least 1"),
        ("bench --workers 0", "workers and threads must be at least 1"),
        ("bench --records file/records", "cannot write file/records"),
        ("status --records nowhere", "there is no folder nowhere"),
        ("data mnist", "unknown data set 'mnist'"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, sentence, capsys):
    Path("file").touch()
    assert cli.main(arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("synflow: ") and output.err.count("\n") == 1
    assert sentence in output.err
    assert sorted(path.name for path in Path().iterdir()) == ["file"]


@pytest.mark.parametrize(
    "arguments",
    ["", "benhc", "bench --seed one", "bench --compressions 10", "prune mlp --compression ten", "prune mlp vgg11"],
)
def test_a_command_line_that_does_not_parse_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    assert end.value.code == 2
    assert "usage: synflow" in capsys.readouterr().err


def test_an_interrupt_is_status_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sf.benchmark, "run_all", interrupted)
    assert cli.main(QUICK) == 130
    assert capsys.readouterr().err == "synflow: interrupted; what was finished is kept\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sf.benchmark, "run_all", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(QUICK)


def test_bench_does_the_grid_and_prints_where_the_records_are(capsys, tmp_path):
    arguments = [*QUICK, "--pruner", "random", "magnitude", "--compression", "10", "31.6227766", "--records", "here"]
    assert cli.main([*arguments, "--engine", "serial"]) == 0
    printed = capsys.readouterr().out
    files = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "here").glob("*.json")}
    grid = sf.benchmark.grid("digits", "mlp", ["random", "magnitude"], [1, 1.5], 0, "smoke", width=0.25)
    assert set(files) == {run.key for run in grid}
    assert all(key in printed and f"{record['accuracy_best']:.2f}" in printed for key, record in files.items())
    assert "records in here" in printed
    assert "SYNFLOW_RECORDS" in os.environ and not (tmp_path / "records").exists()


def test_every_option_of_bench_reaches_the_run(monkeypatch):
    seen = []

    def run_all(runs, *rest, **options):
        seen.append((runs, rest, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(sf.benchmark, "run_all", run_all)
    text = (
        "bench --dataset cifar10 --model vgg16 --pruner snip --compression 100 --seed 3 4 --recipe described "
        "--width 0.5 "
        "--iterations 7 --schedule linear --scope layer --train-mode --invert --shuffle --reinitialise --cycles 2 "
        "--no-rewind --engine serial --workers 3 --threads 2 --device cpu"
    )
    cli.main(text.split())
    options = {"width": 0.5, "iterations": 7, "schedule": "linear", "scope": "layer", "cycles": 2, "rewind": False}
    flags = dict.fromkeys(("train_mode", "invert", "shuffle", "reinitialise"), True)
    runs = [Run("cifar10", "vgg16", "snip", 2.0, seed, "described", **options, **flags) for seed in (3, 4)]
    assert seen == [(runs, ("serial", 3, "cpu"), {"threads": 2})]


def test_a_failed_run_is_told_and_is_status_1(monkeypatch, capsys):
    def broken(*_):
        raise MemoryError("too large")

    monkeypatch.setattr(sys.modules["synflow_lib.benchmark.run"], "execute", broken)
    assert cli.main(QUICK) == 1
    output = capsys.readouterr()
    assert "failed" in output.out and output.err.endswith("failed: too large\n")


def test_status_counts_the_panels(capsys):
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == "no runs are recorded\nrecords in records\n"
    cli.main([*QUICK, "--seed", "0", "1", "--engine", "serial"])
    Path("records", "0123456789abcdef.json").write_text("{")
    capsys.readouterr()
    assert cli.main(["status"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"digits +mlp +0.25 +smoke +2 +0 +0 +-", printed)
    assert "records in records, 1 damaged set aside" in printed


def test_data_makes_a_set_ready(capsys):
    assert cli.main(["data", "digits"]) == 0
    assert capsys.readouterr().out.startswith("digits: ready, 1,437 training and 360 test images")


@pytest.mark.filterwarnings("always")
def test_a_warning_of_the_library_is_one_line_without_source_lines(monkeypatch, capsys):
    monkeypatch.setattr(sf.data, "describe", lambda name: warnings.warn(f"{name} is\n  strange", stacklevel=1) or name)
    shown = warnings.showwarning
    assert cli.main(["data"]) == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [f"synflow: warning: {name} is strange" for name in sf.data.DATASETS]
    assert output.out.splitlines() == list(sf.data.DATASETS) and warnings.showwarning is shown


def test_reproduce_passes_its_options_on(monkeypatch):
    seen = []
    monkeypatch.setattr(reproduce, "reproduce", lambda **options: seen.append(options) or 3)
    assert (
        cli.main(
            ["reproduce", "--only", "03", "06", "--force", "--out", "there", "--panels", "all", "--recipe", "fast"]
        )
        == 3
    )
    assert seen == [{"only": ["03", "06"], "out": Path("there"), "force": True, "panels": "all", "recipe": "fast"}]


def test_bench_survives_its_own_death():
    """kill -9 in the middle; the second call finishes, and every record is whole."""
    command = [sys.executable, "-m", "synflow_lib.cli", "bench", "--model", "vgg11", "--width", "0.1"]
    command += ["--recipe", "smoke", "--pruner", "random", "magnitude", "synflow", "--workers", "2"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(Path("records").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = {path: path.stat().st_mtime_ns for path in Path("records").glob("*.json")}
    assert kept
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count(" done ") == 3
    records = [json.loads(path.read_text()) for path in Path("records").glob("*.json")]
    assert {(record["pruner"], record["status"]) for record in records} == {
        ("random", "done"), ("magnitude", "done"), ("synflow", "done")}  # fmt: skip
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in kept.items())
