"""What only a CUDA device can show; scripts/gpu.sh runs these and the benchmarks there."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import train
from assembly.data import data_path
from configs import compose
from data import TokenDataset, TokenLoader
from model import GPT
from model.loss import cross_entropy
from optim import SOAP, Shampoo, streams
from optim.base import RuleOptimizer
from optim.build import build
from optim.precision import FullFp32
from trainer.divergence import Divergence
from trainer.environment import has_native_bf16, memory_bytes, pick_device
from trainer.metrics import read_rows
from trainer.parallel import Single
from trainer.profiling import TABLE

pytestmark = pytest.mark.gpu
CUDA = ["device=cuda", "precision=auto"]


def run(folder: Path, tiny: list[str], *overrides: str) -> dict[str, object]:
    assert train.main(compose([*tiny, *CUDA, f"run_dir={folder}", *overrides])) == 0
    result: dict[str, object] = json.loads((folder / "result.json").read_text())
    return result


def test_the_default_on_a_gpu_is_compiled_bf16(tiny: list[str], tmp_path: Path) -> None:
    found = run(tmp_path / "a", tiny)
    env = json.loads((tmp_path / "a" / "env.json").read_text())
    assert env["device"] == torch.cuda.get_device_name()
    assert env["precision"] == ("bf16" if has_native_bf16(pick_device("cuda")) else "fp32")
    assert env["compiled"] is True
    assert found["val/loss"] < read_rows(tmp_path / "a" / "metrics.jsonl")[0]["val/loss"]  # type: ignore[operator]


@pytest.mark.parametrize("optimizer", ["adamw", "sophiag"])
def test_a_continued_run_ends_like_an_uninterrupted_one(tiny: list[str], tmp_path: Path, optimizer: str) -> None:
    settings = [f"optim={optimizer}", "compile=false", "precision=fp32", "model.dropout=0"]
    uninterrupted = run(tmp_path / "uninterrupted", tiny, *settings)
    (tmp_path / "interrupted").mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        text = (tmp_path / "uninterrupted" / name).read_text()
        (tmp_path / "interrupted" / name).write_text(
            text.replace(str(tmp_path / "uninterrupted"), str(tmp_path / "interrupted"))
        )
    kept = tmp_path / "uninterrupted" / "checkpoints" / "step_000009"
    (tmp_path / "interrupted" / "checkpoints").mkdir()
    kept.rename(tmp_path / "interrupted" / "checkpoints" / kept.name)
    interrupted = run(tmp_path / "interrupted", tiny, *settings)
    assert interrupted["val/loss"] == pytest.approx(uninterrupted["val/loss"], rel=1e-6)  # atomics reorder sums


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("optimizer", ["adamw", "soap", "adafactor", "sophiag"])
def test_strategies_agree_on_one_device(tiny: list[str], tmp_path: Path, strategy: str, optimizer: str) -> None:
    settings = ["compile=false", "precision=fp32", "model.dropout=0", f"optim={optimizer}"]
    alone = run(tmp_path / "single", tiny, *settings)
    distributed = run(tmp_path / strategy, tiny, *settings, f"parallel={strategy}")
    assert distributed["val/loss"] == pytest.approx(alone["val/loss"], rel=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize("strategy", ["ddp", "ddp parallel.compression=bf16", "fsdp2", "fsdp2 precision=bf16"])
def test_strategies_train_on_two_devices(tiny: list[str], tmp_path: Path, strategy: str) -> None:
    settings = [*tiny, *CUDA, f"run_dir={tmp_path / 'a'}", "model.dropout=0", *f"parallel={strategy}".split()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launcher, str(Path(train.__file__)), *settings], check=True)
    rows = read_rows(tmp_path / "a" / "metrics.jsonl")
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_ours", "lion"])
def test_a_step_waits_for_nothing_and_skips_what_is_not_finite(optimizer: str) -> None:
    config: Any = compose([f"optim={optimizer}"]).optim
    device = torch.device("cuda")
    model = GPT(vocab_size=64, n_layer=2, n_head=2, n_embd=64, block_size=16).to(device)
    ours = build(config, dict(model.named_parameters()), model.roles(), seed=1, global_batch=8)
    divergence = Divergence(device, max_nonfinite=10, spike_factor=3.0)
    losses = [torch.tensor(value, device=device) for value in (2.0, math.nan, 2.0)]
    norm, kept = torch.tensor(1.0, device=device), []
    for step, loss in enumerate(losses):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step compiles
        ours.step(is_finite=divergence.observe(step, loss, norm))
        torch.cuda.set_sync_debug_mode("default")
        kept.append(model.wte.weight.detach().clone())
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[1], kept[2])
    assert divergence.skipped_steps == 1


def test_gpu_and_cpu_agree(tiny: list[str], tmp_path: Path) -> None:
    settings = ["compile=false", "precision=fp32", "model.dropout=0"]
    gpu = run(tmp_path / "gpu", tiny, *settings)
    assert train.main(compose([*tiny, f"run_dir={tmp_path / 'cpu'}", *settings])) == 0
    cpu = json.loads((tmp_path / "cpu" / "result.json").read_text())
    assert gpu["val/loss"] == pytest.approx(cpu["val/loss"], rel=1e-4)


@pytest.mark.parametrize(("precision", "bits"), [("fp32", 18), ("bf16", 10)])
def test_products_of_fp32_matrices_are_as_exact_as_the_precision_says(precision: str, bits: int) -> None:
    Single(device=torch.device("cuda"), precision=precision, compiled=False)
    try:
        a, b = torch.randn(2, 1024, 1024, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
        exact = a.double() @ b.double()
        error = float((a @ b - exact).norm() / exact.norm())
        with FullFp32():
            full = float((a @ b - exact).norm() / exact.norm())
        assert full < 2**-18
        assert error < 2**-bits and (precision == "fp32" or error > 2**-14)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("make", [SOAP, Shampoo, partial(Shampoo, eigensolver="qr")])
def test_refreshes_at_once_are_those_one_after_another(
    make: Callable[..., RuleOptimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more matrices than there are threads, in stacks, with steps that are not taken.

    Singular values lie far enough apart for eigenvectors to be exact to about 1e-3; a race would leave any numbers.
    """
    ways = []
    for workers in (1, streams.WORKERS["cuda"]):
        monkeypatch.setitem(streams.WORKERS, "cuda", workers)
        generator = torch.Generator().manual_seed(0)
        bases = torch.linalg.qr(torch.randn(2, 24, 256, 256, generator=generator))[0]
        common = (bases[0] * 1.01 ** -torch.arange(256) @ bases[1]).to("cuda")
        params = [torch.zeros(256, 256, device="cuda", requires_grad=True) for _ in common]
        optimizer = make(params, lr=0.01, precondition_frequency=2, execution="eager")
        for t in range(1, 13):
            for param, each in zip(params, common, strict=True):
                param.grad = each + 1e-3 * torch.randn(256, 256, generator=generator).to("cuda")
            optimizer.found_inf = torch.tensor(float(t in (7, 8)), device="cuda")
            optimizer.step()
        ways.append(torch.stack([param.detach() for param in params]))
    assert ways[0].abs().mean() > 0.01
    assert (ways[0] - ways[1]).norm() < 0.01 * ways[0].norm()


