"""ERRATA.md is whole, what it names exists, its commands run, and its numbers are those of the authors' tables."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from synflow_lib import audit, cli, experiments, paths
from synflow_lib.benchmark import published

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ERRATA.md").read_text(encoding="utf-8")
PARTS = re.split(r"^## (\d+) · (.+)$", TEXT.split("\n---\n")[0], flags=re.MULTILINE)[1:]
SECTIONS = {int(number): f"{title}\n{body}" for number, title, body in zip(*[iter(PARTS)] * 3, strict=True)}
LABELS = ["Claim", "Found", "Shown by", "For you"]


def commands(section: str) -> list[str]:
    """The lines of the fenced blocks, without the remark behind them."""
    blocks = re.findall(r"^```\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s{2,}#.*", "", line) for block in blocks for line in block.splitlines()]


COMMANDS = sorted({command for section in SECTIONS.values() for command in commands(section)})
QUICK = [command for command in COMMANDS if re.match(r"python -c|synflow audit\b", command)]
AUDIT = re.compile(r"synflow audit (\d+)")  # one as it stands; the others, which are alike, in this process


def prose(section: str) -> str:
    return " ".join(re.sub(r"^```\n.*?^```$", "", section, flags=re.MULTILINE | re.DOTALL).split())


def numbers_in(section: str) -> str:
    """The text with thousands written as one word, as tables print them."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", prose(section))


