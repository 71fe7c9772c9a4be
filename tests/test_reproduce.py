import json
import re
import shutil
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import nbformat
import pytest

from synflow_lib import notebook, paths
from synflow_lib import reproduce as module
from synflow_lib.benchmark import Run, records
from synflow_lib.benchmark.grid import PUBLISHED_COMPRESSIONS, PUBLISHED_SEEDS
from synflow_lib.errors import InputError
from synflow_lib.experiments import EXPERIMENTS
from synflow_lib.panels import PANELS
from synflow_lib.reproduce import plan, refresh, reproduce

PARAMETERS = (
    "c",
    'dataset: str = "digits"\nmodel: str = "vgg11"\nrecipe: str = "smoke"\n'
    "log10_compressions: list[float] = [0.0, 1.0]\nseeds: list[int] = [0]",
    "parameters",
)
DRAWS = """import matplotlib.pyplot as plt
from synflow_lib import paths
paths.figures().mkdir(parents=True, exist_ok=True)
fig = plt.figure(figsize=(1, 1))
for kind in ("png", "svg"):
    fig.savefig(paths.figures() / f"03_density.{kind}")"""


@pytest.fixture
def chapters(write_chapter):
    """Three chapters: 03 draws a figure, 04 fails, 07 has the parameters of a panel."""
    write_chapter(
        "03_network_wise", ("m", "# 03 Conservation\n\nDoes $a$ equal $b$?"), ("c", "", "parameters"), ("c", DRAWS)
    )
    write_chapter("04_collapse", ("m", "# 04 Collapse"), ("c", "n: int = 0", "parameters"), ("c", "1 / n"))
    write_chapter("07_panel", ("m", "# 07 Panel"), PARAMETERS, ("c", "print(dataset, model, recipe)"))
    return paths.notebooks()


@pytest.fixture
def fake_execute(monkeypatch):
    """Chapters "run" without a kernel: the list of what ran; `ran.stop_at` raises Ctrl-C there."""

    class Ran(list):
        stop_at = None

    ran = Ran()

    def execute(source, out, parameters=None, *, timeout=None, environment=None):
        if out.stem == ran.stop_at:
            raise KeyboardInterrupt
        ran.append(out.stem)
        figure = Path(environment["SYNFLOW_FIGURES"]) / f"{source.name[:2]}_density.png"
        figure.write_bytes(b"png")
        shutil.copy(source, out)
        if source.name.startswith("04"):
            raise notebook.NotebookFailed(source.name, 3, "ZeroDivisionError: division by zero")
        return out

    monkeypatch.setattr(notebook, "execute", execute)
    return ran


def index() -> str:
    return (paths.build() / "quick" / "index.html").read_text()


# which chapters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["03", "3", 3, "03_network_wise", "network_wise"])
def test_a_chapter_has_many_names(chapters, name):
    assert [job.name for job in plan([name])] == ["03_network_wise"]


