"""The law "no waiting", without a device: whole training steps on tensors without numbers, which no host can read.

On the meta device an operation that needs a number, or makes as many as the numbers say, is an error. Copies from host
memory that would wait, and tensors left in host memory, are made errors here. Decompositions may wait: cuSOLVER tells
the host how some of them ended. FSDP2 and DDP are rehearsed as rank 0 of 2, whose collectives send nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

import train
from configs import compose, flat, plug_in
from data import Batch
from model import GPT, Llama
from optim.build import build
from tests.optim.every_option import INTERVALS, OPTIONS
from trainer import parallel
from trainer.divergence import Divergence
from trainer.parallel import DDP, FSDP2, Single, Strategy
from trainer.ranks import Ranks

aten = torch.ops.aten
FULLY_SHARD = "torch.distributed.fsdp._fully_shard"
META, STEPS = torch.device("meta"), 7  # three refreshes of what is done every third step
READS = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2)
READS += (aten._linalg_check_errors,)  # of inverses and solutions; those ending in _ex do not ask
MOVES = (aten._to_copy, aten.copy_)
WRITES_BY_INDEX = (aten.index_put, aten.index_put_)
FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
BY_INDEX = (Tensor.__getitem__, Tensor.__setitem__)


class WaitsError(Exception):
    """Something would wait for the device."""


class Device(TorchDispatchMode):
    """Makes whatever would wait for the device, or for a copy to it, an error; knows kernels that meta lacks."""

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        here = [each for each in tensors if each.is_meta]
        copied = [*_written(func, args, kwargs), *(tensors if name is aten.where else ())]
        host = [each for each in tensors if not each.is_meta and (each.ndim or _is_among(each, copied))]
        if here and name in READS:
            raise WaitsError(f"{func} waits for the device")
        if here and name in WRITES_BY_INDEX and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise WaitsError(f"{func} waits for the device: it counts what a mask selects")
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


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes to."""
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    written = [each.name for each in func._schema.arguments if each.alias_info and each.alias_info.is_write]
    return [each for each in tree_leaves([named.get(name) for name in written]) if isinstance(each, Tensor)]


def _is_among(tensor: Tensor, tensors: list[Tensor]) -> bool:
    return any(tensor is each for each in tensors)


class FromHost(TorchFunctionMode):
    """Makes it an error to make a tensor on the device from numbers, which waits, and which no dispatcher sees."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in FROM_HOST and found.is_meta and not (func is not Tensor.new_tensor and isinstance(args[0], Tensor)):
            raise WaitsError(f"{func.__name__} copies numbers to the device, and waits")
        if func in BY_INDEX and args[0].is_meta and any(isinstance(each, list) for each in _indices(args[1])):
            raise WaitsError(f"{func.__name__} copies a list of indices to the device, and waits")
        return found


def _indices(index: Any) -> Sequence[Any]:
    return index if isinstance(index, tuple) else (index,)


@contextmanager
def nobody_waits() -> Iterator[None]:
    with Device(), FromHost():
        yield


@pytest.fixture(autouse=True)
def meta_has_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("torch.optim.optimizer")
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["meta"])


class Replica(nn.Module):
    """In the place of torch's DistributedDataParallel, which is written in C++ and reads numbers as it is made."""

    def __init__(self, module: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.module = module

    @override
    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)

    def no_sync(self) -> AbstractContextManager[None]:
        return nullcontext()


def single() -> Strategy:
    return Single(device=META, precision="fp32", compiled=False)


def ddp() -> Strategy:
    strategy = DDP.__new__(DDP)
    Strategy.__init__(strategy, rank_0_of_2(), device=META, precision="fp32", compiled=False)
    strategy._compression = strategy._powersgd = None
    return strategy


def fsdp2() -> Strategy:
    strategy = FSDP2.__new__(FSDP2)
    Strategy.__init__(strategy, rank_0_of_2(), device=META, precision="fp32", compiled=False)
    strategy._shape = (2,)
    return strategy


