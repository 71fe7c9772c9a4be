"""What made a result: versions, revision, device and time, never a path or the name of a machine."""

import html
import os
import platform
import subprocess
from importlib import metadata

from synflow_lib import paths

PACKAGES = {"library": "synflow-companion", "torch": "torch", "torchvision": "torchvision", "numpy": "numpy"}


def revision() -> str:
    """The git revision of the checkout, with "+" where a tracked file differs from it; "unknown" outside git."""
    if not (paths.home() / ".git").exists():  # a git repository further up is somebody else's
        return "unknown"
    command = ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=paths.home(), capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout that belongs to another user
        return "unknown"
    return found.stdout.strip()


def versions() -> dict[str, str]:
    """Name to version of what the numbers depend on, read from the installed packages without importing them."""
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {"library": found.pop("library"), "python": platform.python_version(), **found}


def device_name(device: str = "auto") -> str:
    """The name of the device that `device` stands for, as its maker writes it; "CPU" for every processor."""
    import torch

    from synflow_lib.devices import resolve

    chosen = resolve(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return {"cpu": "CPU", "mps": "Apple GPU (MPS)"}.get(chosen.type, chosen.type)


def environment(device: str = "auto") -> dict[str, str]:
    """Everything above in one flat mapping, ready to be stored beside a result."""
    return {**versions(), "revision": revision(), "device": device_name(device)}


class Table:
    """A mapping shown as two columns, in HTML where the reader's program can and in text elsewhere."""

    def __init__(self, rows: dict[str, str]) -> None:
        self.rows = rows

    def __repr__(self) -> str:
        width = max(map(len, self.rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows.items())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.rows.items()
        )
        return f"<table class='provenance'>{cells}</table>"


def table(device: str, seconds: float) -> Table:
    """The table that ends a chapter; `seconds` since its start.

    With SYNFLOW_TIMELESS set (the refresh of the committed notebooks), the time and the revision are left out:
    they differ at every refresh, and the revision that a committed output would name is always the one before.
    """
    import torch

    rows = {**environment(device), "threads": str(torch.get_num_threads()), "seconds": f"{seconds:.0f}"}
    if os.environ.get("SYNFLOW_TIMELESS"):
        del rows["revision"], rows["seconds"]
    return Table(rows)