def test_chapters_come_in_order_and_once(chapters):
    assert [job.number for job in plan(["07", "3", "03"])] == ["03", "07"]
    assert [job.number for job in plan()] == ["03", "04", "07"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"only": ["05"]}, r"unknown chapter '05' \(known: 03, 04, 07\)"),
        ({"panels": "cifar1"}, r"unknown panel 'cifar1'; did you mean 'cifar10'"),
        ({"only": ["03"], "recipe": "fast"}, "none of these chapters has a parameter 'recipe'"),
        ({"only": ["07"], "scale": "paper"}, "none of these chapters has a parameter 'scale'"),
        ({"scale": "papre"}, r"unknown scale 'papre'; did you mean 'paper'\? \(known: small, paper\)"),
        ({"panels": "all", "recipe": "fsat"}, "unknown recipe 'fsat'; did you mean 'fast'"),
        ({"only": ["07"], "recipe": "fast:epochs=two"}, "epochs must be a whole number"),
        ({"panels": "all", "recipe": 3}, r"parameter 'recipe' in 07_panel\.ipynb must be str"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(chapters, fake_execute, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        reproduce(**arguments)
    assert fake_execute == []


def test_no_chapters_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNFLOW_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"no chapters in .*notebooks; set SYNFLOW_HOME"):
        plan()


def test_the_panels_are_chapter_07_with_names_of_their_own(chapters):
    jobs = plan(panels="all", recipe="fast")
    assert len(jobs) == len(PANELS) == 12 and len({job.name for job in jobs}) == 12
    assert jobs[0].name == "07_cifar10_vgg11_fast" and jobs[0].timeout is None
    assert jobs[0].parameters == {
        **{"dataset": "cifar10", "model": "vgg11", "recipe": "fast"},
        **{"log10_compressions": list(PUBLISHED_COMPRESSIONS), "seeds": list(PUBLISHED_SEEDS)},
    }
    assert plan(panels="cifar10_vgg16", recipe="smoke")[0].name == "07_cifar10_vgg16"  # the chapter's own
    others = [plan(panels="cifar10_vgg16", recipe=name)[0].name for name in ("published", "fast:epochs=9,crop=3")]
    assert others == ["07_cifar10_vgg16_published", "07_cifar10_vgg16_fast_epochs=9_crop=3"]
    assert [job.name for job in plan(["03"], panels="cifar10_vgg16")] == ["03_network_wise", "07_cifar10_vgg16"]
    assert len(plan(panels="tiny-imagenet")) == 4 and len(plan(panels=True)) == 12
    assert len(plan(panels=["tiny-imagenet", "cifar10_vgg11"])) == 5


def test_panels_take_the_place_of_the_chapter_as_it_stands(chapters):
    assert [job.name for job in plan(["03", "07"], panels="cifar10_vgg16")] == ["03_network_wise", "07_cifar10_vgg16"]
    assert [job.name for job in plan(["07"])] == ["07_panel"]


# running ----------------------------------------------------------------------------------------------------------


def test_a_failing_chapter_is_named_and_does_not_stop_the_others(chapters, capfd):
    committed = paths.home() / "figures"
    assert reproduce() == 1
    out = paths.build() / "quick"
    told = capfd.readouterr()
    assert re.search(r"03_network_wise +\d+ s  passed +1\n", told.out)
    assert re.search(r"04_collapse +\d+ s  failed +0\n", told.out) and re.search(r"07_panel +\d+ s  passed", told.out)
    assert "04_collapse failed in cell 3: ZeroDivisionError: division by zero" in told.out
    assert told.out.rstrip().endswith("index.html") and told.err == ""
    assert "ZeroDivisionError" in (out / "04_collapse.html").read_text()
    assert "digits vgg11 smoke" in (out / "07_panel.html").read_text()
    for source in re.findall(r'<img src="([^"]*)"', index()) + re.findall(r'<a href="([^"#]*)', index()):
        assert (out / source).is_file()
    assert '<img src="figures/03_density.png"' in index() and "<math " in index()
    assert not committed.exists() and not paths.figures().exists()  # figures of the project stay as they are


def test_what_is_up_to_date_is_not_run_again(chapters, fake_execute, capfd):
    assert reproduce(["03", "07"]) == 0
    assert reproduce(["03", "07"]) == 0
    assert fake_execute == ["03_network_wise", "07_panel"]
    assert capfd.readouterr().out.count("up to date") == 4  # a line and a row of the table each
    reproduce(["03"], force=True)
    assert fake_execute.pop() == "03_network_wise" and len(fake_execute) == 2


@pytest.mark.parametrize("change", ["source", "page", "figure", "library", "parameters", "manifest"])
def test_every_change_runs_a_chapter_again(chapters, fake_execute, monkeypatch, change):
    out = paths.build() / "quick"
    reproduce(["07"])
    if change == "source":
        node = nbformat.read(chapters / "07_panel.ipynb", 4)
        node.cells[2].source += "\n"
        nbformat.write(node, chapters / "07_panel.ipynb")
    elif change == "library":
        monkeypatch.setattr(module, "_surroundings", lambda: "another version")
    elif change == "manifest":  # half a file, as a full disk leaves it
        (out / "manifest.json").write_text('{"07_pa')
    elif change != "parameters":
        (out / {"page": "07_panel.html", "figure": "figures/07_density.png"}[change]).unlink()
    reproduce(["07"], recipe="fast" if change == "parameters" else None)
    assert fake_execute == ["07_panel"] * 2


def test_a_failed_chapter_is_tried_again(chapters, fake_execute):
    assert [reproduce(["04"]), reproduce(["04"])] == [1, 1]
    assert fake_execute == ["04_collapse"] * 2


def test_ctrl_c_keeps_what_is_done(chapters, fake_execute, capfd):
    fake_execute.stop_at = "04_collapse"
    assert reproduce() == 130
    assert "stopped: 1 done, 2 not" in capfd.readouterr().out
    assert ">passed<" in index() and index().count(">not run<") == 2
    fake_execute.stop_at = None
    assert reproduce() == 1
    assert fake_execute == ["03_network_wise", "04_collapse", "07_panel"]


def test_the_index_keeps_chapters_of_earlier_calls_and_says_when_they_are_old(chapters, fake_execute):
    reproduce(["03"])
    reproduce(["07"])
    assert index().count(">passed<") == 2
    node = nbformat.read(chapters / "03_network_wise.ipynb", 4)
    node.cells[0].source += "!"
    nbformat.write(node, chapters / "03_network_wise.ipynb")
    reproduce(["07"])
    assert ">outdated<" in index() and index().count(">passed<") == 1


def test_the_figures_of_panels_do_not_meet(chapters, fake_execute):
    assert reproduce(panels="cifar10") == 0
    manifest = json.loads((paths.build() / "quick" / "manifest.json").read_text())
    models = "vgg11", "vgg16", "resnet18", "wide_resnet18_published"
    kept = {path.name for kind in ("ipynb", "html") for path in (paths.build() / "quick").glob(f"07_*.{kind}")}
    assert kept == {f"07_cifar10_{model}.{kind}" for model in models for kind in ("ipynb", "html")}
    assert len(manifest) == 4 and manifest["07_cifar10_vgg16"]["parameters"]["model"] == "vgg16"
    assert 'src="figures/07_cifar10_vgg16/07_density.png"' in index()
    assert "Panel (cifar10, vgg16)" in index()


def test_refresh_renews_what_it_can_and_names_the_rest(chapters, monkeypatch, capfd):
    def renew(path):
        if path.name.startswith("04"):
            raise notebook.NotebookFailed(path.name, 3, "ZeroDivisionError")

    monkeypatch.setattr(notebook, "refresh", renew)
    assert refresh() == 1
    told = capfd.readouterr().out
    assert "04_collapse left as it was: 04_collapse.ipynb failed in cell 3: ZeroDivisionError" in told
    assert "2 of 3 chapters refreshed" in told
    assert refresh(["03"]) == 0


# the paper's scale ------------------------------------------------------------------------------------------------

SCALED = ("c", 'scale: str = "small"', "parameters")


def test_the_scale_goes_to_the_chapters_that_have_it(chapters, write_chapter):
    write_chapter("02_neurons", ("m", "# 02 Neurons"), SCALED)
    jobs = {job.number: job for job in plan(scale="paper")}
    assert {number: job.parameters for number, job in jobs.items() if job.parameters} == {"02": {"scale": "paper"}}
    assert jobs["02"].timeout is None and jobs["03"].timeout == module.CELL_LIMIT
    assert plan(["02"], scale="small")[0].timeout == module.CELL_LIMIT


def test_a_chapter_that_writes_the_table_it_reads_is_up_to_date_and_so_are_the_others(
    chapters, write_chapter, fake_execute, monkeypatch
):
    write_chapter("02_neurons", ("m", "# 02 Neurons"), SCALED)
    reproduce(["02", "03"], scale="paper")
    own = [name for name, experiment in EXPERIMENTS.items() if experiment.chapter == "02"]
    paths.results().mkdir(parents=True)

    def execute_and_write(*arguments, **options):
        (paths.results() / f"{own[0]}.csv").write_text(f"a\n{len(fake_execute)}\n")
        return copy(*arguments, **options)

    copy = notebook.execute
    monkeypatch.setattr(notebook, "execute", execute_and_write)
    reproduce(["02"], scale="paper", force=True)
    assert fake_execute == ["02_neurons", "03_network_wise", "02_neurons"]
    reproduce(["02", "03"], scale="paper")
    assert fake_execute == ["02_neurons", "03_network_wise", "02_neurons"]
    (paths.results() / f"{own[0]}.csv").write_text("a\nchanged\n")
    reproduce(["02", "03"], scale="paper")
    assert fake_execute[3:] == ["02_neurons"]
    assert "Neurons (at the paper's size)" in index()


# nothing is lost, and nothing old is taken for new ------------------------------------------------------------------


def drawn(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "figures").iterdir())