def test_a_profile_has_the_time_of_every_phase_on_the_device(tiny: list[str], tmp_path: Path) -> None:
    quiet = ["log_every=100", "save_every=100"]  # writing a row takes longer than these steps
    run(tmp_path / "a", tiny, "profile=true", "max_steps=16", "optim=sophiag", "eval_every=10", *quiet)
    head, *rows = (tmp_path / "a" / TABLE).read_text().splitlines()[1:]
    assert "device ms" in head
    shares = {row[:12].strip(): float(row.split()[-1].removesuffix("%")) for row in rows}
    assert all(shares[name] > 0 for name in ("forward", "backward", "clip", "optimizer", "curvature", "evaluation"))
    assert shares["the rest"] < 50


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8), (torch.float64, 1e-12)]
)
def test_the_loss_has_the_value_and_the_gradient_of_float64(
    dtype: torch.dtype, tolerance: float, compiled: bool
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    logits = (20 * torch.randn(37, 50304, generator=generator, device="cuda")).to(dtype).requires_grad_()
    targets = torch.randint(50257, (37,), generator=generator, device="cuda")
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact[:, :50257], targets) * 0.3
    function = torch.compile(cross_entropy, fullgraph=True) if compiled else cross_entropy
    found = function(logits, targets, 50257) * 0.3
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected.backward()
    assert logits.grad is not None and exact.grad is not None
    assert logits.grad.dtype == dtype and not logits.grad[:, 50257:].any()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2 * tolerance, atol=1e-9)
    with torch.no_grad():
        assert function(logits, targets, 50257).item() == pytest.approx(expected.item() / 0.3, rel=1e-6)


def test_a_loss_has_no_second_derivative_and_takes_no_target_beyond_the_vocabulary() -> None:
    logits = torch.randn(4, 64, device="cuda", requires_grad=True)
    targets = torch.tensor([0, 1, 49, 50], device="cuda")
    assert cross_entropy(logits, targets, 50).isnan()
    (slope,) = torch.autograd.grad(cross_entropy(logits, targets % 50, 50), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        slope.square().sum().backward()


def test_batches_arrive_whole_on_the_device(tiny: list[str]) -> None:
    dataset = TokenDataset.open(data_path(compose(tiny)), "train")
    loaders = [
        TokenLoader(dataset, seq_len=64, global_batch=32, micro_batch=8, seed=1, device=device)
        for device in ("cuda", "cpu")
    ]
    for step in range(20):
        for theirs, ours in zip(*(loader.batches(step) for loader in loaders), strict=True):
            assert theirs.inputs.is_cuda
            assert torch.equal(theirs.inputs.cpu(), ours.inputs)
            assert torch.equal(theirs.targets.cpu(), ours.targets)
    for loader in loaders:
        loader.close()


def test_memory_is_that_of_the_device() -> None:
    before = memory_bytes(pick_device("cuda"))
    held = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    assert memory_bytes(pick_device("cuda")) >= max(before, held.nbytes)
