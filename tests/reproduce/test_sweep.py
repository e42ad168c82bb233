"""The kind of claim that compares quantities of tuned arms: what its report shows first."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.claims import load
from tests.reproduce.conftest import Walk


@pytest.mark.parametrize(
    ("quantity", "file", "title"),
    [
        ("clipped_share", "judged", "Share of steps with a clipped gradient"),
        ("best_loss", "losses", "Final loss"),
    ],
)
def test_the_first_figure_shows_the_first_quantity_that_is_judged(
    quantity: str, file: str, title: str, write_claim: Callable[..., Path], walk: Callable[..., Walk]
) -> None:
    row = {"quantity": quantity, "arm": "b", "claimed": 0.02, "no_effect": 0.1}
    claim = load("twice", "nano", folder=write_claim(base="sweep", sweep=None, expect=[row]))
    found = claim.kind.conclude(walk(claim).comparison(clipped_share=0.25))
    figure = found.figures[0]
    assert (figure.name, figure.title) == (file, title)
    if quantity == "clipped_share":
        assert {series.arm: series.y for series in figure.series} == {"a": [0.25], "b": [0.25]}


def test_a_number_of_axes_reads_as_english(write_claim: Callable[..., Path]) -> None:
    claim = load("twice", "nano", folder=write_claim(base="sweep", sweep=None))
    (protocol,) = claim.kind.protocols(claim)
    n = claim.fields.tuned_axes
    assert f"over {n} hyperparameter{'s' if n > 1 else ''} at " in protocol.description
