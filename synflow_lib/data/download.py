"""Download a file over HTTP so that an interrupted transfer resumes and a wrong file is never used.

What has arrived lies beside the target as `<name>.part`, and stays there when the network fails; it gets its real
name only when its checksum holds.
"""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from tqdm import tqdm

from synflow_lib import paths
from synflow_lib.errors import InputError

CHUNK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without a byte


class _Interrupted(Exception):
    """The network failed; what has arrived is on disk."""


def fetch(url: str, target: Path, md5: str) -> Path:
    """Make sure that `target` holds the file at `url` whose checksum is `md5`, and return it.

    A file that is there already and has the checksum is used as it is. Raises InputError when the server cannot be
    reached, refuses, or sends a file with another checksum, and when the disk is full.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url!r} is not an address to download from; it must begin with http:// or https://")
    try:
        if target.exists() and checksum(target) == md5:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        resumed = _transfer(url, part, target)
        if resumed and checksum(part) != md5:  # the halves belong to different files: once more, in one piece
            part.unlink()
            _transfer(url, part, target)
        if (found := checksum(part)) != md5:
            part.unlink()
            _validator(part).unlink(missing_ok=True)
            raise InputError(
                f"the file at {url} has md5 {found} where {md5} is expected, so it was altered or damaged on the way "
                "and has been discarded; try again, or give another address"
            )
        part.replace(target)
        _validator(part).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {paths.shown(target)}: {error.strerror or error}; free some space or choose another "
            "folder with SYNFLOW_DATA"
        ) from error
    return target


def checksum(path: Path) -> str:
    """Return the md5 of a file, in hexadecimal: no defence against malice, but it is what the sources publish."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _transfer(url: str, part: Path, target: Path) -> bool:
    """Append to `part` until it is complete, as long as each attempt brings something; say whether it was resumed."""
    resumed = False
    while True:
        before = _size(part)
        try:
            return _attempt(url, part) or resumed
        except _Interrupted as error:
            resumed = resumed or before > 0
            if (size := _size(part)) <= before:
                kept = f"the {size / 1e6:.1f} MB that have arrived are kept, so " if size else ""
                raise InputError(
                    f"cannot download {url}: {error}; {kept}try again once the network is back, or put the file at "
                    f"{paths.shown(target)} yourself"
                ) from error


def _attempt(url: str, part: Path) -> bool:
    """Ask once for what `part` lacks and write it; return whether it was appended to bytes that were there."""
    offset = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "synflow-companion", "Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if _validator(part).exists():
            request.add_header("If-Range", _validator(part).read_text())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # there is nothing after our last byte: the checksum decides
        raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(getattr(error, "reason", error)) or type(error).__name__) from error
    with response:
        return _save(response, part, offset)


def _save(response: http.client.HTTPResponse, part: Path, offset: int) -> bool:
    if response.status == HTTPStatus.OK:  # a server that ignores Range, or whose file has changed, starts over
        offset = 0
        _remember_validator(response, part)
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
        raise _Interrupted("the server sent another part of the file than it was asked for")
    length = response.headers.get("Content-Length")
    total = offset + int(length) if length else None
    bar = tqdm(desc=part.stem, total=total, initial=offset, unit="B", unit_scale=True, mininterval=1)
    with bar, part.open("ab" if offset else "wb") as file:
        for chunk in _chunks(response):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and _size(part) < total:
        raise _Interrupted(f"the connection closed after {_size(part):,} of {total:,} bytes")
    return offset > 0


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body; only what goes wrong on the network becomes _Interrupted, not a full disk."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _validator(part: Path) -> Path:
    """Where the server's name for this version of the file is kept, for If-Range (RFC 9110, section 13.1.5)."""
    return part.with_name(f"{part.name}.version")


def _remember_validator(response: http.client.HTTPResponse, part: Path) -> None:
    etag = response.headers.get("ETag", "")
    version = response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
    if version:  # without one, only the checksum can tell that the file has changed
        _validator(part).write_text(version)
    else:
        _validator(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
