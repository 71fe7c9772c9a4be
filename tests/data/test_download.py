import hashlib
import resource
from pathlib import Path

import pytest

from synflow_lib.data.download import fetch
from synflow_lib.errors import InputError

CONTENT = bytes(range(256)) * 4000  # 1.0 MB
OTHER = CONTENT[::-1]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def target(tmp_path: Path, site) -> Path:
    site.files["file"] = CONTENT
    return tmp_path / "downloads" / "file"


def ranges(site) -> list[str | None]:
    return [request.get("Range") for request in site.requests]


def left(target: Path) -> list[str]:
    return sorted(file.name for file in target.parent.iterdir())


def test_file_arrives_whole_and_alone(site, target: Path) -> None:
    assert fetch(site.url("file"), target, md5(CONTENT)) == target
    assert target.read_bytes() == CONTENT
    assert left(target) == ["file"]


def test_file_that_is_there_is_not_asked_for(site, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    fetch(site.url("file"), target, md5(CONTENT))
    assert site.requests == []


def test_file_that_is_there_but_wrong_is_replaced(site, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT[:-1])
    fetch(site.url("file"), target, md5(CONTENT))
    assert target.read_bytes() == CONTENT


def test_broken_connections_are_resumed(site, target: Path) -> None:
    site.cuts = [300_000, 200_000]
    fetch(site.url("file"), target, md5(CONTENT))
    assert target.read_bytes() == CONTENT
    assert ranges(site) == [None, "bytes=300000-", "bytes=500000-"]
    assert site.requests[1]["If-Range"] == f'"{md5(CONTENT)}"'


def test_what_has_arrived_is_kept_for_the_next_call(site, target: Path) -> None:
    site.cuts = [300_000, 0]
    with pytest.raises(InputError, match=r"connection closed after 300,000 of 1,024,000 bytes; the 0.3 MB .* are kept"):
        fetch(site.url("file"), target, md5(CONTENT))
    assert not target.exists() and "file.part" in left(target)
    site.requests.clear()
    fetch(site.url("file"), target, md5(CONTENT))
    assert ranges(site) == ["bytes=300000-"]
    assert target.read_bytes() == CONTENT
    assert left(target) == ["file"]


def test_server_that_ignores_ranges_starts_over(site, target: Path) -> None:
    site.ranges, site.cuts = False, [300_000]
    fetch(site.url("file"), target, md5(CONTENT))
    assert target.read_bytes() == CONTENT
    assert len(site.requests) == 2


@pytest.mark.parametrize("etags", [True, False])
def test_file_that_changes_between_two_calls_is_not_mixed(etags: bool, site, target: Path) -> None:
    site.etags, site.cuts = etags, [300_000, 0]
    with pytest.raises(InputError):
        fetch(site.url("file"), target, md5(OTHER))
    site.files["file"] = OTHER
    site.requests.clear()
    fetch(site.url("file"), target, md5(OTHER))
    assert target.read_bytes() == OTHER
    # With an ETag the server itself starts over; without, only the checksum tells, and we do.
    assert ranges(site) == (["bytes=300000-"] if etags else ["bytes=300000-", None])


def test_part_that_is_complete_is_used(site, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.part").write_bytes(CONTENT)
    fetch(site.url("file"), target, md5(CONTENT))
    assert target.read_bytes() == CONTENT
    assert ranges(site) == [f"bytes={len(CONTENT)}-"]


def test_part_that_is_too_long_is_discarded(site, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.part").write_bytes(OTHER + OTHER)
    fetch(site.url("file"), target, md5(CONTENT))
    assert target.read_bytes() == CONTENT


def test_wrong_checksum_is_discarded(site, target: Path) -> None:
    site.files["file"] = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=f"has md5 .* where {md5(CONTENT)} is expected.*discarded"):
        fetch(site.url("file"), target, md5(CONTENT))
    assert not target.exists() and not target.with_name("file.part").exists()


@pytest.mark.parametrize("status", [403, 404, 503])
def test_refusal_is_named(status: int, site, target: Path) -> None:
    site.status = status
    with pytest.raises(InputError, match=f"cannot download {site.url('file')}: the server answered {status}"):
        fetch(site.url("file"), target, md5(CONTENT))
    assert left(target) == []


def test_no_network_is_named(site, target: Path) -> None:
    url = site.url("file").replace(str(site.server_port), "1")  # nothing listens there
    with pytest.raises(InputError, match=r"refused[^;]*; try again .* or put the file at .*downloads/file yourself"):
        fetch(url, target, md5(CONTENT))
    with pytest.raises(InputError, match=r"cannot download http://no-such-host\.invalid/file"):
        fetch("http://no-such-host.invalid/file", target, md5(CONTENT))


def test_address_that_is_none_is_named(target: Path) -> None:
    with pytest.raises(InputError, match="'somewhere' is not an address"):
        fetch("somewhere", target, md5(CONTENT))


def test_full_disk_is_named_and_the_part_is_kept(site, target: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*downloads/file: .*; free some space"):
            fetch(site.url("file"), target, md5(CONTENT))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < target.with_name("file.part").stat().st_size <= 500_000
    fetch(site.url("file"), target, md5(CONTENT))
    assert target.read_bytes() == CONTENT
    assert ranges(site)[-1] is not None
