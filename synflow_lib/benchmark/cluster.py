"""The engine `ray`: every run is a task of Ray Core, on this machine or on all nodes of a cluster.

Tasks, not actors: Ray shares a GPU among them in fractions, and repeats those whose process or node has died; what
they were doing goes on from its checkpoint. Records, claims and checkpoints lie in one folder that all nodes share,
the data sets in another: Ray only moves a few settings and a status, so a lost cluster loses nothing that was recorded.
Tried on CPUs, two nodes with one killed; what concerns GPUs is untested here.
"""

import logging
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from synflow_lib import devices, paths
from synflow_lib.benchmark import records
from synflow_lib.benchmark.engines import speed_on
from synflow_lib.benchmark.grid import Run
from synflow_lib.benchmark.processes import failed
from synflow_lib.benchmark.stopping import heeding
from synflow_lib.benchmark.worker import told
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError, lookup
from synflow_lib.training.checkpoint import STOP

# Ray reads these when it is imported: no usage reports, and no warning about a GPU that a CPU task still sees.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise InputError(
        'the engine "ray" needs Ray, which is not installed: say pip install -e ".[cluster]" in the project\'s folder'
    ) from error

LOOK_EVERY = 0.5  # seconds between two looks at STOP, by the driver and by the tasks
AHEAD = 64  # tasks handed to Ray beyond those that can run: enough to keep it busy and to let an autoscaler see them
ROUNDS = 3  # how often a run is handed out whose process or node died although Ray had tried it again
PATIENCE = 300  # seconds for every node to look at the records folder: each imports torch first, perhaps over a network
REACH = 10  # seconds for the head to accept a connection; Ray itself would try for minutes and print its own lines
STORE = 100_000_000  # bytes of shared memory for a Ray of our own: what moves is small

Report = Callable[[dict], None]


@contextmanager
def joined(address: str | None, cores: int) -> Iterator[None]:
    """Be the driver of the cluster at `address` for the block; None makes one of `cores` CPU cores on this machine.

    A Ray that the caller has joined already is used as it is, and kept. Raises InputError where there is no cluster.
    """
    if ray.is_initialized():
        yield
        return
    if address:
        require_answer(os.environ.get("RAY_ADDRESS") or address if address == "auto" else address)  # what Ray takes
    own = {"address": "local", "num_cpus": cores, "include_dashboard": False, "object_store_memory": STORE}
    try:
        ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # also a bare one, where a Ray of our own takes too long to start
        reason = " ".join(str(error).split())
        hint = " (where it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN)" if address else ""
        raise InputError(f"cannot join a Ray cluster at {address or 'this machine'}: {reason}{hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def require_answer(address: str) -> None:
    """Raise InputError where nothing listens at `address`, HOST:PORT; anything else is Ray's to judge."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address:
        return
    try:
        socket.create_connection((host.strip("[]"), port), timeout=REACH).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a computer
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot join a Ray cluster: nothing answers at {address} ({reason})") from error


def environment(threads: int) -> dict[str, str]:
    """What the tasks' processes get of our environment: where things lie, in full, and where this package is."""
    given = {name: value for name, value in os.environ.items() if name.startswith("SYNFLOW_")}
    folders = {"SYNFLOW_DATA": paths.data(), "SYNFLOW_RECORDS": paths.records()}
    folders |= {name: paths.home() for name in ("SYNFLOW_HOME",) if name in given}
    package = str(Path(__file__).resolve().parents[2])
    return {
        **given,
        **{name: str(folder.absolute()) for name, folder in folders.items()},
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": str(threads),
        # A process serves many tasks, each perhaps on another GPU, and CUDA reads CUDA_VISIBLE_DEVICES only once: the
        # processes see all GPUs, and a task names the one it was given.
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    }


@dataclass(frozen=True)
class Tasks:
    """How the runs are done on the cluster that is joined.

    `device` is "auto" (its GPUs where it has any, else its cores), "cuda" or "cpu"; `runs_per_gpu` runs share a GPU,
    and each takes `threads` cores; never more than `workers` at once where it is given. What `speed` changes is put
    together on the node, whose device it is for. Raises InputError for what the cluster has not, and for folders of
    records and data that its nodes do not share.
    """

    device: str
    threads: int = 1
    speed: Speed | Mapping[str, bool] | None = None
    runs_per_gpu: int = 1
    workers: int | None = None

    def __post_init__(self):
        lookup(dict.fromkeys(("auto", "cpu", "cuda")), self.device, "device of a cluster")
        gpus = ray.cluster_resources().get("GPU", 0)
        if self.device == "cuda" and not gpus:
            raise InputError("the cluster has no GPU: use device 'cpu' or 'auto'")
        object.__setattr__(self, "device", "cuda" if gpus and self.device != "cpu" else "cpu")
        asked = replace(Speed(), **self.speed) if isinstance(self.speed, Mapping) else self.speed or Speed()
        asked.require(torch.device(self.device))
        if max(node["Resources"].get("CPU", 0) for node in nodes()) < self.threads:
            raise InputError(f"no node of the cluster has {self.threads} CPU cores for a run: ask for fewer threads")
        require_shared_folders()

    @property
    def needs(self) -> dict[str, float]:
        """What one run takes of a node, in Ray's units."""
        return {"CPU": self.threads, **({"GPU": 1 / self.runs_per_gpu} if self.device == "cuda" else {})}

    def limit(self) -> int:
        """How many tasks Ray may have at a time; asked again and again, since nodes come and go."""
        have = ray.cluster_resources()
        room = min(have.get(name, 0) / share for name, share in self.needs.items())
        return self.workers or int(room) + AHEAD

    def serve(self, runs: Sequence[Run], report: Report) -> None:
        """Do `runs` and report each; one that is lost with its process or node in all rounds is recorded as failed.

        When STOP is set, a file in the records folder tells the tasks on all nodes; those not begun end at once.
        """
        flag = paths.records() / f".stop-{uuid.uuid4().hex}"
        lost = dict.fromkeys(runs, "")
        try:
            for _ in range(ROUNDS):
                lost = self.round(list(lost), flag, report)
        finally:
            flag.unlink(missing_ok=True)
        for run, reason in lost.items():
            stopped = {"key": run.key, "status": "stopped"}  # it was lost once, and nobody wants it again
            report(stopped if STOP.is_set() else failed(run, f"its process or node died again and again: {reason}"))

    def round(self, runs: Sequence[Run], flag: Path, report: Report) -> dict[Run, str]:
        """Hand out `runs`, not too many at a time, and report their answers; return those lost, with the reason."""
        todo, flying, lost = deque(runs), {}, {}
        options = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs.get("GPU", 0)}
        options |= {"max_calls": 64, "max_retries": 3, "retry_exceptions": [OSError]}
        remote = ray.remote(**options, runtime_env={"env_vars": environment(self.threads)})(task)
        try:
            while todo or flying:
                if STOP.is_set():
                    flag.touch()
                    while todo:
                        report({"key": todo.popleft().key, "status": "stopped"})
                for _ in range(min(len(todo), self.limit() - len(flying))):
                    run = todo.popleft()
                    given = (self.device, self.threads, self.speed, flag.name, self.runs_per_gpu)
                    flying[remote.remote(asdict(run), *given)] = run
                for reference in ray.wait(list(flying), timeout=LOOK_EVERY)[0] if flying else ():
                    run = flying.pop(reference)
                    answer = heard(reference, run)
                    if answer["status"] == "lost":
                        lost[run] = answer["error"]
                    else:
                        report(answer)
        finally:
            for reference in flying:  # only where something went wrong, or somebody is in a hurry
                ray.cancel(reference, force=True)
        return lost


