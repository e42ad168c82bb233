"""Ranges of hyperparameters."""

import math


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
        raise ValueError(f"{type(owner).__name__}: {name}={value!r} must be {wanted}")
