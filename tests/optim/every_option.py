"""The options of configs/optim; laws that take long are checked for a few of them in the fast suite."""

from collections.abc import Iterable
from pathlib import Path

import pytest

OPTIONS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "optim").glob("*.yaml"))
# One of every way in which an optimizer is built: torch's own, elementwise, factored, by matrix, in a rotated and in a
# projected space, with an estimator.
FEW = ("adamw", "lion", "adafactor", "muon", "soap", "coap", "sophia", "sophiag")
# Where an option takes seconds: factored and shared by elements, by matrix and owned by one rank, with an estimator.
FEWEST = ("adafactor", "soap", "sophia")
# Settings that say in steps how often something is done, of which tests make small ones.
INTERVALS = ("every", "precondition_frequency", "update_interval", "svd_factor", "kappa", "rank_interval")


def few_fast(argument: str, values: Iterable[str] = OPTIONS, few: tuple[str, ...] = FEW) -> pytest.MarkDecorator:
    """parametrize, where all but the few are slow."""
    return pytest.mark.parametrize(argument, [pytest.param(each, marks=slow_unless(few, each)) for each in values])


def slow_unless(few: tuple[str, ...], option: str) -> list[pytest.MarkDecorator]:
    return [] if option in few else [pytest.mark.slow]
