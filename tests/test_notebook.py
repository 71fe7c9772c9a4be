import json
import os
import re
import subprocess
import sys

import nbformat
import papermill
import pytest

from synflow_lib import notebook
from synflow_lib.errors import InputError

PARAMETERS = 'dataset: str = "digits"  # which images\nrate: float = 0.1\nseeds: list[int] = [0]'
START = 'import synflow_lib.notebook\nchapter = synflow_lib.notebook.start("07", globals())'
TITLE = ("m", "# 07 · A benchmark panel\n\n*Which method keeps its accuracy?*")


@pytest.fixture
def chapter(write_chapter):
    """A chapter that prints its parameters, its Python, a bar of tqdm and one environment variable."""
    return write_chapter(
        "07_panel",
        TITLE,
        ("c", PARAMETERS, "parameters"),
        ("c", START),
        ("c", "import os, sys\nfrom tqdm import tqdm\n_ = list(tqdm(range(3)))", "keep"),
        ("c", "print(dataset, rate, seeds)\nprint(sys.executable, os.environ.get('ADDED'))"),
        ("c", "import matplotlib.pyplot as plt\n_ = plt.plot([0, 1])"),
        ("c", "chapter.title, chapter.device"),
    )


def values(**changed):
    return {"dataset": "digits", "rate": 0.1, "seeds": [0]} | changed


def outputs(path, position):
    return nbformat.read(path, as_version=4).cells[position].outputs


# start ------------------------------------------------------------------------------------------------------------


def test_start_knows_the_chapter_and_what_it_was_given(chapter):
    started = notebook.start("07", values(rate=1))
    assert (started.number, started.title, started.device) == ("07", "A benchmark panel", "auto")
    assert started.parameters == values(rate=1)
    assert "seconds" in repr(started.provenance())


def test_start_refuses_a_value_of_the_wrong_type(chapter):
    with pytest.raises(InputError, match=r"'seeds' in 07_panel\.ipynb must be list\[int\], not 3"):
        notebook.start("07", values(seeds=3))


def test_start_refuses_what_papermill_injected_without_the_chapter_having_it(chapter):
    ran = ["", PARAMETERS, "# Parameters\ndatset = 'cifar10'\n"]
    with pytest.raises(InputError, match=r"unknown parameter 'datset' in 07_panel\.ipynb; did you mean 'dataset'\?"):
        notebook.start("07", values(datset="cifar10", In=ran))
    assert notebook.start("07", values(datset="a variable of the reader's", In=["", PARAMETERS])).number == "07"


def test_start_believes_the_open_chapter_rather_than_the_file(chapter):
    added = PARAMETERS + "\nwidth: float = 1.0"
    assert notebook.start("07", values(width=0.5, In=["", added])).parameters["width"] == 0.5


def test_start_needs_the_cell_above_and_a_chapter_that_is_there(chapter):
    with pytest.raises(InputError, match="starts before its parameter 'dataset' has a value"):
        notebook.start("07", {})
    with pytest.raises(InputError, match=r"chapter 03 is not in .*SYNFLOW_HOME"):
        notebook.start("03", {})


@pytest.mark.parametrize("threads", ["0", "many", "-1"])
def test_start_refuses_threads_that_are_no_number(chapter, monkeypatch, threads):
    monkeypatch.setenv("SYNFLOW_THREADS", threads)
    with pytest.raises(InputError, match="SYNFLOW_THREADS must be a whole number"):
        notebook.start("07", values())


def test_a_chapter_runs_as_a_script(chapter, tmp_path):
    cells = nbformat.read(chapter, as_version=4).cells
    script = tmp_path / "chapter.py"
    script.write_text("\n".join([PARAMETERS, START, "print(chapter.parameters)"]))
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(values()) in ran.stdout and cells


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"datset": "cifar10"}, "unknown parameter 'datset'"), ({"seeds": 3}, r"must be list\[int\], not 3")],
)
@pytest.mark.filterwarnings("default")  # papermill's own
def test_plain_papermill_fails_with_one_sentence(chapter, tmp_path, given, sentence):
    out = tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match=sentence):
        papermill.execute_notebook(str(chapter), str(out), given, kernel_name="python3", progress_bar=False)
    errors = [o for cell in nbformat.read(out, 4).cells for o in cell.get("outputs", []) if o.output_type == "error"]
    assert len(errors) == 1 and len(errors[0].traceback) == 1
    assert re.match(f"InputError: .*{sentence}", errors[0].traceback[0])


