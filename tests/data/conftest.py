"""A folder for data sets, the real images where there are any, and a web server on localhost that can misbehave."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from synflow_lib.data.specs import DatasetSpec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data sets are kept during the test."""
    monkeypatch.setenv("SYNFLOW_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def toy_spec() -> DatasetSpec:
    """A data set of three classes that is small enough to write down."""
    return DatasetSpec(
        "toy", (3, 8, 8), 3, 12, 6, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), flip=True, source="made for a test"
    )


@pytest.fixture
def toy_tensors(toy_spec: DatasetSpec) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for split, size in (("train", toy_spec.train_size), ("test", toy_spec.test_size)):
        tensors[f"{split}_images"] = torch.randint(
            256, (size, *toy_spec.input_shape), generator=generator, dtype=torch.uint8
        )
        tensors[f"{split}_labels"] = torch.arange(size) % toy_spec.classes
    return tensors


class Site(ThreadingHTTPServer):
    """Serves `files`; what it does wrong is set by the test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.etags = True
        self.ranges = True
        self.cuts: list[int] = []  # the next responses end after so many bytes
        self.status = 200  # anything else: every request is answered with it
        self.requests: list[dict[str, str]] = []  # the headers of each

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site = self.server
        site.requests.append(dict(self.headers))
        body = site.files.get(self.path.lstrip("/"))
        if body is None or site.status != 200:
            self.send_error(site.status if body is not None else 404)
            return
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if "Range" in self.headers else 0
        if not site.ranges or self.headers.get("If-Range", etag) != etag:
            start = 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if site.etags:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: site.cuts.pop(0) if site.cuts else None])

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
