import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from benchmark.drivers import epochs_saved, go, start, starts, wait_for

from synflow_lib import data, paths
from synflow_lib.benchmark import claims, engines, grid, records, run, run_all, stopping
from synflow_lib.benchmark.engines import Means, default_workers
from synflow_lib.benchmark.progress import Progress
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError

SOME = ("random", "snip", "synflow")


@pytest.fixture
def runs(quick):
    return [replace(quick, pruner=pruner) for pruner in SOME]


def test_both_engines_give_the_same_bits(runs, monkeypatch, tmp_path):
    results = []
    for engine in ("serial", "processes"):
        monkeypatch.setenv("SYNFLOW_RECORDS", str(tmp_path / engine))
        table = run_all(runs, engine, workers=2, device="cpu", progress=False)
        assert table["pruner"].tolist() == list(SOME) and set(table["status"]) == {"done"}
        curves = [[row["test_loss"] for row in records.read(run.key)["curve"]] for run in runs]
        results.append((curves, [records.read(run.key)["layers"] for run in runs]))
    assert results[0] == results[1]


def test_recorded_and_repeated_runs_are_not_done_again(runs, monkeypatch):
    run_all(runs, "serial", device="cpu", progress=False)
    monkeypatch.setattr(engines, "attempt", lambda *_: pytest.fail("done again"))
    table = run_all([*runs, runs[0]], device="cpu", progress=False)
    assert table["key"].tolist() == [run.key for run in [*runs, runs[0]]]
    assert run_all([], device="cpu", progress=False).empty


def test_one_run_needs_no_process(quick, monkeypatch):
    monkeypatch.setattr(engines, "side_by_side", lambda *_: pytest.fail("started processes"))
    assert run_all([quick], "processes", workers=4, device="cpu", progress=False)["status"].tolist() == ["done"]


def test_a_failing_run_does_not_stop_the_others(runs, monkeypatch):
    broken, module = replace(runs[0], seed=7), sys.modules["synflow_lib.benchmark.run"]
    original = module.execute

    def execute(run, *rest):
        return original(run, *rest) if run != broken else 1 // 0

    monkeypatch.setattr(module, "execute", execute)
    table = run_all([broken, *runs], "serial", device="cpu", progress=False)
    assert table["status"].tolist() == ["failed", "done", "done", "done"]
    assert table["error"][0] == "integer division or modulo by zero"


def test_a_record_that_cannot_be_written_stops_everything_at_once(runs, monkeypatch):
    def full(_):
        raise InputError("cannot write the record: No space left on device")

    monkeypatch.setattr(records, "write", full)
    done = []
    original = engines.attempt
    monkeypatch.setattr(engines, "attempt", lambda *a: done.append(1) or original(*a))
    with pytest.raises(InputError, match="No space left"):
        run_all(runs, "serial", device="cpu", progress=False)
    assert len(done) == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"engine": "rai"}, "unknown engine 'rai'; did you mean 'ray'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"workers": 0}, "workers and threads must be at least 1"),
        ({"threads": 0}, "workers and threads must be at least 1"),
        ({"speed": {"compcat": True}}, "unknown speed feature 'compcat'; did you mean 'compact'"),
        ({"speed": Speed(graphs=True)}, "CUDA graphs need a CUDA device"),
        ({"runs_per_gpu": 0}, "runs_per_gpu must be at least 1, not 0"),
    ],
)
def test_bad_input_is_refused_before_any_work(wrong, sentence, quick, monkeypatch):
    monkeypatch.setattr(data, "prepare", lambda _: pytest.fail("prepared data"))
    with pytest.raises(InputError, match=sentence):
        run_all([quick], **{"device": "cpu", "progress": False, **wrong})
    with pytest.raises(InputError, match="unknown model"):
        run_all([quick, replace(quick, model="vgg")], device="cpu", progress=False)


def test_every_data_set_is_made_ready_once_before_the_runs_those_scored_on_too(quick, monkeypatch):
    ready = []
    monkeypatch.setattr(data, "prepare", ready.append)
    monkeypatch.setattr(engines, "attempt", lambda run, *_: {"key": run.key, "status": "done", "seconds": 1})
    scored = replace(quick, pruner="snip", source="cifar10")
    run_all([quick, scored, replace(scored, seed=1)], "serial", device="cpu", progress=False)
    assert ready == ["digits", "cifar10"]


def test_workers_default_to_the_cores_that_may_be_used():
    assert 1 <= default_workers(torch.device("cpu")) <= os.cpu_count()
    assert default_workers(torch.device("mps")) == 1


def test_workers_of_several_threads_share_the_cores(runs, monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: 5)
    assert [default_workers(torch.device("cpu"), threads=number) for number in (1, 2, 5, 8)] == [5, 2, 1, 1]
    asked = []
    monkeypatch.setattr(engines, "side_by_side", lambda runs, places, threads, *_: asked.append((len(places), threads)))
    for workers in (None, 3):
        means = Means(workers, "cpu", threads=2)
        with engines.processes(means, 3, Progress(3, 0, shown=False)) as serve:
            serve(runs, pytest.fail)
    assert asked == [(2, 2), (3, 2)]


