"""The token embedding; where it is also the head's matrix, without a dense gradient of its own on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


class Embedding(nn.Embedding):
    """torch's Embedding. is_tied: whether its matrix is the head's, too, which then has a dense gradient.

    To a copy of that one a CPU in eager mode adds the rows of the tokens; torch would fill a matrix of the vocabulary's
    size with zeros and add all of it.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, is_tied: bool) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.is_tied = is_tied

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.is_tied and input.device.type == "cpu" and not torch.compiler.is_compiling():
            x: Tensor = _SparseGradient.apply(self.weight, input)  # type: ignore[no-untyped-call]  # torch leaves it so
            return x
        return super().forward(input)


class _SparseGradient(torch.autograd.Function):
    """Looks rows up; the gradient is a sparse tensor, which autograd adds to the head's, dense where one of it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.shape = weight.shape
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (tokens,) = ctx.saved_tensors
        rows, of = grad_output.flatten(0, -2), tokens.flatten()
        if torch.is_grad_enabled():
            return torch.zeros(ctx.shape, dtype=rows.dtype).index_add(0, of, rows), None
        return torch.sparse_coo_tensor(of[None], rows, ctx.shape, check_invariants=False), None
