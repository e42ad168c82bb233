"""Hutchinson: see the class."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from .curvature import Curvature, ForwardBackward, TakesCurvature
from .hyper import widened
from .noise import SEEDS, gaussians, key_of
from .sampling import Batch, hashed
from .sharding import is_sharded


class Hutchinson(Curvature):
    """Hutchinson's estimator (Liu et al. 2024, arXiv:2305.14342, Algorithm 1): Sophia-H.

    u * (H u) with u ~ N(0, I) is an unbiased estimate of the diagonal of H, the Hessian of the mean loss with the true
    labels. It may be negative. Paper: every 10 steps, on 32 of 480 sequences. Attention runs on torch's math kernel,
    the only one with a second derivative, and the model runs uncompiled. paper_code: none before the first k steps.
    Costs three times the forward and backward pass of its sequences. Of a matrix product Y = X W forward is one product
    and backward two, dX = dY W^T and dW = X^T dY. Each of these three has two factors, and the second backward pass
    needs two products for each: six. That makes nine, where training makes three; attention's products likewise.

    Raises: also ValueError: from bind, if parameters are sharded across ranks, whose hooks break the second
    derivative's graph. RuntimeError: from update, if something in the model has no second derivative.
    """

    rho = 0.01
    passes_per_sequence = 3

    def __init__(
        self, every: int = 10, sequences: int | None = None, fraction: float = 1 / 15, *, paper_code: bool = False
    ) -> None:
        super().__init__(every, sequences, fraction, paper_code)

    @override
    def bind(
        self, optimizer: TakesCurvature, parameters: Iterable[nn.Parameter], *, seed: int, global_batch: int
    ) -> None:
        parameters = list(parameters)
        if any(is_sharded(param) for param in parameters):
            raise ValueError(
                "Hutchinson needs second derivatives, which parallel=fsdp2 does not have: use parallel=ddp, or "
                "GaussNewtonBartlett (optim=sophiag)"
            )
        super().bind(optimizer, parameters, seed=seed, global_batch=global_batch)

    @override
    def estimate(
        self, step: int, batches: Sequence[Batch], forward_backward: ForwardBackward, sequences: int
    ) -> dict[Tensor, Tensor]:
        parameters = [param for param in self._parameters if param.requires_grad]
        probes = {
            p: gaussians(p.shape, key_of(hashed(self._seed, step, n) % SEEDS), torch.float32, p.device).to(p.dtype)
            for n, p in enumerate(parameters)
        }
        used: set[Tensor] = set()

        def slope_along_probe(model: nn.Module, batch: Batch) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                logits = widened(model.forward(batch.inputs))  # forward, not __call__: that one may be compiled
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            known = {param: g for param, g in zip(parameters, gradients, strict=True) if g is not None}
            used.update(known)
            return sum(((g * probes[param]).sum() for param, g in known.items()), torch.zeros_like(loss))

        if not parameters:
            return {}
        try:
            forward_backward(batches, slope_along_probe, sequences)
        except RuntimeError as error:
            if not any(
                word in str(error) for word in ("derivative", "differentiate twice", "double backward", "extra time")
            ):
                raise
            raise RuntimeError(
                f"Hutchinson needs second derivatives, which this model lacks ({error}); use GaussNewtonBartlett, or "
                "attention and loss made of differentiable operations, uncompiled, without activation checkpointing"
            ) from error
        # The gradient of a parameter that the loss is linear in is a constant: no second derivative reaches it.
        products = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in parameters if p in used}
        return {p: widened(product).mul_(probes[p]) for p, product in products.items()}
