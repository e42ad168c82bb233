"""What the regime checks read beside a claim's own runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from assembly.data import data_path
from data import TokenDataset
from report.results import write
from reproduce import findings, reproduction, surroundings
from reproduce.claim import Claim
from reproduce.claims import load
from reproduce.composed import composed
from reproduce.evidence import Evidence
from reproduce.tables import tables

Write = Callable[..., Path]


@pytest.fixture
def claim(write_claim: Write) -> Claim:
    return load("twice", "nano", folder=write_claim())


def test_tables_and_tokens_are_those_of_the_data_set_if_it_is_here(
    write_claim: Write, tiny: list[str], tmp_path: Path
) -> None:
    own = [each for each in tiny if each.startswith(("data", "model", "global_batch"))]
    claim = load("twice", "nano", own, folder=write_claim())
    path = data_path(composed(claim.common))  # prepares it
    found = surroundings.bigram(claim)
    seen = 160 * 8 * 16
    assert found is not None and found == tables(path, seen)[1:]
    assert surroundings.training_tokens(claim) == TokenDataset.open(path, "train").n_tokens
    away = load("twice", "nano", [*own, f"data.root={tmp_path}"], folder=write_claim())
    assert surroundings.bigram(away) is surroundings.training_tokens(away) is None
    assert {each.name for each in tmp_path.iterdir()} == {"claim", "scale"}  # and nothing is prepared for it


def results_at(claim: Claim, folder: Path, name: str, verdict: str) -> None:
    results = reproduction.assemble(claim, findings.of_measurement(claim, Evidence()), [], "again")
    results.scale, results.verdict = name, verdict
    (folder / f"twice-{name}").mkdir()
    write(results, folder / f"twice-{name}" / "results.json")


def test_a_second_batch_size_is_the_scale_named_after_its_factor(claim: Claim, tmp_path: Path) -> None:
    assert surroundings.second_batch(claim, tmp_path) is None
    results_at(claim, tmp_path, "nano", "reproduced")
    results_at(claim, tmp_path, "micro_x4", "reproduced")
    assert surroundings.second_batch(claim, tmp_path) is None
    results_at(claim, tmp_path, "nano_x4", "weaker than claimed")
    assert surroundings.second_batch(claim, tmp_path) == ("weaker than claimed", 4.0)


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"schema": 0})])
def test_results_that_cannot_be_read_are_none_of_a_second_batch_size(
    content: str, claim: Claim, tmp_path: Path
) -> None:
    (tmp_path / "twice-nano_x4").mkdir()
    (tmp_path / "twice-nano_x4" / "results.json").write_text(content)
    assert surroundings.second_batch(claim, tmp_path) is None


def test_a_run_is_named_by_what_is_not_as_usual_and_no_two_alike() -> None:
    usual = {"optim.lr": 0.1, "optim.fused": True, "model.n_layer": 2}
    others = [{}, {"optim.lr": 0.2}, {"optim.betas": None}, {"model.n_layer": 3}]
    names = [surroundings._named({**usual, **each}, usual) for each in others]
    assert names == ["the usual settings", "optim.lr=0.2", "optim.betas=None", "the usual settings"]
    assert surroundings._named({"optim.lr": 0.2}, usual) == "optim.lr=0.2 ~optim.fused"