# execute ----------------------------------------------------------------------------------------------------------


def test_execute_runs_this_python_and_stamps_what_it_made(chapter, tmp_path):
    out = notebook.execute(chapter, tmp_path / "a {b}" / "out.ipynb", {"rate": 2}, environment={"ADDED": "yes"})
    text = outputs(out, 5)[0].text  # one further down: the injected cell is above
    assert text == f"digits 2 [0]\n{sys.executable} yes\n"
    assert "image/png" in outputs(out, 6)[0].data
    made = json.loads(out.read_text())["metadata"]
    assert made["synflow"]["parameters"] == values(rate=2)
    assert made["synflow"]["source_sha256"] == notebook.source_hash(chapter) == notebook.source_hash(out)
    assert {"python", "torch", "revision", "device"} <= made["synflow"].keys()
    assert str(tmp_path) not in json.dumps(made)
    assert [file.name for file in out.parent.iterdir()] == ["out.ipynb"]


@pytest.mark.parametrize("given", [{"datset": "digits"}, {"seeds": 3}, {"rate": True}])
def test_execute_refuses_before_a_kernel_starts(chapter, tmp_path, monkeypatch, given):
    monkeypatch.setattr(notebook, "_run", lambda *_: pytest.fail("started"))
    with pytest.raises(InputError, match=next(iter(given))):
        notebook.execute(chapter, tmp_path / "out.ipynb", given)
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([("c", PARAMETERS)], "has no cell tagged 'parameters'"),
        ([("c", PARAMETERS, "parameters")] * 2, "has 2 cells tagged 'parameters'"),
        ([("c", "rate = 0.1", "parameters")], "not a parameter in 07_panel.ipynb: 'rate = 0.1'"),
    ],
)
def test_execute_refuses_a_notebook_whose_parameters_cannot_be_known(write_chapter, tmp_path, cells, sentence):
    with pytest.raises(InputError, match=sentence):
        notebook.execute(write_chapter("07_panel", *cells), tmp_path / "out.ipynb")


def test_execute_refuses_what_is_not_a_notebook(tmp_path):
    (tmp_path / "a.ipynb").write_text("{")
    for name, sentence in {"a.ipynb": "is not a notebook", "b.ipynb": "cannot read .*b.ipynb"}.items():
        with pytest.raises(InputError, match=sentence):
            notebook.execute(tmp_path / name, tmp_path / "out.ipynb")


def test_a_failing_cell_keeps_the_notebook_and_its_traceback(write_chapter, tmp_path):
    source = write_chapter("07_panel", TITLE, ("c", PARAMETERS, "parameters"), ("c", "1 / 0"), ("c", "print('after')"))
    with pytest.raises(notebook.NotebookFailed, match=r"07_panel\.ipynb failed in cell 3: ZeroDivisionError") as failed:
        notebook.execute(source, tmp_path / "out.ipynb", {"rate": 0.5})
    assert (failed.value.cell, failed.value.reason) == (3, "ZeroDivisionError: division by zero")
    kept = nbformat.read(tmp_path / "out.ipynb", 4)
    assert any(o.output_type == "error" for cell in kept.cells for o in cell.get("outputs", []))
    assert notebook.source_hash(tmp_path / "out.ipynb") == notebook.source_hash(source)


@pytest.mark.parametrize(
    ("code", "timeout", "reason"),
    [
        ("import time; time.sleep(60)", 1, "TimeoutError: the cell took more than 1 s"),
        ("import os; os._exit(1)", None, "DeadKernelError: the kernel died"),
    ],
)
def test_a_slow_cell_and_a_dead_kernel_are_failures_of_their_cell(write_chapter, tmp_path, code, timeout, reason):
    source = write_chapter("07_panel", ("c", PARAMETERS, "parameters"), ("c", code), ("c", "1"))
    with pytest.raises(notebook.NotebookFailed, match=f"cell 2: {reason}"):
        notebook.execute(source, tmp_path / "out.ipynb", timeout=timeout)
    assert reason in outputs(tmp_path / "out.ipynb", 1)[-1].traceback[0]


