"""GaussNewtonBartlett: see the class."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from .curvature import Curvature, ForwardBackward
from .hyper import widened
from .sampling import Batch, draw_labels, uniforms


class GaussNewtonBartlett(Curvature):
    """Gauss-Newton-Bartlett (Liu et al. 2024, arXiv:2305.14342, Algorithm 2): Sophia-G.

    Draws labels from the model's own predictions; B times the squared gradient of the loss for them is an unbiased
    estimate of the diagonal of the Gauss-Newton matrix, B the number of tokens used.
    Paper: every 10 steps, on 240 of 480 sequences. paper_code: the gradient of the drawn labels is clipped to norm 1
    before it is squared (biases the estimate down), and there is none before the first k steps are done; that code also
    takes all sequences, fraction=1.
    """

    rho = 0.05

    def __init__(
        self, every: int = 10, sequences: int | None = None, fraction: float = 0.5, *, paper_code: bool = False
    ) -> None:
        super().__init__(every, sequences, fraction, paper_code)

    @override
    def estimate(
        self, step: int, batches: Sequence[Batch], forward_backward: ForwardBackward, sequences: int
    ) -> dict[Tensor, Tensor]:
        tokens = 0

        def drawn_label_loss(model: nn.Module, batch: Batch) -> Tensor:
            nonlocal tokens
            logits = widened(model(batch.inputs))  # (B, T, V)
            uniform = uniforms(self._seed, step, batch, logits.dtype)
            # Row by row: the temporaries, several times the logits, would otherwise be the peak of the whole run.
            labels = torch.stack([draw_labels(*row) for row in zip(logits.detach(), uniform, strict=True)])
            tokens = sequences * labels.shape[1]
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

        forward_backward(batches, drawn_label_loss, sequences)
        if self.paper_code:
            nn.utils.clip_grad_norm_(self._parameters, 1.0)
        return {p: widened(p.grad).square_().mul_(tokens) for p in self._parameters if p.grad is not None}
