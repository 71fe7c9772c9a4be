import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import pytest

import synflow_lib as sf
from synflow_lib import cli, reproduce
from synflow_lib.benchmark import Run
from synflow_lib.devices import Speed
from synflow_lib.training import RECIPES, recipe

QUICK = ["bench", "--model", "mlp", "--width", "0.25", "--recipe", "smoke", "--device", "cpu"]


@pytest.fixture(autouse=True)
def current_folder(tmp_path, monkeypatch):
    """Work in the folder of the test, where `records` is."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["reproduce", "bench", "status", "results", "data", "prune"])
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_below_the_output_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "synflow_lib.cli", "status"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "synflow: cannot write the output: No space left on device; what was finished is kept\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.skipif(os.name != "posix", reason="closes its streams with a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_as_good_as_none(closed, tmp_path):
    options = f"bench --model mlp --width 0.25 --recipe smoke --engine serial --device cpu --records {tmp_path}"
    command = f"{sys.executable} -m synflow_lib.cli {options} {closed}"
    assert subprocess.run(["sh", "-c", command]).returncode == 0 and len(list(tmp_path.glob("*.json"))) == 1


def test_a_reader_that_stops_early_gets_no_traceback():
    """As `synflow status | head -n 1`: nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "synflow_lib.cli", "status"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("bench --dataset cifra10", "unknown data set 'cifra10'; did you mean 'cifar10'?"),
        ("bench --model vgg12", "unknown model 'vgg12'; did you mean"),
        ("bench --pruner synflow snipp", "unknown pruning method 'snipp'; did you mean 'snip'?"),
        ("bench --recipe slow", "unknown recipe 'slow' (known: published, described, fast, page, smoke)"),
        ("bench --panels cifar10 --recipe slow", "unknown recipe 'slow'"),
        ("bench --recipe fast:epoch=2", "unknown value of a recipe 'epoch'; did you mean 'epochs'"),
        ("bench --panels cifar10 --recipe fast:epochs", "write each change once, as in fast:epochs=10,crop=3"),
        ("bench --panels cifar11", "unknown panel 'cifar11'; did you mean 'cifar10'"),
        ("bench --panels all --model vgg11", "--panels runs the whole published grid of its panels: leave out --model"),
        ("bench --panels all --width 1", "leave out --width"),
        ("bench --panels all --no-rewind", "leave out --no-rewind"),
        ("bench --no-rewind", "give --cycles too"),
        ("bench --pruner magnitude snip --schedule linear", "these runs have one: give --iterations too"),
        ("bench --with compcat", "unknown speed feature 'compcat'; did you mean 'compact'?"),
        ("bench --with graphs --device cpu", "CUDA graphs need a CUDA device, not 'cpu': switch graphs off"),
        ("bench --estimate --with graphs --device cpu", "CUDA graphs need a CUDA device, not 'cpu'"),
        ("bench --with fused --without bfloat16 fused", "fused is switched on and off"),
        ("bench --estimate --model vgg12", "unknown model 'vgg12'"),
        ("bench --schedule cubic", "unknown schedule 'cubic'"),
        ("bench --scope all", "unknown scope 'all'"),
        ("bench --pruner snip --loss uniformed", "unknown loss 'uniformed'; did you mean 'uniform'?"),
        ("bench --pruner snip synflow --loss uniform", "loss is for snip and grasp, which score on data, not for synf"),
        ("bench --pruner snip --source cifar", "unknown data set 'cifar'; did you mean 'cifar10'?"),
        ("bench --pruner random --source cifar10", "source is for snip and grasp, which score on data, not for random"),
        (
            "bench --pruner snip --source cifar100",
            "a network for digits (3x32x32, 10 classes) cannot score on cifar100",
        ),
        ("bench --panels all --isometry", "leave out --isometry"),
        ("bench --engine dask", "unknown engine 'dask'"),
        ("bench --device tpu", "unknown device 'tpu'"),
        ("bench --device cuda:99", "device 'cuda:99' is not available"),
        ("bench --compression 0.5", "compression must be a ratio from 1 to rho_max"),
        ("bench --compression 10 1e9", "compression must be a ratio from 1 to rho_max"),
        ("bench --compression 0", "--compression is a ratio of at least 1, not 0"),
        ("bench --compression -3", "--compression is a ratio of at least 1, not -3"),
        ("bench --compression nan", "--compression is a ratio of at least 1, not nan"),
        ("bench --compression inf", "--compression is a ratio of at least 1, not inf"),
        ("bench --compression 10 inf 0", "--compression is a ratio of at least 1, not inf"),
        ("bench --seed -1", "seed and cycles must not be negative"),
        ("bench --width 0", "width must be a positive factor"),
        ("bench --iterations 0", "iterations must be at least 1"),
        ("bench --workers 0", "workers and threads must be at least 1"),
        ("bench --estimate --workers -1", "workers and threads must be at least 1, not -1 and 1"),
        ("bench --estimate --workers 0", "workers and threads must be at least 1, not 0 and 1"),
        ("bench --estimate --threads 0", "workers and threads must be at least 1, not None and 0"),
        ("bench --estimate --runs-per-gpu 0", "runs_per_gpu must be at least 1, not 0"),
        ("bench --estimate --engine bogus", "unknown engine 'bogus' (known: serial, processes, ray)"),
        ("bench --estimate --engine ray --address auto", "--estimate tells of this computer, not of a cluster"),
        ("bench --address auto", "--address is of a Ray cluster: give --engine ray too, or leave it out"),
        ("bench --engine serial --address auto", "--address is of a Ray cluster"),
        ("bench --engine serial --workers 2", "--engine serial does one run after another: leave out --workers"),
        ("bench --records file/records", "cannot write file/records"),
        ("status --records nowhere", "there is no folder nowhere"),
        ("status --panels vgg12", "unknown panel 'vgg12'"),
        ("status --recipe slow", "unknown recipe 'slow'"),
        ("status --recipe fast:crop=x", "recipe 'fast:crop=x': crop must be a whole number, not 'x'"),
        ("results", "no finished run matches: `synflow status` shows what is recorded"),
        ("results --compare --out x.csv", "--compare shows a table and writes no file: leave out --out"),
        ("results --dataset cifr10", "unknown data set 'cifr10'; did you mean 'cifar10'?"),
        ("results --model vgg12", "unknown model 'vgg12'; did you mean"),
        ("results --pruner snip synflw", "unknown pruning method 'synflw'; did you mean 'synflow'?"),
        ("results --recipe fsat", "unknown recipe 'fsat'; did you mean 'fast'?"),
        ("results --recipe fast:epoch=2", "unknown value of a recipe 'epoch'; did you mean 'epochs'"),
        ("results --recipe fast:epochs=10 --model vgg16", "no finished run matches"),
        ("results --recipe fast --width 0.5 --options none --panels all", "no finished run matches"),
        ("results --force", "--force replaces the file of --out: name one"),
        ("results --records nowhere", "there is no folder nowhere"),
        ("results --panels vgg12", "unknown panel 'vgg12'"),
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


