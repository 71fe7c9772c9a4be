"""The parameters of a chapter: one annotated simple value a line, read without running it, checked by name and type.

papermill only warns of a misspelt name and checks no types, so a run that looks right may show the defaults.
"""

import ast
import contextlib
import json
from dataclasses import dataclass

from synflow_lib.errors import InputError, suggest

SCALARS = {"str": str, "int": int, "float": (int, float), "bool": bool}  # an int will do for a float
INJECTED = "# Parameters"  # the line that papermill writes above the values it was given
BY_PAPERMILL = {"PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"}  # what its --inject-paths adds


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: annotation = default`."""

    name: str
    annotation: str
    default: object


def read(source: str, where: str) -> dict[str, Parameter]:
    """Return name to parameter for the `source` of a parameters cell; InputError names `where` and the bad line."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"the parameters cell of {where} is not Python: {error.msg}, line {error.lineno}") from error
    found = {}
    for statement in statements:
        parameter = _parameter(statement)
        if parameter is None:
            line = source.splitlines()[statement.lineno - 1].strip()
            raise InputError(
                f"not a parameter in {where}: {line!r}; write one annotated simple value a line, as `seed: int = 0`"
            )
        found[parameter.name] = parameter
    return found


def check(where: str, declared: dict[str, Parameter], values: dict[str, object]) -> None:
    """Raise InputError unless every value has a declared name and is of its annotated type."""
    for name, value in values.items():
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise InputError(f"unknown parameter {name!r} in {where}{suggest(name, declared)} (it has: {known})")
        annotation = declared[name].annotation
        if not fits(value, annotation):
            hint = ""
            if annotation.startswith("list[") and fits(value, annotation[5:-1]):
                hint = f"; with papermill write -y '{name}: [{json.dumps(value)}]'"
            raise InputError(f"parameter {name!r} in {where} must be {annotation}, not {value!r}{hint}")


def fits(value: object, annotation: str) -> bool:
    """Whether `value` is of the annotated type, element by element; a bool is not an int."""
    if annotation.startswith("list["):
        return isinstance(value, list) and all(fits(element, annotation[5:-1]) for element in value)
    return isinstance(value, SCALARS[annotation]) and (annotation == "bool" or not isinstance(value, bool))


def among_cells_run(sources: list[str]) -> dict[str, Parameter] | None:
    """The parameters cell among the cells that a kernel ran, None without one.

    A kernel knows no tags: it is the last cell that holds nothing but annotated simple values.
    """
    for source in reversed(sources):
        with contextlib.suppress(InputError):
            if found := read(source, "this cell"):
                return found
    return None


def injected_names(sources: list[str]) -> list[str]:
    """The names that papermill's injected cells, among the cells that a kernel ran, gave values to."""
    trees = [ast.parse(source) for source in sources if source.startswith(INJECTED)]
    targets = [
        target for tree in trees for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
    ]
    return [target.id for target in targets if isinstance(target, ast.Name) and target.id not in BY_PAPERMILL]


def _parameter(statement: ast.stmt) -> Parameter | None:
    if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value):
        return None
    annotation = ast.unparse(statement.annotation)
    try:
        default = ast.literal_eval(statement.value)
    except ValueError:  # a call, a name, an expression
        return None
    if not _known(annotation) or not fits(default, annotation):
        return None
    return Parameter(statement.target.id, annotation, default)


def _known(annotation: str) -> bool:
    return annotation in SCALARS or (annotation.startswith("list[") and _known(annotation[5:-1]))