# what is committed ------------------------------------------------------------------------------------------------


def test_the_source_hash_sees_sources_and_nothing_else(chapter):
    before = notebook.source_hash(chapter)
    node = nbformat.read(chapter, 4)
    node.cells[3].outputs = [nbformat.v4.new_output("stream", text="x")]
    node.cells.insert(2, nbformat.v4.new_code_cell("rate = 3", metadata={"tags": ["injected-parameters"]}))
    nbformat.write(node, chapter)
    assert notebook.source_hash(chapter) == before
    node.cells[0].source += "."
    nbformat.write(node, chapter)
    assert notebook.source_hash(chapter) != before


def test_refresh_keeps_what_a_reader_sees_and_nothing_that_differs_by_chance(chapter):
    source = notebook.source_hash(chapter)
    notebook.refresh(chapter)
    node = nbformat.read(chapter, 4)
    assert node.metadata.synflow == {"source_sha256": source}
    assert node.metadata.keys() == {"kernelspec", "language_info", "synflow"}
    assert [cell.execution_count for cell in node.cells[1:]] == [1, 2, 3, 4, 5, 6]
    assert [cell.metadata for cell in node.cells[:4]] == [{}, {"tags": ["parameters"]}, {}, {"tags": ["keep"]}]
    assert node.cells[3].outputs == []  # the progress bar
    assert "image/png" in node.cells[5].outputs[0].data
    assert node.cells[6].outputs[0].data["text/plain"] == "('A benchmark panel', 'auto')"
    assert not {"start_time", "duration"} & set(re.findall(r'"(\w+)":', chapter.read_text()))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import sys; print('careful', file=sys.stderr)", r"07_panel\.ipynb, cell 2 writes to stderr.*'careful'"),
        ("import warnings; warnings.warn('rounded')", "stderr.*: 'UserWarning: rounded'"),
        (
            "import os; _ = [print(os.urandom(50).hex()) for _ in range(3500)]",
            r"would be 3\d\d KB.*cell 2 \(3\d\d KB\)",
        ),
    ],
)
def test_refresh_refuses_noise_and_size_and_leaves_the_file(write_chapter, code, sentence):
    source = write_chapter("07_panel", ("c", PARAMETERS, "parameters"), ("c", code))
    before = source.read_bytes()
    with pytest.raises(InputError, match=sentence):
        notebook.refresh(source)
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("source", "title", "question"),
    [
        (
            "# 04 · Layer-collapse\n\n*Which layer dies first?* You will see.",
            "Layer-collapse",
            "Which layer dies first?",
        ),
        ("# 4. Which layer dies first?\n\nAnd why?", "Which layer dies first?", ""),
        ("# Layer-collapse\n\nNo question here.", "Layer-collapse", ""),
        ("# 07 Panel\n\nA sentence. Does SNIP stay at $10^2$?", "Panel", "Does SNIP stay at $10^2$?"),
    ],
)
def test_the_heading_is_title_and_question(write_chapter, source, title, question):
    assert notebook.heading(write_chapter("04_x", ("m", source))) == (title, question)


def test_refresh_gives_the_same_file_again(write_chapter):
    styled = "import pandas as pd\npd.DataFrame({'a': [0.5]}).style.format('{:.2f}')"
    source = write_chapter("07_panel", ("c", PARAMETERS, "parameters"), ("c", styled), ("c", "object()"))
    first = notebook.refresh(source).read_bytes()
    assert notebook.refresh(source).read_bytes() == first
    assert b"0.50" in first and b" at 0x" not in first


def test_two_processes_run_chapters_at_once(chapter, tmp_path):
    run = "import sys; from synflow_lib.notebook import execute; execute(*sys.argv[1:])"
    command = [sys.executable, "-c", run, str(chapter)]
    both = [subprocess.Popen([*command, str(tmp_path / f"{n}.ipynb")], env=os.environ) for n in range(2)]
    assert [process.wait() for process in both] == [0, 0]
