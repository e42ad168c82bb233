"""Refreshes of several parameters at once, here by threads of a CPU, where otherwise one comes after another."""

import copy
from itertools import count
from threading import Barrier, Event, get_ident
from types import SimpleNamespace

import pytest
import torch
from rules import made, parameters, step
from torch import Tensor

from optim import streams
from optim.base import Hyper, RuleOptimizer, State
from optim.refreshing import Refreshes
from optim.stacks import STACKED_BELOW, stacked_tensors
from optim.streams import at_once

CPU = torch.device("cpu")
WORKERS = 4
SECONDS = 20  # until a thread that waits for others gives up


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streams.WORKERS, "cpu", WORKERS)


def stepped(rule: str, together: int) -> tuple[RuleOptimizer, set[int]]:
    """After steps of WORKERS matrices, two of which are not taken; and the threads of its refreshes that were due.

    together: how many of these threads wait for each other.
    """
    optimizer = made(rule, parameters([(12, 8)] * WORKERS), execution="eager")
    inside, seen, refresh = Barrier(together), set[int](), optimizer.refresh

    def noted(grad: Tensor, param: Tensor, state: State, hp: Hyper) -> None:
        if optimizer.is_due(hp):
            seen.add(get_ident())
            inside.wait(SECONDS)
        refresh(grad, param, state, hp)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "refresh", noted)
        for n in range(8):
            optimizer.found_inf = torch.tensor(float(n in (4, 5)))
            step(optimizer, n)
    return optimizer, seen


@pytest.mark.parametrize("rule", ["soap", "shampoo", "galore", "coap", "flora"])
def test_at_once_is_bitwise_one_after_another(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stacks = lambda *args, below: stacked_tensors(*args, below=STACKED_BELOW)  # noqa: E731 - as on CUDA
    monkeypatch.setattr("optim.engine.stacked_tensors", stacks)
    one, here = stepped(rule, together=1)
    monkeypatch.setitem(streams.WORKERS, "cpu", WORKERS)
    several, there = stepped(rule, together=WORKERS)
    assert here == {get_ident()}
    assert len(there - here) == WORKERS
    several = copy.deepcopy(several)  # which threads must not prevent
    for a, b in zip(one.param_groups[0]["params"], several.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(tensor, several.state[b][name]) for name, tensor in one.state[a].items())
    ours, theirs = one.diagnostics(), several.diagnostics()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(number, theirs[name]) for name, number in ours.items() if name != "seconds_per_refresh")


@pytest.mark.usefixtures("threads")
def test_the_first_item_that_failed_is_heard_of_when_no_other_is_under_way() -> None:
    inside, has_failed, under_way = Barrier(WORKERS), Event(), set[int]()

    def work(item: int) -> None:
        under_way.add(item)
        if item < WORKERS:
            inside.wait(SECONDS)
        if item == 2:
            has_failed.set()
            raise RuntimeError("the third")
        assert has_failed.wait(SECONDS)
        under_way.remove(item)
        if item == 1:
            raise RuntimeError("the second")

    with pytest.raises(RuntimeError, match="the second"):
        at_once(work, range(3 * WORKERS), CPU)
    assert under_way == {2}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("is_on", [False, True])
def test_threads_have_the_callers_settings(is_on: bool) -> None:
    together, seen = Barrier(WORKERS), list[tuple[bool, bool, torch.dtype]]()

    def work(item: int) -> None:
        together.wait(SECONDS)
        product = torch.ones(1, 1) @ torch.ones(1, 1)
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), product.dtype))

    with torch.set_grad_enabled(is_on), torch.autocast("cpu", torch.float16, enabled=is_on):
        at_once(work, range(WORKERS), CPU)
    assert seen == [(is_on, is_on, torch.float16 if is_on else torch.float32)] * WORKERS


def test_seconds_in_which_several_refresh_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optim.refreshing.time", SimpleNamespace(perf_counter=map(float, count()).__next__))
    refreshes = Refreshes()
    for change in ("enter", "enter", "exit", "enter", "exit", "exit", "enter", "exit"):
        getattr(refreshes, f"__{change}__")()
    assert (refreshes.count, refreshes.seconds) == (4, 2.0)
