"""Garbage is collected with rows of metrics, which all ranks write at the same steps, and at no other time."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import train
from configs import compose
from trainer.garbage import collected_on_request


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """As a process of its own begins; conftest.py has frozen what tests share."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_a_run_collects_garbage_with_its_rows_alone(
    unfrozen: None, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, found = train.loop, []

    def watched(*arguments: Any) -> str:
        def note(phase: str, about: dict[str, int]) -> None:
            if phase == "start":
                found.append(about["generation"])

        assert gc.get_freeze_count() > 0
        thresholds = gc.get_threshold()
        gc.set_threshold(1, 1, 1)  # otherwise every few objects
        gc.callbacks.append(note)
        try:
            return loop(*arguments)
        finally:
            gc.callbacks.remove(note)
            gc.set_threshold(*thresholds)

    monkeypatch.setattr(train, "loop", watched)
    settings = ["max_steps=6", "log_every=2", "eval_every=4", "sample_tokens=0", f"run_dir={tmp_path / 'a'}"]
    assert train.main(compose([*tiny, *settings])) == 0
    assert found == [2, 1, 2, 1, 2]  # at steps 0, 2, 4, 5 and the end
    assert gc.isenabled() and gc.get_freeze_count() == 0


@pytest.mark.parametrize("had_frozen", [True, False])
def test_what_the_caller_has_frozen_stays_frozen(unfrozen: None, had_frozen: bool) -> None:
    if had_frozen:
        gc.freeze()
    with collected_on_request():
        assert gc.get_freeze_count() > 0 and not gc.isenabled()
    assert gc.isenabled() and (gc.get_freeze_count() > 0) == had_frozen
