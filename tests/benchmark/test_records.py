import json
import logging
from dataclasses import asdict, replace

import pytest

from synflow_lib import paths
from synflow_lib.benchmark import Run, records, run
from synflow_lib.errors import InputError
from synflow_lib.training import recipe


def record_of(run, status: str = "done", **more) -> dict:
    settings = recipe(run.recipe, run.dataset, run.model).settings()
    results = {"accuracy_last": 50.0, "accuracy_best": 60.0, "curve": [], "settings": settings, "compression": 10.0}
    extra = {"error": "it broke"} if status == "failed" else results
    return {**asdict(run), "key": run.key, "status": status, **extra, **more}


def test_what_is_written_is_read(quick):
    record = record_of(quick, best_epoch=2)
    path = records.write(record)
    assert path == paths.records() / f"{quick.key}.json"
    assert records.read(quick.key) == records.find(quick) == record
    assert list(records.everything()) == [record]
    assert sorted(file.name for file in paths.records().iterdir()) == sorted([path.name, "copies"])
    assert records.copy_of(quick.key).read_text() == path.read_text()


def test_no_folder_is_no_records(quick):
    assert records.read(quick.key) is None
    assert list(records.everything()) == []
    assert records.table().empty


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: text.replace('"status": "done"', '"status": "fine"'),
        lambda text: text.replace('"accuracy_last"', '"accuracy_lost"'),
        lambda text: text.replace('"key": "', '"key": "0'),
        lambda text: text.replace('"pruner"', '"prune"'),
        lambda text: text.replace('"seed": 0', '"seed": "zero"'),
        lambda text: text.replace('"log10_compression": 1.0', '"log10_compression": null'),
        lambda text: "\x00" * len(text),
        lambda text: b"\xff\xfe{",
    ],
)
def test_a_damaged_record_is_set_aside_and_counts_as_missing(damage, quick, caplog):
    path = records.write(record_of(quick))
    records.copy_of(quick.key).unlink()
    text = damage(path.read_text())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with caplog.at_level(logging.WARNING):
        assert records.read(quick.key) is None
    assert f"{quick.key}.json is damaged" in caplog.text
    assert not path.exists() and path.with_suffix(".json.damaged").exists()
    assert list(records.everything()) == []
    records.write(record_of(quick))
    assert records.find(quick) is not None


def test_files_that_are_no_records_are_left_alone(quick):
    records.write(record_of(quick))
    other = paths.records() / "experiments.json"
    other.write_text("{}")
    assert [record["key"] for record in records.everything()] == [quick.key] and other.read_text() == "{}"


def test_a_copy_that_cannot_be_written_costs_no_record(quick, caplog):
    records.copy_of(quick.key).parent.parent.mkdir(parents=True)
    records.copy_of(quick.key).parent.touch()
    records.write(record_of(quick))
    assert records.find(quick) == record_of(quick) and "its copy is not" in caplog.text


def test_a_failed_run_and_one_of_an_older_recipe_are_to_be_done_again(quick):
    records.write(record_of(quick, "failed"))
    assert records.read(quick.key)["status"] == "failed" and records.find(quick) is None
    older = record_of(quick)
    older["settings"]["epochs"] += 1
    records.write(older)
    assert records.read(quick.key) == older and records.find(quick) is None
    records.write(record_of(quick, "diverged"))
    assert records.find(quick)["status"] == "diverged"


def test_a_record_that_cannot_be_written_is_one_sentence(quick, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SYNFLOW_RECORDS", str(tmp_path / "file" / "records"))
    with pytest.raises(InputError, match=r"cannot write .*json: .*; free some space or choose another folder"):
        records.write(record_of(quick))


def test_values_that_are_no_json_are_refused_and_leave_nothing(quick):
    with pytest.raises(ValueError):
        records.write(record_of(quick, test_loss=float("nan")))
    assert records.read(quick.key) is None


def test_the_table_has_a_row_for_every_run_in_order(quick):
    runs = [replace(quick, seed=seed) for seed in (3, 0, 1, 2)]
    for spec, status in zip(runs, ("done", "diverged", "failed"), strict=False):
        records.write(record_of(spec, status))
    table = records.table(runs)
    assert table["seed"].tolist() == [3, 0, 1, 2]
    assert table["status"].tolist() == ["done", "diverged", "failed", "missing"]
    assert table["key"].tolist() == [run.key for run in runs]
    assert (
        table["accuracy_best"].tolist()[:2] == [60.0, 60.0] and table["accuracy_best"].isna().tolist()[2:] == [True] * 2
    )
    assert table["error"].tolist()[2] == "it broke"
    assert table["width"].tolist() == [0.25] * 4
    assert sorted(records.table()["key"]) == sorted(run.key for run in runs[:3])


def test_a_record_of_a_later_version_with_more_fields_is_still_read(quick):
    records.write(record_of(quick, novelty=1))
    assert records.table()["key"].tolist() == [quick.key]
    assert json.loads(records.path(quick.key).read_text())["novelty"] == 1


def test_a_record_of_an_older_recipe_is_outdated_and_so_is_one_of_a_recipe_that_is_gone(quick, record):
    older = record_of(quick)["settings"] | {"epochs": 99}
    assert records.state(record(quick, settings=older)) == "outdated"
    assert records.table([quick])["status"].tolist() == ["outdated"] == records.table()["status"].tolist()
    gone = replace(quick, recipe="slow")
    assert records.state({**record_of(quick), **asdict(gone)}) == "outdated" and records.settings(asdict(gone)) is None
    assert records.state(record_of(quick)) == "done" and records.state(record_of(quick, "failed")) == "failed"


def test_a_record_gives_its_run_back(quick):
    assert records.run_of(record_of(quick, novelty=1)) == quick


def test_layers_are_those_of_the_masks_and_a_missing_run_says_so():
    spec = Run("digits", "mlp", "magnitude", 1.0, recipe="smoke", width=0.1)
    with pytest.raises(InputError, match="do the run first"):
        records.layers(spec)
    record = run(spec)
    table = records.layers(spec)
    assert list(table.columns) == ["layer", "size", "kept", "density"]
    assert table["size"].sum() / table["kept"].sum() == pytest.approx(record["compression"])
