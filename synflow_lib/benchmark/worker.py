"""A worker process of the `processes` engine: reads runs from its standard input, answers on its standard output.

Started by `processes` as `python -m synflow_lib.benchmark.worker`. One JSON object a line, both ways.
"""

import json
import logging
import os
import queue
import sys
import threading
from typing import Any, TextIO

from synflow_lib import devices
from synflow_lib.benchmark import records
from synflow_lib.benchmark.claims import Elsewhere
from synflow_lib.benchmark.grid import Run
from synflow_lib.benchmark.run import run
from synflow_lib.devices import Speed
from synflow_lib.training.checkpoint import STOP, Stopped


def attempt(
    spec: Run,
    device: str,
    threads: int,
    speed: Speed | None = None,
    sharing: int = 1,
    through: tuple[type[Exception], ...] = (),
) -> dict[str, Any]:
    """Do one `run.run`; return its key and status, with a sentence under "error" where it could not even be recorded.

    "elsewhere": another process is doing it; "stopped": STOP is set, a checkpoint is kept where one was due. What was
    done here and now has "seconds", the time that it took. Exceptions of the types `through` are raised. A process that
    has done a run keeps the memory that it frees.
    """
    if STOP.is_set():
        return {"key": spec.key, "status": "stopped"}
    try:
        if (record := records.find(spec)) is not None:
            return {"key": spec.key, "status": record["status"]}
        devices.keep_freed_memory()
        record = run(spec, device=device, speed=speed, threads=threads, sharing=sharing)
        seconds = record.get("prune_seconds", 0) + record.get("train_seconds", 0)
        return {"key": spec.key, "status": record["status"], "seconds": seconds}
    except Stopped:
        return {"key": spec.key, "status": "stopped"}
    except Elsewhere:
        return {"key": spec.key, "status": "elsewhere"}
    except through:
        raise
    except Exception as error:
        known = records.read(spec.key)
        if known is not None and known["status"] == "failed":
            return {"key": spec.key, "status": "failed"}
        return {"key": spec.key, "status": "unrecorded", "error": f"{error}" or type(error).__name__}


def told(*arguments: Any, **options: Any) -> dict[str, Any]:
    """What `attempt` answers, with what it warned of under "warnings": nobody reads the log of a process of ours."""
    notes = _Notes()
    logging.getLogger("synflow_lib").addHandler(notes)
    try:
        answer = attempt(*arguments, **options)
    finally:
        logging.getLogger("synflow_lib").removeHandler(notes)
    return {**answer, **({"warnings": notes.sentences} if notes.sentences else {})}


class _Notes(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())


def requests(stream: TextIO) -> "queue.SimpleQueue[dict[str, Any]]":
    """Read requests in the background; {"stop": true} is for the run in progress and sets STOP at once.

    The end of the stream means that the driver is gone: the process ends at once. Of a run in flight its last
    checkpoint stays, as when the driver itself does it; files are written whole or not at all.
    """
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            request = json.loads(line)
            if request.get("stop"):
                STOP.set()
            else:
                waiting.put(request)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return waiting


def main() -> None:
    """Serve requests {"run": fields, "device", "threads", "speed", "sharing"} until the driver closes the stream."""
    # Answers keep the real standard output to themselves; whatever else prints goes to the log.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    waiting = requests(sys.stdin)
    while True:
        request = waiting.get()
        speed = Speed(**request["speed"]) if request.get("speed") else None
        answer = told(Run(**request["run"]), request["device"], request["threads"], speed, request["sharing"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
