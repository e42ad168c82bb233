"""A kind of claim is one file."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from files.reading import read_yaml
from reproduce import claims, kind, kinds, reproduction

ROOT = Path(__file__).parents[2]
CODE = ("configs", "data", "files", "launch", "model", "optim", "report", "reproduce", "scripts", "trainer")
COIN = """
from dataclasses import dataclass

from report.results import Measure
from reproduce.claim import Fields
from reproduce.evidence import Evidence
from reproduce.fields import limited
from reproduce.kind import Kind


@dataclass
class CoinFields(Fields):
    heads: int = limited(least=0)


class Coin(Kind[CoinFields]):
    Fields = CoinFields
    description = "coins"
    needs_baseline = False

    def measure(self, claim):
        heads = claim.fields.heads
        return Evidence([Measure("heads", "heads", "", heads, heads, heads, claimed=2.0, verdict="reproduced")])
"""


def test_every_kind_is_used_by_a_claim_and_every_claims_kind_is_there() -> None:
    used = {(read_yaml(claims.FOLDER / f"{name}.yaml") or {})["kind"] for name in claims.names()}
    assert used == set(kind.names())


@pytest.mark.parametrize("name", kind.names())
def test_no_other_file_names_a_kind(name: str) -> None:
    own = Path(f"reproduce/kinds/{name}.py")
    sources = [path for package in CODE for path in (ROOT / package).rglob("*.py")]
    for path in [*sources, ROOT / "train.py"]:
        if path.relative_to(ROOT) == own or path.name == "bench.py":  # which has a benchmark of memory
            continue
        assert not re.search(rf"""["']{name}["']|kinds[./]{name}\b""", path.read_text("utf-8")), path


@pytest.fixture
def coin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A kind that a file in another folder adds; its name."""
    folder = tmp_path / "kinds"
    folder.mkdir()
    (folder / "coin.py").write_text(COIN)
    monkeypatch.setattr(kind, "FOLDER", folder)
    monkeypatch.setattr(kinds, "__path__", [str(folder)])
    yield "coin"
    kind.named.cache_clear()
    sys.modules.pop("reproduce.kinds.coin", None)


def test_a_file_is_all_that_a_new_kind_takes(coin: str, write_claim: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_claim(base="memory", kind=coin, settings=None, heads=2)
    claim = claims.load("twice", "nano", folder=folder)
    assert claim.fields.heads == 2
    results = reproduction.reproduce(claim, tmp_path / "out", "again")
    assert (results.verdict, results.protocols[0].name) == ("reproduced", "coin")
    assert "heads is 2, claimed 2" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": -1}, "heads=-1 must be >= 0"), ({"heads": None}, "'heads' is missing"), ({"heads": "x"}, "a whole")],
)
def test_its_fields_are_checked(
    coin: str, changes: dict[str, Any], message: str, write_claim: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        claims.load("twice", "nano", folder=write_claim(base="memory", kind=coin, settings=None, **changes))
