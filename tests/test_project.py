"""The files around the library agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_environment_yml_adds_nothing_to_the_one_list_of_dependencies():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert [re.split("[<>=]", name)[0] for name in conda] == ["python", "pip"] and pip == {"pip": ["-e .[dev]"]}


def test_no_dependency_is_listed_twice():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [
        re.split(r"[<>=\[]", name)[0]
        for name in (*project["dependencies"], *(d for ds in project["optional-dependencies"].values() for d in ds))
    ]
    assert len(names) == len(set(names))
    assert {"torch", "torchvision", "jupyter", "papermill", "seaborn", "nbval"} <= set(names)


def test_environment_and_project_ask_for_the_same_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert f"python{project['requires-python']}" in environment["dependencies"]


@pytest.mark.parametrize("document", ["README.md", "ERRATA.md", "CONTRIBUTING.md"])
def test_every_link_within_the_project_leads_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", (ROOT / document).read_text())
    local = [target for pair in targets for target in pair if target and not target.startswith("http")]
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_citation_file_parses_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "synaptic flow" in citation["preferred-citation"]["title"]
