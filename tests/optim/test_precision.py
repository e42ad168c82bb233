"""TensorFloat32 is for an optimizer's products of every step, not for those of factorisations."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from configs import compose
from model import GPT
from optim.build import build
from optim.precision import FullFp32

aten = torch.ops.aten
FACTORISATIONS = (aten._linalg_eigh, aten.geqrf, aten.linalg_householder_product, aten._linalg_svd, aten.linalg_qr)
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)


@pytest.fixture(autouse=True)
def tf32_is_allowed() -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


class Seen(TorchDispatchMode):
    """Notes the precision of fp32 products beside every factorisation and product."""

    def __init__(self) -> None:
        super().__init__()
        self.factorisations: list[str] = []
        self.products: list[str] = []

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kinds, seen in ((FACTORISATIONS, self.factorisations), (PRODUCTS, self.products)):
            if func.overloadpacket in kinds:
                seen.append(torch.backends.cuda.matmul.fp32_precision)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("option", ["adapprox", "coap", "galore", "shampoo", "soap"])
def test_factorisations_see_full_fp32_and_ordinary_steps_do_not(option: str) -> None:
    torch.manual_seed(0)
    model = GPT(vocab_size=11, n_layer=1, n_head=2, n_embd=8, block_size=4)
    optimizer = build(
        compose([f"optim={option}"]).optim, dict(model.named_parameters()), model.roles(), seed=1, global_batch=4
    )
    with Seen() as seen:
        for _ in range(12):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
    assert set(seen.factorisations) == {"ieee"}
    assert "tf32" in seen.products
    assert torch.get_float32_matmul_precision() == "high"  # also readable by the interface that torch's compiler reads


def test_full_fp32_holds_until_the_last_thread_has_left() -> None:
    first, second = FullFp32(), FullFp32()
    for change in (first.__enter__, second.__enter__, first.__exit__):
        change()
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    second.__exit__()
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
