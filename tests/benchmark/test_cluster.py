import os
import re
import signal
import socket
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark.drivers import epochs_saved, wait_for

from synflow_lib import benchmark, cli, data, paths
from synflow_lib.benchmark import Run, claims, engines, records, run_all
from synflow_lib.benchmark.engines import Means
from synflow_lib.benchmark.progress import Progress
from synflow_lib.benchmark.stopping import SENTENCE
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError


def test_without_ray_one_sentence_says_what_to_install(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "synflow_lib.benchmark.cluster", raising=False)
    monkeypatch.delattr(benchmark, "cluster", raising=False)
    with pytest.raises(InputError, match=r'which is not installed: say pip install -e "\.\[cluster\]" in the pro'):
        run_all([quick], "ray", device="cpu", progress=False)


ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[cluster]'")
from synflow_lib.benchmark import cluster  # noqa: E402  (it needs Ray)


def test_a_task_names_its_gpu_as_torch_counts_them(monkeypatch):
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": ["3"]})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster.place("cpu") == "cpu" and cluster.place("cuda") == "cuda:3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert cluster.place("cuda") == "cuda:1"


def test_what_the_nodes_get_of_the_environment_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNFLOW_RECORDS", "mine")
    monkeypatch.setenv("SYNFLOW_CHECKPOINT_SECONDS", "5")
    given = cluster.environment(2)
    assert given["SYNFLOW_RECORDS"] == str(tmp_path / "mine") and given["SYNFLOW_CHECKPOINT_SECONDS"] == "5"
    assert given["OMP_NUM_THREADS"] == "2" and (Path(given["PYTHONPATH"].split(os.pathsep)[0]) / "synflow_lib").is_dir()


def test_runs_share_gpus_and_are_handed_out_in_portions(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 16.0, "CPU": 96.0})
    monkeypatch.setattr(cluster, "nodes", lambda: [{"Resources": {"CPU": 48}}])
    monkeypatch.setattr(cluster, "require_shared_folders", lambda: None)
    tasks = cluster.Tasks("auto", runs_per_gpu=3)
    assert tasks.device == "cuda" and tasks.needs == {"CPU": 1, "GPU": 1 / 3} and tasks.limit() == 48 + cluster.AHEAD
    assert (
        cluster.Tasks("cpu", threads=4).limit() == 24 + cluster.AHEAD and cluster.Tasks("cpu", workers=5).limit() == 5
    )
    with pytest.raises(InputError, match="no node of the cluster has 64 CPU cores"):
        cluster.Tasks("cpu", threads=64)
    with pytest.raises(InputError, match="unknown device of a cluster 'cuda:1'; did you mean 'cuda'"):
        cluster.Tasks("cuda:1")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 96.0})
    with pytest.raises(InputError, match="the cluster has no GPU"):
        cluster.Tasks("cuda")


@pytest.mark.parametrize(
    ("workers", "threads", "number", "expected"),
    [(None, 1, 9, 4), (None, 2, 1, 2), (None, 2, 9, 4), (3, 2, 9, 6), (3, 2, 1, 2)],
)
def test_a_ray_of_our_own_has_the_cores_that_the_runs_take(workers, threads, number, expected, monkeypatch):
    asked = []

    @contextmanager
    def joined(address, cores):
        asked.append(cores)
        yield

    monkeypatch.setattr(engines, "cores", lambda: 4)
    monkeypatch.setattr(cluster, "joined", joined)
    monkeypatch.setattr(cluster, "Tasks", lambda *_: SimpleNamespace(device="cpu", serve=None))
    with engines.ray(Means(workers, "cpu", threads), number, Progress(number, 0, shown=False)):
        assert asked == [expected]


def test_a_node_looks_for_the_records_and_for_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path))
    assert cluster.look("probe", []).startswith("does not share the records folder")
    paths.records().mkdir()
    (paths.records() / "probe").touch()
    (tmp_path / "a.safetensors").touch()
    assert cluster.look("probe", ["a.safetensors"]) == ""
    wrong = f"has no b.safetensors in {tmp_path}: set SYNFLOW_DATA to a folder that all nodes see"
    assert cluster.look("probe", ["a.safetensors", "b.safetensors"]) == wrong


class FakeRay:
    """Ray without processes: a task is done when it is asked for, and dies as often as `deaths` of its key says."""

    def __init__(self, monkeypatch):
        self.deaths, self.cancelled = {}, []
        monkeypatch.setattr(cluster, "require_shared_folders", lambda: None)
        monkeypatch.setattr(cluster, "nodes", lambda: [{"Resources": {"CPU": 1}}])
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "remote", self.remote)
        monkeypatch.setattr(ray, "wait", lambda references, timeout: (references[:1], references[1:]))
        monkeypatch.setattr(ray, "get", lambda reference: reference())
        monkeypatch.setattr(ray, "cancel", lambda reference, force: self.cancelled.append(reference))

    def remote(self, **_):
        def decorated(task):
            return SimpleNamespace(remote=lambda fields, *rest: lambda: self.done(task, fields, *rest))

        return decorated

    def done(self, task, fields, *rest):
        deaths = self.deaths.get(Run(**fields).key)
        if deaths:
            raise deaths.pop()
        return task(fields, *rest)