@pytest.fixture
def seen(monkeypatch):
    """What `run_all` is called with, which then ends as if interrupted."""
    calls = []

    def run_all(runs, *rest, **options):
        calls.append((runs, rest, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(sf.benchmark, "run_all", run_all)
    return calls


def test_every_option_of_bench_reaches_the_run(seen):
    text = (
        "bench --dataset cifar10 --model vgg16 --pruner snip --compression 100 --seed 3 4 --recipe described "
        "--width 0.5 "
        "--iterations 7 --schedule linear --scope layer --train-mode --invert --shuffle --reinitialise --cycles 2 "
        "--no-rewind --isometry --loss entropy --source digits --engine processes --workers 3 --threads 2 --device cpu"
    )
    cli.main(text.split())
    options = {"width": 0.5, "iterations": 7, "schedule": "linear", "scope": "layer", "cycles": 2, "rewind": False}
    options |= {"isometry": True, "loss": "entropy", "source": "digits"}
    flags = dict.fromkeys(("train_mode", "invert", "shuffle", "reinitialise"), True)
    runs = [Run("cifar10", "vgg16", "snip", 2.0, seed, "described", **options, **flags) for seed in (3, 4)]
    options = {"threads": 2, "speed": None, "runs_per_gpu": 1, "address": None}
    assert seen == [(runs, ("processes", 3, "cpu"), options)]


def test_panels_are_the_published_grid_and_the_engine_hears_of_everything(seen):
    text = (
        "bench --panels cifar10_vgg16 tiny-imagenet_vgg11 --recipe fast published --engine ray --address auto "
        "--runs-per-gpu 3 --with compile --without bfloat16 channels-last --device cuda"  # which only the nodes have
    )
    assert cli.main(text.split()) == 130
    ((runs, rest, options),) = seen
    pairs = [("cifar10", "vgg16"), ("tiny-imagenet", "vgg11")]
    assert runs == sf.benchmark.published_grid("fast", pairs) + sf.benchmark.published_grid("published", pairs)
    assert rest == ("ray", None, "cuda") and (options["address"], options["runs_per_gpu"]) == ("auto", 3)
    assert options["speed"] == {"compile": True, "bfloat16": False, "channels_last": False}


def test_the_help_names_the_recipes_and_the_speed_features(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    assert {field.name.replace("_", "-") for field in fields(Speed)} | set(RECIPES) <= words


def test_an_estimate_runs_nothing(capsys):
    assert cli.main([*QUICK, "--estimate", "--pruner", "random", "magnitude", "--seed", "0", "1"]) == 0
    output = capsys.readouterr()
    assert "4 runs to do, 4 trainings" in output.out and "core-hours on CPU" in output.out
    assert "measuring mlp on images of 32x32 pixels" in output.err
    assert not Path("records").exists() or not list(Path("records").glob("*.json"))


def test_an_estimate_of_the_serial_engine_is_of_one_core(capsys):
    assert cli.main([*QUICK, "--estimate", "--engine", "serial"]) == 0
    assert "hours by the clock on 1 cores" in capsys.readouterr().out


def test_a_failed_run_is_told_and_is_status_1(monkeypatch, capsys):
    def broken(*_):
        raise MemoryError("too large")

    monkeypatch.setattr(sys.modules["synflow_lib.benchmark.run"], "execute", broken)
    assert cli.main(QUICK) == 1
    output = capsys.readouterr()
    assert "failed" in output.out and output.err.endswith("failed: too large\n")


def test_status_and_results_tell_what_is_recorded(capsys):
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == "no runs are recorded\nrecords in records\n"
    cli.main([*QUICK, "--seed", "0", "1", "--engine", "serial"])
    Path("records", "0123456789abcdef.json").write_text("{")
    capsys.readouterr()
    assert cli.main(["status"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mlp on digits, width 0.25, recipe smoke: 2 done\n") and "  synflow ##\n" in printed
    assert "records in records, 1 damaged set aside" in printed
    assert cli.main(["status", "--panels", "cifar10_vgg11"]) == 0
    assert "vgg11 on cifar10, recipe fast: 183 missing" in capsys.readouterr().out
    assert cli.main(["results", "--out", "mine.csv", "--model", "mlp", "--width", "0.25"]) == 0
    assert capsys.readouterr().out == "2 runs in mine.csv\n"
    assert len(sf.benchmark.results.read(Path("mine.csv"))) == 2
    assert cli.main(["results", "--recipe", "smoke"]) == 0
    assert capsys.readouterr().out.count(" done ") == 2


@pytest.mark.parametrize("command", ["status", "results"])
@pytest.mark.parametrize("named", [True, False])
def test_records_that_may_not_be_looked_into_are_not_taken_for_none(command, named, tmp_path, monkeypatch, capsys):
    def closed(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "records").mkdir()
    monkeypatch.setattr(os, "listdir", closed)
    assert cli.main([command, *(["--records", "records"] if named else [])]) == 2
    assert capsys.readouterr() == ("", "synflow: cannot look into records: Permission denied\n")


def test_results_take_no_runs_away_unless_forced(capsys):
    cli.main([*QUICK, "--seed", "0", "1", "--engine", "serial"])
    assert cli.main(["results", "--out", "mine.csv"]) == cli.main(["results", "--out", "mine.csv"]) == 0
    sf.benchmark.records.path(Run("digits", "mlp", "synflow", 1.0, recipe="smoke", width=0.25).key).unlink()
    before = Path("mine.csv").read_bytes()
    capsys.readouterr()
    assert cli.main(["results", "--out", "mine.csv"]) == 2 and Path("mine.csv").read_bytes() == before
    assert capsys.readouterr().err == (
        "synflow: mine.csv has other runs than these, which would be lost (1): choose another file, or replace it with "
        "--force\n"
    )
    assert cli.main(["results", "--out", "mine.csv", "--force"]) == 0
    assert len(sf.benchmark.results.read(Path("mine.csv"))) == 1
    Path("notes.csv").write_text("a,b\n1,2\n")
    assert cli.main(["results", "--out", "notes.csv"]) == 2 and Path("notes.csv").read_text() == "a,b\n1,2\n"


def test_a_varied_recipe_is_run_and_found_in_any_spelling(capsys):
    varied = [*QUICK[:-4], "--recipe", "smoke:lr=.1,epochs=1", "--device", "cpu", "--engine", "serial"]
    cli.main(varied)
    cli.main([*QUICK, "--engine", "serial"])
    (run,) = (run for run in map(sf.benchmark.records.run_of, sf.benchmark.records.everything()) if ":" in run.recipe)
    assert run.recipe == "smoke:epochs=1,lr=0.1"
    record = sf.benchmark.records.find(run)
    assert [row["epoch"] for row in record["curve"]] == [0, 1] and record["settings"]["lr"] == 0.1
    capsys.readouterr()
    for command in ("results --recipe smoke:epochs=1,lr=0.10", "status --recipe smoke:lr=1e-1,epochs=1"):
        assert cli.main(command.split()) == 0
        printed = capsys.readouterr().out
        assert printed.count("smoke") == printed.count("smoke:epochs=1,lr=0.1") == 1
    assert cli.main(["results", "--recipe", "fast", "smoke", "smoke:lr=0.1,epochs=1"]) == 0
    assert capsys.readouterr().out.count(" done ") == 2
    assert cli.main(["results", "--recipe", "smoke", "smok"]) == 2
    assert "unknown recipe 'smok'; did you mean 'smoke'?" in capsys.readouterr().err


def test_results_by_their_options(capsys):
    for options in ([], ["--isometry"], ["--isometry", "--loss", "uniform"], ["--no-rewind", "--cycles", "1"]):
        cli.main([*QUICK, "--pruner", "snip", *options, "--engine", "serial"])
    counts = {"none": 1, "isometry": 2, "loss": 1, "cycles loss": 2, "isometry none": 3, "no-rewind": 1}
    for names, count in counts.items():
        assert cli.main(["results", "--options", *names.split(), "--out", "mine.csv", "--force"]) == 0
        assert len(sf.benchmark.results.read(Path("mine.csv"))) == count
    capsys.readouterr()
    assert cli.main(["results", "--options", "isometric"]) == 2
    assert capsys.readouterr().err.startswith("synflow: unknown option 'isometric'; did you mean 'isometry'?")


def test_results_are_compared_where_the_authors_have_them(capsys):
    run = Run("cifar10", "resnet18", "snip", 1.0, 0, "fast")
    settings = recipe("fast", "cifar10", "resnet18").settings()
    outcome = {"accuracy_last": 90.0, "accuracy_best": 91.0, "compression": 10.0, "curve": [], "settings": settings}
    sf.benchmark.records.write({**asdict(run), "key": run.key, "status": "done", **outcome})
    assert cli.main(["results", "--compare", "--panels", "cifar10_wide_resnet18_published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(" 91.00 " in line for line in lines[1:])
    assert cli.main(["results", "--compare", "--panels", "cifar100"]) == 2
    assert "no finished run matches" in capsys.readouterr().err


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
    given = "--only 03 06 --force --out there --panels all --recipe fast --scale paper"
    assert cli.main(["reproduce", *given.split()]) == 3
    texts = {"only": ["03", "06"], "panels": ["all"], "recipe": "fast", "scale": "paper"}
    assert seen == [{"out": Path("there"), "force": True, **texts}]


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
