"""The law "no waiting", without a device: whole training steps on tensors without numbers, which no host can read.

On the meta device an operation that needs a number, or makes as many as the numbers say, is an error. Copies from host
memory that would wait, and tensors left in host memory, are made errors here. Decompositions may wait: cuSOLVER tells
the host how some of them ended.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

import train
from configs import compose, flat, plug_in
from data import Batch
from model import GPT, Llama
from optim.build import build
from tests.optim.every_option import INTERVALS, OPTIONS
from trainer.divergence import Divergence
from trainer.parallel import Single

aten = torch.ops.aten
META, STEPS = torch.device("meta"), 7  # three refreshes of what is done every third step
READS = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2)
MOVES = (aten._to_copy, aten.copy_)


class WaitsError(Exception):
    """Something would wait for the device."""


class Device(TorchDispatchMode):
    """Makes whatever would wait for the device, or for a copy to it, an error; knows kernels that meta lacks."""

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        here = [each for each in tensors if each.is_meta]
        host = [each for each in tensors if not each.is_meta and each.ndim]  # 0-dim ones are passed as numbers
        if here and name in READS:
            raise WaitsError(f"{func} waits for the device")
        if name in MOVES and len(tensors) == (2 if name is aten.copy_ else 1):  # else a number is copied
            to = torch.device(kwargs.get("device") or args[0].device)
            source = args[1] if name is aten.copy_ else args[0]
            may_wait = not kwargs.get("non_blocking") and not (name is aten.copy_ and len(args) > 2 and args[2])
            if source.device.type != to.type and "meta" in (source.device.type, to.type) and may_wait:
                raise WaitsError(f"{func} waits for a copy of {tuple(source.shape)} from {source.device} to {to}")
        elif here and host:
            raise WaitsError(f"{func} has a tensor {tuple(host[0].shape)} in host memory")
        if here and name is aten.geqrf:
            (a,) = args
            return torch.empty_like(a), a.new_empty(*a.shape[:-2], min(a.shape[-2:]))
        if here and name is aten._fused_adamw_:
            assert kwargs["found_inf"].is_meta
            return None
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def meta_has_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("torch.optim.optimizer")
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["meta"])


class Rehearsed:
    """A run on the meta device, whose steps can be taken."""

    def __init__(self, *overrides: str, model: type = GPT) -> None:
        every_third = [f"{key}=3" for key in flat(compose(overrides)) if key.rpartition(".")[2] in INTERVALS]
        config: Any = compose([*overrides, *every_third])
        with META:
            self.model = model(vocab_size=60, n_layer=2, n_head=2, n_embd=64, block_size=16)
        self.strategy = Single(device=META, precision="fp32", compiled=False)
        self.strategy.prepare(self.model, self.model.blocks)
        parameters = dict(self.model.named_parameters())
        self.optimizer = build(config.optim, parameters, self.model.roles(), seed=1, global_batch=4)
        self.schedule = plug_in(config.schedule, max_steps=500)
        self.divergence = Divergence(META, max_nonfinite=10, spike_factor=3.0)
        tokens = [torch.zeros(2, 16, dtype=torch.int64, device="meta") for _ in range(4)]
        self.batches = [Batch(*tokens[:2], indices=range(2)), Batch(*tokens[2:], indices=range(2, 4))]

    def step(self, step: int) -> None:
        """A step of train.loop() that is not logged."""
        with Device():
            for estimator in self.optimizer.estimators:
                estimator.update(step, self.batches, self.strategy.extra_backward)
            loss = self.strategy.forward_backward(self.batches, train.next_token_loss, 4)
            grad_norm = self.strategy.clip_grad_norm_(1.0)
            self.schedule.apply(self.optimizer, step)
            is_finite = self.divergence.observe(step, loss, grad_norm)
            self.strategy.keep_finite(is_finite)
            self.optimizer.step(measured=False, is_finite=is_finite)
            self.optimizer.zero_grad()


@pytest.mark.parametrize("option", OPTIONS)
def test_no_step_waits_for_the_device(option: str) -> None:
    run = Rehearsed(f"optim={option}")
    for step in range(STEPS):
        run.step(step)


@pytest.mark.parametrize("state", ["bf16", "int8", "int8_stochastic"])
@pytest.mark.parametrize("option", ["adamw_ours", "lion", "soap", "coap"])
def test_no_step_with_coded_state_waits(option: str, state: str) -> None:
    run = Rehearsed(
        f"optim={option}", f"optim.state={state}" if option != "soap" else f"optim.roles.matrix.state={state}"
    )
    for step in range(STEPS):
        run.step(step)


def test_another_architecture_does_not_wait_either() -> None:
    run = Rehearsed("optim=adamw_ours", model=Llama)
    for step in range(3):
        run.step(step)


class Reads(torch.optim.AdamW):
    """Asks for a number in every step."""

    @override
    def step(self, closure: Any = None) -> Any:
        return float(self.param_groups[0]["params"][0].sum())


def wait_by_index(x: Tensor) -> Tensor:
    return x[torch.tensor([0, 2])]


def wait_by_copy(x: Tensor) -> Tensor:
    return x + torch.arange(3.0).to(x.device)


def wait_by_mask(x: Tensor) -> Tensor:
    return x[x > 0]


def wait_by_number(x: Tensor) -> Tensor:
    return x * float(x.sum())


@pytest.mark.parametrize("wait", [wait_by_index, wait_by_copy, wait_by_mask, wait_by_number])
def test_the_rehearsal_finds_what_waits(wait: Any) -> None:
    with pytest.raises((WaitsError, RuntimeError)), Device():
        wait(torch.zeros(3, device="meta"))
    wait(torch.zeros(3))  # is right where nothing has to be waited for


def test_an_optimizer_that_reads_a_number_is_found() -> None:
    run = Rehearsed("optim=adamw", f"optim._target_={__name__}.Reads")
    with pytest.raises((WaitsError, RuntimeError, ValueError), match=r"item|waits|local_scalar"):
        run.step(0)


def test_the_law_names_this_rehearsal() -> None:
    law = Path(__file__).parents[1] / "docs" / "laws" / "no_waiting.md"
    assert "tests/test_rehearsal.py::test_no_step_waits_for_the_device" in law.read_text("utf-8")
