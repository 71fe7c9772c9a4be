"""The files in cluster/: they parse, agree with each other, and the script for SLURM does what it says."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from benchmark.drivers import wait_for

from synflow_lib.benchmark import ENGINES
from synflow_lib.cli import parser

FOLDER = Path(__file__).parents[2] / "cluster"
SCRIPT = FOLDER / "slurm.sbatch"

# Stand-ins for what a node has: `srun` does its command here, Ray's head opens its port, the driver can be stopped.
# 0.0.0.0 stands for the address that other nodes reach: it leads here, and is no 127.*; nothing listens at 192.0.2.1.
COMMANDS = {
    "scontrol": "echo one; echo two",
    "getent": "echo 127.0.1.1 STREAM $2; echo 127.0.1.1 DGRAM; echo 0.0.0.0 STREAM",
    "hostname": "echo 192.0.2.1 fd00::1",
    "srun": 'echo "srun with $SRUN_CPUS_PER_TASK cores $*" >>log; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": 'said="$*"; echo "ray $said" >>log; [[ $said == *--port=* ]] || exec sleep 20; port=${said##*--port=}; '
    "exec python3 -c \"import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
    'time.sleep(20)" "${port%% *}"',
    "python": "[[ $2 == *secrets* ]] && { echo sesame; exit; }; "
    'until [[ $(grep -c "^ray" log) == ${*: -1} ]]; do sleep 0.05; done; echo "joined by $RAY_AUTH_TOKEN" >>log',
    "synflow": 'trap "echo saved >>log; exit 130" TERM; echo "synflow $*" >>log; [[ -e quick ]] || sleep 20 & wait',
}


@pytest.fixture
def job(tmp_path):
    """A function (**commands) that starts the script, with these other stand-ins, as a job of two nodes in a folder."""
    number = os.getpid() % 10000
    slurm = {"JOB_ID": number, "JOB_NODELIST": "x[1-2]", "CPUS_PER_TASK": 4, "GPUS_ON_NODE": 8, "SUBMIT_DIR": tmp_path}
    environment = {**os.environ, **{f"SLURM_{name}": str(value) for name, value in slurm.items()}}
    started = []

    def start(**commands):
        (tmp_path / ".venv/bin").mkdir(parents=True)
        for name, text in {**COMMANDS, **commands}.items():
            (tmp_path / ".venv/bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / ".venv/bin" / name).chmod(0o755)
        with (tmp_path / "errors").open("w") as errors:
            started.append(subprocess.Popen(["bash", SCRIPT], env=environment, start_new_session=True, stderr=errors))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # it ended with all that it had started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log(folder: Path) -> str:
    file = folder / "log"
    return file.read_text() if file.exists() else ""


def test_the_job_of_slurm_starts_ray_on_every_node_and_then_the_driver(job, tmp_path):
    (tmp_path / "quick").touch()
    assert job().wait(60) == 0
    said = log(tmp_path)
    first, second = sorted(re.findall(r"^ray start .*", said, re.MULTILINE), key=lambda line: "--head" not in line)
    assert "--head" in first and f"--address=0.0.0.0:{20000 + os.getpid() % 10000}" in second
    assert "--num-cpus=4 --num-gpus=8 --block" in first and "--num-cpus=4 --num-gpus=8 --block" in second
    assert len(re.findall(r"^srun with 4 cores ", said, re.MULTILINE)) == 2
    assert set(re.findall(r"--nodelist=\w+|--exclude=\w+", said)) == {"--nodelist=one", "--exclude=one"}
    joined, driver = said.splitlines()[-2:]
    assert joined == "joined by sesame" and driver.startswith("synflow bench --panels all")


def test_a_name_without_an_address_that_others_reach_is_asked_of_the_node_itself(job, tmp_path):
    (tmp_path / "quick").touch()
    assert job(getent="exit 2", hostname="echo fd00::1 127.0.0.1 0.0.0.0 192.0.2.1").wait(60) == 0
    assert "--node-ip-address=0.0.0.0 " in log(tmp_path)


@pytest.mark.parametrize(
    ("commands", "sentence"),
    [
        ({"timeout": "exit 124"}, r"Ray on one did not open 0\.0\.0\.0:\d+ within 300 s: what it says stands above"),
        ({"getent": "exit 2", "hostname": "echo fd00::1"}, "one has no IPv4 address that other nodes reach: set ip="),
    ],
)
def test_a_job_that_cannot_begin_says_why_and_fails(commands, sentence, job, tmp_path):
    assert job(**commands).wait(60) == 1
    assert re.search(sentence, (tmp_path / "errors").read_text()) and "synflow" not in log(tmp_path)


def test_the_end_of_the_time_reaches_the_driver_which_saves_first(job, tmp_path):
    process = job()
    wait_for(lambda: "synflow" in log(tmp_path))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130 and log(tmp_path).endswith("saved\n")


def rayjob() -> dict:
    claim, job = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    return job


def test_the_pods_share_one_volume_and_one_image():
    spec = rayjob()["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    containers = [pod["containers"][0] for pod in pods]
    assert [pod["volumes"][0]["persistentVolumeClaim"]["claimName"] for pod in pods] == ["synflow"] * 2
    for container in containers:
        mount, where = container["volumeMounts"][0]["mountPath"], {e["name"]: e["value"] for e in container["env"]}
        assert where["SYNFLOW_RECORDS"].startswith(mount) and where["SYNFLOW_DATA"].startswith(mount)
    submitter = spec["submitterPodTemplate"]["spec"]["containers"][0]
    assert len({container["image"] for container in [*containers, submitter]}) == 1
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert spec["rayClusterSpec"]["rayVersion"] == base


def test_both_say_the_same_command_which_is_understood():
    (line,) = re.findall(r"^(synflow .*) &$", SCRIPT.read_text(), re.MULTILINE)
    assert rayjob()["spec"]["entrypoint"] == line
    options = parser().parse_args(shlex.split(line)[1:])
    assert options.engine in ENGINES and options.address == "auto" and options.runs_per_gpu == 3
    assert options.recipe == ["fast"] and options.panels == ["all"]
