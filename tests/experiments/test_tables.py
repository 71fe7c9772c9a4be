"""A table is computed once and written whole, read back the same, and the reader is told which of the two happened."""

import json

import pandas as pd
import pytest

from synflow_lib import paths
from synflow_lib.errors import InputError
from synflow_lib.experiments import EXPERIMENTS, Experiment
from synflow_lib.experiments import tables as module
from synflow_lib.experiments.tables import provenances, table
from synflow_lib.notebook import parameters_of


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """One experiment, "thirds", in a project of its own: the list of the times that it was computed."""
    monkeypatch.setenv("SYNFLOW_HOME", str(tmp_path / "project"))
    computed = []

    def thirds():
        computed.append(len(computed))
        return pd.DataFrame({"layer": ["a", "b"], "average_score": [1 / 3, 2e-300 / 3]})

    monkeypatch.setattr(Experiment, "compute", property(lambda self: thirds))
    monkeypatch.setattr(module, "EXPERIMENTS", {"thirds": Experiment("03", "nowhere:thirds")})
    return computed


def test_what_is_computed_is_written_and_read_back_the_same(counted, capsys):
    first = table("thirds", "paper")
    told = capsys.readouterr().out
    assert told.startswith("computed now and written to data/results/thirds.csv: made in 0 s with torch ")
    assert told.endswith("by: synflow reproduce --only 03 --scale paper\n")
    pd.testing.assert_frame_equal(table("thirds"), first)
    assert capsys.readouterr().out == told.replace("computed now and written to", "read from")
    assert counted == [0] and first["average_score"].tolist() == [0.333333, 6.66667e-301]
    assert (paths.results() / "thirds.csv").read_bytes() == b"layer,average_score\na,0.333333\nb,6.66667e-301\n"


def test_what_made_it_is_kept_beside_it_and_others_stay(counted):
    table("thirds", "paper")
    file = paths.results() / "experiments.json"
    file.write_text(json.dumps(provenances() | {"another": {"seconds": 7}}))
    table("thirds", "paper")
    made = provenances()
    assert list(made) == ["another", "thirds"] and made["another"] == {"seconds": 7}
    assert made["thirds"]["command"] == "synflow reproduce --only 03 --scale paper"
    assert made["thirds"]["device"] == "CPU" and made["thirds"]["memory_gb"] > 0
    assert sorted(path.name for path in paths.results().iterdir()) == ["experiments.json", "thirds.csv"]


def test_tables_of_one_function_are_computed_together_and_tell_so(counted, monkeypatch, capsys):
    def both():
        counted.append(len(counted))
        return {name: pd.DataFrame({"layer": [name]}) for name in ("thirds", "fifths")}

    monkeypatch.setattr(Experiment, "compute", property(lambda self: both))
    monkeypatch.setitem(module.EXPERIMENTS, "fifths", Experiment("03", "nowhere:both"))
    assert [table(name, "paper")["layer"].item() for name in ("thirds", "fifths")] == ["thirds", "fifths"]
    told = capsys.readouterr().out.splitlines()
    assert counted == [0]
    assert told[1].startswith("computed now and written to data/results/fifths.csv: made in 0 s, together with thirds,")
    assert provenances()["thirds"] == provenances()["fifths"]
    assert provenances()["thirds"]["together"] == ["thirds", "fifths"]
    table("fifths", "paper")  # who asks again has it computed again
    assert counted == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("third",), r"unknown experiment 'third'; did you mean 'thirds'"),
        (("thirds", "large"), r"unknown scale 'large' \(known: small, paper\)"),
        (("thirds",), r"thirds\.csv is not there; make it with: synflow reproduce --only 03 --scale paper"),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(counted, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        table(*arguments)
    assert counted == []


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(counted):
    paths.home().mkdir()
    (paths.home() / "data").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="cannot write"):
        table("thirds", "paper")
    assert counted == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_documented_committed_and_shown_in_its_chapter(name):
    experiment = EXPERIMENTS[name]
    (chapter,) = paths.notebooks().glob(f"{experiment.chapter}_*.ipynb")
    source = chapter.read_text(encoding="utf-8")
    assert "sf.experiments.table(" in source and f'\\"{name}\\"' in source and "scale" in parameters_of(chapter)
    assert len(experiment.compute.__doc__) > 100
    assert len(table(name)) > 0 and (paths.results() / f"{name}.csv").stat().st_size < 500_000
    assert provenances()[name]["command"] == experiment.command
