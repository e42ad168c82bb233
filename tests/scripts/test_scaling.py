"""What many GPUs would make of a step: limits that arithmetic must respect, and the page."""

import pytest

from assembly.model import meta_model
from configs import ConfigError, compose
from model import LanguageModel
from optim.build import build
from scripts import scaling
from scripts.scaling import OPTIMIZER_SECONDS, STEP_SECONDS, WORLDS, Shares, exchanged, shares, step


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return meta_model(compose(["model=gpt2_small"]), 50257)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("option", OPTIMIZER_SECONDS)
def test_one_gpu_takes_what_was_measured(model: LanguageModel, option: str, strategy: str) -> None:
    found = step(model, option, strategy, 1)
    assert found.exposed == 0 and found.optimizer == OPTIMIZER_SECONDS[option]
    assert found.seconds == pytest.approx(STEP_SECONDS - OPTIMIZER_SECONDS["adamw"] + OPTIMIZER_SECONDS[option])


def test_collectives_move_what_a_ring_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LATENCY", 0.0)
    assert scaling.gathered(8e9, 8) == pytest.approx(7 / 8 * 8e9 / (0.8 * 450e9))
    assert scaling.gathered(16e9, 16) == pytest.approx(15 / 16 * 16e9 / (0.8 * 400e9))
    assert scaling.gathered(8e9, 1) == 0


def test_shares_are_those_of_the_matrices(model: LanguageModel) -> None:
    parameters = dict(model.named_parameters())
    soap = build(dict(compose(["optim=soap"]).optim), parameters, model.roles(), seed=0, global_batch=480)
    found = [shares(soap, world) for world in WORLDS]
    largest = [each.largest for each in found]
    assert largest[0] == 1 and all(1 / world <= own <= 1 for world, own in zip(WORLDS, largest, strict=True))
    assert largest == sorted(largest, reverse=True)
    assert shares(soap, 48) == shares(soap, 512)  # 48 matrices: the largest is left
    assert shares(soap, 48).numbers == 3072 * 768 and shares(soap, 48).largest > 1 / 48
    adamw = build(dict(compose(["optim=adamw"]).optim), parameters, model.roles(), seed=0, global_batch=480)
    assert shares(adamw, 8) == Shares(1 / 8)


def test_owners_get_what_they_update_and_all_get_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LATENCY", 0.0)
    assert exchanged(10**9, "fsdp2", 8) == pytest.approx(12e9 / (0.8 * 450e9))  # value, gradient; value back
    assert exchanged(10**9, "fsdp2", 64) == pytest.approx(12e9 / (0.8 * 50e9))
    assert exchanged(10**9, "ddp", 8) == scaling.gathered(8 * 4e9, 8)
    assert exchanged(10**9, "ddp", 1) == exchanged(0, "fsdp2", 8) == 0


def test_a_slower_link_takes_longer_and_what_is_hidden_does_not_count(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = step(model, "adamw", "ddp", 16).exposed
    monkeypatch.setattr(scaling, "NETWORK_LINK", scaling.NETWORK_LINK / 2)
    embedding = 2 * scaling.gathered(4 * 768 * 50304, 16)
    assert before < step(model, "adamw", "ddp", 16).exposed == pytest.approx(embedding)
    monkeypatch.setattr(scaling, "NETWORK_LINK", scaling.NETWORK_LINK / 50)
    assert step(model, "adamw", "ddp", 16).exposed > 2 * scaling.gathered(4 * 768 * 50304, 16)


def test_the_page_is_up_to_date() -> None:
    assert f"{scaling.BEGIN}{scaling.markdown()}{scaling.END}" in scaling.PAGE.read_text("utf-8")


def test_what_it_cannot_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="'--list' is no argument of this script, which takes --write or nothing"):
        scaling.main(["--list"])
