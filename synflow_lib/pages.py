"""Executed chapters as web pages that need no network: images embedded, formulas as MathML, no script at all."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import jinja2
from bs4 import BeautifulSoup
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from synflow_lib import formulas, notebook, paths
from synflow_lib.errors import InputError

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("synflow_lib"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
CODE_COLOURS = {"light": "tango", "dark": "github-dark"}  # colour scheme: pygments' style


@dataclass(frozen=True)
class Card:
    """One chapter on the index: all that it shows of it. Addresses are relative to the index."""

    number: str
    title: str
    question: str
    status: str  # "passed", "failed", "outdated", "not run"
    remark: str  # what follows the status: " in 8 s"
    page: str | None
    figures: list[tuple[str, str]]  # (thumbnail, full figure)
    reason: str | None = None  # the last line of a failure


def write_index(cards: list[Card], made_by: dict[str, str], date: str, target: Path) -> Path:
    """Write the index of the chapters: `made_by` holds versions and device, `date` is shown as it is given."""
    page = TEMPLATES.get_template("index.html").render(
        cards=cards,
        made_by=made_by,
        date=date,
        css=_css(),
        inline=inline,
        failed=sum(c.status == "failed" for c in cards),
    )
    with paths.replacing(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return target


def write_chapter(executed: Path, target: Path, title: str, reason: str | None = None) -> list[str]:
    """Write an executed notebook as a page; return one sentence for each formula that had to stay TeX.

    `reason`, the last line of a failure, is shown at the top and links to the cell that failed.
    """
    exporter = _Exporter(target)
    node = notebook.read(executed)
    notebook.drop_progress_bars(node)
    node.cells = [cell for cell in node.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    for cell in node.cells:
        cell.metadata.setdefault("alt", f"Figure in the chapter {title}")
    body, _ = exporter.from_notebook_node(node)
    page = TEMPLATES.get_template("chapter.html").render(
        body=_without_network(body), title=title, reason=reason, css=_css(), code_css=_code_css()
    )
    with paths.replacing(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return exporter.problems


def inline(text: str) -> str:
    """One line of Markdown, formulas included, as HTML without a paragraph around it."""
    html = MarkdownWithMath(renderer=_Renderer(Path("index.html"), [])).render(text).strip()
    return re.sub(r"^<p>(.*)</p>$", r"\1", html, flags=re.DOTALL)


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown, with formulas made into MathML and addresses that hold where the page will lie."""

    def __init__(self, target: Path, problems: list[str], **options: object) -> None:
        super().__init__(escape=False, embed_images=True, exclude_anchor_links=True, **options)
        self.target, self.problems = target, problems

    def block_math(self, body: str) -> str:
        return self._formula(body, display=True)

    def inline_math(self, body: str) -> str:
        return self._formula(body, display=False)

    def latex_environment(self, name: str, body: str) -> str:
        inside = body if name.startswith("equation") else rf"\begin{{{name}}}{body}\end{{{name}}}"
        return self._formula(inside, display=True)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, _address(url, self.target), title)

    def _formula(self, tex: str, display: bool) -> str:
        try:
            shown = formulas.mathml(tex, display)
        except InputError as error:
            self.problems.append(str(error))
            shown = f'<code class="tex">{self.escape_html(tex.strip())}</code>'
        return f'<span class="display">{shown}</span>' if display else shown

    def _src_to_base64(self, src: str) -> str | None:
        """nbconvert embeds what lies below the notebook; a chapter may also show a figure of the project."""
        below_home = os.path.relpath(paths.notebooks() / src, paths.home())
        self.path = str(paths.home())
        return None if below_home.startswith("..") else super()._src_to_base64(below_home)


class _Exporter(HTMLExporter):
    def __init__(self, target: Path) -> None:
        super().__init__(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
        self.target, self.problems = target, []

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        return MarkdownWithMath(renderer=_Renderer(self.target, self.problems, attachments=attachments)).render(source)


def _address(url: str, target: Path) -> str:
    """`url` as written in a chapter, seen from `target`: chapters link to pages, the rest to the project's files."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path:
        return url
    if "/" not in parts.path and parts.path.endswith(".ipynb"):
        return parts._replace(path=parts.path.removesuffix("ipynb") + "html").geturl()
    file = Path(os.path.relpath(paths.notebooks().absolute() / parts.path, target.absolute().parent))
    return parts._replace(path=file.as_posix()).geturl()


def _without_network(body: str) -> str:
    """Drop what a page would fetch, leaving the text that stands for an image; mark the failure, if there is one."""
    soup = BeautifulSoup(body, "html.parser")
    for element in soup.select("script, link, iframe"):
        element.decompose()
    for image in soup.select("img"):
        if urlsplit(image.get("src", "")).scheme in ("http", "https"):
            image.replace_with(image.get("alt", ""))
    if failure := soup.select_one(".output_error"):
        failure["id"] = "failure"
    return str(soup)


def _css() -> str:
    return TEMPLATES.loader.get_source(TEMPLATES, "style.css")[0]


def _code_css() -> str:
    return "\n".join(
        f"@media (prefers-color-scheme: {scheme}) {{ {HtmlFormatter(style=style).get_style_defs('.highlight')} }}"
        for scheme, style in CODE_COLOURS.items()
    )
