"""Bad input is one clear sentence: what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that a person can act on."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for this: a notebook shows the sentence alone, and the cell still fails.
        return [f"InputError: {self}"]


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" where a choice is close to `name`, else the empty string."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of `names` in words, and how many there are if those are not all."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more ({len(names)} in all)" if more > 0 else "")


def lookup(table: Mapping[str, Value], name: str, kind: str) -> Value:
    """Return `table[name]`, or raise InputError that names the `kind` of thing, the choices and the closest one."""
    if name in table:
        return table[name]
    some = ", ".join(list(table)[:20]) + (f" and {len(table) - 20} more" if len(table) > 20 else "")
    raise InputError(f"unknown {kind} {name!r}{suggest(name, table)} (known: {some})")
