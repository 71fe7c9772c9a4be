import re

import nbformat
import pytest

from synflow_lib import pages

TEXT = r"""# 03 · Conservation

The score $\mathcal{S}(\theta)$ is

$$\sum_i \theta_i \frac{\partial \mathcal{R}}{\partial \theta_i}$$

\begin{aligned} a &= b \\ &= c \end{aligned}

A price of `$5` is not `$6`. Unknown: $\foo$. See [next](04_collapse.ipynb#why), [errata](../ERRATA.md), [paper](https://arxiv.org/abs/2006.05467).

![a badge](https://example.org/badge.svg)
<a href="https://example.org"><img src="https://example.org/b.svg" alt="another"></a>

![ours](../figures/own.png)
"""
SCRIPT = '<script src="https://cdn.example.org/x.js"></script><b>shown</b>'
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def fetched(page: str) -> list[str]:
    """What a browser would ask the network for."""
    elements = re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*>", page)
    return [e for e in elements if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", e)] + re.findall(r"url\(http", page)


@pytest.fixture
def page(write_chapter, tmp_path):
    path = write_chapter("03_conservation", ("m", TEXT), ("c", "1"), ("c", "2", "parameters"), ("c", "3"))
    (tmp_path / "home" / "figures").mkdir()
    (tmp_path / "home" / "figures" / "own.png").write_bytes(b"png")
    node = nbformat.read(path, 4)
    output = nbformat.v4.new_output
    node.cells[1].outputs = [output("display_data", {"text/html": SCRIPT}), output("display_data", {"image/png": PNG})]
    node.cells[2].outputs = [output("stream", name="stderr", text=" 50%|#####     | 1/2 [00:01<00:01]\n")]
    node.cells[3].outputs = [output("error", ename="E", evalue="x", traceback=["E: x"])]
    nbformat.write(node, path)
    target = tmp_path / "home" / "build" / "quick" / "03_conservation.html"
    problems = pages.write_chapter(path, target, "Conservation", "cell 4: E: x")
    return target.read_text(), problems


def test_a_chapter_needs_no_network(page):
    assert fetched(page[0]) == [] and "<script" not in page[0]
    assert "a badge" in page[0] and "another" in page[0] and "<b>shown</b>" in page[0]
    assert f"data:image/png;base64,{PNG}" in page[0]
    assert page[0].count("data:image/png") == 2  # the project's own figure is embedded too


def test_formulas_are_mathml_and_code_is_left_alone(page):
    html, problems = page
    assert html.count("<math ") == 3 and html.count('display="block"') == 2
    assert "<code>$5</code>" in html and "<code>$6</code>" in html
    assert '<code class="tex">\\foo</code>' in html
    assert problems == [r"cannot show the formula $\foo$: unknown command \foo"]


def test_links_lead_to_pages_and_to_the_projects_files(page):
    addresses = re.findall(r'<a href="([^"]*)"', page[0])
    assert {"index.html", "04_collapse.html#why", "../../ERRATA.md", "https://arxiv.org/abs/2006.05467"} <= set(
        addresses
    )


def test_a_failure_is_named_at_the_top_and_leads_to_its_cell(page):
    assert '<a href="#failure">cell 4: E: x</a>' in page[0]
    assert page[0].count('id="failure"') == 1
    assert "50%" not in page[0]  # a progress bar says nothing afterwards


def test_the_index_shows_every_chapter(tmp_path):
    cards = [
        pages.Card("03", "Conservation", "Is $a$ < b?", "passed", " in 8 s", "03.html", [("f/a.png", "f/a.svg")]),
        pages.Card("04", "A <title>", "", "failed", " after 1 s", "04.html", [], "cell 2: E: <x>"),
        pages.Card("05", "Later", "", "not run", "", None, []),
    ]
    html = pages.write_index(cards, {"torch": "2.15"}, "1 May 2026", tmp_path / "index.html").read_text()
    assert fetched(html) == [] and "<math " in html and "2.15" in html
    assert '<a href="f/a.svg"><img src="f/a.png"' in html
    assert '<a href="04.html#failure">cell 2: E: &lt;x&gt;</a>' in html
    assert html.count('<li id="') == 3 and ">not run<" in html
