"""TeX to MathML that browsers render without a network: latex2mathml, with its gaps closed or reported.

latex2mathml passes what it does not know into the page as text, and it writes alphabets as `mathvariant`, which
browsers no longer read. Here an unknown command is an error, and alphabets become Unicode's own letters.
"""

import re
import unicodedata
from xml.etree import ElementTree

from synflow_lib.errors import InputError

MATHML = "http://www.w3.org/1998/Math/MathML"
ALPHABETS = {
    "bold": "MATHEMATICAL BOLD",
    "italic": "MATHEMATICAL ITALIC",
    "bold-italic": "MATHEMATICAL BOLD ITALIC",
    "script": "MATHEMATICAL SCRIPT",
    "fraktur": "MATHEMATICAL FRAKTUR",
    "double-struck": "MATHEMATICAL DOUBLE-STRUCK",
    "sans-serif": "MATHEMATICAL SANS-SERIF",
    "monospace": "MATHEMATICAL MONOSPACE",
}
OPERATORS = set("⌊⌋⌈⌉⟸⟹⟺⟵⟶⩽⩾")  # latex2mathml makes them letters, which loses the space around them
BARS = set("|‖")  # a browser cannot tell a left bar from a right one, and puts space on both sides of each
REWRITES = {  # what authors write: what latex2mathml reads
    r"\\(begin|end)\{(aligned|align|gathered|gather|eqnarray)\*?\}": r"\\\1{align*}",
    r"\\operatorname\*?": r"\\mathrm",
    r"\\(label|nonumber|notag)\b(\{[^}]*\})?": "",
}


def mathml(tex: str, display: bool = False) -> str:
    """Return `tex` as a <math> element, on a line of its own with `display`.

    Raises InputError, naming the formula and the reason, where it would not be shown as it was written.
    """
    from latex2mathml.converter import convert

    if _unbalanced(tex):
        raise InputError(f"cannot show the formula ${tex.strip()}$: its braces do not match")
    source = tex
    for pattern, replacement in REWRITES.items():
        source = re.sub(pattern, replacement, source)
    try:
        text = convert(source.strip(), display="block" if display else "inline")
        tree = ElementTree.fromstring(text)
    except Exception as error:  # the converter's errors share no class, and a stray & is not XML
        reason = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).removesuffix(" Error").lower()
        raise InputError(f"cannot show the formula ${tex.strip()}$: {reason}") from error
    for element in tree.iter():
        if "\\" in (element.text or "") and not element.tag.endswith("mtext"):
            raise InputError(f"cannot show the formula ${tex.strip()}$: unknown command {element.text.strip()}")
        _modernise(element)
    ElementTree.register_namespace("", MATHML)
    return ElementTree.tostring(tree, encoding="unicode")


def _unbalanced(tex: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", tex):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return True
    return depth != 0


def _modernise(element: ElementTree.Element) -> None:
    """Rewrite what MathML Core, the part of MathML that browsers have, does not know."""
    alphabet = ALPHABETS.get(element.get("mathvariant", ""))
    if alphabet and element.text:
        element.text = "".join(_letter(character, alphabet) for character in element.text)
        del element.attrib["mathvariant"]
    if element.get("width") == "negativethinmathspace":
        element.set("width", "-0.167em")
    if element.text in OPERATORS:
        element.tag = f"{{{MATHML}}}mo"
        element.set("stretchy", "false")
    if element.text in BARS:
        element.attrib.update({"stretchy": "false", "lspace": "0", "rspace": "0"} | element.attrib)
    if columns := element.get("columnalign"):
        element.set("style", f"text-align: {columns}")


def _letter(character: str, alphabet: str) -> str:
    """`character` in a Unicode `alphabet`, itself where the alphabet lacks it; ℛ and its like have older names."""
    name = re.sub(r"^(LATIN|GREEK) |LETTER ", "", unicodedata.name(character, ""))
    for candidate in (f"{alphabet} {name}", f"{alphabet.removeprefix('MATHEMATICAL ')} {name}"):
        try:
            return unicodedata.lookup(candidate)
        except KeyError:
            continue
    return character
