"""One process at a time does a run, whatever becomes of the others."""

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from synflow_lib import paths
from synflow_lib.benchmark import claims, records, run
from synflow_lib.benchmark.claims import Elsewhere
from synflow_lib.errors import InputError

module = sys.modules["synflow_lib.benchmark.run"]

HOLD = """
import sys
from synflow_lib.benchmark import claims
with claims.claim(sys.argv[1]) as ours:
    print(ours, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(quick):
    """Another process, which holds the run `quick`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, quick.key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


def test_a_claim_is_exclusive_until_the_other_process_is_killed(other, quick):
    with claims.claim(quick.key) as ours:
        assert not ours
    assert claims.held(quick.key) and claims.running() == {quick.key}
    other.kill()  # as kill -9 does: it cannot tidy up
    other.wait()
    assert not claims.held(quick.key) and claims.running() == set()
    with claims.claim(quick.key) as ours:
        assert ours


def refuse(*_, **__):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.skipif(claims.fcntl is None, reason="only Windows' own locks are there")
def test_who_may_only_read_sees_what_runs_and_changes_nothing(other, quick, monkeypatch):
    monkeypatch.setattr(FileLock, "acquire", refuse)  # which needs the right to write, as a claim does
    assert claims.held(quick.key) and claims.running() == {quick.key}
    with pytest.raises(InputError, match=r"^cannot lock .*\.lock: Permission denied$"), claims.claim(quick.key):
        pass
    other.kill()
    other.wait()
    assert not claims.held(quick.key) and claims.running() == set()


@pytest.mark.skipif(claims.fcntl is None, reason="only Windows' own locks are there")
def test_a_look_leaves_no_lock_file_where_the_run_has_just_ended(quick, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda _: True)  # it was there a moment ago
    assert not claims.held(quick.key) and not paths.records().is_dir()


def test_of_a_lock_file_that_may_not_be_read_nothing_is_said(other, quick, monkeypatch):
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"^cannot look at .*\.lock: Permission denied$"):
        claims.running()


def without_flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("there", [None, SimpleNamespace(flock=without_flock, LOCK_SH=1, LOCK_NB=4)])
def test_where_flock_is_not_there_filelock_is_asked(there, other, quick, monkeypatch):
    monkeypatch.setattr(claims, "fcntl", there)
    assert claims.held(quick.key)
    other.kill()
    other.wait()
    assert not claims.held(quick.key)


def test_two_claims_in_one_process_exclude_each_other(quick):
    with claims.claim(quick.key) as first, claims.claim(quick.key) as second:
        assert first and not second and claims.held(quick.key)
    assert not claims.held(quick.key)


def test_whoever_claims_a_run_removes_what_was_half_written_of_it(quick):
    checkpoint = claims.checkpoint(quick.key)
    checkpoint.parent.mkdir(parents=True)
    halves = [
        checkpoint.with_name(f".{checkpoint.name}.0123.partial"),
        paths.records() / f".{quick.key}.json.9.partial",
    ]
    others = [checkpoint, checkpoint.with_name(".another.safetensors.0123.partial")]
    for file in (*halves, *others):
        file.write_text("half")
    with claims.claim(quick.key):
        assert not any(file.exists() for file in halves) and all(file.exists() for file in others)


def test_what_was_half_written_and_cannot_be_removed_is_named(quick, monkeypatch):
    paths.records().mkdir(parents=True)
    (paths.records() / f".{quick.key}.json.9.partial").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(InputError, match=r"cannot remove .*\.partial: Permission"), claims.claim(quick.key):
            pass
    assert not claims.held(quick.key)


def test_a_run_that_another_process_does_is_left_to_it(other, quick):
    with pytest.raises(Elsewhere, match="another process is doing"):
        run(quick, device="cpu")
    assert records.read(quick.key) is None


def test_a_run_that_was_finished_before_the_claim_is_not_done_again(quick, monkeypatch):
    done = run(quick, device="cpu")
    looks = iter([None, done])
    monkeypatch.setattr(records, "find", lambda _: next(looks))
    assert run(quick, device="cpu") is done


def test_the_lock_file_of_a_recorded_run_is_removed(quick):
    run(quick, device="cpu")
    assert list((paths.records() / "claims").iterdir()) == []


def test_a_run_says_which_it_is_while_it_runs(quick, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "execute", lambda *_: seen.extend(claims.begun({quick.key})) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(quick, device="cpu")
    assert records.run_of(seen[0]) == quick and list(claims.begun({quick.key})) == []  # it has a record now


def test_a_full_disk_costs_the_note_and_not_the_claim(quick, monkeypatch):
    def full(*_):
        raise InputError("the disk is full")

    monkeypatch.setattr(paths, "replacing", full)
    with claims.claim(quick.key, {"dataset": "digits"}) as ours:
        assert ours and not claims.note(quick.key).exists()


def test_a_folder_that_cannot_have_locks_is_named(quick):
    paths.records().mkdir(parents=True)
    (paths.records() / "claims").write_text("a file")
    with pytest.raises(InputError, match=r"cannot make .*claims"), claims.claim(quick.key):
        pass
