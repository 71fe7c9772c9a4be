"""Independent parts of an experiment side by side: one process of one thread per core, with progress."""

import gc
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm

from synflow_lib.errors import InputError


def processes() -> int:
    """How many parts run at once: SYNFLOW_PROCESSES, else one per core but at most 2, for the memory's sake."""
    given = os.environ.get("SYNFLOW_PROCESSES", "")
    if not given:
        return min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if not given.isdigit() or int(given) < 1:
        raise InputError(f"SYNFLOW_PROCESSES must be a number of processes such as 4, not {given!r}")
    return int(given)


def each(function: Callable[..., Any], parts: Sequence[dict[str, Any]], what: str = "") -> list[Any]:
    """Return [function(**part) for part in parts], computed by `processes()` fresh processes, in the order of `parts`.

    `function` must be importable from its module, and its results such as pickle takes. Put the longest parts first.
    With `what` in front a bar shows how many are done.
    An error in one part is raised here, and ends the rest.
    """
    number = min(processes(), len(parts))
    bar = tqdm(total=len(parts), desc=what, unit="part", disable=not what)
    if number <= 1:
        with bar:
            return [_counted(function, part, bar) for part in parts]
    context = multiprocessing.get_context("spawn")  # a forked child may hang in torch's threads
    with bar, ProcessPoolExecutor(number, mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(_done, function, part) for part in parts]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _counted(function: Callable[..., Any], part: dict[str, Any], bar: tqdm) -> Any:
    result = _done(function, part)
    bar.update()
    return result


def _done(function: Callable[..., Any], part: dict[str, Any]) -> Any:
    """One part, and nothing of it left behind: a network and its graph refer to each other, half a GB for VGG-19."""
    result = function(**part)
    gc.collect()
    return result


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
