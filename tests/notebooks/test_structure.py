"""The form that all chapters share, and that their stored outputs are whole, small and of the current source."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from synflow_lib import notebook, pages

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 20  # lines
ABSOLUTE = re.compile(r"(?<![\w.:/<])/(?:home|Users|root|tmp|var|usr|opt|mnt|work|private)/\w|\b[A-Z]:\\\w")
OBJECT = re.compile(r"<[\w.]+( object)?>")  # all that Python has to say of something not meant to be read
CHECKED = "nbval-check-output"

pytestmark = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def text_of(output: nbformat.NotebookNode) -> str:
    """What a reader sees of an output as text."""
    if output.output_type == "stream":
        return output.text
    return "\n".join(str(output.get("data", {}).get(kind, "")) for kind in ("text/plain", "text/html", "text/markdown"))


def shows_something(source: str) -> bool:
    """Whether Jupyter displays something under a cell: it ends in a bare expression, or it saves a figure."""
    last = ast.parse(source).body[-1:]
    return (
        bool(last) and isinstance(last[0], ast.Expr) and not source.rstrip().endswith(";")
    ) or "plotting.save(" in source


def test_is_a_valid_notebook_whose_name_has_its_number(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name)


def test_begins_with_its_title_and_number(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and re.match(rf"# .*{path.name[:2]}\b.+", first.source)


def test_has_parameters_then_starts_under_its_own_number_and_ends_with_provenance(path):
    code = cells(path, "code")
    assert notebook.parameters_of(path), "a chapter without parameters cannot be run another way"
    assert "parameters" in code[0].metadata.get("tags", [])
    assert f'notebook.start("{path.name[:2]}", globals())' in code[1].source
    assert "chapter.provenance()" in code[-1].source


def test_parameters_stand_on_one_line_each_as_papermill_reads_them(path):
    (cell,) = [c for c in cells(path, "code") if "parameters" in c.metadata.get("tags", [])]
    assert [line.split(":")[0] for line in cell.source.splitlines()] == list(notebook.parameters_of(path))


def test_cells_are_short_and_hold_no_machinery(path):
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef), f"a class belongs into the library: {node.name}"
            if isinstance(node, ast.For):
                assert "epoch" not in ast.unparse(node.target) + ast.unparse(node.iter), (
                    "training belongs into the library"
                )


def test_formulas_and_links_hold_on_the_page(path):
    for cell in cells(path, "markdown"):
        renderer = pages._Renderer(FOLDER / "page.html", [])
        pages.MarkdownWithMath(renderer=renderer).render(cell.source)
        assert renderer.problems == []
        for row in re.findall(r"^\|.*\|$", cell.source, flags=re.MULTILINE):
            formulas = re.findall(r"\$([^$]*)\$", row)
            assert not any("|" in formula for formula in formulas), (
                rf"a bar ends the cell of a table; write \vert: {row}"
            )
        for address in re.findall(r"\]\(([^)#\s]+)", cell.source):
            assert re.match(r"[a-z]+:", address) or (FOLDER / address).exists(), f"a link to nothing: {address}"


def test_stored_outputs_are_there(path):
    empty = [cell.source for cell in cells(path, "code") if shows_something(cell.source) and not cell.outputs]
    assert empty == [], "run `make figures`; where nothing is to be shown, end the cell with a semicolon"


def test_stored_outputs_belong_to_the_current_source(path):
    stored = nbformat.read(path, as_version=4).metadata.get("synflow", {}).get("source_sha256")
    assert stored == notebook.source_hash(path), f"run `make figures CHAPTERS={path.name[:2]}`"


def test_stored_outputs_are_clean(path):
    assert path.stat().st_size <= notebook.SIZE_LIMIT
    for count, cell in enumerate(cells(path, "code"), start=1):
        assert cell.execution_count == count and cell.metadata.keys() <= {"tags"}
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            assert not ABSOLUTE.search(text_of(output)), text_of(output)
            assert not OBJECT.fullmatch(text_of(output).strip()), f"end the cell with a semicolon: {text_of(output)}"


def test_some_numbers_are_checked_and_only_in_cells_of_text(path):
    checked = [cell for cell in cells(path, "code") if CHECKED in cell.metadata.get("tags", [])]
    assert checked, f"tag a cell that prints rounded numbers with {CHECKED}"
    for cell in checked:
        assert cell.outputs and all(text_of(output).strip() for output in cell.outputs), cell.source
        assert not any("image/" in kind for output in cell.outputs for kind in output.get("data", {})), cell.source
        assert not any("T_table" in text_of(output) for output in cell.outputs), "a styled table differs at each run"
