"""The gradient of a tied embedding beside torch's, dense one."""

import pytest
import torch
from torch import Tensor

from model.embedding import Embedding
from model.gpt import GPT


def gradients(is_sparse: bool, micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = GPT(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=50).double()
    monkeypatch.setattr(model.wte, "is_tied", is_sparse)
    for seed in range(micro_batches):
        tokens = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(seed))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(p.grad is not None for p in model.parameters())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_rows_added_to_the_heads_gradient_make_the_dense_one(
    micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, expected = (gradients(is_sparse, micro_batches, monkeypatch) for is_sparse in (True, False))
    assert found["wte.weight"].layout == torch.strided
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_tied_embedding_alone_has_a_sparse_gradient() -> None:
    embedding = Embedding(50, 16, is_tied=True)
    tokens = torch.tensor([[3, 7, 3]])
    (found,) = torch.autograd.grad(embedding(tokens).sum(), embedding.weight)
    assert found.is_sparse
    assert found.to_dense().sum(1).nonzero().flatten().tolist() == [3, 7]
    assert found.to_dense()[3].eq(2).all()


def test_a_gradient_that_is_derived_again_is_dense() -> None:
    tokens = torch.tensor([1, 4, 1])
    found = []
    for is_tied in (True, False):
        torch.manual_seed(0)
        embedding = Embedding(5, 2, is_tied=is_tied).double()
        (slope,) = torch.autograd.grad((embedding(tokens) ** 3).sum(), embedding.weight, create_graph=True)
        found += torch.autograd.grad(slope.square().sum(), embedding.weight)
    torch.testing.assert_close(found[0].to_dense(), found[1], rtol=1e-12, atol=0)