def texts() -> Iterator[tuple[str, str]]:
    """The name of a chapter and a cell's text, for every cell of prose."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                yield path.name, cell.source


def anchor(number: int) -> str:
    """What a link to a finding ends with, as GitHub makes it of the heading."""
    title = SECTIONS[number].partition("\n")[0]
    return f"{number}--" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_findings_are_numbered_from_one_without_a_gap():
    assert list(SECTIONS) == list(range(1, len(SECTIONS) + 1)) and len(SECTIONS) >= 13


@pytest.mark.parametrize("number", SECTIONS)
def test_every_finding_has_a_claim_what_was_found_what_shows_it_and_what_it_means(number):
    assert re.findall(r"^\*\*([^*]+)\.\*\* ", SECTIONS[number], flags=re.MULTILINE) == LABELS
    assert commands(SECTIONS[number]), "a finding needs a command that shows it"


@pytest.mark.parametrize("number", SECTIONS)
def test_every_finding_is_shown_in_a_chapter_that_it_links_to(number):
    linked = set(re.findall(r"\]\(notebooks/([^)]+)\)", SECTIONS[number]))
    mention = {chapter for chapter, text in texts() if f"](../ERRATA.md#{anchor(number)})" in text}
    assert linked & mention, f"no linked chapter links to ERRATA {number}"


def test_chapters_name_findings_by_links_that_lead_to_them():
    anchors = {anchor(number) for number in SECTIONS}
    for chapter, text in texts():
        assert not re.search(r"(?<!\[)ERRATA \d", text), chapter
        linked = re.findall(r"\[(?:ERRATA )?(\d+)\]\(\.\./ERRATA\.md#((\d+)--[^)]*)\)", text)
        assert all(named == number and to in anchors for named, to, number in linked), chapter


def test_chapters_and_code_refer_only_to_findings_that_there_are():
    files = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("synflow_lib/**/*.py"), ROOT / "README.md"]
    for path in files:
        for listed in re.findall(r"ERRATA ((?:\d+(?:, | and )?)+)", path.read_text(encoding="utf-8")):
            assert set(map(int, re.findall(r"\d+", listed))) <= set(SECTIONS), path


@pytest.mark.parametrize("number", SECTIONS)
def test_files_tests_and_tables_that_a_finding_names_exist(number):
    for name in re.findall(r"`((?:tests|benchmarks|synflow_lib)/[\w/]+\.py)`", SECTIONS[number]):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"experiments\.table\('(\w+)'\)", SECTIONS[number]):
        assert name in experiments.EXPERIMENTS, name


@pytest.mark.parametrize("command", [c for c in QUICK if not AUDIT.fullmatch(c) or c.endswith(" 8")])
def test_quick_commands_run_as_they_stand_and_print_something(command):
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
    program = {"python": "", "synflow": " -m synflow_lib.cli"}
    name, rest = command.split(" ", 1)
    line = f'"{sys.executable}"{program[name]} {rest}'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in QUICK])
def test_other_commands_name_what_there_is(command):
    words = command.split()
    if words[0] == "synflow":
        arguments = cli.parser().parse_args(words[1:])
        for number in getattr(arguments, "only", None) or []:
            assert list(ROOT.glob(f"notebooks/{number}_*.ipynb")), command
        return
    file = next(word for word in words if word.endswith(".py"))
    source = (ROOT / file).read_text(encoding="utf-8")
    assert words[0] == "python"
    if "-k" in words:
        tests = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        assert any(words[words.index("-k") + 1] in name for name in tests if name.startswith("test_")), command


@pytest.mark.parametrize("number", audit.FINDINGS)
def test_findings_computed_from_published_numbers_name_their_command(number):
    assert f"synflow audit {number}" in commands(SECTIONS[number])
    shown = audit.show(number)
    assert shown.count(f"Finding {number}:") == len(audit.FINDINGS[number])


def test_a_finding_without_a_table_is_one_sentence(capsys):
    assert cli.main(["audit", "99"]) == 2
    assert re.fullmatch(r"synflow: unknown finding .*'99'.*\n", capsys.readouterr().err)


def test_finding_1_the_two_columns_are_runs_of_one_network():
    table = audit.replicates().set_index(["model", "dataset"])
    same, others = table.loc["resnet18"], table.loc["vgg16"]
    text = numbers_in(SECTIONS[1])
    for row in same.itertuples():
        assert f"{row.dense:.2f} and {row.other_dense:.2f} %" in text
    assert same["cells"].sum() == 195
    assert f"{same['apart'].sum()} differ at a level of 5 %" in text and same["apart"].sum() < 0.05 * 195
    assert f"differ in {others['apart'].sum()}." in text and others["apart"].sum() > 100


def test_finding_1_theirs_has_the_parameters_of_resnet_18_and_not_four_times_as_many():
    counts = audit.parameters().set_index("model")["parameters"]
    assert counts["wide_resnet18_published"] == counts["resnet18"] == 11_174_986
    assert all(str(number) in numbers_in(SECTIONS[1]) for number in counts)


def test_finding_2_the_first_epoch_is_that_of_repeated_updates():
    table = audit.first_epochs().set_index("recipe")
    theirs, text = table.loc["the authors"], numbers_in(SECTIONS[2])
    assert f"{theirs['runs']:.0f} runs" in text
    assert f"{theirs['train_loss min']:.2f} to {theirs['train_loss max']:.2f}" in text
    assert f"{theirs['test_accuracy min']:.1f} to {theirs['test_accuracy max']:.1f} %" in text
    near, far = table.loc["published", "train_loss min"], table.loc["described", "train_loss max"]
    assert theirs["train_loss min"] < near < theirs["train_loss max"] and far < theirs["train_loss min"] - 0.3
    assert f"{far:.2f} and {table.loc['described', 'test_accuracy max']:.1f} %" in text
    assert f"{near:.2f} and {table.loc['published', 'test_accuracy max']:.1f} %" in text


def test_finding_2_after_all_epochs_little_of_it_is_left():
    ours = pd.read_csv(paths.results() / "cifar10_vgg11_160_epochs.csv")
    found = ours.groupby(["recipe", "log10_compression"])["accuracy_best"].agg(["min", "max", "mean", "size"])
    theirs = published.panel("cifar10", "vgg11").query("pruner == 'synflow'").set_index("log10_compression")
    text = prose(SECTIONS[2])
    for recipe, said in (("published", "by the repeated updates"), ("described", "by the text's recipe")):
        low, high, _, size = found.loc[recipe, 3]
        assert size == 3 and f"{low:.2f} to {high:.2f} % {said}" in text
    assert f"{theirs.loc[3, 'min']:.2f} to {theirs.loc[3, 'max']:.2f} % in the authors' three runs" in text
    assert f"{found.loc['published', 2]['mean']:.2f} and {found.loc['described', 2]['mean']:.2f} %" in text
    assert found.loc["described", 3]["min"] > found.loc["published", 3]["max"]
    assert round(found.loc["described", 3]["mean"] - found.loc["published", 3]["mean"], 1) == 0.6


def test_finding_3_the_figures_show_the_best_epoch():
    (row,) = audit.best_epochs().to_dict("records")
    assert row["equal_to_best"] == row["runs"] == 195
    assert row["mean_above_last"] == pytest.approx(0.42, abs=0.005)
    assert row["max_above_last"] == pytest.approx(2.98)
    assert all(number in prose(SECTIONS[3]) for number in ("195 of 195", "0.42", "2.98"))


def scoring_densities(query: str) -> str:
    """The densities of our networks, means over seeds, as the text writes them."""
    rows = experiments.table("vgg16_scoring_variants").query(query)
    means = rows.groupby(["log10_compression", "layer"])["density"].mean()
    return ", ".join(f"{density:.3f}" for density in means.iloc[:-1]) + f" and {means.iloc[-1]:.3f}"


def test_finding_4_the_published_curves_keep_the_lowest_scores():
    chosen = "pruner == 'grasp' and mode == 'eval' and layer == 0 and log10_compression in (0.5, 1, 2, 3)"
    text = prose(SECTIONS[4])
    lowest, own = (scoring_densities(f"{chosen} and sign == '{sign}'") for sign in ("published", "own"))
    assert f"Ours keeps {lowest} where the lowest" in text and f"and {own} by GraSP's own rule" in text
    published_ones = published.table("vgg16_scoring_density").query("pruner == 'grasp'")["density"]
    found = [float(value) for value in lowest.replace(" and", ",").split(", ")]
    other = [float(value) for value in own.replace(" and", ",").split(", ")]
    assert found == pytest.approx(list(published_ones), abs=0.02)
    assert all(abs(a - b) > 0.09 for a, b in zip(other, published_ones, strict=True))


def test_finding_5_the_published_curves_are_scored_in_eval_mode():
    chosen = "pruner == 'snip' and log10_compression == 0.5 and layer < 5"
    evaluated, trained = (scoring_densities(f"{chosen} and mode == '{mode}'") for mode in ("eval", "train"))
    assert f"ours keep {evaluated} in eval mode and {trained} in train mode" in prose(SECTIONS[5])
    published_ones = published.table("vgg16_scoring_density").query("pruner == 'snip'")["density"]
    found = [float(value) for value in evaluated.replace(" and", ",").split(", ")]
    assert found == pytest.approx(list(published_ones), abs=0.025)


def test_finding_6_shortcuts_are_empty_and_the_network_is_whole():
    table = experiments.table("resnet18_shortcuts")
    assert table["connected"].all()
    empty = table[table["shortcut"] & (table["kept"] == 0)].groupby("log10_compression").size()
    assert (empty[0.25], empty[0.5]) == (1, 2) and set(empty[empty == 3].index) == {2.0, 3.0}
    assert (table.loc[~table["shortcut"], "kept"] > 0).all()
    assert "one of three at 10^0.25, two at 10^0.5, all three from 10^2 on" in prose(SECTIONS[6])


def test_finding_7_networks_stop_learning_before_they_collapse():
    table = audit.whole_and_learning()
    assert len(table) == 15 and (table["learning"] < table["whole"]).all()
    learning = table.groupby("pruner")["learning"].agg(list)
    assert [f"10^{value:g}" for value in learning["synflow"]] == ["10^5.5", "10^5.75", "10^5.5"]
    text = prose(SECTIONS[7])
    assert "up to 10^5.5, 10^5.75 and 10^5.5" in text and "whole up to 10^6, 10^6 and 10^5.75" in text
    assert table.groupby("pruner")["whole"].agg(list)["synflow"] == [6.0, 6.0, 5.75]
    assert set(learning["grasp"]) == {3.0} and set(learning["magnitude"]) == {2.25}


def test_finding_8_who_is_best_is_counted():
    low, high = audit.winners().set_index("where").loc[["up to 10^1.5", "above 10^1.5"]].to_dict("records")
    assert (low["synflow"], low["cells"], high["synflow"], high["cells"]) == (29, 72, 65, 72)
    text = prose(SECTIONS[8])
    assert "65 of 72" in text and "29 of 72" in text
    names = {"magnitude": "magnitude", "snip": "SNIP", "random": "random", "grasp": "GraSP"}
    assert ", ".join(f"{name} {low[key]}" for key, name in names.items()) in text


def test_finding_8_synflow_wins_on_vggs_and_magnitude_on_resnets():
    cells = ["dataset", "model", "log10_compression", "pruner"]
    means = published.accuracy().query("0 < log10_compression <= 1.5").groupby(cells)["top1_accuracy"].mean().unstack()
    best = means.round(4).eq(means.round(4).max(axis=1), axis=0)
    vgg = best.index.get_level_values("model").str.startswith("vgg")
    assert (best["synflow"][vgg].sum(), best["synflow"][~vgg].sum(), vgg.sum()) == (25, 4, 36)
    assert best["magnitude"][~vgg].sum() == 21
    table = audit.winners_by_network().set_index("networks")
    assert table["synflow"].to_dict() == {"VGG": 25, "ResNet-18": 4} and (table["cells"] == 36).all()
    assert table["magnitude"]["ResNet-18"] == 21
    text = prose(SECTIONS[8])
    assert "in 25 of 36 on the VGGs and in 4 of 36 on ResNet-18" in text and "where magnitude has 21" in text


def test_finding_8_synflow_is_never_far_behind():
    low = audit.shortfalls().query("where == 'up to 10^1.5'").set_index("pruner")
    assert low["most"].idxmin() == low["mean"].idxmin() == low["within_a_point"].idxmax() == "synflow"
    said = {name: f"{low['mean'][name]:.1f} and {low['most'][name]:.1f}" for name in low.index}
    text = prose(SECTIONS[8])
    assert (
        f"{low['mean']['synflow']:.1f} points below the best on average and {low['most']['synflow']:.1f} at most"
        in text
    )
    assert f"SNIP has {said['snip']}, random {said['random']}, GraSP {said['grasp']}" in text
    assert (
        f"magnitude, as often the best, {said['magnitude']}: in {low['guessing']['magnitude']} of its 72 cells" in text
    )


def test_finding_8_the_best_are_as_near_as_repeated_runs():
    table = audit.near_the_best().set_index("which")
    apart, synflow = [], []
    runs = published.accuracy().query("0 < log10_compression < 1.5")
    for _, cell in runs.groupby(["dataset", "model", "log10_compression"]):
        by = cell.groupby("pruner")["top1_accuracy"].agg(["mean", "var"]).sort_values("mean", ascending=False)
        spreads = (by["mean"].iloc[0] - by["mean"]) / ((by["var"].iloc[0] + by["var"]) / 2) ** 0.5
        apart.append(spreads.iloc[1])
        synflow.append(spreads["synflow"])
    within = [int((np.array(found) <= 2.27).sum()) for found in (apart, synflow)]
    assert within == [table["within"]["the two best"], table["within"]["synflow"]] and len(apart) == 60
    chance = table["if_equal"]["the two best"]
    assert f"In {within[0]} of the 60 cells" in prose(SECTIONS[8]) and f"and in {within[1]} SynFlow" in prose(
        SECTIONS[8]
    )
    assert f"the two best of five equal ones in {chance:.0f} %" in prose(SECTIONS[8])


def test_finding_8_two_methods_of_three_equal_runs_are_near_in_95_of_100_cells():
    """The limit in spreads is that of the t test at 5 %."""
    runs = np.random.default_rng(1).normal(size=(40_000, 2, 3))
    assert audit._near(runs)[:, 0].mean() == pytest.approx(0.95, abs=0.004)


def test_finding_8_shortfalls_are_those_of_one_cell_at_a_time():
    table = audit.shortfalls()
    assert len(table) == 10
    runs = published.accuracy().query("log10_compression > 0")
    worst, guessing = 0.0, 0
    for (dataset, _, power), cell in runs.groupby(["dataset", "model", "log10_compression"]):
        if power > 1.5:
            means = cell.groupby("pruner")["top1_accuracy"].mean()
            worst = max(worst, means.max() - means["random"])
            chance = {"cifar10": 10, "cifar100": 1, "tiny-imagenet": 0.5}[dataset]
            guessing += bool((cell.query("pruner == 'random'")["top1_accuracy"] <= chance).any())
    row = table.query("where == 'above 10^1.5' and pruner == 'random'").iloc[0]
    assert row["most"] == pytest.approx(worst) and row["guessing"] == guessing == 17


def test_finding_8_magnitude_cuts_resnets_from_10_to_the_1_25():
    runs = published.accuracy().query("pruner == 'magnitude' and 0 < log10_compression <= 1.5")
    runs = runs[runs["model"].isin(["resnet18", "wide_resnet18_published"])]
    chance = runs["dataset"].map({"cifar10": 10, "cifar100": 1, "tiny-imagenet": 0.5})
    learns = (runs["top1_accuracy"] > chance).groupby(runs["log10_compression"]).mean()
    assert (learns[:1.0] == 1).all() and (learns[1.25:] < 0.2).all()


def test_finding_8_synflow_is_below_random_on_tiny_imagenet():
    table = audit.below_random().set_index("log10_compression")["synflow_minus_random"]
    below = table[table < 0]
    assert list(below.index) == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert f"from 10^0.5 to 10^1.75, by up to {-below.min():.1f} points" in prose(SECTIONS[8])


def test_finding_9_deep_networks_overflow():
    table = experiments.table("flow_range").set_index("network")
    lost = table.index[np.isinf(table["float32"])]
    assert {f"ResNet-{n}, ImageNet" for n in (50, 101, 152)} <= set(lost)
    assert {"ResNet-56, CIFAR-10", "ResNet-110, CIFAR-10", "MLP of 60 layers"} <= set(lost)
    assert list(table.index[np.isinf(table["float64"])]) == ["ResNet-1202, CIFAR-10"]
    assert np.isfinite(table["scaled"]).all()
    whole = table["float64"].round()
    said = {"ResNet-152, ImageNet": 225, "VGG-16, CIFAR-10": 22, "ResNet-18, Tiny ImageNet": 29}
    for network, exponent in said.items():
        assert whole[network] == exponent and f"10^{exponent}" in prose(SECTIONS[9])


def test_finding_10_masks_part_in_single_precision_alone():
    table = experiments.table("vgg11_rounding").query("iteration == 100")
    overlap = table.set_index(["network", "other", "log10_compression"])["overlap"].sort_index()
    single = overlap["vgg11", "float32"]
    assert f"by {single[2]:.3f} (intersection over union) at 10^2 and by {single[3]:.3f} at 10^3" in prose(SECTIONS[10])
    assert single.max() < 0.95
    assert (overlap["vgg11", "noise"] == 1).all() and (overlap["resnet20", "float32"] == 1).all()


def test_finding_11_more_than_one_cycle_lasts_longer_in_the_published_curves():
    table = audit.cycles().set_index("cycles")
    assert (table["epochs"] == 50).all()
    assert table.loc[1, "above_guessing"] == 1.8 and (table.loc[2:, "above_guessing"] >= 3.9).all()
    low, high = table.loc[2:, "above_guessing"].agg(["min", "max"])
    failing = [{2: "two", 4: "four"}[number] for number in table.index[table["failures_before"] > 0]]
    said = f"at 10^1.8, two to five at 10^{low:g} to 10^{high:g}, {' and '.join(failing)} with failures before"
    assert said in prose(SECTIONS[11])


def test_finding_12_every_text_is_true():
    """What `type=bool` makes of a flag; the tests of masks and runs hold ours."""
    assert all(bool(text) for text in ("False", "0", "no"))


def test_finding_14_the_slopes_of_figure_4():
    slopes = audit.layer_slopes().query("state == 'initialization'").set_index("pruner")["slope"]
    names = {"synflow": "SynFlow", "grasp": "GraSP", "snip": "SNIP", "magnitude": "magnitude", "random": "random"}
    assert ", ".join(f"{name} {slopes[key]:.3f}" for key, name in names.items()) in prose(SECTIONS[14])
    assert slopes["synflow"] == pytest.approx(1, abs=1e-5)


def test_finding_14_the_first_collapses_of_figure_2():
    table = audit.first_collapse()
    first = table.groupby("pruner")["compression"].min()
    assert first.to_dict() == {"grasp": 256, "magnitude": 512, "random": 4096, "snip": 16384, "synflow": 2**23}
    synflow = table.query("pruner == 'synflow'")
    assert sorted(synflow["iterations"]) == [100, 1000] and (synflow["compression"] > synflow["rho_max"]).all()
    text = numbers_in(SECTIONS[14])
    for name, key in (("GraSP", "grasp"), ("magnitude", "magnitude"), ("random", "random"), ("SNIP", "snip")):
        assert f"{first[key]} for {name}" in text
    assert f"({synflow['rho_max'].iloc[0]})" in text


def test_finding_15_the_slope_rises_and_stays_far_from_one():
    table = audit.magnitude_slopes().set_index(["init", "epoch"])["slope"].unstack()
    assert (table[0] < table[99]).all() and (table[99] < 0.61).all()
    text = prose(SECTIONS[15])
    for init in ("kaiming", "xavier"):
        assert f"from {table.loc[init, 0]:.2f} to {table.loc[init, 99]:.2f} ({init.title()})" in text


def test_finding_16_the_pretrained_weights_are_those_of_the_start():
    table = audit.states().set_index("pruner")
    for pruner in ("magnitude", "random", "synflow"):
        assert table.loc[pruner, "lowest_ratio"] == table.loc[pruner, "highest_ratio"] == 1
    assert table.loc["snip", "highest_ratio"] > 1.1


def test_finding_17_near_rho_max_some_networks_lose_layers_in_either_precision():
    table = experiments.table("synflow_near_rho_max")
    lost = table[table["empty"] > 0].groupby(["network", "precision", "below"])["seed"].agg(set)
    assert table.query("below >= 0.5")["empty"].sum() == 0 and table["seed"].nunique() == 8
    assert {key: len(seeds) for key, seeds in lost["vgg16"].items()} == {
        **{("float32", 0.25): 1, ("float64", 0.25): 2},
        **{("float32", 0.0): 3, ("float64", 0.0): 2},
    }
    assert not lost["vgg16", "float32", 0.0] & lost["vgg16", "float64", 0.0]
    vgg19 = table.query("network == 'vgg19'").set_index("precision")
    assert (vgg19["layers"] == 19).all() and vgg19["empty"].to_dict() == {"float32": 10, "float64": 0}
    assert "10 of its 19 layers" in prose(SECTIONS[17])


def test_finding_17_a_second_processor_differs_in_single_precision_alone():
    one, two = (pd.read_csv(paths.results() / f"synflow_near_rho_max{end}.csv") for end in ("", "_second_cpu"))
    assert one.drop(columns="empty").equals(two.drop(columns="empty"))
    differ = one["empty"] != two["empty"]
    assert differ.any() and set(one[differ]["precision"]) == {"float32"}
    lost = two.query("precision == 'float32' and empty > 0")
    assert lost[["network", "seed", "below"]].values.tolist() == [["vgg16", 6, 0.0]]


def test_the_tables_come_from_the_files_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNFLOW_HOME", str(tmp_path))
    assert paths.reference() == tmp_path / "data" / "reference"
    with pytest.raises(published.InputError, match="figure6_accuracy"):
        audit.replicates()
