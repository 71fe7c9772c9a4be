import pytest

from synflow_lib.errors import InputError
from synflow_lib.formulas import mathml

# what the chapters use: the formula and what must be in its MathML
FORMULAS = {
    r"\sum_{i=1}^{N} x_i": "∑",
    r"\frac{\partial \mathcal{R}}{\partial \theta} \odot \theta": "<mfrac><mrow><mo>∂</mo><mi>ℛ</mi>",
    r"\mathcal{S}_{\text{in}}": "<mi>𝒮</mi>",
    r"\mathbb{1}^\top": "<mn>𝟙</mn>",
    r"\mathbb{R}^n": "<mi>ℝ</mi>",
    r"\boldsymbol{\theta}": "<mi>𝜽</mi>",
    r"\lVert x \rVert_2": "‖",
    r"\Big( \prod_l |\theta^{[l]}| \Big)": "minsize",
    r"\lfloor x \rfloor \iff y": '<mo stretchy="false">⌊</mo>',
    r"\operatorname*{arg\,max}_x f": '<mi mathvariant="normal">a</mi>',
    r"\begin{cases} 1 & x > 0 \\ 0 & x \le 0 \end{cases}": "<mtable>",
    r"\text{where } x < y": "&lt;",
}


@pytest.mark.parametrize(("tex", "part"), FORMULAS.items())
def test_shows_what_the_chapters_use(tex, part):
    shown = mathml(tex)
    assert shown.startswith("<math ") and part in shown
    assert "\\" not in shown


def test_aligned_equations_are_a_table_with_its_sides_aligned():
    shown = mathml(r"\begin{aligned} a &= b \\ &= c + d \end{aligned}", display=True)
    assert shown.count("<mtr>") == 2 and shown.count("text-align: right") == 2
    assert 'display="block"' in shown and "(1)" not in shown  # nobody asked for numbers


def test_no_alphabet_is_left_to_an_attribute_that_browsers_ignore():
    shown = mathml(r"\mathbf{W} \mathit{in} \mathcal S \mathfrak{g} \mathsf{T} \texttt{ab}")
    assert "mathvariant" not in shown


@pytest.mark.parametrize(
    ("tex", "reason"),
    [
        (r"\foo{x}", r"unknown command \foo"),
        (r"\frac{1}{2", "braces do not match"),
        (r"a } b", "braces do not match"),
        (r"a & b", "cannot show"),
        (r"\left( x", "missing right"),
    ],
)
def test_refuses_what_it_would_show_wrongly(tex, reason):
    with pytest.raises(InputError) as refused:
        mathml(tex)
    assert reason in str(refused.value) and tex in str(refused.value)
