"""One process at a time does a run, whatever becomes of the others."""

import subprocess
import sys

import pytest

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


def test_asking_makes_no_file_and_is_for_those_too_who_may_only_read(quick, monkeypatch):
    assert not claims.held(quick.key) and not claims.path(quick.key).exists()

    def no_lock(*_, **__):
        raise PermissionError(13, "Permission denied")

    with claims.claim(quick.key):
        monkeypatch.setattr(claims.FileLock, "acquire", no_lock)
        assert claims.held(quick.key) and claims.running() == {quick.key}
    assert not claims.held(quick.key) and claims.path(quick.key).exists()
    with pytest.raises(InputError, match=r"cannot lock .*Permission denied"), claims.claim(quick.key):
        pytest.fail("it has no lock")


def test_what_cannot_be_read_is_taken_to_be_at_work(quick, monkeypatch):
    with claims.claim(quick.key):
        pass

    def unreadable(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(claims.path(quick.key)), "open", unreadable)
    assert claims.held(quick.key)