def heard(reference: "ray.ObjectRef", run: Run) -> dict:
    """The answer of a task that has ended: "lost" where its process or node died too often for Ray."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # the task's own: an OSError that stayed, recorded by the run itself
        known = records.read(run.key)
        recorded = known is not None and known["status"] == "failed"
        return {"key": run.key, "status": "failed"} if recorded else failed(run, f"{error.cause}")
    except ray.exceptions.RayError as error:
        return {"key": run.key, "status": "lost", "error": " ".join(str(error).split())}


def task(
    fields: dict, device: str, threads: int, speed: Speed | Mapping[str, bool] | None, flag: str, sharing: int
) -> dict:
    """What runs on a node: one attempt, saved and ended when the file `flag` appears in the records folder.

    An OSError may be the moment's (a network file system): Ray tries again. A full disk is an InputError and is not.
    """
    where = place(device)
    speed = speed_on(devices.resolve(where), speed)
    with heeding(paths.records() / flag, LOOK_EVERY):
        return told(Run(**fields), where, threads, speed, sharing, through=(OSError,))


def place(device: str) -> str:
    """The name that torch has for the GPU that Ray gave to this task, or "cpu"."""
    if device == "cpu":
        return device
    given = str(ray.get_runtime_context().get_accelerator_ids()["GPU"][0])
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return f"cuda:{seen.index(given) if given in seen else given}"


def nodes() -> list[dict]:
    """The nodes of the cluster that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def require_shared_folders() -> None:
    """Raise InputError unless every node finds in its records folder the file that we put into ours, and our data."""
    probe = paths.records() / f".probe-{uuid.uuid4().hex}"
    remote = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": environment(1)})(look)
    sets = sorted(file.name for file in paths.data().glob("*.safetensors"))
    probe.touch()
    try:
        looks = {
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                probe.name, sets
            ): node["NodeManagerAddress"]
            for node in nodes()
        }
        ended, silent = ray.wait(list(looks), num_returns=len(looks), timeout=PATIENCE)
        if silent:
            raise InputError(f"the Ray node {looks[silent[0]]} did not answer within {PATIENCE} s")
        for reference in ended:
            _require(reference, looks[reference])
    finally:
        probe.unlink()


def look(name: str, sets: Sequence[str]) -> str:
    """Look for the file in this node's records folder, for up to 5 s, and for the data sets; what is wrong, or ""."""
    for _ in range(10):
        if (paths.records() / name).exists():
            paths.require_writable(paths.records())
            missing = [one for one in sets if not (paths.data() / one).exists()]
            where = f"in {paths.data()}: set SYNFLOW_DATA to a folder that all nodes see"
            return f"has no {missing[0]} {where}" if missing else ""
        time.sleep(0.5)
    return f"does not share the records folder {paths.records()}: name one that all nodes see, with --records"


def _require(reference: "ray.ObjectRef", node: str) -> None:
    try:
        wrong = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        wrong = f"cannot do runs: {' '.join(str(error.cause).split())}"
    except ray.exceptions.RayError:
        return  # the node is gone: it is no part of the cluster any more
    if wrong:
        raise InputError(f"the Ray node {node} {wrong}")
