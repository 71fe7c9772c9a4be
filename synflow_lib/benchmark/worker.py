"""A worker process of the `processes` engine: reads runs from its standard input, answers on its standard output.

Started by `engines` as `python -m synflow_lib.benchmark.worker`. One JSON object a line, both ways.
"""

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO

from synflow_lib.benchmark import records
from synflow_lib.benchmark.grid import Run
from synflow_lib.benchmark.run import run


def attempt(spec: Run, device: str, threads: int) -> dict[str, Any]:
    """Do one run; return its key and status, with a sentence under "error" where it could not even be recorded."""
    try:
        return {"key": spec.key, "status": run(spec, device=device, threads=threads)["status"]}
    except Exception as error:
        known = records.read(spec.key)
        if known is not None and known["status"] == "failed":
            return {"key": spec.key, "status": "failed"}
        return {"key": spec.key, "status": "unrecorded", "error": f"{error}" or type(error).__name__}


def requests(stream: TextIO) -> "queue.SimpleQueue[dict[str, Any]]":
    """Read requests in the background. The end of the stream means that the driver is gone: the process ends at once.

    A run in flight is lost with it, as it is with the driver; records are written whole or not at all.
    """
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            waiting.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return waiting


def main() -> None:
    """Serve requests {"run": fields, "device", "threads"} until the driver closes the stream."""
    # Answers keep the real standard output to themselves; whatever else prints goes to the log.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    waiting = requests(sys.stdin)
    while True:
        request = waiting.get()
        answer = attempt(Run(**request["run"]), request["device"], request["threads"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
