"""Devices that are not here, stubbed: what they lack falls back or is refused by name."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from assembly import rehearsal
from configs import FOLDER, compose
from data import Batch
from optim.sampling import draw_labels, uniforms
from trainer.divergence import Divergence
from trainer.environment import device_name, memory_bytes, pick_device, pick_precision, synchronize, widest_float
from trainer.parallel import DDP, Single
from trainer.ranks import Ranks

OPTIONS = sorted(path.stem for path in (FOLDER / "optim").glob("*.yaml"))
XPU, MPS, META = map(torch.device, ("xpu", "mps", "meta"))


@pytest.fixture
def with_xpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """An Intel GPU without float64, as torch.xpu describes it."""
    calls: list[Any] = []
    stub = SimpleNamespace(
        calls=calls,
        is_available=lambda: True,
        is_bf16_supported=lambda including_emulation: not including_emulation,
        get_device_properties=lambda device: SimpleNamespace(has_fp64=False),
        get_device_name=lambda device: "Intel Arc",
        max_memory_allocated=lambda device: 123,
        synchronize=lambda: calls.append("synchronize"),
        set_device=calls.append,
    )
    monkeypatch.setattr(torch, "xpu", stub)
    torch.get_device_module.cache_clear()
    yield stub
    torch.get_device_module.cache_clear()


@pytest.mark.parametrize(("device", "name"), [("cuda", "CUDA"), ("xpu", "XPU"), ("mps", "MPS")])
def test_a_device_that_torch_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch, device: str, name: str) -> None:
    monkeypatch.setattr(torch.get_device_module(device), "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device={device}, but torch sees no {name} device"):
        pick_device(device)


def test_auto_is_cuda_or_the_cpu(monkeypatch: pytest.MonkeyPatch, with_xpu: SimpleNamespace) -> None:
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    for has_cuda, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_cuda=has_cuda: has_cuda)
        assert pick_device("auto").type == device


def test_xpu_is_asked_about_itself(with_xpu: SimpleNamespace) -> None:
    assert pick_device("xpu") == XPU
    assert pick_precision("auto", XPU) == "bf16"
    assert widest_float(XPU) == torch.float32
    assert (device_name(XPU), memory_bytes(XPU)) == ("Intel Arc", 123)
    synchronize(XPU)
    assert with_xpu.calls == ["synchronize"]


def test_mps_computes_in_fp32_unless_bf16_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 77)
    assert pick_device("mps") == MPS
    assert (pick_precision("auto", MPS), pick_precision("bf16", MPS)) == ("fp32", "bf16")
    assert widest_float(MPS) == torch.float32
    assert device_name(MPS).endswith(", MPS")
    assert memory_bytes(MPS) == 77


@pytest.mark.parametrize(
    ("device", "message"),
    [(MPS, "device=mps trains on one process here, as torch has no collectives for it; use parallel=single"),
     (XPU, "device=xpu trains on one process here, as this build of torch lacks xccl; use parallel=single")],
)  # fmt: skip
def test_ranks_on_devices_without_collectives_are_refused(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, message: str
) -> None:
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: False)
    with pytest.raises(ValueError, match=message):
        DDP(device=device, precision="fp32", compiled=False)
    assert not torch.distributed.is_initialized()


def test_ranks_on_xpu_exchange_by_xccl_and_own_a_device_each(
    monkeypatch: pytest.MonkeyPatch, with_xpu: SimpleNamespace
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: name == "xccl")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **more: begun.append(backend))
    Ranks.join("xpu", 10.0)
    assert begun == ["cpu:gloo,xpu:xccl"]
    assert with_xpu.calls == [0]


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on the meta device, as MPS does on its own; on the host it is allowed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_flatten(found)[0]:
            if isinstance(each, torch.Tensor) and each.device.type == "meta" and each.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return found


def test_divergence_is_noticed_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.divergence.widest_float", lambda device: torch.float32)
    watch = Divergence(torch.device("cpu"), max_nonfinite=2, spike_factor=3.0)
    for step, loss in enumerate((2.0, 2.0, 7.0)):
        watch.observe(step, torch.tensor(loss), torch.tensor(1.0))
    assert watch.step == 2
    with NoFloat64():
        Divergence(META, max_nonfinite=2, spike_factor=3.0).observe(
            0, torch.ones((), device="meta"), torch.ones((), device="meta")
        )


def test_labels_are_drawn_without_float64() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64, device=META)
    with NoFloat64():
        uniform = uniforms(1, 0, Batch(tokens, tokens, [0, 1]), torch.float32)
        labels = draw_labels(torch.zeros(2, 3, 5, device=META), uniform)
    assert (labels.device, labels.shape) == (META, tokens.shape)


@pytest.mark.parametrize("optim", ["adamw_ours", "lion", "sgd", "sophiag", "came", "smmf"])
def test_optimizers_of_fp32_arithmetic_pass_the_rehearsal(monkeypatch: pytest.MonkeyPatch, optim: str) -> None:
    monkeypatch.setattr(rehearsal, "COMPLETE", ("cpu",))
    with NoFloat64():
        rehearsal.check_optimizer(compose([f"optim={optim}"]), META)


def test_an_optimizer_that_needs_what_the_device_lacks_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rehearsal, "COMPLETE", ("cpu",))
    message = "device=meta lacks what this optim computes with: .*float64.*; use device=cpu, or another optim"
    with NoFloat64(), pytest.raises(ValueError, match=message):
        rehearsal.check_optimizer(compose(["optim=galore"]), META)


@pytest.mark.parametrize(
    "optim",
    [name if name in ("adamw", "soap", "sophiag") else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS],
)
def test_an_optimizer_passes_the_rehearsal_on_a_device_that_lacks_nothing(
    monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    monkeypatch.setattr(rehearsal, "COMPLETE", ())
    rehearsal.check_optimizer(compose([f"optim={optim}"]), torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "precision", "products"),
    [("cuda", "bf16", "high"), ("cuda", "fp32", "highest"), ("cpu", "bf16", "highest")],
)
def test_bf16_on_cuda_has_tf32_products(device: str, precision: str, products: str) -> None:
    torch.set_float32_matmul_precision("highest" if products == "high" or device == "cpu" else "high")
    try:
        Single(device=torch.device(device), precision=precision, compiled=False)
        assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision("highest")
