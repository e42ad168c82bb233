"""Kinds and ranges of hyperparameters."""

import math
from collections.abc import Collection
from typing import Any


def within(
    owner: object,
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    closed_high: bool = False,
) -> None:
    """Raises ValueError unless low <= value < high (low < value with open_low, value <= high with closed_high).

    high = inf means no limit.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_in = (
        is_number and (low < value if open_low else low <= value) and (value <= high if closed_high else value < high)
    )
    if not is_in:
        wanted = f"> {low}" if open_low else f">= {low}"
        ends = "(" if open_low else "[", "]" if closed_high else ")"
        wanted = wanted if math.isinf(high) else f"in {ends[0]}{low}, {high}{ends[1]}"
        wanted += " and finite" if is_number and math.isinf(high) and value >= high else ""
        raise ValueError(f"{type(owner).__name__}: {name}={value!r} must be {wanted}")


def of_kind(owner: object, name: str, value: Any, usual: Any) -> None:
    """Raises ValueError unless value may stand where the default is usual: as many numbers, true or false, or whole.

    None, and what is no number at all, is left to within.
    """
    if isinstance(usual, tuple):
        is_right = isinstance(value, tuple) and len(value) == len(usual)
        wanted = f"{len(usual)} numbers, as {usual}"
    elif isinstance(usual, bool):
        is_right, wanted = isinstance(value, bool), "true or false"
    else:
        is_right = not (isinstance(usual, int) and isinstance(value, float) and value % 1)
        wanted = "a whole number"
    if not is_right:
        raise ValueError(f"{type(owner).__name__}: {name}={value!r} must be {wanted}")


def one_of(owner: object, name: str, value: Any, allowed: Collection[str | None]) -> None:
    """Raises ValueError unless value is one of those allowed."""
    if value not in tuple(allowed):
        raise ValueError(f"{type(owner).__name__}: {name}={value!r} must be one of {', '.join(map(str, allowed))}")
