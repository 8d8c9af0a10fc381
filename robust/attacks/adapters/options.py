"""Options of a library's attack from text: it says no types, so its defaults tell what is expected."""

from __future__ import annotations

import ast
import contextlib
import inspect
from fractions import Fraction
from typing import Any


def read_option(value: Any, *, like: Any, whole: bool) -> Any:
    """An option's value from text, by the kind of its default.

    Raises:
        ValueError: another kind.
    """
    if isinstance(value, str) and not isinstance(like, str):
        value = _literal(value)
    if value is None or like is None or like is inspect.Parameter.empty:
        return value
    if isinstance(like, bool):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(like, int | float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        expected = "a number"
        if whole:
            expected, fits = "a whole number", fits and float(value).is_integer()
    else:
        return value
    if not fits:
        raise ValueError(f"expected {expected}")
    return int(value) if whole else value


def _literal(text: str) -> Any:
    """8/255, 0.1, true, none, (2, 10); anything else stays text."""
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lowered]
    for read in (int, lambda t: float(Fraction(t.replace(" ", ""))), float, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, ZeroDivisionError):
            return read(text)
    return text
