"""A run that is killed at a step, in this process."""

from collections.abc import Callable
from typing import Any

import pytest

from data import TokenLoader


class Killed(BaseException):
    """Stands for kill -9: nothing of ours handles it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    batches = TokenLoader.batches

    def until(loader: TokenLoader, at: int) -> Any:
        if at == step:
            raise Killed
        return batches(loader, at)

    monkeypatch.setattr(TokenLoader, "batches", until)


def killed_at(step: int, start: Callable[..., int], *arguments: str) -> None:
    """start(*arguments), until it is killed."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, step)
        start(*arguments)