def test_runs_share_gpus_which_take_turns(runs, monkeypatch, caplog, tmp_path):
    asked = []
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engines, "side_by_side", lambda runs, places, *_: asked.append(places))
    progress = Progress(4, 0, shown=False)
    with engines.processes(Means(device="cuda:0", runs_per_gpu=3), 99, progress) as serve:
        serve(runs * 3, pytest.fail)
    assert asked == [["cuda:0", "cuda:1"] * 3]
    (told,) = caplog.messages
    assert "without NVIDIA's Multi-Process Service: `nvidia-cuda-mps-control -d`" in told
    (tmp_path / "control").touch()  # it is there now
    with engines.processes(Means(device="cuda:0", runs_per_gpu=3), 99, progress):
        pass
    progress({"key": "a", "status": "done", "seconds": 3600})
    assert progress.forecast().startswith("0.33 GPU-hours")
    with engines.processes(Means(device="cuda:1", workers=2), 99, progress) as serve:
        serve(runs[:1], pytest.fail)
    assert asked[1:] == [["cuda:1"]]
    assert caplog.messages == [told]


def test_what_is_switched_changes_the_fastest_choice_for_the_device(quick, monkeypatch):
    asked, automatic = [], Speed(compact=True, fused=True)
    answer = {"key": quick.key, "status": "done", "seconds": 1}
    monkeypatch.setattr(Speed, "auto", staticmethod(lambda device: automatic))
    monkeypatch.setattr(engines, "attempt", lambda *given: asked.append(given[3]) or answer)
    for given in (None, Speed(bfloat16=True), {"bfloat16": True, "fused": False}):
        run_all([quick], "serial", device="cpu", progress=False, speed=given)
    assert asked == [None, Speed(bfloat16=True), Speed(compact=True, bfloat16=True)]


class Other:
    """Another driver on the same folder, that has `run`; `act` is called as soon as this one waits for it."""

    def __init__(self, run, monkeypatch, act):
        self.claim = claims.claim(run.key)
        assert self.claim.__enter__()
        monkeypatch.setattr(Progress, "waiting", lambda _, number: act(number))

    def end(self):
        self.claim.__exit__(None, None, None)


def test_a_run_of_another_driver_is_waited_for(quick, monkeypatch, evaluations):
    record = {**run(quick, device="cpu"), "accuracy_best": 12.5}
    records.path(quick.key).unlink()
    evaluations.clear()

    def act(number):
        assert number == 1
        records.write(record)
        other.end()

    other = Other(quick, monkeypatch, act)
    table = run_all([quick], device="cpu", progress=False)
    assert table["accuracy_best"].tolist() == [12.5] and not evaluations


def test_a_failure_of_another_driver_is_not_tried_again_but_an_older_one_is(quick, monkeypatch, evaluations):
    failure = {**asdict(quick), "key": quick.key, "status": "failed", "error": "out of memory"}

    def act(_):
        records.write(failure)
        other.end()

    other = Other(quick, monkeypatch, act)
    assert run_all([quick], device="cpu", progress=False)["error"].tolist() == ["out of memory"]
    assert not evaluations
    other = Other(quick, monkeypatch, lambda _: other.end())
    assert run_all([quick], device="cpu", progress=False)["status"].tolist() == ["done"]


def test_what_a_killed_driver_had_is_taken_over_and_goes_on(slow, quick, monkeypatch, evaluations):
    monkeypatch.setenv("SYNFLOW_CHECKPOINT_SECONDS", "0")
    driver = start([slow], "serial")
    saved = []

    def kill(_):
        if epochs_saved(slow) is not None:
            saved.append(epochs_saved(slow))
            driver.kill()
            driver.communicate()

    monkeypatch.setattr(Progress, "waiting", lambda _, number: kill(number))
    monkeypatch.setattr(engines, "LOOK_EVERY", 0.01)
    go(driver)
    wait_for(lambda: claims.held(slow.key))
    assert run_all([slow], device="cpu", progress=False)["status"].tolist() == ["done"]
    assert driver.returncode == -signal.SIGKILL and evaluations["all"] <= 2 - saved[0]
    assert epochs_saved(slow) is None


def test_two_drivers_on_one_folder_do_every_run_once(runs):
    many = [replace(run, seed=seed) for run in runs for seed in range(2)]
    both = [start(many, "serial") for _ in range(2)]
    for driver in both:
        go(driver)
    for driver in both:
        assert driver.communicate(timeout=120) == (f"{['done'] * len(many)}\n", ""), "a driver said something else"
    assert sorted(starts(paths.records())) == sorted(run.key for run in many)


