import platform
import re
import subprocess
from pathlib import Path

import torch

from synflow_lib import provenance


def test_names_versions_and_device_but_no_path_and_no_machine():
    made_by = provenance.environment("cpu")
    assert made_by["torch"] == torch.__version__.split("+")[0] or made_by["torch"] == torch.__version__
    assert made_by["python"] == platform.python_version() and made_by["device"] == "CPU"
    text = repr(provenance.table("cpu", 12.3)) + provenance.table("cpu", 12.3)._repr_html_()
    assert platform.node() not in text
    assert str(Path.home()) + "/" not in text and not re.search(r"(?<!<)/\w+/", text)


def test_the_table_has_time_and_revision_unless_it_is_to_be_committed(monkeypatch):
    shown = provenance.table("cpu", 12.3).rows
    assert shown["seconds"] == "12" and "revision" in shown
    monkeypatch.setenv("SYNFLOW_TIMELESS", "1")
    assert provenance.table("cpu", 12.3).rows.keys() == shown.keys() - {"seconds", "revision"}


def test_the_revision_is_of_the_home_folder_and_marked_where_files_differ(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setenv("SYNFLOW_HOME", str(tmp_path / "below"))
    (tmp_path / "below").mkdir()
    git("init")
    assert provenance.revision() == "unknown"  # the repository further up is another one
    monkeypatch.setenv("SYNFLOW_HOME", str(tmp_path))
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "a")
    clean = provenance.revision()
    assert re.fullmatch(r"[0-9a-f]{10}", clean)
    (tmp_path / "file").write_text("b")
    assert provenance.revision() == clean + "+"