@pytest.fixture
def fake(monkeypatch):
    return FakeRay(monkeypatch)


def test_a_lost_run_is_handed_out_again_in_three_rounds_and_then_recorded_as_failed(fake, quick):
    lucky, unlucky = replace(quick, seed=1), replace(quick, seed=2)
    crash = ray.exceptions.WorkerCrashedError
    fake.deaths = {lucky.key: [crash() for _ in range(2)], unlucky.key: [crash() for _ in range(3)]}
    table = run_all([quick, lucky, unlucky], "ray", device="cpu", progress=False)
    assert table["status"].tolist() == ["done", "done", "failed"]
    assert table["error"][2].startswith("its process or node died again and again: The worker died")


def test_what_is_switched_changes_the_fastest_choice_for_the_device_of_the_task(quick, monkeypatch):
    asked = []
    best = {"cpu": Speed(fused=True), "cuda": Speed(fused=True, graphs=True)}
    monkeypatch.setattr(Speed, "auto", staticmethod(lambda device: best[device.type]))
    monkeypatch.setattr(cluster, "place", lambda device: "cuda:1" if device == "cuda" else device)
    monkeypatch.setattr(cluster.devices, "resolve", torch.device)
    monkeypatch.setattr(cluster, "told", lambda run, device, threads, speed, *_, **__: asked.append((device, speed)))
    for device, speed in (("cpu", {"compile": True}), ("cuda", {"fused": False}), ("cuda", None)):
        cluster.task(asdict(quick), device, 1, speed, "flag", 1)
    assert asked == [("cpu", Speed(fused=True, compile=True)), ("cuda:1", Speed(graphs=True)), ("cuda:1", None)]


def test_a_feature_that_no_device_of_the_cluster_has_is_refused_at_once(fake, quick):
    with pytest.raises(InputError, match="CUDA graphs need a CUDA device, not 'cpu'"):
        run_all([quick], "ray", progress=False, speed={"graphs": True})


def test_a_switched_feature_reaches_the_record(fake, quick):
    run_all([quick], "ray", device="cpu", progress=False, speed={"compact": False, "bfloat16": False})
    used, automatic = records.read(quick.key)["speed"], Speed.auto(torch.device("cpu"))
    assert used == asdict(replace(automatic, compact=False, bfloat16=False))


def test_an_error_of_the_task_is_recorded_and_stops_no_other(fake, quick):
    error = ray.exceptions.RayTaskError("task", "its traceback", OSError("stale file handle"))
    fake.deaths = {quick.key: [error]}
    table = run_all([quick, replace(quick, seed=1)], "ray", device="cpu", progress=False)
    assert table["status"].tolist() == ["failed", "done"] and table["error"][0] == "stale file handle"


def test_a_full_disk_ends_what_is_in_flight(fake, quick, monkeypatch):
    def full(_):
        raise InputError("cannot write the record: No space left on device")

    monkeypatch.setattr(records, "write", full)
    with pytest.raises(InputError, match="No space left"):
        run_all([replace(quick, seed=seed) for seed in range(3)], "ray", device="cpu", progress=False)
    assert len(fake.cancelled) == 2


@pytest.fixture
def listening():
    """The address of a port that something listens at."""
    with socket.create_server(("localhost", 0)) as server:
        yield f"localhost:{server.getsockname()[1]}"


@pytest.fixture
def closed():
    """The address of a port that nothing listens at, and that nobody else is given meanwhile."""
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        yield f"localhost:{bound.getsockname()[1]}"