def rank_0_of_2() -> Ranks:
    ranks = Ranks()
    ranks.world_size = 2
    return ranks


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collectives that send nothing, and FSDP2 for the meta device, whose streams are those of a CPU."""
    monkeypatch.setattr(parallel, "DistributedDataParallel", Replica)
    monkeypatch.setattr(
        parallel, "init_device_mesh", lambda kind, shape, **names: init_device_mesh("cpu", shape, **names)
    )
    monkeypatch.setattr(f"{FULLY_SHARD}._fully_shard._get_device_from_mesh", lambda mesh: META)
    monkeypatch.setattr(f"{FULLY_SHARD}._fsdp_param_group.FSDPParamGroup._validate_no_meta_params", lambda group: None)
    for module in ("_fsdp_collectives", "_fsdp_init", "_fsdp_param_group", "_fsdp_state"):
        monkeypatch.setattr(f"{FULLY_SHARD}.{module}._get_device_handle", lambda kind: torch.cpu)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


class Rehearsed:
    """A run on the meta device, whose steps can be taken."""

    def __init__(self, *overrides: str, model: type = GPT, strategy: Callable[[], Strategy] = single) -> None:
        every_third = [f"{key}=3" for key in flat(compose(overrides)) if key.rpartition(".")[2] in INTERVALS]
        config: Any = compose([*overrides, *every_third])
        with META:
            self.model = model(vocab_size=60, n_layer=2, n_head=2, n_embd=64, block_size=16)
        roles, self.strategy = self.model.roles(), strategy()
        self.strategy.prepare(self.model, self.model.blocks)
        parameters = dict(self.model.named_parameters())
        group = self.strategy.group
        self.optimizer = build(config.optim, parameters, roles, seed=1, global_batch=4, group=group)
        self.schedule = plug_in(config.schedule, max_steps=500)
        self.divergence = Divergence(META, max_nonfinite=10, spike_factor=3.0)
        tokens = [torch.zeros(2, 16, dtype=torch.int64, device="meta") for _ in range(4)]
        self.batches = [Batch(*tokens[:2], indices=range(2)), Batch(*tokens[2:], indices=range(2, 4))]

    def step(self, step: int) -> None:
        """A step of train.loop() that is not logged."""
        with nobody_waits():
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


@pytest.mark.slow
@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("strategy", [ddp, fsdp2])
@pytest.mark.parametrize("option", OPTIONS)
def test_no_step_of_several_ranks_waits_for_the_device(option: str, strategy: Callable[[], Strategy]) -> None:
    try:
        run = Rehearsed(f"optim={option}", strategy=strategy)
    except ValueError as error:
        pytest.skip(str(error))  # this strategy does not take the optimizer
    for step in range(4):  # one refresh
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


def wait_by_masked_write(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0] = x[:1]
    return y


def wait_by_numbers(x: Tensor) -> Tensor:
    return x + torch.tensor(1.0, device=x.device)


def wait_by_list(x: Tensor) -> Tensor:
    return x[[0, 2]]


def wait_by_choice(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.tensor(0.0))


def wait_by_check(x: Tensor) -> Tensor:
    return torch.linalg.inv(torch.diag(x + 1))


def total_in_host_memory(x: Tensor) -> Tensor:
    return torch.zeros(()).add_(x.sum())


WAITS = [wait_by_index, wait_by_copy, wait_by_mask, wait_by_number, wait_by_masked_write, wait_by_numbers]
WAITS += [wait_by_list, wait_by_choice, wait_by_check, total_in_host_memory]


@pytest.mark.parametrize("wait", WAITS)
def test_the_rehearsal_finds_what_waits(wait: Any) -> None:
    with pytest.raises((WaitsError, RuntimeError)), nobody_waits():
        wait(torch.zeros(3, device="meta"))
    wait(torch.zeros(3))  # is right where nothing has to be waited for


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("strategy", [single, ddp, fsdp2])
def test_an_optimizer_that_reads_a_number_is_found(strategy: Callable[[], Strategy]) -> None:
    run = Rehearsed("optim=adamw", f"optim._target_={__name__}.Reads", strategy=strategy)
    with pytest.raises((WaitsError, RuntimeError, ValueError), match=r"item|waits|local_scalar"):
        run.step(0)


def test_the_law_names_this_rehearsal() -> None:
    law = Path(__file__).parents[1] / "docs" / "laws" / "no_waiting.md"
    assert "tests/test_rehearsal.py::test_no_step_waits_for_the_device" in law.read_text("utf-8")
