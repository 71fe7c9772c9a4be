"""Files appear whole or not at all."""

import os

import pytest

from synflow_lib import paths
from synflow_lib.errors import InputError


def test_a_file_is_replaced_only_when_its_block_succeeds(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with paths.replacing(target) as partial:
        partial.write_text("first")
        assert not target.exists()
    with pytest.raises(KeyError), paths.replacing(target) as partial:
        partial.write_text("second")
        raise KeyError
    assert target.read_text() == "first" and [f.name for f in target.parent.iterdir()] == ["file.txt"]


def test_a_full_disk_gives_one_sentence_and_leaves_what_was_there(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("first")
    with (
        pytest.raises(InputError, match=r"cannot write .*file\.txt: No space left on device; free some space"),
        paths.replacing(target) as partial,
    ):
        partial.write_text("sec")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        paths.require_writable(tmp_path / "file")
    paths.require_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_every_folder_can_be_moved(tmp_path, monkeypatch):
    for name in ("data", "records", "figures", "build"):
        monkeypatch.setenv(f"SYNFLOW_{name.upper()}", str(tmp_path / name))
        assert getattr(paths, name)() == tmp_path / name
    for name in ("data", "home"):
        monkeypatch.setenv(f"SYNFLOW_{name.upper()}", "")
    assert paths.data() == paths.home() / "data" and (paths.home() / "notebooks").is_dir()
    monkeypatch.setenv("SYNFLOW_HOME", str(tmp_path))
    assert paths.notebooks() == tmp_path / "notebooks" and paths.reference() == tmp_path / "data" / "reference"


def test_paths_are_shown_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.shown(tmp_path / "a" / "b") == "a/b" and paths.shown("/elsewhere/a") == "/elsewhere/a"


def test_what_is_durable_reaches_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    target, seen = tmp_path / "record.json", []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((os.fstat(handle).st_size, target.exists())))
    with paths.replacing(target, durable=True) as partial:
        partial.write_text("1234567")
    assert seen[0] == (7, False) and target.read_text() == "1234567"
    assert len(seen) == 1 + (os.name == "posix")  # and the folder, which holds the name
    with paths.replacing(target) as partial:
        partial.write_text("8")
    assert len(seen) == 1 + (os.name == "posix")