def test_an_interrupted_driver_saves_what_is_in_progress(slow, evaluations):
    many = [replace(slow, seed=seed) for seed in range(3)]
    driver = start(many, "processes")
    go(driver)
    wait_for(lambda: len(claims.running()) == 2)
    driver.send_signal(signal.SIGINT)
    output, errors = driver.communicate(timeout=120)
    assert driver.returncode == -signal.SIGINT and output == "" and errors.count(stopping.SENTENCE) == 1
    saved = {run: epochs_saved(run) for run in many if epochs_saved(run)}
    recorded = [run for run in many if records.find(run) is not None]  # on a slow day one ends before the signal
    assert saved and not set(saved) & set(recorded) and len(saved) + len(recorded) < 3 and not claims.running()
    again, epochs = saved.popitem()
    assert run_all([again], "serial", device="cpu", progress=False)["status"].tolist() == ["done"]
    assert evaluations["all"] == 2 - epochs


def test_a_second_interrupt_ends_at_once(slow):
    driver = start([replace(slow, recipe="described")], "serial")  # 160 epochs: it cannot be at its end
    go(driver)
    wait_for(claims.running)
    driver.send_signal(signal.SIGINT)
    assert stopping.SENTENCE in driver.stderr.readline()
    driver.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in driver.communicate(timeout=120)[1]
    assert driver.returncode == -signal.SIGINT and not claims.running()


def test_a_full_disk_stops_everything_and_costs_nothing_once_there_is_space(quick, monkeypatch, evaluations):
    monkeypatch.setenv("SYNFLOW_CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as patch:

        def full(path, *_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        patch.setattr(Path, "write_text", full)
        with pytest.raises(InputError, match=r"cannot write .*: No space left on device; free some space"):
            run_all([quick, replace(quick, seed=1)], "serial", device="cpu", progress=False)
    assert evaluations["all"] == 3 and epochs_saved(quick) == 2
    assert run_all([quick], device="cpu", progress=False)["status"].tolist() == ["done"]
    assert evaluations["all"] == 3


def test_a_damaged_record_and_a_damaged_checkpoint_cost_their_run_alone(runs, monkeypatch, evaluations):
    whole = run_all(runs, "serial", device="cpu", progress=False)
    records.path(runs[0].key).write_text('{"key": ')
    records.copy_of(runs[0].key).write_text("")
    claims.checkpoint(runs[0].key).parent.mkdir()
    claims.checkpoint(runs[0].key).write_bytes(b"\x00" * 40)
    evaluations.clear()
    again = run_all(runs, "serial", device="cpu", progress=False)
    assert evaluations["all"] == 3 and again["accuracy_last"].tolist() == whole["accuracy_last"].tolist()
    assert not claims.checkpoints(runs[0].key)


def test_what_a_worker_process_warns_of_is_told_once(runs, caplog):
    for spec in runs:
        claims.checkpoint(spec.key).parent.mkdir(exist_ok=True, parents=True)
        claims.checkpoint(spec.key).write_bytes(b"\x00" * 40)
    run_all(runs, "processes", workers=2, device="cpu", progress=False)
    told = [record.getMessage() for record in caplog.records]
    for spec in runs:
        assert sum(f"{spec.key}.safetensors is damaged" in sentence for sentence in told) == 1


def test_a_damaged_record_costs_nothing_for_there_is_a_copy(runs, evaluations, caplog):
    whole = run_all(runs, "serial", device="cpu", progress=False)
    text = records.path(runs[0].key).read_text()
    records.path(runs[0].key).write_text(text[:100])
    evaluations.clear()
    again = run_all(runs, "serial", device="cpu", progress=False)
    assert not evaluations and again["accuracy_last"].tolist() == whole["accuracy_last"].tolist()
    assert records.path(runs[0].key).read_text() == text
    assert "damaged" in caplog.text and "its copy takes its place" in caplog.text
    assert records.path(runs[0].key).with_suffix(".json.damaged").read_text() == text[:100]


GUARDLESS = """
import sys
from synflow_lib.benchmark import grid, run_all
print("started", flush=True)
run_all(grid("digits", "mlp", ["random", "snip", "synflow"], 1, (0, 1), "smoke", width=0.25), workers=2, device="cpu")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_script_without_a_guard_survives_its_own_death(tmp_path, quick):
    """kill -9 of the driver in the middle: what was recorded is whole, no worker stays, a second driver finishes."""
    script = tmp_path / "script.py"
    script.write_text(GUARDLESS)
    folder = tmp_path / "records"
    driver = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = _children(driver.pid)
    driver.kill()
    driver.wait()
    kept = {path: path.read_text() for path in folder.glob("*.json")}
    assert kept and all(json.loads(text)["status"] == "done" for text in kept.values())
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(_alive(pid) for pid in workers)
    kept.update({path: path.read_text() for path in folder.glob("*.json")})  # finished between the two signals
    runs = grid("digits", "mlp", ["random", "snip", "synflow"], 1, (0, 1), "smoke", width=0.25)
    assert set(run_all(runs, "serial", device="cpu", progress=False)["status"]) == {"done"}
    assert len(list(folder.glob("*.json"))) == 6 and not list(folder.glob("*.damaged"))
    assert all(path.read_text() == text for path, text in kept.items())


def _children(pid: int) -> list[int]:
    """The processes that any thread of `pid` has started."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