def test_the_chapter_of_the_panels_runs_beside_their_figures(chapters, fake_execute):
    assert reproduce(only=["07"], panels="cifar10_vgg16") == 0 and reproduce(only=["07"]) == 0
    out = paths.build() / "quick"
    assert drawn(out) == ["07_cifar10_vgg16", "07_density.png"]
    assert (out / "figures" / "07_cifar10_vgg16" / "07_density.png").exists()


def test_an_interrupted_run_keeps_the_figures_of_the_last_good_one(chapters, fake_execute):
    reproduce(only=["03"])
    fake_execute.stop_at = "03_network_wise"
    assert reproduce(only=["03"], force=True) == 130
    out = paths.build() / "quick"
    assert drawn(out) == ["03_density.png"] and "03_density.png" in index()
    assert not [path for path in out.iterdir() if path.is_dir() and path.name.startswith(".")]


def test_a_figure_that_is_no_longer_drawn_goes(chapters, fake_execute):
    reproduce(only=["03"])
    left = paths.build() / "quick" / "figures" / "03_older.png"
    left.write_bytes(b"png")
    reproduce(only=["03"], force=True)
    assert drawn(paths.build() / "quick") == ["03_density.png"]


def test_a_notebook_that_changes_while_it_runs_is_run_again(chapters, fake_execute, monkeypatch):
    source, original = chapters / "03_network_wise.ipynb", notebook.execute

    def edited(*arguments, **options):
        out = original(*arguments, **options)
        source.write_text(source.read_text().replace("Conservation", "Conservation, told anew"))
        return out

    monkeypatch.setattr(notebook, "execute", edited)
    reproduce(only=["03"])
    monkeypatch.setattr(notebook, "execute", original)
    reproduce(only=["03"])
    reproduce(only=["03"])
    assert fake_execute == ["03_network_wise"] * 2


