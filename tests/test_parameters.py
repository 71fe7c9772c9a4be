import pytest

from synflow_lib import parameters
from synflow_lib.errors import InputError

CELL = 'dataset: str = "digits"  # which images\nseeds: list[int] = [0, 1]\nrate: float = 0.1\nquick: bool = True'


def test_reads_names_types_and_defaults():
    found = parameters.read(CELL, "here")
    assert {p.name: (p.annotation, p.default) for p in found.values()} == {
        "dataset": ("str", "digits"),
        "seeds": ("list[int]", [0, 1]),
        "rate": ("float", 0.1),
        "quick": ("bool", True),
    }


@pytest.mark.parametrize(
    "line",
    [
        "seed = 0",
        "seed: int",
        "seed: int = len([])",
        "seed: int = '0'",
        "seed: int = True",
        "seeds: list[int] = [0, 'a']",
        "seed: float | None = None",
        "import os",
        "print(1)",
    ],
)
def test_names_the_line_that_is_no_parameter(line):
    with pytest.raises(InputError) as refused:
        parameters.read(f"{CELL}\n{line}", "07_panel.ipynb")
    assert "07_panel.ipynb" in str(refused.value) and line in str(refused.value)


def test_says_that_a_cell_is_not_python():
    with pytest.raises(InputError, match=r"07_panel\.ipynb is not Python.*line 2"):
        parameters.read("a: int = 1\nb: int =", "07_panel.ipynb")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"datset": "digits"}, "unknown parameter 'datset' in here; did you mean 'dataset'?"),
        ({"dataset": 3}, "parameter 'dataset' in here must be str, not 3"),
        ({"rate": True}, "parameter 'rate' in here must be float, not True"),
        ({"rate": "0.1"}, "must be float, not '0.1'"),
        ({"quick": 1}, "must be bool, not 1"),
        ({"seeds": [0, 1.5]}, r"must be list[int], not [0, 1.5]"),
        ({"seeds": 3}, "must be list[int], not 3; with papermill write -y 'seeds: [3]'"),
    ],
)
def test_refuses_what_papermill_would_let_pass(values, sentence):
    with pytest.raises(InputError) as refused:
        parameters.check("here", parameters.read(CELL, "here"), values)
    assert sentence in str(refused.value)


def test_an_integer_is_a_good_float_alone_and_in_a_list():
    declared = parameters.read("rate: float = 0.1\nrates: list[float] = [0.1]", "here")
    assert parameters.check("here", declared, {"rate": 1, "rates": [1, 0.5]}) is None
    with pytest.raises(InputError):  # the same places refuse what is no number
        parameters.check("here", declared, {"rate": 1, "rates": [1, "0.5"]})


def test_finds_the_cells_of_parameters_and_of_papermill_among_those_that_ran():
    ran = ["", CELL, "# Parameters\ndatset = 'x'\nPAPERMILL_INPUT_PATH = 'y'\n", "import os\nx = 1", "%time 1"]
    assert list(parameters.among_cells_run(ran)) == ["dataset", "seeds", "rate", "quick"]
    assert parameters.injected_names(ran) == ["datset"]
    assert parameters.among_cells_run(["", "x = 1"]) is None