def test_an_address_where_nothing_listens_is_one_sentence_at_once(quick, closed, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would try for minutes"))
    for wrong, reason in ((closed, "refused"), ("nowhere.invalid:6379", "known|resol"), ("no..name:1", "")):
        with pytest.raises(InputError, match=rf"cannot join a Ray cluster: nothing answers at {wrong} \(.*({reason})"):
            run_all([quick], "ray", device="cpu", progress=False, address=wrong)
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(InputError, match=f"nothing answers at {closed}"):
        run_all([quick], "ray", device="cpu", progress=False, address="auto")


def test_the_command_with_a_wrong_address_ends_with_the_sentence(closed, capfd):
    asked = ["--model", "mlp", "--width", "0.25", "--recipe", "smoke", "--engine", "ray", "--address", closed]
    assert cli.main(["bench", *asked]) == 2
    output, errors = capfd.readouterr()
    assert output == "" and re.fullmatch(rf"[^\n]*nothing answers at {closed} [^\n]*\n", errors)


def test_what_ray_says_of_an_address_is_one_sentence(quick, listening, monkeypatch):
    def unreachable(address, **_):
        raise ConnectionError(f"no cluster\nat {address}")

    monkeypatch.setattr(ray, "init", unreachable)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for given in (listening, "auto", "ray://nowhere.invalid:10001"):
        sentence = rf"cannot join a Ray cluster at {given}: no cluster at {given} .*RAY_AUTH_TOKEN"
        with pytest.raises(InputError, match=sentence):
            run_all([quick], "ray", device="cpu", progress=False, address=given)


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes of one core each on this machine."""
    from ray.cluster_utils import Cluster

    # Ray lets its workers give way to everything else (niceness 15): on a busy machine they would starve.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (its own spelling)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def member(two_nodes):
    """This program has joined the cluster of two nodes."""
    if not ray.is_initialized():
        ray.init(two_nodes.address, log_to_driver=False, logging_level="ERROR")


def busy() -> dict[int, int]:
    """The processes that do a run now, by what Ray calls them, and the parent of each: its node's raylet."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::task"):
                found[int(folder.name)] = int(re.search(r"PPid:\s(\d+)", (folder / "status").read_text())[1])
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")
class TestTwoNodes:
    """All but the last one are of a program that has joined Ray by itself; the last one leaves one node."""

    def test_a_folder_that_the_nodes_do_not_share_is_refused(self, member, quick, monkeypatch, tmp_path):
        here = cluster.environment
        monkeypatch.setattr(cluster, "environment", lambda n: {**here(n), "SYNFLOW_RECORDS": str(tmp_path / "own")})
        with pytest.raises(InputError, match=r"the Ray node [\d.]+ does not share the records folder .*own: name one"):
            run_all([quick], "ray", device="cpu", progress=False)
        assert not list(paths.records().iterdir())

    def test_a_folder_of_data_that_the_nodes_do_not_see_is_refused(self, member, quick, monkeypatch, tmp_path):
        here = cluster.environment
        monkeypatch.setattr(cluster, "environment", lambda n: {**here(n), "SYNFLOW_DATA": str(tmp_path)})
        data.prepare("digits")
        with pytest.raises(InputError, match=rf"the Ray node [\d.]+ has no digits.safetensors in {tmp_path}: set SYNF"):
            run_all([quick], "ray", device="cpu", progress=False)

    def test_a_stop_reaches_the_nodes_and_the_runs_go_on_later(self, member, slow, evaluations, capsys):
        def interrupt():
            wait_for(lambda: len(claims.running()) == 2)
            os.kill(os.getpid(), signal.SIGINT)

        many = [replace(slow, seed=seed) for seed in range(100)]  # enough until the second node has begun, too
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            run_all(many, "ray", device="cpu", progress=False)
        saved = {run: epochs_saved(run) for run in many if epochs_saved(run)}
        assert len(saved) == 2 and all(records.find(run) is None for run in saved) and not claims.running()
        assert len(list(paths.records().glob("*.json"))) < 90
        assert capsys.readouterr().err == SENTENCE + "\n" and ray.is_initialized()
        again, epochs = saved.popitem()
        assert run_all([again], "serial", device="cpu", progress=False)["status"].tolist() == ["done"]
        assert evaluations["all"] == 2 - epochs and not list(paths.records().glob(".*"))

    def test_a_killed_worker_and_a_killed_node_cost_no_run(self, two_nodes, slow, quick):
        ray.shutdown()
        (node,) = two_nodes.worker_nodes
        first, second = (made.all_processes["raylet"][0].process.pid for made in (two_nodes.head_node, node))
        killed = []

        def kill():
            wait_for(lambda: len(claims.running()) == 2 and {first, second} <= set(busy().values()))
            killed.extend(pid for pid, parent in busy().items() if parent == first)
            os.kill(killed[0], signal.SIGKILL)
            two_nodes.remove_node(node, allow_graceful=False)

        killer = threading.Thread(target=kill)
        killer.start()
        many = [*(replace(slow, seed=seed) for seed in range(10)), *(replace(quick, seed=seed) for seed in range(6))]
        table = run_all(many, "ray", device="cpu", progress=False, address=two_nodes.address)
        killer.join()
        assert table["status"].tolist() == ["done"] * 16 and len(killed) == 1 and not two_nodes.worker_nodes
        assert run_all(many, "ray", device="cpu", progress=False, address="nowhere").equals(table)  # nothing to do