def test_new_records_run_the_chapters_that_draw_what_is_recorded(chapters, write_chapter, fake_execute):
    shows = ("c", "sf.benchmark.results.everything()")
    write_chapter("08_figure", ("m", "# 08 Figure"), ("c", "", "parameters"), shows)
    spec = Run("cifar10", "vgg11", "synflow", 1.0, recipe="fast")

    def recorded(run: Run) -> None:
        records.write({**asdict(run), "key": run.key, "status": "failed", "error": "for want of images"})

    reproduce(only=["03", "08"])
    recorded(spec)
    reproduce(only=["03", "08"])
    recorded(replace(spec, dataset="digits"))  # those are the chapters' own
    reproduce(only=["03", "08"])
    assert fake_execute == ["03_network_wise", "08_figure", "08_figure"]


@pytest.mark.parametrize("text", ["[]", "{", '{"03_network_wise": {"key": "1", "status": "passed"}}', '{"03_x": 3}'])
def test_a_manifest_that_cannot_be_used_counts_as_none(text, chapters, fake_execute):
    reproduce(only=["03"])
    (paths.build() / "quick" / "manifest.json").write_text(text)
    assert reproduce(only=["03"]) == 0 and fake_execute == ["03_network_wise"] * 2


def test_of_two_calls_at_once_one_runs_the_chapter(chapters, fake_execute, monkeypatch):
    original, begun = notebook.execute, threading.Event()

    def slow(*arguments, **options):
        begun.set()
        time.sleep(0.3)
        return original(*arguments, **options)

    monkeypatch.setattr(notebook, "execute", slow)
    other = threading.Thread(target=reproduce, args=(["03"],))
    other.start()
    begun.wait()
    assert reproduce(only=["03"]) == 0
    other.join()
    assert fake_execute == ["03_network_wise"] and drawn(paths.build() / "quick") == ["03_density.png"]
