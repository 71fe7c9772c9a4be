from dataclasses import asdict, replace

import pytest

from synflow_lib.benchmark import Run, claims, published_grid, status

FULL = Run("cifar10", "vgg11", "synflow", 1.0, 1, "fast")


def lines(text: str) -> dict[str, str]:
    """Label to marks of a grid, without the spaces between the cells."""
    return {line.split()[0]: line.strip().partition(" ")[2].strip() for line in text.splitlines()[2:]}


def test_without_records_it_is_a_sentence():
    assert list(status.report()) == ["no runs are recorded"]


def test_each_seed_has_its_character(record, monkeypatch):
    for seed, state in enumerate(("done", "diverged", "failed")):
        record(replace(FULL, seed=seed), state)
    outdated, interrupted, running = (replace(FULL, log10_compression=2.0, seed=seed) for seed in range(3))
    record(outdated, settings={})
    claims.checkpoint(interrupted.key).parent.mkdir()
    claims.checkpoint(interrupted.key, 1).touch()
    monkeypatch.setattr(claims, "running", lambda: {running.key})
    (shown, legend) = status.report()
    assert lines(shown)["synflow"].split() == [*["..."] * 4, "#DF", *["..."] * 3, "o~>", *["..."] * 4]
    assert lines(shown)["random"].split() == ["..."] * 13
    counts = "1 done, 1 running, 1 interrupted, 177 missing, 1 diverged, 1 failed, 1 outdated"
    assert shown.splitlines()[0] == f"vgg11 on cifar10, recipe fast: {counts}"
    assert all(f"{mark} {state}" in legend for state, mark in status.MARKS.items())


def test_the_dense_network_is_that_of_all_pruners_and_counts_once(record):
    record(Run("cifar10", "vgg11", "random", 0.0, 0, "fast"))
    (shown, _) = status.report()
    assert all(marks.split()[:2] == ["#..", "..."] for marks in lines(shown).values()) and len(lines(shown)) == 5
    assert "1 done, 182 missing" in shown


def test_a_chosen_panel_is_shown_without_records_and_the_others_are_not(record):
    record(FULL)
    shown = [text.splitlines()[0] for text in status.report([("cifar100", "vgg16")])]
    assert shown[0] == "vgg16 on cifar100, recipe fast: 183 missing" and len(shown) == 2
    assert len(list(status.report([("cifar10", "vgg11"), ("cifar100", "vgg16")]))) == 3
    (published, _) = status.report([("cifar10", "vgg11")], ["published"])
    assert "recipe published: 183 missing" in published
    (varied, _) = status.report([("cifar10", "vgg11")], ["fast:crop=3,epochs=10"])
    assert "recipe fast:epochs=10,crop=3: 183 missing" in varied


def test_a_panel_whose_first_runs_are_at_work_is_shown(monkeypatch):
    monkeypatch.setattr(claims, "running", lambda: {Run("cifar10", "resnet18", "snip", 1.0, 2, "published").key})
    (shown, _) = status.report()
    assert shown.startswith("resnet18 on cifar10, recipe published: 1 running, 182 missing")
    assert lines(shown)["snip"].split()[4] == "..>"


def test_runs_at_work_and_interrupted_ones_are_named_before_they_have_a_record():
    """Whatever they are: a key does not tell, and of a network that is in no figure nothing else would."""
    mine = Run("digits", "mlp", "snip", 1.0, 3, "smoke", width=0.25, isometry=True)
    with claims.claim(mine.key, asdict(mine)):
        (shown, _) = status.report()
    assert shown.splitlines()[0] == "mlp on digits, width 0.25, recipe smoke: 1 running, 1 missing"
    assert shown.splitlines()[-1].split() == ["snip", "isometry", ">"]
    assert list(status.report()) == ["no runs are recorded"]  # it was given up, and left nothing
    claims.checkpoint(mine.key).parent.mkdir()
    claims.checkpoint(mine.key).touch()
    assert "snip isometry ~" in next(status.report())
    claims.note(mine.key).write_text('{"dataset": ')  # damaged: a run without a name, as before
    assert not any("isometry" in text for text in status.report())


def test_another_name_of_the_same_network_shows_its_runs(record):
    record(Run("cifar10", "resnet18", "snip", 1.0, 0, "published"))
    (shown, _) = status.report([("cifar10", "wide_resnet18_published")])
    assert shown.startswith("wide_resnet18_published on cifar10, recipe published: 1 done, 182 missing")


@pytest.mark.parametrize("seeds", [3, 60])
def test_no_line_is_wider_than_100_columns(record, seeds):
    for alpha in range(20 if seeds == 3 else 2):
        record(replace(FULL, log10_compression=alpha / 7, seed=seeds - 1, width=0.5))
    record(replace(FULL, width=0.5, seed=0, cycles=3, shuffle=True, scope="layer", reinitialise=True, train_mode=True))
    for seed in range(seeds):
        record(replace(FULL, width=0.5, seed=seed))
    (shown, legend) = status.report()
    assert max(map(len, [*shown.splitlines(), legend])) <= 100
    assert shown.count("#") == len(list(status.records.everything()))


def test_other_options_have_a_row_of_their_own(record):
    quick = Run("digits", "mlp", "magnitude", 1.0, recipe="smoke", width=0.25)
    for run in (quick, replace(quick, log10_compression=2.0), replace(quick, cycles=2), replace(quick, invert=True)):
        record(run)
    (shown, _) = status.report()
    assert shown.splitlines()[2:] == [
        "  magnitude          # #",
        "  magnitude cycles=2 #",
        "  magnitude invert   #",
    ]


def test_a_pruner_of_a_later_version_comes_last(record):
    spec = Run("digits", "mlp", "random", 1.0, recipe="smoke", width=0.25)
    for pruner in ("newest", "synflow", "random"):
        record(replace(spec, pruner=pruner))
    rows = [line.split()[0] for text in status.report() for line in text.splitlines() if line.startswith("  ")]
    assert [row for row in rows if row.isalpha()] == ["random", "synflow", "newest"]


def test_the_whole_figure_is_twelve_grids(record):
    chosen = list(dict.fromkeys((run.dataset, run.model) for run in published_grid("fast")))
    assert len(list(status.report(chosen))) == 13
