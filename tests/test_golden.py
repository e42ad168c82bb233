"""What must not change unnoticed: see tests/golden/record.py."""

import json
from pathlib import Path

import pytest
from record import HERE, configs_of, losses, options

from reproduce import claims

pytestmark = pytest.mark.usefixtures("undrawn")


def tolerance(option: str) -> float:
    """Relative. Another processor sums in another order: ulps of fp32 (1e-7), carried through ten steps.

    Eigenvectors of nearly singular factors, and their approximations, amplify them; Muon's products are in bf16.
    """
    return 1e-3 if option in ("adapprox", "muon", "soap", "shampoo") else 1e-5


def _slow_unless_one(claim: str) -> list[pytest.MarkDecorator]:
    return [] if claim == "sophia_overhead" else [pytest.mark.slow]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("option", options())
def test_ten_steps_lose_what_they_did(option: str, scratch: Path) -> None:
    expected = [float(line) for line in (HERE / "losses" / f"{option}.txt").read_text().splitlines()]
    assert losses(option, scratch) == pytest.approx(expected, rel=tolerance(option))


@pytest.mark.parametrize("claim", [pytest.param(each, marks=_slow_unless_one(each)) for each in claims.names()])
def test_claims_are_configured_as_they_were(claim: str) -> None:
    assert configs_of(claim) == json.loads((HERE / "configs" / f"{claim}.json").read_text())


def test_every_golden_file_is_of_something_that_exists() -> None:
    assert {path.stem for path in (HERE / "losses").iterdir()} == set(options())
    assert {path.stem for path in (HERE / "configs").iterdir()} == set(claims.names())


def test_published_runs_are_where_a_claim_looks_for_them() -> None:
    found = [scale for file in (HERE / "configs").iterdir() for scale in json.loads(file.read_text()).values()]
    published = {place.name for place in (HERE.parents[1] / "docs/claims/published").iterdir()}
    assert published and published <= {name for scale in found for name in scale["atlases"]}
