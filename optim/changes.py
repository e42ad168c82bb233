"""How far the updates of a step go, as a share of the parameters."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .hyper import working_dtype
from .pieces import Piece


class Changes:
    """Sums of squares of updates and of parameters, (2,), by role, of each call that `measured` made."""

    def __init__(self) -> None:
        self._found: defaultdict[str, list[Tensor]] = defaultdict(list)

    def measured(self, update: Callable[[Sequence[Piece]], None], role: str) -> Callable[[Sequence[Piece]], None]:
        """The step of some pieces that also notes how far it went, at the cost of a copy of them."""
        found = self._found[role]

        def measured(pieces: Sequence[Piece]) -> None:
            before = [piece.param.to(working_dtype(piece.param), copy=True) for piece in pieces]
            sizes = [torch.linalg.vector_norm(tensor) for tensor in before]
            update(pieces)
            for piece, tensor, size in zip(pieces, before, sizes, strict=True):
                found.append(torch.stack([torch.linalg.vector_norm(tensor.sub_(piece.param)), size]).square())

        return measured

    def ratios(self, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, Tensor]:
        """The RMS of updates over that of the parameters before them, 0-dim, by role; total: the sum over ranks."""
        sums = {
            role: total(torch.stack(found).sum(0) if found else torch.zeros(2, device=device))
            for role, found in self._found.items()
        }
        return {role: (s[0] / s[1].clamp(min=1e-30)).sqrt() for role, s in sums.items()}
